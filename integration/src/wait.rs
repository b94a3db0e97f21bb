//! Waiting for a condition, with a limit, and telling on time-out what was seen.

use std::env;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// The variable with how many times slower this machine is than one that is not emulated. [`vm`](crate::vm) sets it.
pub const FACTOR_VARIABLE: &str = "FLAN_TIME_FACTOR";

/// A limit that is made for a machine at its own speed, as this machine needs it. Only a limit on waiting is widened so:
/// a time that the product is to keep is compared as it is.
pub fn scaled(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    limit * *FACTOR.get_or_init(|| factor_of(env::var(FACTOR_VARIABLE).ok().as_deref()))
}

/// Calls `probe` until it returns `Ok`, for at most `limit`.
///
/// The probe's error says what it saw instead; the last one becomes part of the time-out's message. An error that
/// carries [`GiveUp`] ends the wait at once: what is awaited cannot come any more.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    until_cleaned_up(what, limit, || {
        let seen = match probe() {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        ensure_not_interrupted()?;
        Err(seen)
    })
}

/// As [`until`], but not ended by [`interrupt`]: clean-up has to wait also then.
pub fn until_cleaned_up<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let limit = scaled(limit);
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let seen = match probe() {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if seen.downcast_ref::<GiveUp>().is_some() {
            return Err(seen.context(format!("gave up waiting for {what}")));
        }
        if started.elapsed() >= limit {
            return Err(seen.context(format!("waited {limit:?} for {what}; last seen")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Watches for as long as `duration` that `probe` keeps returning `Ok`: for conditions that must *not* change.
pub fn while_holds(what: &str, duration: Duration, mut probe: impl FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < duration {
        if let Err(seen) = probe() {
            return Err(seen.context(format!("after {:?} no longer: {what}", started.elapsed())));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// 1 unless the variable says otherwise.
fn factor_of(variable: Option<&str>) -> u32 {
    variable.and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// Makes every wait of this process, now and later, end with an error: for an interrupt from the keyboard.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// An error after [`interrupt`].
pub fn ensure_not_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(GiveUp("interrupted".to_owned()).into());
    }
    Ok(())
}

/// The cause of an error after which waiting on makes no sense, such as a process that has ended.
#[derive(Debug)]
pub struct GiveUp(
    /// What ended it.
    pub String,
);

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GiveUp {}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[cfg(test)]
mod tests {
    use anyhow::{anyhow, ensure};

    use super::*;

    #[test]
    fn a_wait_ends_when_the_condition_holds() {
        let mut calls = 0;
        let value = until("three calls", Duration::from_secs(5), || {
            calls += 1;
            ensure!(calls == 3, "{calls} calls");
            Ok(calls)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn a_time_out_tells_what_was_seen_last() {
        let result: Result<()> = until("rain", Duration::from_millis(1), || Err(anyhow!("sunshine")));
        assert_eq!(format!("{:#}", result.unwrap_err()), "waited 1ms for rain; last seen: sunshine");
    }

    #[test]
    fn limits_are_as_they_are_written_unless_the_variable_says_otherwise() {
        assert_eq!((factor_of(None), factor_of(Some("5")), factor_of(Some("0"))), (1, 5, 1));
    }

    #[test]
    fn giving_up_does_not_wait_for_the_limit() {
        let started = Instant::now();
        let result: Result<()> =
            until("rain", Duration::from_secs(60), || Err(GiveUp("no sky".into()).into()));
        assert!(result.is_err());
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
