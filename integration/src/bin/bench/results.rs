//! All that was measured, and what follows from it. Serialized, it is the JSON file.

use anyhow::Result;
use flan_integration::bench::machine::{Machine, sysctl};
use flan_integration::bench::target::Target;
use flan_integration::statistics::median;
use serde::Serialize;

use crate::arguments::Arguments;
use crate::ends::Ends;
use crate::figures::Figure;
use crate::measure::Measure;
use crate::rows::Row;
use crate::runs::{Run, median_of, ratios};
use crate::targets;
use crate::underlay::{Features, Underlay};

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    api_version: &'static str,
    pub(crate) machine: Machine,
    /// Of TCP, on both ends: a new namespace takes the machine's.
    pub(crate) congestion_control: String,
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
        rows: Vec<Row>,
        machine: Machine,
        underlays: Vec<UnderlayRecord>,
        runs: Vec<Run>,
    ) -> Result<Results> {
        let measures = arguments.measures();
        let mut summaries = Vec::new();
        for underlay in underlays.iter().map(|record| record.name) {
            for &row in &rows {
                for &figure in measures.iter().flat_map(|measure| measure.figures()) {
                    summaries.extend(summary(&runs, underlay, row, figure));
                }
            }
        }
        Ok(Results {
            api_version: "flan-bench/v2",
            machine,
            congestion_control: sysctl("net/ipv4/tcp_congestion_control")?,
            ends: arguments.ends,
            rounds: arguments.rounds,
            seconds: arguments.seconds,
            rows,
            measures,
            targets: targets::judge(&runs, &arguments.underlays()),
            underlays,
            summaries,
            runs,
        })
    }

    /// The summary of a figure, if it was measured.
    pub(crate) fn summary(&self, underlay: Underlay, row: Row, figure: Figure) -> Option<&Summary> {
        let mut all = self.summaries.iter();
        all.find(|summary| (summary.underlay, summary.row, summary.figure) == (underlay, row, figure))
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
        assert!(summary(&runs, Underlay::NoTunnelOffloads, Row::FlanUdp, Figure::Tcp1Gbps).is_none());
    }
}
