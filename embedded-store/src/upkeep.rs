//! Timed work: ends leases, records how long the others last, compacts old history, ends answers that no client takes,
//! and checks that the file is there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::handle::StoreHandle;
use crate::in_flight::InFlight;
use crate::place::Place;
use crate::request::WriteRequest;

/// How often expired leases are ended.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often the times of leases on disk are corrected, and the error that is corrected. A lease shorter than this gets
/// its full time at each start.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// How often the file's presence is checked.
const PLACE_INTERVAL: Duration = Duration::from_secs(2);
/// Steps in which the history is compacted.
const STEPS: u32 = 10;

/// Does the timed work until the store cannot continue. Returns the reason.
pub(crate) async fn run(
    store: Arc<StoreHandle>,
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
                end_leases(&store).await;
                if store.failure().is_some() {
                    // Finds out whether the file can be written again.
                    let _ = store.write(WriteRequest::Checkpoint(Vec::new())).await;
                }
            }
            _ = checkpoint.tick() => {
                let due = store.contents().leases.to_checkpoint(CHECKPOINT_INTERVAL, Instant::now());
                if !due.is_empty() && let Err(refusal) = store.write(WriteRequest::Checkpoint(due)).await {
                    debug!(?refusal, "cannot record how long leases last");
                }
            }
            _ = history.tick() => {
                if let Some(revision) = past.forget(Instant::now(), retention, store.revision()) {
                    match store.write(WriteRequest::Compact(revision)).await {
                        Ok(_) => debug!(revision, "compacted the history"),
                        // Somebody else has compacted.
                        Err(refusal) => debug!(revision, ?refusal, "did not compact"),
                    }
                }
            }
        }
    }
}

async fn end_leases(store: &StoreHandle) {
    let expired = store.contents().leases.expired(Instant::now());
    if expired.is_empty() {
        return;
    }
    let leases = expired.len();
    match store.write(WriteRequest::Expire(expired)).await {
        Ok(_) => info!(leases, "leases have expired; deleted their keys"),
        Err(refusal) => {
            let reason = refusal.reason();
            warn!(leases, reason, "leases have expired, but their keys cannot be deleted yet");
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The last revision at points in time.
#[derive(Debug, Default)]
struct Past(VecDeque<(Instant, i64)>);

impl Past {
    /// Records the current revision. Returns the revision up to which the history is older than `retention`, if it has
    /// grown since the last call.
    fn forget(&mut self, now: Instant, retention: Duration, revision: i64) -> Option<i64> {
        if self.0.back().is_none_or(|(_, last)| *last < revision) {
            self.0.push_back((now, revision));
        }
        let mut old = None;
        // The last revision of that time stayed visible until the next one.
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
