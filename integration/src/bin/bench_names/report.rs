//! What people read, and what the JSON file gets.

use flan_integration::bench::machine::Machine;
use flan_integration::bench::report::{align_right_from, lines, plain_table};
use flan_integration::bench::target::{self, Bound, Target};
use serde::Serialize;

use crate::load::Load;

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    machine: Machine,
    busy_percent_before: f64,
    load: Option<Load>,
    /// Milliseconds from the end of `docker run` to an answer on another host.
    appears_milliseconds: Option<f64>,
    targets: Vec<Target>,
}

impl Results {
    pub(crate) fn new(machine: Machine, busy_percent_before: f64) -> Results {
        Results { machine, busy_percent_before, load: None, appears_milliseconds: None, targets: Vec::new() }
    }

    pub(crate) fn load(&mut self, load: Load) {
        self.load = Some(load);
        self.judge();
    }

    pub(crate) fn appears(&mut self, milliseconds: f64) {
        self.appears_milliseconds = Some(milliseconds);
        self.judge();
    }

    fn judge(&mut self) {
        let fland = self.load.map(|load| load.fland);
        self.targets = vec![
            Target::new(
                &"fland",
                "answers a second",
                Bound::AtLeast(50_000.0),
                "",
                fland.map(|speed| speed.answers),
            ),
            Target::new(
                &"fland",
                "one beside 50,000 a second",
                Bound::AtMost(1.0),
                "ms",
                fland.map(|speed| speed.milliseconds),
            ),
            Target::new(
                &"docker run",
                "to an answer elsewhere",
                Bound::AtMost(300.0),
                "ms",
                self.appears_milliseconds,
            ),
        ];
    }
}

/// The whole report.
pub(crate) fn render(results: &Results) -> String {
    let mut text = format!(
        "\nOne fland, one etcd and one dnsmasq in network namespaces. {}.\nBefore the first run the machine was {:.0} % busy.\n",
        results.machine, results.busy_percent_before
    );
    if let Some(load) = &results.load {
        text += &format!(
            "fland's memory with the names of {} containers: {:.1} MB, without: {:.1} MB. Answers to dnsmasq's, in one \
             round: {:.2}x.\n\n",
            load.containers, load.memory_megabytes, load.memory_before, load.ratio
        );
        let mut table = plain_table();
        table.set_header(["", "", "fland", "dnsmasq"]);
        let (fland, dnsmasq) = (load.fland, load.dnsmasq);
        table.add_row([
            "answers a second".to_owned(),
            String::new(),
            format!("{:.0}", fland.answers),
            format!("{:.0}", dnsmasq.answers),
        ]);
        let of = |milliseconds: f64| format!("{milliseconds:.3}");
        table.add_row([
            "one beside 50,000 a second".to_owned(),
            "ms".to_owned(),
            of(fland.milliseconds),
            of(dnsmasq.milliseconds),
        ]);
        align_right_from(&mut table, 2);
        text += &lines(&table);
        text += "\n";
    }
    if let Some(milliseconds) = results.appears_milliseconds {
        text +=
            &format!("\nFrom the end of docker run to an answer on another host: {milliseconds:.0} ms.\n");
    }
    format!("{text}\n{}\n", target::table(&results.targets))
}
