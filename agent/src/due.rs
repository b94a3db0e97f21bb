//! The time when a task is due.

use tokio::time::Instant;

/// The time when a task is due, if scheduled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Due(Option<Instant>);

impl Due {
    pub(crate) fn time(&self) -> Option<Instant> {
        self.0
    }

    /// Schedules the task for this time at the latest.
    pub(crate) fn at(&mut self, at: Instant) {
        self.0 = Some(self.0.map_or(at, |due| due.min(at)));
    }

    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }

    /// Returns whether the task is due, and if so, unschedules it.
    pub(crate) fn is_over(&mut self, now: Instant) -> bool {
        let is_over = self.0.is_some_and(|due| due <= now);
        if is_over {
            self.0 = None;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earlier_of_two_times_counts_and_is_over_once() {
        let (now, mut due) = (Instant::now(), Due::default());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(!due.is_over(now));
        due.at(after(2));
        due.at(after(1));
        due.at(after(3));
        assert_eq!(due.time(), Some(after(1)));
        assert!(!due.is_over(now));
        assert!(due.is_over(after(1)) && !due.is_over(after(9)));
    }
}
