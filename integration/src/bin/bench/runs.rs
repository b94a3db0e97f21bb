//! What the runs have found, figure by figure.

use flan_integration::statistics::median;
use serde::Serialize;

use crate::figures::{Figure, Figures};
use crate::measure::Measure;
use crate::rows::Row;
use crate::underlay::Underlay;

/// One run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    pub(crate) underlay: Underlay,
    /// From 1.
    pub(crate) round: u32,
    pub(crate) row: Row,
    pub(crate) measure: Measure,
    pub(crate) figures: Figures,
}

/// The ratios of a figure of one row to that of another in the same round; none of a round where that is 0.
pub(crate) fn ratios(runs: &[Run], underlay: Underlay, figure: Figure, row: Row, to: Row) -> Vec<f64> {
    let values = values(runs, underlay, row, figure);
    let others = self::values(runs, underlay, to, figure);
    let pairs = values.iter().filter_map(|(round, value)| {
        let (_, other) = others.iter().find(|(other_round, _)| other_round == round)?;
        Some((value, other))
    });
    pairs.filter(|(_, other)| **other != 0.0).map(|(value, other)| value / other).collect()
}

/// The median of a figure over all rounds.
pub(crate) fn median_of(runs: &[Run], underlay: Underlay, row: Row, figure: Figure) -> Option<f64> {
    let values: Vec<f64> = values(runs, underlay, row, figure).into_iter().map(|(_, value)| value).collect();
    median(&values)
}

/// Round and value.
fn values(runs: &[Run], underlay: Underlay, row: Row, figure: Figure) -> Vec<(u32, f64)> {
    let wanted = runs.iter().filter(|run| run.underlay == underlay && run.row == row);
    wanted.filter_map(|run| Some((run.round, *run.figures.get(&figure)?))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run with one figure.
    pub(crate) fn run(underlay: Underlay, round: u32, row: Row, figure: Figure, value: f64) -> Run {
        Run { underlay, round, row, measure: Measure::Tcp1, figures: Figures::from([(figure, value)]) }
    }
}
