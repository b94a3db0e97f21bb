//! What a bench runs on.

use std::fmt;
use std::thread;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::command::Place;

/// A machine, and the programs on it that a bench runs.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// `uname -r`.
    kernel: String,
    cpus: usize,
    /// The first line that each tells of its version.
    programs: Vec<String>,
}

impl Machine {
    /// Reads it. Of each program, by its name, the argument that has it tell its version.
    pub fn read(programs: &[(&str, &str)]) -> Result<Machine> {
        let version = |&(program, argument): &(&str, &str)| -> Result<String> {
            let text = Place::default().run(program, [argument])?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        Ok(Machine {
            kernel: sysctl("kernel/osrelease")?,
            cpus: thread::available_parallelism().context("cannot count the CPUs")?.get(),
            programs: programs.iter().map(version).collect::<Result<_>>()?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, cpus, programs } = self;
        write!(f, "{cpus} CPUs, Linux {kernel}, {}", programs.join(", "))
    }
}

/// The value of a file below /proc/sys.
pub fn sysctl(file: &str) -> Result<String> {
    let path = format!("/proc/sys/{file}");
    let value = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(value.trim().to_owned())
}
