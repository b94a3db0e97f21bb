//! Counts repairs, and logs them once no more follow.

use std::collections::BTreeMap;
use std::time::Duration;

use flan_agent_api::Repairs;
use flan_kernel::{Object, Operation};
use tokio::time::Instant;
use tracing::{info, warn};

/// Repairs so far, and those not logged yet.
#[derive(Debug)]
pub(super) struct RepairLog {
    total: Repairs,
    now: Repairs,
    /// The first repair not logged yet.
    first: Option<String>,
    last: Option<Instant>,
    /// Recent repairs, by their text.
    lately: BTreeMap<String, Lately>,
    rules_in_a_row: u32,
}

/// Key under which repairs of the packet filter rules are counted.
const RULES: &str = "rules";
/// Repairs are logged when none has followed for this long.
const QUIET: Duration = Duration::from_secs(1);
/// A repair that is undone this quickly is undone on purpose: damage by hand, or by a program that tries many things,
/// comes more slowly. Includes the time that we wait for more damage.
const AT_ONCE: Duration = Duration::from_millis(60);
/// This many quick undoings are a fight. One is forgotten after each such period, because the opponent may be late at
/// times. During a fight, whatever is undone within the period counts.
const FIGHT: (u32, Duration) = (8, Duration::from_millis(500));
/// First wait in a fight, doubled each time, and the longest wait.
const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Repairs older than this are forgotten.
const PEACE: Duration = Duration::from_secs(60);
/// Limit of remembered repairs. More at once are not a fight about one object.
const REMEMBERED: usize = 1000;
/// Consecutive repairs of the rules that cause a warning.
const RULES_IN_A_ROW: u32 = 5;

/// A repair that may be undone repeatedly.
#[derive(Debug)]
struct Lately {
    last: Instant,
    /// When all quick undoings will be forgotten.
    forgotten: Instant,
    /// Waits so far in this fight.
    waits: u32,
}

impl Lately {
    fn new(now: Instant) -> Self {
        Self { last: now, forgotten: now, waits: 0 }
    }

    /// Records that the repair was undone. In a fight, returns how long the next one must wait.
    fn undone(&mut self, now: Instant) -> Option<Duration> {
        let is_fight = self.waits > 0 && now < self.forgotten;
        if now >= self.last + if is_fight { FIGHT.1 } else { AT_ONCE } {
            return None;
        }
        // Capped at what makes a fight, so that a long one is forgotten as soon as a short one.
        self.forgotten = (self.forgotten.max(now) + FIGHT.1).min(now + FIGHT.1 * FIGHT.0);
        if self.forgotten - now <= FIGHT.1 * (FIGHT.0 - 1) {
            self.waits = 0;
            return None;
        }
        let wait = (WAITS.0 * 2u32.pow(self.waits.min(6))).min(WAITS.1);
        self.waits += 1;
        // The wait itself does not count towards forgetting.
        self.forgotten += wait;
        Some(wait)
    }
}

impl RepairLog {
    /// Counts a repair.
    pub(super) fn count(&mut self, operation: &Operation, now: Instant) {
        let kind = operation.object().name().short;
        self.now.add(kind, 1);
        self.total.add(kind, 1);
        self.first.get_or_insert_with(|| operation.to_string());
        self.last = Some(now);
        if self.lately.len() < REMEMBERED {
            self.lately.entry(operation.to_string()).or_insert_with(|| Lately::new(now)).last = now;
        }
    }

    /// Returns how long a repair must wait that was undone too often.
    pub(super) fn must_wait(&mut self, operation: &Operation, now: Instant) -> Option<Duration> {
        if self.lately.is_empty() {
            return None;
        }
        self.lately.get_mut(&operation.to_string())?.undone(now)
    }

    /// Counts a repair of the rules, unless they were put in place for the first time.
    pub(super) fn count_rules(&mut self, stood_before: bool) {
        if stood_before {
            self.total.add(RULES, 1);
            self.rules_in_a_row += 1;
        }
        if self.rules_in_a_row == RULES_IN_A_ROW {
            warn!(
                times = RULES_IN_A_ROW,
                "another program removes our packet filter rules each time that fland restores them"
            );
        }
    }

    /// Records that the rules were found in place.
    pub(super) fn rules_stand(&mut self) {
        self.rules_in_a_row = 0;
    }

    /// Returns when to log the repairs.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.last.map(|last| last + QUIET)
    }

    /// Logs the repairs, if due.
    pub(super) fn tell(&mut self, now: Instant) {
        if self.tell_at().is_none_or(|at| now < at) {
            return;
        }
        let first = self.first.take().unwrap_or_default();
        info!(repaired = in_words(&self.now), first, "repaired changes by another program");
        self.now = Repairs::of_kinds(Object::NAMES.iter().map(|name| name.short));
        self.last = None;
        self.lately.retain(|_, lately| now < lately.last + PEACE);
    }

    /// Returns the number of repairs so far, by kind.
    pub(super) fn total(&self) -> Repairs {
        self.total.clone()
    }
}

impl Default for RepairLog {
    fn default() -> Self {
        let none = || Repairs::of_kinds(Object::NAMES.iter().map(|name| name.short));
        let mut total = none();
        total.add(RULES, 0);
        Self { total, now: none(), first: None, last: None, lately: BTreeMap::new(), rules_in_a_row: 0 }
    }
}

/// Formats as `1 neighbour, 2 routes`.
fn in_words(repairs: &Repairs) -> String {
    let parts = Object::NAMES.iter().filter_map(|name| match repairs.of(name.short) {
        0 => None,
        1 => Some(format!("1 {}", name.one)),
        count => Some(format!("{count} {}", name.many)),
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the waits of a repair that is undone `times` times, each time after `lasts`.
    fn waits(times: u32, lasts: impl Fn(u32) -> Duration) -> Vec<Option<Duration>> {
        let mut now = Instant::now();
        let mut lately = Lately::new(now);
        let mut undone = |nth| {
            now += lasts(nth);
            let wait = lately.undone(now);
            now += wait.unwrap_or_default();
            lately.last = now;
            wait
        };
        (0..times).map(&mut undone).collect()
    }

    #[test]
    fn what_is_undone_after_a_moment_is_repaired_each_time() {
        assert_eq!(waits(100, |_| Duration::from_millis(80)), [None; 100]);
    }

    #[test]
    fn a_fight_goes_on_when_the_other_is_late_now_and_then() {
        let waits = waits(40, |nth| Duration::from_millis(if nth % 2 == 0 { 20 } else { 120 }));
        assert!(waits[..14].iter().all(Option::is_none), "{waits:?}");
        let begun = waits.iter().skip_while(|wait| wait.is_none());
        let fight: Vec<Duration> = begun.map(|wait| wait.expect("none is let off")).collect();
        assert_eq!(fight[..3], [500, 1000, 2000].map(Duration::from_millis));
        assert_eq!(fight.last(), Some(&WAITS.1));
    }

    #[test]
    fn a_fight_is_over_when_the_repair_has_lasted_a_while() {
        let waits = waits(40, |nth| Duration::from_millis(if nth == 20 { 31_000 } else { 20 }));
        assert_eq!(waits[19], Some(WAITS.1));
        assert!(waits[20..28].iter().all(Option::is_none), "{waits:?}");
        assert_eq!(waits[28], Some(WAITS.0));
    }

    #[test]
    fn repairs_are_told_by_kind_and_number() {
        let mut repairs = Repairs::default();
        for (kind, count) in [("route", 2), ("neighbour", 1), ("fdb", 3)] {
            repairs.add(kind, count);
        }
        assert_eq!(in_words(&repairs), "1 neighbour, 3 forwarding entries, 2 routes");
    }
}
