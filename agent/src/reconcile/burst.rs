//! Counting what was put right, and telling of it once it is quiet again.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use flan_kernel::{Object, Operation};
use serde::Serialize;
use tokio::time::Instant;
use tracing::{info, warn};

/// Repairs, by the kind of what was repaired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repairs {
    /// Devices.
    pub link: u64,
    /// Addresses on them.
    pub address: u64,
    /// Neighbours.
    pub neighbour: u64,
    /// Forwarding entries.
    pub fdb: u64,
    /// Next hop objects.
    pub next_hop: u64,
    /// Routes.
    pub route: u64,
    /// Packet filter rules.
    pub rules: u64,
}

/// Repairs so far, and those of this moment.
#[derive(Debug, Default)]
pub(super) struct Burst {
    total: Repairs,
    now: Repairs,
    /// The first of them, in words.
    first: Option<String>,
    last: Option<Instant>,
    /// How often in a row an object was repaired, and when it was last.
    lately: BTreeMap<Object, (u32, Instant)>,
    rules_in_a_row: u32,
}

/// A burst is over when nothing was repaired for this long.
const QUIET: Duration = Duration::from_secs(1);
/// Two repairs of one object within this time are one after the other.
const LATELY: Duration = Duration::from_secs(60);
/// Objects whose repairs are remembered. When more are gone at once, it is not about one of them.
const REMEMBERED: usize = 1000;
/// Repairs of the rules in a row that are worth a warning: somebody sets them back each time.
const RULES_IN_A_ROW: u32 = 5;

impl Burst {
    /// One more repair.
    pub(super) fn count(&mut self, operation: &Operation, now: Instant) {
        let object = operation.object();
        *self.now.of(&object) += 1;
        *self.total.of(&object) += 1;
        self.first.get_or_insert_with(|| operation.to_string());
        self.last = Some(now);
        let times = self.times_lately(&object, now);
        if times > 0 || self.lately.len() < REMEMBERED {
            self.lately.insert(object, (times + 1, now));
        }
    }

    /// The rules were put in place, after they had stood there or not.
    pub(super) fn count_rules(&mut self, stood_before: bool) {
        if stood_before {
            self.total.rules += 1;
            self.rules_in_a_row += 1;
        }
        if self.rules_in_a_row == RULES_IN_A_ROW {
            warn!(
                times = RULES_IN_A_ROW,
                "another program takes our packet filter rules away each time that they are put back"
            );
        }
    }

    /// The rules stood as they should.
    pub(super) fn rules_stand(&mut self) {
        self.rules_in_a_row = 0;
    }

    /// How often in a row `object` was repaired lately.
    pub(super) fn times_lately(&self, object: &Object, now: Instant) -> u32 {
        match self.lately.get(object) {
            Some((times, last)) if now < *last + LATELY => *times,
            _ => 0,
        }
    }

    /// When the repairs of this moment are to be told.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.last.map(|last| last + QUIET)
    }

    /// Tells of them, if it is time.
    pub(super) fn tell(&mut self, now: Instant) {
        if self.tell_at().is_none_or(|at| now < at) {
            return;
        }
        let first = self.first.take().unwrap_or_default();
        info!(repaired = %self.now, first, "put right what another program had changed");
        self.now = Repairs::default();
        self.last = None;
        self.lately.retain(|_, (_, last)| now < *last + LATELY);
    }

    pub(super) fn repairs(&self) -> Repairs {
        self.total
    }
}

impl Repairs {
    fn of(&mut self, object: &Object) -> &mut u64 {
        match object {
            Object::Link(_) => &mut self.link,
            Object::Address(_) => &mut self.address,
            Object::Neighbour(_) => &mut self.neighbour,
            Object::Fdb(_) => &mut self.fdb,
            Object::NextHop(_) => &mut self.next_hop,
            Object::Route(_) => &mut self.route,
        }
    }
}

impl fmt::Display for Repairs {
    /// `2 routes, 1 neighbour`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.link, "link", "links"),
            (self.address, "address", "addresses"),
            (self.neighbour, "neighbour", "neighbours"),
            (self.fdb, "forwarding entry", "forwarding entries"),
            (self.next_hop, "next hop", "next hops"),
            (self.route, "route", "routes"),
            (self.rules, "set of rules", "sets of rules"),
        ];
        let parts: Vec<String> = kinds
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
            .collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_told_by_kind_and_number() {
        let repairs = Repairs { route: 2, neighbour: 1, fdb: 3, ..Repairs::default() };
        assert_eq!(repairs.to_string(), "1 neighbour, 3 forwarding entries, 2 routes");
    }
}
