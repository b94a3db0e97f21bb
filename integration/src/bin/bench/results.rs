//! All that was measured, and what follows from it. Serialized, it is the JSON file.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use flan_integration::report;
use flan_integration::statistics::median;
use serde::Serialize;

use crate::arguments::Arguments;
use crate::ends::Ends;
use crate::figures::Figure;
use crate::iperf;
use crate::measure::Measure;
use crate::rows::Row;
use crate::runs::{Run, median_of, ratios};
use crate::targets::{self, Target};
use crate::underlay::{Features, Underlay};

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    api_version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) ends: Ends,
    pub(crate) rounds: u32,
    /// Of each run that measures throughput.
    pub(crate) seconds: u32,
    pub(crate) rows: Vec<Row>,
    pub(crate) measures: Vec<Measure>,
    pub(crate) underlays: Vec<UnderlayRecord>,
    pub(crate) summaries: Vec<Summary>,
    pub(crate) targets: Vec<Target>,
    runs: Vec<Run>,
}

/// What it was measured on.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    /// `uname -r`.
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) iperf3: String,
    /// Of TCP, on both ends: a new namespace takes the machine's.
    pub(crate) congestion_control: String,
}

/// A setting of the underlay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnderlayRecord {
    pub(crate) name: Underlay,
    /// The command for both ends of every host's link; null if nothing was set.
    pub(crate) set: Option<String>,
    /// What `ethtool -k` says of a host's eth0.
    pub(crate) features: Features,
    /// How busy the machine was with all rows standing idle; what is not near 0 disturbs.
    pub(crate) busy_percent_before: f64,
}

/// A figure over all rounds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) underlay: Underlay,
    pub(crate) row: Row,
    pub(crate) figure: Figure,
    pub(crate) median: f64,
    /// Median of the ratios to the control of the same round; null without control, or if it is 0 there.
    pub(crate) ratio: Option<f64>,
}

impl Results {
    /// Draws the sums.
    pub(crate) fn new(
        arguments: &Arguments,
        machine: Machine,
        underlays: Vec<UnderlayRecord>,
        runs: Vec<Run>,
    ) -> Results {
        let (rows, measures) = (arguments.rows(), arguments.measures());
        let mut summaries = Vec::new();
        for underlay in underlays.iter().map(|record| record.name) {
            for &row in &rows {
                for &figure in measures.iter().flat_map(|measure| measure.figures()) {
                    summaries.extend(summary(&runs, underlay, row, figure));
                }
            }
        }
        Results {
            api_version: "flan-bench/v1",
            machine,
            ends: arguments.ends,
            rounds: arguments.rounds,
            seconds: arguments.seconds,
            rows,
            measures,
            targets: targets::judge(&runs, &arguments.underlays()),
            underlays,
            summaries,
            runs,
        }
    }

    /// The summary of a figure, if it was measured.
    pub(crate) fn summary(&self, underlay: Underlay, row: Row, figure: Figure) -> Option<&Summary> {
        let mut all = self.summaries.iter();
        all.find(|summary| (summary.underlay, summary.row, summary.figure) == (underlay, row, figure))
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
    pub(crate) fn read() -> Result<Machine> {
        Ok(Machine {
            kernel: report::sysctl("kernel/osrelease")?,
            cpus: thread::available_parallelism().context("cannot count the CPUs")?.get(),
            iperf3: iperf::version()?,
            congestion_control: report::sysctl("net/ipv4/tcp_congestion_control")?,
        })
    }
}

fn summary(runs: &[Run], underlay: Underlay, row: Row, figure: Figure) -> Option<Summary> {
    let median_value = median_of(runs, underlay, row, figure)?;
    let ratio = median(&ratios(runs, underlay, figure, row, Row::CONTROL));
    Some(Summary { underlay, row, figure, median: median_value, ratio })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::tests::run;

    fn throughput(round: u32, row: Row, value: f64) -> Run {
        run(Underlay::Offloads, round, row, Figure::Tcp1Gbps, value)
    }

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_within_each_round() {
        let runs = [
            throughput(1, Row::CONTROL, 10.0),
            throughput(1, Row::FlanUdp, 6.0),
            throughput(2, Row::CONTROL, 20.0),
            throughput(2, Row::FlanUdp, 10.0),
            throughput(3, Row::CONTROL, 5.0),
            throughput(3, Row::FlanUdp, 4.0),
        ];
        let summary = summary(&runs, Underlay::Offloads, Row::FlanUdp, Figure::Tcp1Gbps).unwrap();
        assert_eq!((summary.median, summary.ratio), (6.0, Some(0.6)));
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        let runs = [throughput(1, Row::CONTROL, 0.0), throughput(1, Row::FlanUdp, 6.0)];
        let with = summary(&runs, Underlay::Offloads, Row::FlanUdp, Figure::Tcp1Gbps).unwrap();
        assert_eq!(with.ratio, None);
        let without = summary(&runs[1..], Underlay::Offloads, Row::FlanUdp, Figure::Tcp1Gbps).unwrap();
        assert_eq!((without.median, without.ratio), (6.0, None));
        assert!(summary(&runs, Underlay::NoUdpOffloads, Row::FlanUdp, Figure::Tcp1Gbps).is_none());
    }
}
