//! Limits the log lines of one kind, because anyone who can write to the store decides how many there would be.

use std::time::Duration;

use tokio::time::Instant;

/// Lines per period.
const LINES: usize = 20;
/// A period begins with the first line after the previous period.
const PERIOD: Duration = Duration::from_secs(60);
/// Delay from the first suppressed line to its summary.
const SUMMARY: Duration = Duration::from_secs(1);
/// Interval between summaries while more lines are suppressed.
const BETWEEN_SUMMARIES: Duration = Duration::from_secs(10);

/// The lines of one kind.
#[derive(Debug, Default)]
pub(super) struct Ration {
    since: Option<Instant>,
    lines: usize,
    more: usize,
    due: Option<Instant>,
    summed_up: Option<Instant>,
}

impl Ration {
    /// Returns whether to log this. If not, adds `count` to the next summary.
    pub(super) fn admits(&mut self, count: usize, now: Instant) -> bool {
        if self.since.is_none_or(|since| now >= since + PERIOD) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines < LINES {
            self.lines += 1;
            return true;
        }
        self.more += count;
        let next = self.summed_up.map_or(now, |last| last + BETWEEN_SUMMARIES);
        self.due.get_or_insert(next.max(now + SUMMARY));
        false
    }

    /// Returns when the next summary is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns the number of suppressed lines since the last summary, if one is due.
    pub(super) fn more(&mut self, now: Instant) -> Option<usize> {
        self.due.filter(|due| now >= *due)?;
        (self.due, self.summed_up) = (None, Some(now));
        Some(std::mem::take(&mut self.more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_some_lines_and_a_summary_every_ten_seconds_while_it_lasts() {
        let start = Instant::now();
        let mut ration = Ration::default();
        let (mut lines, mut summaries) = (0, Vec::new());
        // 1,000 a second for two minutes.
        for number in 0..120_000 {
            let now = start + Duration::from_millis(number);
            summaries.extend(ration.more(now));
            lines += usize::from(ration.admits(1, now));
        }
        let end = start + Duration::from_secs(200);
        summaries.extend(ration.more(end));
        assert_eq!(lines, 2 * LINES);
        assert!((12..=13).contains(&summaries.len()), "{summaries:?}");
        assert_eq!(summaries.iter().sum::<usize>() + lines, 120_000);
        assert_eq!((ration.due(), ration.more(end)), (None, None));
    }

    #[test]
    fn what_is_rare_always_gets_its_line() {
        let start = Instant::now();
        let mut ration = Ration::default();
        for number in 0..100 {
            assert!(ration.admits(1, start + number * Duration::from_secs(4)));
        }
        assert_eq!(ration.due(), None);
    }
}
