//! A warning that repeats is written once a minute, with the number of times that it was left out. What fails is tried
//! again and again, and a log that says so each time hides everything else.

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

/// How long after it was written the same warning is not written again.
const QUIET: Duration = Duration::from_secs(60);
/// Warnings that are remembered. Of more, those that were written longest ago are forgotten.
const MOST: usize = 256;
/// Fields that differ from one time to the next although nothing else has happened.
const VOLATILE: [&str; 4] = ["retry_in", "expires_in_seconds", "wait", "more"];
/// A field of what is told only when it changes, so that each line is news.
const NEWS: &str = "problem";

/// A form of log lines in which warnings and errors that repeat are left out.
pub(super) struct Sparing<F> {
    inner: F,
    format: LogFormat,
    hashes: RandomState,
    written: Mutex<Written>,
    clock: fn() -> Instant,
}

impl<F> Sparing<F> {
    /// The lines look as `inner` makes them, which must be of this format.
    pub(super) fn new(inner: F, format: LogFormat) -> Self {
        Self { inner, format, hashes: RandomState::new(), written: Mutex::default(), clock: Instant::now }
    }

    /// How often the event was left out since it was last written; `None` if it is to be left out now.
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
        // Before the lock: a value that is formatted may log something itself.
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

/// The line with one field more.
fn with_count(line: &str, repeated: u32, format: LogFormat) -> String {
    let line = line.trim_end();
    match (format, line.strip_suffix('}')) {
        (LogFormat::Json, Some(fields)) => format!("{fields},\"repeated\":{repeated}}}\n"),
        _ => format!("{line} repeated={repeated}\n"),
    }
}

/// Feeds the values that make an event what it is into a hash.
struct Fields<H>(H);

impl<H: Hasher> Visit for Fields<H> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if !VOLATILE.contains(&field.name()) {
            self.0.write(field.name().as_bytes());
            // Formatting into a hash fails only where the value's own formatting does.
            let _ = write!(Text(&mut self.0), "={value:?};");
        }
    }
}

/// Text that goes into a hash.
struct Text<'a, H>(&'a mut H);

impl<H: Hasher> fmt::Write for Text<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// What was written, by its hash.
#[derive(Default)]
struct Written(HashMap<u64, Last>);

/// The last time that something was written.
struct Last {
    /// The part of the program that said it.
    target: &'static str,
    at: Instant,
    /// Whether the same is left out for a while.
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

    /// This part of the program has told that something went well. If it fails again, that is no repetition.
    fn news(&mut self, target: &str) {
        self.0.values_mut().filter(|last| last.target == target).for_each(|last| last.quiet = false);
    }
}

#[cfg(test)]
mod tests;
