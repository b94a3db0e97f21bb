//! What must not be tried before a certain time: operations that the kernel refused, and repairs that something undoes
//! again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flan_kernel::{FailedOperation, Object};
use tokio::time::Instant;
use tracing::warn;

use super::burst::Burst;

/// Objects that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    waits: BTreeMap<Object, Wait>,
}

#[derive(Debug)]
struct Wait {
    /// `None`: no longer, only the reason is still worth telling.
    until: Option<Instant>,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// The kernel refused the operation so many times in a row.
    Refused { times: u32, what: String },
    /// Somebody undoes our repair.
    Disputed { times: u32 },
}

/// Repairs of one object within a minute of each other before we wait with the next.
const PATIENCE: u32 = 3;

impl Waiting {
    /// Whether `object` has to wait.
    pub(super) fn holds(&self, object: &Object, now: Instant) -> bool {
        self.waits.get(object).is_some_and(|wait| wait.until > Some(now))
    }

    /// When the next wait ends.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.waits.values().filter_map(|wait| wait.until).filter(|until| *until > now).min()
    }

    /// The kernel refused an operation: it is tried again after 1 s, doubled each time up to 30 s.
    pub(super) fn failed(&mut self, refusal: &FailedOperation, now: Instant) {
        let object = refusal.operation.object();
        let times = match self.waits.get(&object) {
            Some(Wait { why: Why::Refused { times, .. }, .. }) => times + 1,
            _ => 1,
        };
        let why = Why::Refused { times, what: refusal.to_string() };
        self.waits.insert(object, Wait { until: Some(now + retry_after(times)), why });
    }

    /// An operation on `object` succeeded.
    pub(super) fn succeeded(&mut self, object: &Object) {
        self.waits.remove(object);
    }

    /// Something happened to `object` that may have removed what was in the way. Answers whether it waited.
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
            self.waits.keys().filter(|object| matches!(object, Object::Link(_))).copied().collect();
        links.iter().fold(false, |released, object| self.release(object) || released)
    }

    /// Lets those of `disturbed` wait that were put right several times already and are wrong again.
    pub(super) fn dispute(&mut self, disturbed: &BTreeSet<Object>, burst: &mut Burst, now: Instant) {
        for object in disturbed {
            let times = burst.times_lately(object, now);
            if times < PATIENCE || self.waits.contains_key(object) {
                continue;
            }
            let wait = retry_after(times - PATIENCE + 1);
            warn!(
                what = %object, times, ?wait,
                "something undoes our repair again and again; waiting before the next one"
            );
            self.waits.insert(*object, Wait { until: Some(now + wait), why: Why::Disputed { times } });
        }
    }

    /// What is waited for, in one line.
    pub(super) fn problem(&self) -> Option<String> {
        let (object, wait) = self.waits.iter().next()?;
        let first = match &wait.why {
            Why::Refused { what, .. } => what.clone(),
            Why::Disputed { times } => {
                format!("something has undone our repair of {} {times} times", object)
            }
        };
        Some(match self.waits.len() {
            1 => first,
            count => format!("{first} (and {} more)", count - 1),
        })
    }

    /// Forgets what no longer differs from what is wanted.
    pub(super) fn retain(&mut self, differs: impl Fn(&Object) -> bool) {
        self.waits.retain(|object, _| differs(object));
    }
}

/// 1 s, doubled each time, up to 30 s.
fn retry_after(times: u32) -> Duration {
    Duration::from_secs(1 << times.saturating_sub(1).min(5)).min(Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_to_half_a_minute() {
        let waits: Vec<u64> = (1..8).map(|times| retry_after(times).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }
}
