//! A fland that finds everything in place: how soon it is ready, what it changes, what it costs from then on.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flan_integration::statistics::median;
use flan_integration::witness::summary;
use flan_integration::{vitals, wait};

use crate::kernel;
use crate::measure::{Measure, Values};
use crate::subject::Subject;

/// `--resync-interval` of the agent that is then watched, in seconds: often enough for an average in half a minute.
const RESYNC: u32 = 10;

/// The default of `--resync-interval`, in seconds.
const DEFAULT_RESYNC: u32 = 60;

/// Stops fland and starts it again; tells what it changed, if anything.
pub(crate) fn run(subject: &mut Subject, values: &mut Values) -> Result<String> {
    let mark = subject.witness.mark();
    subject.host.stop_agent()?;
    let started = Instant::now();
    subject.host.spawn_agent(&["--resync-interval", &format!("{RESYNC}s")])?;
    let limit = subject.limit();
    let ready = subject.host.wait_for_agent_within(limit)?;
    subject.wait_until_quiet()?;
    kernel::ensure_holds(&subject.host, subject.peers).context("after a restart")?;
    let changes = subject.ours(subject.witness.since(mark)?)?;
    values.entry(Measure::Restarted).or_default().push(ready.duration_since(started).as_secs_f64());
    values.entry(Measure::RestartChanges).or_default().push(changes.len() as f64);
    Ok(summary(&changes))
}

/// Watches the agent of [`run`] for so many seconds in which nobody writes anything.
pub(crate) fn idle(subject: &Subject, seconds: u32, values: &mut Values) -> Result<()> {
    let pid = subject.pid()?;
    let started = Instant::now();
    let first = vitals::cpu_seconds(pid)?;
    let (mut last, mut each) = (first, Vec::new());
    for second in 1..=seconds {
        wait::ensure_not_interrupted()?;
        thread::sleep(
            (started + Duration::from_secs(second.into())).saturating_duration_since(Instant::now()),
        );
        let now = vitals::cpu_seconds(pid)?;
        each.push(now - last);
        last = now;
    }
    let (at_ten, at_sixty) = percents(last - first, started.elapsed().as_secs_f64(), &each);
    values.entry(Measure::IdleAtTenSeconds).or_default().push(at_ten);
    values.entry(Measure::IdleAtSixtySeconds).or_default().push(at_sixty);
    Ok(())
}

/// With a resync each [`RESYNC`] and each [`DEFAULT_RESYNC`] seconds, of the CPU seconds used in all and in each second.
/// Most seconds see no resync, so the one in the middle tells what is used without.
fn percents(used: f64, seconds: f64, each: &[f64]) -> (f64, f64) {
    let at_ten = 100.0 * used / seconds;
    let without = (100.0 * median(each).unwrap_or_default()).min(at_ten);
    let fewer = f64::from(RESYNC) / f64::from(DEFAULT_RESYNC);
    (at_ten, without + (at_ten - without) * fewer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_resync_costs_comes_a_sixth_as_often_each_minute() {
        let mut each = vec![0.01; 30];
        each[3] += 0.3;
        each[13] += 0.3;
        each[23] += 0.3;
        let (at_ten, at_sixty) = percents(each.iter().sum(), 30.0, &each);
        assert!((at_ten - 4.0).abs() < 1e-9, "{at_ten}");
        assert!((at_sixty - 1.5).abs() < 1e-9, "{at_sixty}");
    }
}
