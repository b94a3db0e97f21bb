//! Operations that must wait: those that the kernel refused, and repairs that something keeps undoing.

use std::collections::BTreeMap;
use std::time::Duration;

use flan_agent_api::Code;
use flan_kernel::{FailedOperation, KernelError, Object, Operation};
use tokio::time::Instant;
use tracing::warn;

use crate::ports;

/// Objects whose operations wait.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    waits: BTreeMap<Object, Wait>,
}

#[derive(Debug)]
struct Wait {
    /// `None` when the wait is over and only the reason is kept.
    until: Option<Instant>,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// The kernel refused the operation this many times in a row.
    Refused {
        times: u32,
        what: String,
        /// Who holds the port that it needs, and what to do.
        port_taken: Option<String>,
    },
    /// Something undoes our repair.
    Disputed(String),
}

impl Deferred {
    /// Returns whether `object` must wait.
    pub(super) fn holds(&self, object: &Object, now: Instant) -> bool {
        self.waits.get(object).is_some_and(|wait| wait.until > Some(now))
    }

    /// Returns when the next wait ends.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.waits.values().filter_map(|wait| wait.until).filter(|until| *until > now).min()
    }

    /// Records a refusal. The retry follows after 0.25 s, doubled each time up to 30 s.
    pub(super) fn failed(&mut self, refusal: &FailedOperation, now: Instant) {
        let object = refusal.operation.object();
        let (times, before) = match self.waits.remove(&object) {
            Some(Wait { why: Why::Refused { times, port_taken, .. }, .. }) => (times + 1, port_taken),
            _ => (1, None),
        };
        let port_taken = match &refusal.reason {
            KernelError::PortTaken { port, holder } => Some(ports::still_taken(*port, holder, before)),
            _ => None,
        };
        let why = Why::Refused { times, what: refusal.to_string(), port_taken };
        self.waits.insert(object, Wait { until: Some(now + retry_after(times)), why });
    }

    pub(super) fn succeeded(&mut self, object: &Object) {
        self.waits.remove(object);
    }

    /// Ends the wait of `object`, because whatever blocked it may be gone. Returns whether it waited.
    pub(super) fn release(&mut self, object: &Object) -> bool {
        match self.waits.get_mut(object) {
            Some(Wait { until, why: Why::Refused { .. } }) => {
                *until = None;
                true
            }
            _ => false,
        }
    }

    /// The same for all devices.
    pub(super) fn release_links(&mut self) -> bool {
        let links: Vec<Object> =
            self.waits.keys().filter(|object| object.as_device().is_some()).copied().collect();
        links.iter().filter(|object| self.release(object)).count() > 0
    }

    /// Delays a repair that another program keeps undoing.
    pub(super) fn dispute(&mut self, operation: &Operation, wait: Duration, now: Instant) {
        warn!(code = %Code::Kernel, repair = %operation, ?wait, "another program keeps undoing our repair; waiting before the next one");
        let why = Why::Disputed(operation.to_string());
        self.waits.insert(operation.object(), Wait { until: Some(now + wait), why });
    }

    /// Returns whether `object` waits, or has waited and is due now.
    pub(super) fn knows(&self, object: &Object) -> bool {
        self.waits.contains_key(object)
    }

    /// Returns the first reason to wait, in one line.
    pub(super) fn problem(&self) -> Option<String> {
        let first = match &self.waits.values().next()?.why {
            Why::Refused { what, .. } => what.clone(),
            Why::Disputed(repair) => format!("another program keeps undoing our repair: {repair}"),
        };
        Some(match self.waits.len() {
            1 => first,
            count => format!("{first} (and {} more)", count - 1),
        })
    }

    /// Returns who holds a port that is needed, and what to do.
    pub(super) fn port_taken(&self) -> Option<String> {
        self.waits.values().find_map(|wait| match &wait.why {
            Why::Refused { port_taken, .. } => port_taken.clone(),
            Why::Disputed(_) => None,
        })
    }

    /// Keeps only objects that differ from what is wanted.
    pub(super) fn retain(&mut self, differs: impl Fn(&Object) -> bool) {
        self.waits.retain(|object, _| differs(object));
    }
}

fn retry_after(times: u32) -> Duration {
    Duration::from_millis(250 << times.saturating_sub(1).min(7)).min(Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use flan_host::ports::taken;
    use flan_kernel::netlink::Holder;
    use flan_kernel::{Edit, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget};

    use super::*;

    #[test]
    fn a_holder_that_is_no_longer_found_is_still_the_one_who_is_told_of() {
        let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
        let route = Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL };
        let refused = |holder: &Holder| FailedOperation {
            operation: Operation::Route(Edit::Delete { key, held: route }),
            reason: KernelError::PortTaken { port: 8472, holder: holder.clone() },
        };
        let (mut deferred, now) = (Deferred::default(), Instant::now());
        let device = Holder::Vxlan { name: "vx9".parse().unwrap(), external: true };
        for holder in [&device, &Holder::Unknown] {
            deferred.failed(&refused(holder), now);
            assert_eq!(deferred.port_taken(), Some(taken(8472, &device)));
        }
        deferred.succeeded(&Object::Route(key));
        deferred.failed(&refused(&Holder::Unknown), now);
        assert_eq!(deferred.port_taken(), Some(taken(8472, &Holder::Unknown)));
    }

    #[test]
    fn retries_slow_down_to_half_a_minute() {
        let waits: Vec<u128> = (1..10).map(|times| retry_after(times).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    }
}
