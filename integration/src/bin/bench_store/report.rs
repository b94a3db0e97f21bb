//! The report: tables for people, everything as JSON for programs.

use flan_integration::bench::machine::Machine;
use flan_integration::bench::report::{align_right_from, lines, plain_table};
use flan_integration::bench::target::{self, Target};
use serde::Serialize;

use crate::measure::{Measure, Values};

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    pub(crate) api_version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) clients: u32,
    pub(crate) targets: Vec<Target>,
    pub(crate) etcd: Values,
    pub(crate) embedded: Values,
}

impl Results {
    pub(crate) fn render(&self) -> String {
        let mut table = plain_table();
        table.set_header(["", "", "etcd", "embedded", "ratio"]);
        for measure in Measure::ALL {
            let (name, unit) = measure.name();
            let medians = (self.etcd.median(measure), self.embedded.median(measure));
            let (Some(etcd), Some(embedded)) = medians else { continue };
            let ratio = format!("{:.2}x", embedded / etcd);
            table.add_row([name, unit, &number(etcd), &number(embedded), &ratio]);
        }
        align_right_from(&mut table, 2);
        format!(
            "The embedded store beside a real etcd with one member, both on loopback and on the same disk; {}.\n{} \
             rounds, {} clients. Medians.\n{}\n\n{}",
            self.machine,
            self.rounds,
            self.clients,
            lines(&table),
            target::table(&self.targets)
        )
    }
}

/// Judges the embedded store's medians divided by etcd's.
pub(crate) fn judge(etcd: &Values, embedded: &Values) -> Vec<Target> {
    let judged = Measure::ALL.into_iter().filter_map(|measure| {
        let ratio =
            etcd.median(measure).zip(embedded.median(measure)).map(|(etcd, embedded)| embedded / etcd);
        Some(Target::new(&"embedded to etcd", measure.name().0, measure.wanted()?, "x", ratio))
    });
    judged.collect()
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
