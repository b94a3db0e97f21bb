//! All that was measured, and what follows from it. Serialized, it is the JSON file.

use flan_integration::bench::machine::Machine;
use flan_integration::bench::target::Target;
use serde::Serialize;

use crate::arguments::Arguments;
use crate::measure::Run;
use crate::targets;

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    api_version: &'static str,
    pub(crate) machine: Machine,
    /// How busy it was before the first run; what is not near 0 disturbs.
    pub(crate) busy_percent_before: f64,
    pub(crate) rounds: u32,
    pub(crate) writes: u32,
    pub(crate) idle_seconds: u32,
    /// Else in memory.
    pub(crate) etcd_on_disk: bool,
    pub(crate) targets: Vec<Target>,
    pub(crate) runs: Vec<Run>,
}

impl Results {
    /// Nothing yet.
    pub(crate) fn new(arguments: &Arguments, machine: Machine, busy_percent_before: f64) -> Results {
        Results {
            api_version: "flan-bench-control/v2",
            machine,
            busy_percent_before,
            rounds: arguments.rounds,
            writes: arguments.writes,
            idle_seconds: arguments.idle_seconds,
            etcd_on_disk: arguments.etcd_on_disk,
            targets: targets::judge(&[]),
            runs: Vec::new(),
        }
    }

    /// Takes a run in, and judges the targets.
    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(run);
        self.targets = targets::judge(&self.runs);
    }
}
