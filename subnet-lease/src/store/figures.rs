//! What a store's clients have done, counted for metrics.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

/// Upper ends of the times of requests, in seconds.
const TIMES: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0, 10.0];

/// Counters of one process. Clones count together.
#[derive(Debug, Clone)]
pub struct StoreFigures {
    /// Seconds that requests took that were answered.
    pub request_seconds: Histogram,
    /// Requests that no endpoint answered, or that the store refused.
    pub failures: Counter,
    /// How often a watch broke and its collection was listed again, by what it holds: `leases`.
    pub watch_restarts: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Default for StoreFigures {
    fn default() -> Self {
        let watch_restarts = Family::default();
        // Told before the first one, so that the first counts as an increase.
        drop(watch_restarts.get_or_create(&[("of", "leases")]));
        Self { request_seconds: Histogram::new(TIMES), failures: Counter::default(), watch_restarts }
    }
}

impl StoreFigures {
    /// Counts a request that took this long.
    pub(super) fn count(&self, time: Duration, is_answered: bool) {
        if is_answered {
            self.request_seconds.observe(time.as_secs_f64());
        } else {
            self.failures.inc();
        }
    }
}
