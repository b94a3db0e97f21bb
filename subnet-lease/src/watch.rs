//! Follows a collection: list, watch, and list again whenever the watch ends, for whatever reason.
//!
//! A watch that was compacted, closed, cancelled or silent, a restarted etcd and a replaced cluster all lead to the
//! same place: one complete new list, which the receiver compares with what it knows. No event is guessed.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::store::{Collection, Watch, WatchMessage};
use crate::stored::{KeyChange, Listing, Stored};

/// An event of the watch.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent<T: Stored> {
    /// The complete state of the store; replaces everything before.
    Listed(Listing<T>),
    /// Later changes, in order.
    Changed(Vec<KeyChange<T>>),
    /// The view may be outdated from now until the next list.
    Interrupted {
        /// Why.
        reason: String,
    },
}

/// Follows a collection until nobody listens any more.
pub struct Watcher<T: Stored> {
    collection: Collection<T>,
    machine: Machine,
    watch: Option<Watch<T>>,
    /// An existing list that was not sent yet.
    listed: Option<Listing<T>>,
}

impl<T: Stored> Watcher<T> {
    /// Creates a watcher that has not started.
    pub fn new(collection: Collection<T>) -> Self {
        Self { collection, machine: Machine::new(T::PLURAL), watch: None, listed: None }
    }

    /// Creates a watcher that first sends an existing list, and continues from there. If the list is so old that the
    /// store has compacted what followed, a new list is made.
    pub fn behind(collection: Collection<T>, listing: Listing<T>) -> Self {
        let mut watcher = Self::new(collection);
        watcher.machine.listed(&listing);
        Self { listed: Some(listing), ..watcher }
    }

    /// Lists and watches; sends every event to `events`. Ends when the receiver is gone.
    pub async fn run(mut self, events: mpsc::Sender<WatchEvent<T>>) {
        if let Some(listing) = self.listed.take()
            && events.send(WatchEvent::Listed(listing)).await.is_err()
        {
            return;
        }
        loop {
            let event = tokio::select! {
                event = self.step() => event,
                () = events.closed() => return,
            };
            if let Some(event) = event
                && events.send(event).await.is_err()
            {
                return;
            }
        }
    }

    /// Runs one step of the machine: does what it asks, and reports the outcome.
    async fn step(&mut self) -> Option<WatchEvent<T>> {
        match self.machine.step(Instant::now()) {
            Step::Sleep(until) => {
                tokio::time::sleep_until(until).await;
                None
            }
            Step::List => match self.collection.list().await {
                Ok(listing) => {
                    self.machine.listed(&listing);
                    Some(WatchEvent::Listed(listing))
                }
                Err(error) => self.failed(&error.to_string()),
            },
            Step::Open { revision } => match self.collection.watch(revision).await {
                Ok(watch) => {
                    self.watch = Some(watch);
                    self.machine.opened(Instant::now(), self.collection.patience());
                    None
                }
                Err(error) => self.failed(&error.to_string()),
            },
            Step::Read { until } => self.read(until).await,
            Step::Probe => {
                debug!("the watch is silent, asking for a sign of life");
                if let Some(watch) = &mut self.watch {
                    watch.probe().await;
                }
                None
            }
            Step::GiveUp => self.failed("the watch is silent and does not answer"),
        }
    }

    async fn read(&mut self, until: Instant) -> Option<WatchEvent<T>> {
        let Some(watch) = &mut self.watch else { return self.failed("there is no watch to read from") };
        match tokio::time::timeout_at(until, watch.message()).await {
            Ok(WatchMessage::Changes(changes)) => {
                self.machine.heard(Instant::now());
                (!changes.is_empty()).then_some(WatchEvent::Changed(changes))
            }
            Ok(WatchMessage::Ended(reason)) => self.failed(&reason),
            Err(_) => None,
        }
    }

    fn failed(&mut self, reason: &str) -> Option<WatchEvent<T>> {
        self.watch = None;
        let wait = self.machine.failed(Instant::now());
        self.collection.watch_broke();
        warn!(reason, retry_in = ?wait, "lost sight of the {}; listing them again", T::PLURAL);
        Some(WatchEvent::Interrupted { reason: reason.to_owned() })
    }
}

/// A watch that was silent for this long is asked for a sign of life.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);
/// A watch that lasted this long was good: the next failure counts as the first.
const GOOD: Duration = Duration::from_secs(5);
/// The shortest and the longest wait after a failure, before jitter.
pub(crate) const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Decides what to do next. It knows neither the store nor the clock.
struct Machine {
    /// What is followed, for the log.
    plural: &'static str,
    phase: Phase,
    backoff: Backoff,
    /// The cluster and the revision of the last list.
    last: Option<(u64, i64)>,
}

enum Phase {
    /// Nothing is known: list.
    Listing,
    /// A list exists; the watch must continue after it.
    Opening { revision: i64 },
    /// The watch is open.
    Watching { since: Instant, heard: Instant, probed: bool, answer: Duration },
    /// Something failed: list again, but not at once.
    Waiting { until: Instant },
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Sleep(Instant),
    List,
    Open { revision: i64 },
    Read { until: Instant },
    Probe,
    GiveUp,
}

impl Machine {
    fn new(plural: &'static str) -> Self {
        Self { plural, phase: Phase::Listing, backoff: Backoff::new(WAITS.0, WAITS.1), last: None }
    }

    fn step(&mut self, now: Instant) -> Step {
        match &mut self.phase {
            Phase::Waiting { until } if *until > now => Step::Sleep(*until),
            Phase::Waiting { .. } | Phase::Listing => {
                self.phase = Phase::Listing;
                Step::List
            }
            Phase::Opening { revision } => Step::Open { revision: *revision + 1 },
            Phase::Watching { heard, answer, .. } if now >= *heard + SILENCE + *answer => Step::GiveUp,
            Phase::Watching { heard, probed, .. } if now >= *heard + SILENCE && !*probed => {
                *probed = true;
                Step::Probe
            }
            Phase::Watching { heard, answer, probed: true, .. } => {
                Step::Read { until: *heard + SILENCE + *answer }
            }
            Phase::Watching { heard, probed: false, .. } => Step::Read { until: *heard + SILENCE },
        }
    }

    fn listed<T: Stored>(&mut self, listing: &Listing<T>) {
        if let Some((cluster, revision)) = self.last {
            if cluster != listing.cluster_id {
                warn!("this is a different store than before");
            } else if listing.revision < revision {
                warn!(
                    before = revision,
                    now = listing.revision,
                    "the store has gone back in time, as after a restore"
                );
            } else {
                let (count, revision) = (listing.items.len(), listing.revision);
                info!(count, revision, "listed the {} again", self.plural);
            }
        }
        self.last = Some((listing.cluster_id, listing.revision));
        self.phase = Phase::Opening { revision: listing.revision };
    }

    /// Notes that the watch is open; a sign of life may take as long as `answer`.
    fn opened(&mut self, now: Instant, answer: Duration) {
        self.phase = Phase::Watching { since: now, heard: now, probed: false, answer };
    }

    fn heard(&mut self, now: Instant) {
        if let Phase::Watching { heard, probed, .. } = &mut self.phase {
            (*heard, *probed) = (now, false);
        }
    }

    /// Returns how long to wait.
    fn failed(&mut self, now: Instant) -> Duration {
        if matches!(self.phase, Phase::Watching { since, .. } if now >= since + GOOD) {
            self.backoff.reset();
        }
        let wait = self.backoff.next();
        self.phase = Phase::Waiting { until: now + wait };
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::store::REQUEST_LIMIT as ANSWER;

    fn listing(revision: i64) -> Listing<Entry> {
        Listing::of(vec![], revision, 1)
    }

    fn watching(now: Instant) -> Machine {
        let mut machine = Machine::new("keys");
        assert_eq!(machine.step(now), Step::List);
        machine.listed(&listing(41));
        assert_eq!(machine.step(now), Step::Open { revision: 42 });
        machine.opened(now, ANSWER);
        machine
    }

    #[test]
    fn it_lists_then_watches_from_the_revision_behind_the_list() {
        let now = Instant::now();
        assert_eq!(watching(now).step(now), Step::Read { until: now + SILENCE });
    }

    #[test]
    fn a_list_that_is_there_already_is_not_asked_for_again() {
        let now = Instant::now();
        let mut machine = Machine::new("keys");
        machine.listed(&listing(41));
        assert_eq!(machine.step(now), Step::Open { revision: 42 });
    }

    #[test]
    fn every_failure_leads_to_a_new_list_after_a_wait() {
        let now = Instant::now();
        let mut machine = watching(now);
        let wait = machine.failed(now);
        assert!(wait > Duration::ZERO);
        assert_eq!(machine.step(now), Step::Sleep(now + wait));
        assert_eq!(machine.step(now + wait), Step::List);
    }

    #[test]
    fn a_compaction_that_comes_back_at_once_is_waited_for_longer_and_longer() {
        let mut now = Instant::now();
        let mut machine = Machine::new("keys");
        let mut waits = Vec::new();
        for _ in 0..12 {
            machine.listed(&listing(41));
            machine.opened(now, ANSWER);
            machine.heard(now);
            waits.push(machine.failed(now));
            now += Duration::from_secs(1);
        }
        assert_eq!(waits[11], WAITS.1, "{waits:?}");
        assert!(waits[0] <= 2 * WAITS.0, "{waits:?}");
    }

    #[test]
    fn a_failure_after_a_good_while_is_the_first_again() {
        let now = Instant::now();
        let mut machine = watching(now);
        for _ in 0..10 {
            machine.failed(now);
        }
        machine.opened(now, ANSWER);
        assert!(machine.failed(now + GOOD) <= 2 * WAITS.0);
    }

    #[test]
    fn silence_is_probed_once_and_then_given_up() {
        let now = Instant::now();
        let mut machine = watching(now);
        assert_eq!(machine.step(now + SILENCE), Step::Probe);
        assert_eq!(machine.step(now + SILENCE), Step::Read { until: now + SILENCE + ANSWER });
        assert_eq!(machine.step(now + SILENCE + ANSWER), Step::GiveUp);
    }

    #[test]
    fn a_slow_store_has_more_time_for_a_sign_of_life() {
        let (now, answer) = (Instant::now(), 4 * ANSWER);
        let mut machine = watching(now);
        machine.opened(now, answer);
        assert_eq!(machine.step(now + SILENCE), Step::Probe);
        let until = now + SILENCE + answer;
        assert_eq!(machine.step(now + SILENCE + ANSWER), Step::Read { until });
        assert_eq!(machine.step(until), Step::GiveUp);
    }

    #[test]
    fn a_sign_of_life_ends_the_silence() {
        let now = Instant::now();
        let mut machine = watching(now);
        assert_eq!(machine.step(now + SILENCE), Step::Probe);
        machine.heard(now + SILENCE);
        assert_eq!(machine.step(now + SILENCE), Step::Read { until: now + SILENCE + SILENCE });
    }
}
