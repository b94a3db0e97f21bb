//! What time brings: leases end, how long the others last is noted, old history is forgotten, answers are not taken, and
//! somebody takes the file away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::in_flight::InFlight;
use crate::place::Place;
use crate::shared::Shared;
use crate::writer::Request;

/// How often is looked for leases that have expired.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often the file is told how long leases last, where it believes in so much more. A lease that is shorter is given its
/// full time by each start.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// How often is looked whether the file is still there.
const PLACE_INTERVAL: Duration = Duration::from_secs(2);
/// Steps in which history is forgotten.
const STEPS: u32 = 10;

/// Looks after a store, until it cannot go on; answers why.
pub(crate) async fn run(
    shared: Arc<Shared>,
    in_flight: Arc<InFlight>,
    place: Place,
    retention: Duration,
) -> String {
    let mut expiry = interval(EXPIRY_INTERVAL);
    let mut checkpoint = interval(CHECKPOINT_INTERVAL);
    let mut history = interval((retention / STEPS).max(Duration::from_millis(100)));
    let mut presence = interval(PLACE_INTERVAL);
    let mut past = Past::default();
    loop {
        tokio::select! {
            _ = presence.tick() => {
                in_flight.end_stuck();
                if let Err(reason) = place.check() {
                    return reason;
                }
            }
            _ = expiry.tick() => {
                end_leases(&shared).await;
                if shared.failure().is_some() {
                    // Whether the file can be written again.
                    let _ = shared.write(Request::Checkpoint(Vec::new())).await;
                }
            }
            _ = checkpoint.tick() => {
                let due = shared.state().leases.to_checkpoint(CHECKPOINT_INTERVAL, Instant::now());
                if !due.is_empty() && let Err(refusal) = shared.write(Request::Checkpoint(due)).await {
                    debug!(?refusal, "cannot note how long leases last");
                }
            }
            _ = history.tick() => {
                if let Some(revision) = past.forget(Instant::now(), retention, shared.revision()) {
                    match shared.write(Request::Compact(revision)).await {
                        Ok(_) => debug!(revision, "forgot the history before"),
                        // Somebody else has compacted meanwhile.
                        Err(refusal) => debug!(revision, ?refusal, "did not compact"),
                    }
                }
            }
        }
    }
}

async fn end_leases(shared: &Shared) {
    let expired = shared.state().leases.expired(Instant::now());
    if expired.is_empty() {
        return;
    }
    let leases = expired.len();
    match shared.write(Request::Expire(expired)).await {
        Ok(_) => info!(leases, "leases have expired, and what they kept is deleted"),
        Err(refusal) => {
            let reason = refusal.reason();
            warn!(leases, reason, "leases have expired, and what they kept cannot be deleted yet");
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Which revision was the last at which time.
#[derive(Debug, Default)]
struct Past(VecDeque<(Instant, i64)>);

impl Past {
    /// Notes the revision of now. Answers up to which one the history is older than `retention`, when there is more of that
    /// than the last time.
    fn forget(&mut self, now: Instant, retention: Duration, revision: i64) -> Option<i64> {
        if self.0.back().is_none_or(|(_, last)| *last < revision) {
            self.0.push_back((now, revision));
        }
        let mut old = None;
        // What was the last revision then is seen until the next one came.
        while self.0.front().is_some_and(|(at, _)| now.duration_since(*at) >= retention) {
            old = self.0.pop_front().map(|(_, revision)| revision);
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_forgotten_when_it_is_old() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let hour = Duration::from_secs(3600);
        let mut past = Past::default();
        assert_eq!(past.forget(at(0), hour, 5), None);
        assert_eq!(past.forget(at(1800), hour, 9), None);
        assert_eq!(past.forget(at(3599), hour, 12), None);
        assert_eq!(past.forget(at(3600), hour, 12), Some(5));
        assert_eq!(past.forget(at(3700), hour, 12), None);
        assert_eq!(past.forget(at(9000), hour, 12), Some(12));
        assert_eq!(past.forget(at(90_000), hour, 12), None, "once");
    }
}
