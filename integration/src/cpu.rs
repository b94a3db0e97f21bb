//! How long the machine's CPUs have been busy: /proc/stat, see proc(5).

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Ticks of /proc/stat in a second: USER_HZ, which is 100 on every architecture that flan runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The fields of the line `cpu` that are busy time: user, nice, system, irq, softirq, steal.
const BUSY_FIELDS: [usize; 6] = [0, 1, 2, 5, 6, 7];

/// Busy time of all CPUs together since boot, in seconds: user, nice, system, interrupts and what the hypervisor took.
pub fn busy_seconds() -> Result<f64> {
    parse(&fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?)
}

/// How much of all CPUs is busy in the time to come, in percent.
pub fn busy_percent_during(duration: Duration) -> Result<f64> {
    let cpus = thread::available_parallelism().context("cannot count the CPUs")?.get();
    let (started, before) = (Instant::now(), busy_seconds()?);
    thread::sleep(duration);
    Ok(100.0 * (busy_seconds()? - before) / (started.elapsed().as_secs_f64() * cpus as f64))
}

/// Of a number of /proc's clock ticks.
pub(crate) fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

fn parse(text: &str) -> Result<f64> {
    let line =
        text.lines().find_map(|line| line.strip_prefix("cpu ")).context("no line cpu in /proc/stat")?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let mut ticks = 0;
    for number in BUSY_FIELDS {
        let field = fields.get(number).with_context(|| format!("no field {number} in {line:?}"))?;
        ticks += field.parse::<u64>().with_context(|| format!("in the line cpu of /proc/stat: {line:?}"))?;
    }
    Ok(seconds(ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_guests_are_not_counted() {
        let text = "cpu  100 20 300 9999 888 40 50 60 77 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse(text).unwrap(), 5.7);
    }

    #[test]
    fn the_machine_has_been_busy() {
        assert!(busy_seconds().unwrap() > 0.0);
    }
}
