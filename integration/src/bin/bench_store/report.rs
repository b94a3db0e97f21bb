//! The report: a table for people, everything as JSON for programs.

use anyhow::{Context, Result};
use flan_integration::report::{align_right_from, lines, plain_table};
use serde::Serialize;

use crate::measure::{Measure, Values, Wanted};

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    pub(crate) api_version: &'static str,
    pub(crate) machine: String,
    pub(crate) rounds: u32,
    pub(crate) clients: u32,
    pub(crate) targets: Vec<Target>,
    pub(crate) etcd: Values,
    pub(crate) embedded: Values,
}

/// A target, judged.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    name: &'static str,
    /// The embedded store's median divided by etcd's.
    ratio: f64,
    wanted: String,
    reached: bool,
}

impl Results {
    pub(crate) fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("cannot write the results as JSON")
    }

    pub(crate) fn render(&self) -> String {
        let mut table = plain_table();
        table.set_header(["", "", "etcd", "embedded", "ratio", "wanted", ""]);
        for measure in Measure::ALL {
            let (name, unit) = measure.name();
            let medians = (self.etcd.median(measure), self.embedded.median(measure));
            let (Some(etcd), Some(embedded)) = medians else { continue };
            let (wanted, verdict) = match measure.wanted() {
                Some(wanted) => (shown(wanted), verdict(wanted.is_reached_by(embedded / etcd))),
                None => (String::new(), ""),
            };
            let ratio = format!("{:.2}x", embedded / etcd);
            table.add_row([name, unit, &number(etcd), &number(embedded), &ratio, &wanted, verdict]);
        }
        align_right_from(&mut table, 2);
        format!(
            "The embedded store beside a real etcd with one member, both on loopback and on the same disk; {}.\n{} \
             rounds, {} clients. Medians.\n{}",
            self.machine,
            self.rounds,
            self.clients,
            lines(&table)
        )
    }
}

/// What is wanted of the medians, and whether it was found.
pub(crate) fn judge(etcd: &Values, embedded: &Values) -> Vec<Target> {
    let judged = Measure::ALL.into_iter().filter_map(|measure| {
        let wanted = measure.wanted()?;
        let ratio = embedded.median(measure)? / etcd.median(measure)?;
        let reached = wanted.is_reached_by(ratio);
        Some(Target { name: measure.name().0, ratio, wanted: shown(wanted), reached })
    });
    judged.collect()
}

fn shown(wanted: Wanted) -> String {
    match wanted {
        Wanted::AtLeast(bound) => format!("at least {bound:.1}x"),
        Wanted::AtMost(bound) => format!("at most {bound:.1}x"),
    }
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
