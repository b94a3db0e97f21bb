//! What people read, and what the JSON file gets.

use flan_integration::bench::machine::Machine;
use flan_integration::bench::report::{align_right_from, lines, plain_table};
use flan_integration::bench::target::{self, Bound, Target};
use serde::Serialize;

use crate::arguments::Arguments;
use crate::docker::DockerRuns;
use crate::subject::Values;

/// All values for one number of networks.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    pub(crate) networks: u32,
    /// In so many networks.
    pub(crate) each: Values,
    /// In one, with as many peers.
    pub(crate) control: Values,
}

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    machine: Machine,
    busy_percent_before: f64,
    peers: u32,
    idle_seconds: u32,
    docker: Option<DockerRuns>,
    runs: Vec<Run>,
    targets: Vec<Target>,
}

impl Results {
    pub(crate) fn new(arguments: &Arguments, machine: Machine, busy_percent_before: f64) -> Results {
        let (docker, runs, targets) = Default::default();
        let Arguments { peers, idle_seconds, .. } = *arguments;
        Results { machine, busy_percent_before, peers, idle_seconds, docker, runs, targets }
    }

    /// Adds what `docker run` took.
    pub(crate) fn docker(&mut self, runs: DockerRuns) {
        self.docker = Some(runs);
        self.judge();
    }

    /// Adds a run, and judges all targets again.
    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(run);
        self.judge();
    }

    fn judge(&mut self) {
        let of_hundred = self.runs.iter().find(|run| run.networks == 100).map(|run| run.each);
        let wanted = [
            ("memory", 60.0, "MB", of_hundred.map(|values| values.memory_megabytes)),
            ("idle CPU", 1.0, "%", of_hundred.map(|values| values.idle_percent)),
        ];
        let judge =
            |(name, most, unit, found)| Target::new(&"100 networks", name, Bound::AtMost(most), unit, found);
        self.targets = wanted.map(judge).into();
        let ratio = self.docker.map(|runs| runs.ratio);
        self.targets.push(Target::new(&"docker run", "to a bridge's", Bound::AtMost(1.3), "x", ratio));
    }
}

/// The whole report.
pub(crate) fn render(results: &Results) -> String {
    let preamble = format!(
        "One fland and one etcd in network namespaces; vxlan, IPv4, {} peers in each network. Seconds idle: {}. {}.\nBefore \
         the first run the machine was {:.0} % busy. Behind each value: its ratio to one network with as many peers.",
        results.peers, results.idle_seconds, results.machine, results.busy_percent_before
    );
    let mut table = plain_table();
    let mut header = vec!["networks".to_owned(), String::new()];
    header.extend(results.runs.iter().map(|run| run.networks.to_string()));
    table.set_header(header);
    type Value = fn(&Values) -> f64;
    let rows: [(&str, &str, Value); 3] = [
        ("exec to all networks ready", "s", |values| values.ready_seconds),
        ("memory, settled", "MB", |values| values.memory_megabytes),
        ("idle CPU", "%", |values| values.idle_percent),
    ];
    for (name, unit, value) in rows {
        let mut row = vec![name.to_owned(), unit.to_owned()];
        row.extend(results.runs.iter().map(|run| {
            let (each, control) = (value(&run.each), value(&run.control));
            let ratio = if control > 0.0 { format!("{:.1}x", each / control) } else { "-".to_owned() };
            format!("{each:.2}  {ratio}")
        }));
        table.add_row(row);
    }
    align_right_from(&mut table, 2);
    let docker = results.docker.map_or_else(String::new, |runs| {
        format!(
            "docker run of a container that ends at once: {:.3} s on a bridge of Docker's, {:.3} s in a network of flan ({:.2}x), \
             {:.3} s in one that the host has to join first.\n\n",
            runs.bridge_seconds, runs.flan_seconds, runs.ratio, runs.joining_seconds
        )
    });
    format!("\n{preamble}\n\n{}\n\n{docker}{}\n", lines(&table), target::table(&results.targets))
}
