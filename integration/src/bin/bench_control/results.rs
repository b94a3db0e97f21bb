//! All that was measured, and what follows from it. Serialized, it is the JSON file.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use flan_integration::command::Place;
use flan_integration::report;
use serde::Serialize;

use crate::arguments::Arguments;
use crate::measure::Run;
use crate::targets::{self, Target};

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    api_version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) writes: u32,
    pub(crate) idle_seconds: u32,
    /// Else in memory.
    pub(crate) etcd_on_disk: bool,
    pub(crate) targets: Vec<Target>,
    pub(crate) runs: Vec<Run>,
}

/// What it was measured on.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    /// `uname -r`.
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) etcd: String,
    pub(crate) iproute2: String,
    /// How busy it was before the first run; what is not near 0 disturbs.
    pub(crate) busy_percent_before: f64,
}

impl Results {
    /// Judges the targets.
    pub(crate) fn new(arguments: &Arguments, machine: Machine, runs: Vec<Run>) -> Results {
        Results {
            api_version: "flan-bench-control/v1",
            machine,
            rounds: arguments.rounds,
            writes: arguments.writes,
            idle_seconds: arguments.idle_seconds,
            etcd_on_disk: arguments.etcd_on_disk,
            targets: targets::judge(&runs),
            runs,
        }
    }

    /// As JSON, for people as well.
    pub(crate) fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("cannot write the results as JSON")
    }

    /// Writes the JSON file.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        report::write_file(file, &self.json()?)
    }
}

impl Machine {
    /// Reads it.
    pub(crate) fn read(busy_percent_before: f64) -> Result<Machine> {
        let version = |program: &str, argument: &str| -> Result<String> {
            let text = Place::default().run(program, [argument])?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        Ok(Machine {
            kernel: report::sysctl("kernel/osrelease")?,
            cpus: thread::available_parallelism().context("cannot count the CPUs")?.get(),
            etcd: version("etcd", "--version")?,
            iproute2: version("ip", "-V")?,
            busy_percent_before,
        })
    }
}
