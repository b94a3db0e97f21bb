//! Longer waits after each failure, out of step with other hosts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays that double from `first` to `longest`, with jitter, without end.
pub(crate) struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times();
        Self { builder, delays: builder.build(), longest }
    }

    /// Returns how long to wait after another failure.
    pub(crate) fn next(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.longest).min(self.longest)
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}
