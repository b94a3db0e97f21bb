use std::cell::Cell;
use std::io;
use std::sync::{Arc, LazyLock};

use tracing::{error, info, warn};
use tracing_subscriber::fmt::MakeWriter;

use super::*;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    /// Seconds since [`START`].
    static NOW: Cell<u64> = const { Cell::new(0) };
}

fn now() -> Instant {
    *START + Duration::from_secs(NOW.get())
}

/// The log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn sparing<F>(inner: F, format: LogFormat) -> Sparing<F> {
    Sparing { clock: now, ..Sparing::new(inner, format) }
}

/// Returns the lines that `story` logs, without times.
fn lines(format: LogFormat, story: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let builder = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).without_time();
    match format {
        LogFormat::Text => {
            let builder = builder.with_target(false).map_event_format(|inner| sparing(inner, format));
            tracing::subscriber::with_default(builder.finish(), story);
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true);
            let builder = builder.map_event_format(|inner| sparing(inner, format));
            tracing::subscriber::with_default(builder.finish(), story);
        }
    }
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

fn fail(reason: &str, seconds: u64) {
    warn!(reason, retry_in = ?Duration::from_secs(seconds), "cannot renew the lease");
}

/// Nine failures within a minute, and one after it.
fn ten_failures() {
    for second in 0..9 {
        NOW.set(second);
        fail("no answer", second);
    }
    NOW.set(61);
    fail("no answer", 61);
}

#[test]
fn a_warning_that_repeats_is_written_once_a_minute_with_its_count() {
    assert_eq!(
        lines(LogFormat::Text, ten_failures),
        [
            r#"WARN cannot renew the lease reason="no answer" retry_in=0ns"#,
            r#"WARN cannot renew the lease reason="no answer" retry_in=61s repeated=8"#,
        ]
    );
}

#[test]
fn the_count_is_a_field_in_json() {
    let lines = lines(LogFormat::Json, ten_failures);
    let lines: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0].get("repeated"), None);
    assert_eq!((&lines[1]["repeated"], &lines[1]["retry_in"]), (&8.into(), &"61s".into()));
    assert_eq!(lines[1]["message"], "cannot renew the lease");
}

#[test]
fn another_reason_level_or_place_is_another_warning() {
    let lines = lines(LogFormat::Text, || {
        for _ in 0..3 {
            fail("no answer", 1);
            fail("refused", 1);
            warn!(reason = "no answer", "cannot renew the lease");
            error!("cannot renew the lease");
        }
    });
    assert_eq!(lines.len(), 4, "{lines:?}");
}

#[test]
fn what_is_no_warning_and_what_is_told_only_when_it_changes_is_always_written() {
    let lines = lines(LogFormat::Text, || {
        for _ in 0..3 {
            info!("ready");
            warn!(problem = "port-taken", "8472 is taken by vxlan9");
        }
    });
    assert_eq!(lines.len(), 6, "{lines:?}");
}

#[test]
fn what_went_well_in_between_makes_the_next_failure_news() {
    let lines = lines(LogFormat::Text, || {
        fail("no answer", 1);
        fail("no answer", 2);
        info!(target: "elsewhere", "ready");
        fail("no answer", 3);
        info!("renewed the lease");
        fail("no answer", 4);
        fail("no answer", 5);
    });
    let failures: Vec<_> = lines.iter().filter(|line| line.contains("cannot renew")).collect();
    assert_eq!(failures.len(), 2, "{lines:?}");
    assert!(failures[1].ends_with("retry_in=4s repeated=2"), "{lines:?}");
}

#[test]
fn a_value_that_logs_while_it_is_formatted_hangs_nothing() {
    struct Chatty;
    impl Debug for Chatty {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            warn!("while formatting");
            formatter.write_str("chatty")
        }
    }
    let lines = lines(LogFormat::Text, || {
        for _ in 0..3 {
            warn!(value = ?Chatty, "outside");
        }
    });
    assert!(lines.iter().filter(|line| line.contains("outside")).count() == 1, "{lines:?}");
}

#[test]
fn of_ever_new_warnings_only_so_many_are_remembered() {
    let (mut written, start) = (Written::default(), Instant::now());
    for number in 0..10_000 {
        assert_eq!(written.judge(number, "here", start + Duration::from_micros(number)), Some(0));
    }
    assert_eq!(written.0.len(), MOST);
    assert_eq!(written.judge(9_999, "here", start + QUIET / 2), None);
    assert_eq!(written.judge(0, "here", start + QUIET / 2), Some(0));
}
