//! What a process holds: descriptors, threads, memory. See proc(5).

use std::fmt;
use std::fs;

use anyhow::{Context, Result, ensure};

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
            resident_kib: resident_kib(&status).with_context(|| format!("no VmRSS in {path}"))?,
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

/// From a line like `VmRSS:    24812 kB`.
fn resident_kib(status: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
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
