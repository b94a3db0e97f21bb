//! What the store is doing, for metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::handle::StoreHandle;

/// The type of the text.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper ends of the times of writes, in seconds.
const TIMES: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0];

/// What is counted as it happens.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    write_seconds: Histogram,
    failed_writes: Counter,
}

impl Default for Counted {
    fn default() -> Self {
        Self { write_seconds: Histogram::new(TIMES), failed_writes: Counter::default() }
    }
}

impl Counted {
    /// Counts a write to the disk that took this long.
    pub(crate) fn wrote(&self, time: Duration, is_done: bool) {
        match is_done {
            true => self.write_seconds.observe(time.as_secs_f64()),
            false => drop(self.failed_writes.inc()),
        }
    }
}

/// The figures of a running store. Clones read the same.
#[derive(Debug, Clone)]
pub struct Figures {
    pub(crate) store: Arc<StoreHandle>,
    pub(crate) file: PathBuf,
    pub(crate) counted: Counted,
}

impl Figures {
    /// Adds them to a registry: `store_server_keys`, `store_server_leases`, `store_server_revision`,
    /// `store_server_compacted_revision`, `store_server_file_bytes`, `store_server_write_seconds`,
    /// `store_server_failed_writes_total`.
    pub fn register(&self, registry: &mut Registry) {
        let (keys, leases, revision, compacted) = {
            let contents = self.store.contents();
            (contents.key_count(), contents.leases.ids().len(), contents.stored, contents.keys.compacted())
        };
        let bytes = std::fs::metadata(&self.file).map(|file| file.len()).unwrap_or_default();
        let gauge = |value: i64| {
            let gauge = Gauge::<i64>::default();
            gauge.set(value);
            gauge
        };
        registry.register("store_server_keys", "Keys in the store", gauge(keys as i64));
        registry.register("store_server_leases", "Leases in the store", gauge(leases as i64));
        registry.register("store_server_revision", "The last revision on disk", gauge(revision));
        registry.register("store_server_compacted_revision", "The last compaction", gauge(compacted));
        registry.register_with_unit(
            "store_server_file",
            "Size of the file",
            Unit::Bytes,
            gauge(bytes as i64),
        );
        let help = "Time of a write to the disk, which many requests share";
        let seconds = self.counted.write_seconds.clone();
        registry.register_with_unit("store_server_write", help, Unit::Seconds, seconds);
        let failed = self.counted.failed_writes.clone();
        registry.register("store_server_failed_writes", "Writes to the disk that failed", failed);
    }

    /// Returns them alone, as OpenMetrics.
    pub(crate) fn text(&self) -> String {
        let mut registry = Registry::with_prefix("flan");
        self.register(&mut registry);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
