//! Writes a repeated warning once a minute, with the number of omissions. Failures are retried again and again, and
//! would otherwise hide everything else in the log.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;

/// How long a repetition of a warning is omitted.
const QUIET: Duration = Duration::from_secs(60);
/// Limit of remembered warnings. The oldest are forgotten first.
const MOST: usize = 256;
/// Fields that differ between repetitions of the same event.
const VOLATILE: [&str; 4] = ["retry_in", "expires_in_seconds", "wait", "more"];
/// Field of events that are logged only on a change, so each line is news.
const NEWS: &str = "problem";

/// A log format that omits repeated warnings and errors.
pub(super) struct Sparing<F> {
    inner: F,
    format: LogFormat,
    hashes: RandomState,
    written: Mutex<Written>,
    clock: fn() -> Instant,
}

impl<F> Sparing<F> {
    /// Wraps `inner`, which must write this format.
    pub(super) fn new(inner: F, format: LogFormat) -> Self {
        Self { inner, format, hashes: RandomState::new(), written: Mutex::default(), clock: Instant::now }
    }

    /// Returns how often the event was omitted since it was last written; `None` to omit it now.
    fn judge(&self, event: &Event<'_>) -> Option<u32> {
        let metadata = event.metadata();
        if *metadata.level() == Level::INFO {
            self.written().news(metadata.target());
        }
        if *metadata.level() > Level::WARN || event.fields().any(|field| field.name() == NEWS) {
            return Some(0);
        }
        let mut fields = Fields(self.hashes.build_hasher());
        metadata.callsite().hash(&mut fields.0);
        // Before locking, because formatting a value may log something itself.
        event.record(&mut fields);
        self.written().judge(fields.0.finish(), metadata.target(), (self.clock)())
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S, N, F> FormatEvent<S, N> for Sparing<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.judge(event) {
            None => Ok(()),
            Some(0) => self.inner.format_event(context, writer, event),
            Some(repeated) => {
                let mut line = String::new();
                self.inner.format_event(context, Writer::new(&mut line), event)?;
                writer.write_str(&with_count(&line, repeated, self.format))
            }
        }
    }
}

/// Returns the line with the number of omissions added.
fn with_count(line: &str, repeated: u32, format: LogFormat) -> String {
    let line = line.trim_end();
    match (format, line.strip_suffix('}')) {
        (LogFormat::Json, Some(fields)) => format!("{fields},\"repeated\":{repeated}}}\n"),
        _ => format!("{line} repeated={repeated}\n"),
    }
}

/// Hashes the values that identify an event.
struct Fields<H>(H);

impl<H: Hasher> Visit for Fields<H> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if !VOLATILE.contains(&field.name()) {
            self.0.write(field.name().as_bytes());
            // Fails only if the value's own formatting fails.
            let _ = write!(Text(&mut self.0), "={value:?};");
        }
    }
}

/// Adapter that hashes text.
struct Text<'a, H>(&'a mut H);

impl<H: Hasher> fmt::Write for Text<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// Events written so far, by their hash.
#[derive(Default)]
struct Written(HashMap<u64, Last>);

struct Last {
    /// The part of the program that logged it.
    target: &'static str,
    at: Instant,
    /// Whether to omit repetitions for a while.
    quiet: bool,
    left_out: u32,
}

impl Written {
    fn judge(&mut self, hash: u64, target: &'static str, now: Instant) -> Option<u32> {
        if let Some(last) = self.0.get_mut(&hash) {
            if last.quiet && now.saturating_duration_since(last.at) < QUIET {
                last.left_out = last.left_out.saturating_add(1);
                return None;
            }
            (last.at, last.quiet) = (now, true);
            return Some(std::mem::take(&mut last.left_out));
        }
        if self.0.len() >= MOST
            && let Some(oldest) = self.0.iter().min_by_key(|(_, last)| last.at).map(|(hash, _)| *hash)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(hash, Last { target, at: now, quiet: true, left_out: 0 });
        Some(0)
    }

    /// Records that this part of the program has logged a success. A later failure is then no repetition.
    fn news(&mut self, target: &str) {
        self.0.values_mut().filter(|last| last.target == target).for_each(|last| last.quiet = false);
    }
}

#[cfg(test)]
mod tests;
