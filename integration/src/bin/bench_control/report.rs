//! What people read: a table with a column for each number of peers, and the targets.

use flan_integration::bench::report::{align_right_from, lines, plain_table};
use flan_integration::bench::target;

use crate::measure::{Measure, Run, median_of, p99_of};
use crate::results::Results;
use crate::targets::ratio;

/// Below the table.
const LEGEND: &str = "Times are medians. Behind a control stands how many times as long fland took. A write is timed from just before it \
is\nsent until the kernel's notification is read; etcd's own time is part of it: see the bare watch. Exec includes nsenter.";

/// The whole report.
pub(crate) fn render(results: &Results) -> String {
    let parts = [preamble(results), table(results), LEGEND.to_owned(), target::table(&results.targets)];
    format!("\n{}\n", parts.join("\n\n"))
}

fn preamble(results: &Results) -> String {
    format!(
        "One fland and one etcd in network namespaces; leases of flannel's form, vxlan, IPv4. Rounds of each start: {}, \
         writes of\neach kind: {}, seconds idle: {}. etcd writes to {}. {}.\nBefore the first run the machine \
         was {:.0} % busy.",
        results.rounds,
        results.writes,
        results.idle_seconds,
        if results.etcd_on_disk { "the disk" } else { "memory" },
        results.machine,
        results.busy_percent_before
    )
}

fn table(results: &Results) -> String {
    let mut table = plain_table();
    let mut header = vec!["peers".to_owned(), String::new()];
    header.extend(results.runs.iter().map(|run| run.peers.to_string()));
    table.set_header(header);
    for measure in Measure::ALL {
        let (name, unit) = measure.name();
        let mut line = vec![name.to_owned(), unit.to_owned()];
        line.extend(results.runs.iter().map(|run| cell(run, measure)));
        table.add_row(line);
        if measure.has_p99() {
            let mut line = vec!["  p99".to_owned(), unit.to_owned()];
            line.extend(results.runs.iter().map(|run| shown(measure, p99_of(&run.values, measure))));
            table.add_row(line);
        }
    }
    align_right_from(&mut table, 2);
    lines(&table)
}

fn cell(run: &Run, measure: Measure) -> String {
    let text = shown(measure, median_of(&run.values, measure));
    let compared = [Measure::ControlInline, Measure::ControlNextHops].contains(&measure);
    match ratio(run, measure).filter(|_| compared) {
        Some(ratio) => format!("{text}  {ratio:.1}x"),
        None => text,
    }
}

fn shown(measure: Measure, value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| measure.shown(value))
}
