//! What a process holds and has used: descriptors, threads, memory, CPU time. See proc(5).

use std::fmt;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::cpu;

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// The process id.
    pub pid: u32,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Memory that is in RAM (VmRSS), in KiB.
    pub resident_kib: u64,
}

impl Vitals {
    /// Of a running process.
    pub fn of(pid: u32) -> Result<Vitals> {
        let count = |what: &str| -> Result<usize> {
            let dir = format!("/proc/{pid}/{what}");
            Ok(fs::read_dir(&dir).with_context(|| format!("cannot list {dir}"))?.count())
        };
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Vitals {
            pid,
            descriptors: count("fd")?,
            threads: count("task")?,
            resident_kib: kib(&status, "VmRSS:").with_context(|| format!("no VmRSS in {path}"))?,
        })
    }

    /// The fewer of both, of each: what a process opens only for a moment falls out.
    pub fn fewer(self, other: Vitals) -> Vitals {
        Vitals {
            pid: other.pid,
            descriptors: self.descriptors.min(other.descriptors),
            threads: self.threads.min(other.threads),
            resident_kib: self.resident_kib.min(other.resident_kib),
        }
    }

    /// An error unless it is the same process with as many descriptors and threads, and at most `growth_kib` more
    /// memory.
    pub fn ensure_as(&self, before: &Vitals, growth_kib: u64) -> Result<()> {
        ensure!(self.pid == before.pid, "another process: {before}, now {self}");
        ensure!(self.descriptors == before.descriptors, "not as many descriptors: {before}, now {self}");
        ensure!(self.threads == before.threads, "not as many threads: {before}, now {self}");
        ensure!(
            self.resident_kib <= before.resident_kib + growth_kib,
            "grown by more than {growth_kib} KiB: {before}, now {self}"
        );
        Ok(())
    }
}

impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Vitals { pid, descriptors, threads, resident_kib } = self;
        write!(f, "pid {pid}: {descriptors} descriptors, {threads} threads, {resident_kib} KiB")
    }
}

/// The most memory that a process ever had in RAM (VmHWM), in KiB.
pub fn peak_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    kib(&status, "VmHWM:").with_context(|| format!("no VmHWM in {path}"))
}

/// CPU time that a process has used since its start, in user space and kernel, in seconds to a hundredth.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    cpu_ticks(&stat).map(cpu::seconds).with_context(|| format!("not a stat line: {stat:?}"))
}

/// utime and stime, the 14th and 15th field. The second one is in brackets and may hold blanks.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// From a line like `VmRSS:    24812 kB`.
fn kib(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Vitals = Vitals { pid: 7, descriptors: 20, threads: 5, resident_kib: 10_000 };

    #[test]
    fn this_process_has_vitals() {
        let vitals = Vitals::of(std::process::id()).unwrap();
        assert!(vitals.descriptors >= 3 && vitals.threads >= 1 && vitals.resident_kib > 100, "{vitals}");
    }

    #[test]
    fn cpu_time_is_read_behind_a_name_with_blanks() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 5 0 0 0 150 25 9 9 20 0 1 0 100 1 1";
        assert_eq!(cpu_ticks(stat), Some(175));
        assert!(cpu_seconds(std::process::id()).is_ok() && peak_kib(std::process::id()).unwrap() > 100);
    }

    #[test]
    fn a_leak_is_an_error() {
        BEFORE.ensure_as(&BEFORE, 0).unwrap();
        for (leaking, told) in [
            (Vitals { pid: 8, ..BEFORE }, "another process"),
            (Vitals { descriptors: 21, ..BEFORE }, "descriptors"),
            (Vitals { threads: 6, ..BEFORE }, "threads"),
            (Vitals { resident_kib: 14_097, ..BEFORE }, "grown by more than 4096 KiB"),
        ] {
            let error = leaking.ensure_as(&BEFORE, 4096).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        Vitals { resident_kib: 14_096, ..BEFORE }.ensure_as(&BEFORE, 4096).unwrap();
    }

    #[test]
    fn what_is_open_for_a_moment_falls_out() {
        let busy = Vitals { descriptors: 26, threads: 6, ..BEFORE };
        assert_eq!(busy.fewer(BEFORE), BEFORE);
    }
}
