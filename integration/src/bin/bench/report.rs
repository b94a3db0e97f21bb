//! What people read: a table for each setting of the underlay, and the targets.

use flan_integration::bench::report::{align_right_from, lines, plain_table};
use flan_integration::bench::target;

use crate::ends::Ends;
use crate::figures::Figure;
use crate::results::{Results, Summary, UnderlayRecord};
use crate::underlay::Underlay;

/// Below each table.
const LEGEND: &str = "A figure is the median of all rounds; behind it stands the median of its ratios to the vxlan control of the same \
round.\niperf3 sends and receives each load in one thread (UDP: one packet a system call), which is part of every figure.";

/// Below a table with anything but [`Underlay::Offloads`].
const SINGLE_PACKETS: &str = "veth hands UDP over packet by packet here: to merge on arrival it would want \
rx-udp-gro-forwarding, or a\nsender without TSO, and neither is set.";

/// The whole report.
pub(crate) fn render(results: &Results) -> String {
    let mut parts = vec![preamble(results)];
    for underlay in &results.underlays {
        parts.push(format!("{}\n\n{}", heading(underlay), table(results, underlay.name)));
        if underlay.name != Underlay::Offloads {
            parts.push(SINGLE_PACKETS.to_owned());
        }
    }
    parts.push(LEGEND.to_owned());
    parts.push(target::table(&results.targets));
    format!("\n{}\n", parts.join("\n\n"))
}

fn preamble(results: &Results) -> String {
    let between = match results.ends {
        Ends::Hosts => "two hosts",
        Ends::Containers => "containers (behind docker0) on two hosts",
    };
    format!(
        "Between {between} in network namespaces; rounds: {}, seconds a run: {}.\n{}, TCP with {}.",
        results.rounds, results.seconds, results.machine, results.congestion_control
    )
}

fn heading(underlay: &UnderlayRecord) -> String {
    let features: Vec<_> = underlay.features.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let load = format!("Before the first run the machine was {:.0} % busy.", underlay.busy_percent_before);
    let set = match &underlay.set {
        None => "Underlay: veth with its offloads; nothing was set.".to_owned(),
        Some(command) => {
            format!("Underlay: veth with {}, on both ends of every link:\n{command}", underlay.name)
        }
    };
    format!("{set}\n({})\n{load}", features.join(", "))
}

fn table(results: &Results, underlay: Underlay) -> String {
    let mut table = plain_table();
    let mut header = vec![String::new(), String::new()];
    header.extend(results.rows.iter().map(ToString::to_string));
    table.set_header(header);
    for measure in &results.measures {
        for (number, &figure) in measure.figures().iter().enumerate() {
            let name = if number == 0 { measure.to_string() } else { String::new() };
            let mut line = vec![name, figure.unit().to_owned()];
            let summaries = results.rows.iter().map(|&row| results.summary(underlay, row, figure));
            line.extend(summaries.map(|summary| cell(figure, summary)));
            table.add_row(line);
        }
    }
    align_right_from(&mut table, 2);
    lines(&table)
}

/// `12.34   0.56x`, the ratio always as wide, so that the figures stand below each other.
fn cell(figure: Figure, summary: Option<&Summary>) -> String {
    let Some(summary) = summary else { return "-".to_owned() };
    let ratio = summary.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"));
    format!("{} {ratio:>7}", figure.shown(summary.median))
}
