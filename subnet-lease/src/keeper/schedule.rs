//! When the keeper does what.

use std::time::Duration;

use tokio::time::Instant;

use super::claim::{FIRST_WAIT, LONGEST_WAIT};
use crate::backoff::Backoff;

/// The result of reading our key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nothing had to be written.
    Fine,
    /// We repaired our key, which somebody else had changed.
    Mended,
    /// We wrote new values.
    Published,
    /// We wrote our key because another machine claimed it. That is not a dispute: an objection must be timely, however
    /// many claims there are.
    Objected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    KeepAlive,
    Look,
}

/// Decides when the keeper does what. It knows neither the store nor the clock.
pub(super) struct Schedule {
    interval: Duration,
    /// When the last keepalive succeeded.
    kept: Instant,
    /// When to read our key.
    look: Option<Instant>,
    /// Nothing is done before this, because the last attempt failed.
    not_before: Instant,
    failures: Backoff,
    /// When our key was last repaired: if it is changed again at once, the next repair waits.
    mended: Option<Instant>,
    mendings: Backoff,
}

impl Schedule {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            kept: now,
            look: None,
            not_before: now,
            failures: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            mended: None,
            mendings: Backoff::new(FIRST_WAIT, LONGEST_DISPUTE),
        }
    }

    pub(super) fn due(&self) -> Instant {
        self.look.unwrap_or(self.kept + self.interval).max(self.not_before)
    }

    pub(super) fn task(&self) -> Task {
        if self.look.is_some() { Task::Look } else { Task::KeepAlive }
    }

    /// Notes that our key may have changed.
    pub(super) fn suspect(&mut self, now: Instant) {
        if self.look.is_some() {
            return;
        }
        let wait = match self.mended {
            Some(mended) if now < mended + QUIET => self.mendings.next(),
            _ => {
                self.mendings.reset();
                Duration::ZERO
            }
        };
        self.look = Some(now + wait);
    }

    /// Notes that our key needs new values.
    pub(super) fn publish(&mut self, now: Instant) {
        self.look = Some(now);
    }

    /// Records that a task was done, or failed (`None`). Returns how long to wait after a failure.
    pub(super) fn done(&mut self, task: Task, looked: Option<&Looked>, now: Instant) -> Duration {
        let Some(looked) = looked else {
            let wait = self.failures.next();
            self.not_before = now + wait;
            return wait;
        };
        self.failures.reset();
        self.not_before = now;
        match task {
            Task::KeepAlive => self.kept = now,
            Task::Look => self.look = None,
        }
        if *looked != Looked::Fine {
            self.kept = now;
        }
        if *looked == Looked::Mended {
            self.mended = Some(now);
        }
        Duration::ZERO
    }

    pub(super) fn since_success(&self, now: Instant) -> Duration {
        now.duration_since(self.kept)
    }
}

/// Longest wait before a disputed key is repaired, before jitter: less than the time for an objection.
const LONGEST_DISPUTE: Duration = Duration::from_secs(4);
/// A key that changes again within this time after a repair is disputed.
const QUIET: Duration = Duration::from_secs(60);
/// Returns the interval of keepalives: a third of the lease's life, and at least `margin` before its end.
pub(super) fn keepalive_interval(ttl: Duration, margin: Option<Duration>) -> Duration {
    (ttl / 3).min(ttl.saturating_sub(margin.unwrap_or_default())).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::super::contest::CLAIM_WAIT;
    use super::*;

    #[test]
    fn keepalives_go_out_thrice_in_a_life_and_before_the_margin() {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        assert_eq!(keepalive_interval(hours(24), None), hours(8));
        assert_eq!(keepalive_interval(hours(24), Some(hours(1))), hours(8));
        assert_eq!(keepalive_interval(hours(24), Some(hours(20))), hours(4));
    }

    #[test]
    fn keepalives_are_due_in_their_interval_and_a_look_comes_first() {
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        let mut schedule = Schedule::new(hour, now);
        assert_eq!((schedule.due(), schedule.task()), (now + hour, Task::KeepAlive));
        schedule.suspect(now);
        assert_eq!((schedule.due(), schedule.task()), (now, Task::Look));
        schedule.done(Task::Look, Some(&Looked::Fine), now);
        assert_eq!((schedule.due(), schedule.task()), (now + hour, Task::KeepAlive));
        schedule.done(Task::KeepAlive, Some(&Looked::Fine), now + hour);
        assert_eq!(schedule.due(), now + 2 * hour);
    }

    #[test]
    fn a_look_that_failed_is_tried_again_after_a_wait() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(3600), now);
        schedule.suspect(now);
        let wait = schedule.done(Task::Look, None, now);
        assert!(wait > Duration::ZERO);
        schedule.suspect(now);
        assert_eq!((schedule.due(), schedule.task()), (now + wait, Task::Look));
    }

    #[test]
    fn what_is_new_is_published_at_once_even_where_the_key_is_in_dispute() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(3600), now);
        schedule.suspect(now);
        schedule.done(Task::Look, Some(&Looked::Mended), now);
        schedule.suspect(now);
        assert!(schedule.due() > now);
        schedule.publish(now);
        assert_eq!((schedule.due(), schedule.task()), (now, Task::Look));
        let wait = schedule.done(Task::Look, None, now);
        assert_eq!((schedule.due(), schedule.task()), (now + wait, Task::Look));
        schedule.done(Task::Look, Some(&Looked::Published), now + wait);
        assert_eq!(schedule.task(), Task::KeepAlive);
    }

    #[test]
    fn a_claim_is_objected_to_at_once_however_often_it_comes() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(3600), now);
        for _ in 0..12 {
            schedule.suspect(now);
            assert_eq!(schedule.due(), now);
            schedule.done(Task::Look, Some(&Looked::Objected), now);
            now += Duration::from_secs(5);
        }
    }

    #[test]
    fn a_key_in_dispute_is_written_less_and_less_often() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(3600), now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            schedule.suspect(now);
            waits.push(schedule.due() - now);
            now = schedule.due();
            schedule.done(Task::Look, Some(&Looked::Mended), now);
        }
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits[11] >= LONGEST_DISPUTE && waits[11] < CLAIM_WAIT, "{waits:?}");
        schedule.suspect(now + QUIET);
        assert_eq!(schedule.due(), now + QUIET);
    }
}
