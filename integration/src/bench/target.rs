//! What a bench wants of its values, and whether it found that.

use comfy_table::CellAlignment;
use serde::Serialize;

use super::report::{lines, plain_table};

/// A target, judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// What it was measured on: a setting of the underlay, a number of peers.
    pub subject: String,
    /// What was measured.
    pub name: &'static str,
    /// In `unit`.
    pub wanted: Bound,
    /// `x` for a ratio.
    pub unit: &'static str,
    /// In `unit`; null if it was not measured.
    pub found: Option<f64>,
    /// Null if it was not measured.
    pub reached: Option<bool>,
}

/// What is wanted of a value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl Target {
    /// Judges a value.
    pub fn new(
        subject: &impl ToString,
        name: &'static str,
        wanted: Bound,
        unit: &'static str,
        found: Option<f64>,
    ) -> Target {
        let reached = found.map(|found| match wanted {
            Bound::AtLeast(least) => found >= least,
            Bound::AtMost(most) => found <= most,
        });
        Target { subject: subject.to_string(), name, wanted, unit, found, reached }
    }
}

/// All targets, with a heading.
pub fn table(targets: &[Target]) -> String {
    let mut table = plain_table();
    for target in targets {
        let unit = target.unit;
        let wanted = match target.wanted {
            Bound::AtLeast(bound) => format!("at least {bound} {unit}"),
            Bound::AtMost(bound) => format!("at most {bound} {unit}"),
        };
        let found = target.found.map_or_else(|| "-".to_owned(), |found| format!("{found:.2} {unit}"));
        let verdict = match target.reached {
            None => "not measured",
            Some(true) => "reached",
            Some(false) => "MISSED",
        };
        table.add_row([&target.subject, target.name, &wanted, &found, verdict]);
    }
    if let Some(found) = table.column_mut(3) {
        found.set_cell_alignment(CellAlignment::Right);
    }
    format!("Targets\n\n{}", lines(&table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_within_what_it_allows() {
        let reached = |wanted, found| Target::new(&50, "", wanted, "x", found).reached;
        assert_eq!(reached(Bound::AtLeast(2.0), Some(2.0)), Some(true));
        assert_eq!(reached(Bound::AtLeast(2.0), Some(1.9)), Some(false));
        assert_eq!(reached(Bound::AtMost(2.0), Some(2.0)), Some(true));
        assert_eq!(reached(Bound::AtMost(2.0), Some(2.1)), Some(false));
        assert_eq!(reached(Bound::AtMost(2.0), None), None);
    }

    #[test]
    fn what_is_wanted_stands_beside_what_was_found() {
        let targets = [
            Target::new(&"offloads", "udp to control", Bound::AtLeast(0.55), "x", Some(0.5)),
            Target::new(&50_000, "restart", Bound::AtMost(1.5), "s", None),
        ];
        let lines: Vec<String> = table(&targets)
            .lines()
            .skip(2)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "offloads udp to control at least 0.55 x 0.50 x MISSED",
                "50000 restart at most 1.5 s - not measured"
            ]
        );
    }
}
