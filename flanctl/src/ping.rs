//! `flanctl ping`: which part of the way to a host or container works.

mod found;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use flan_agent_api::{API_VERSION, Peers};
use flan_probes::{Outcome, PingLeg, Tally, Way, ping as probe};
use flan_subnet_lease::{Store, printable};
use serde::Serialize;

use self::found::Found;
use crate::agent;
use crate::args::{PingArgs, ReportForm};
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::told;

/// Probes what the arguments name, and prints what came of it. Fails if anything was not answered. The store is asked only
/// for a container's name.
pub(crate) async fn ping(
    args: &PingArgs,
    store: impl FnOnce() -> Result<Store, Failure>,
) -> Result<(), Failure> {
    let document: Peers = agent::get(&args.socket.path, "/peers").await?;
    let source = document.probes.as_ref().ok_or_else(|| not_ready(&args.socket.path))?;
    let found = match found::among_peers(&document.peers, &args.target)? {
        Some(found) => found,
        None => found::container(&store()?, &document.peers, &args.target).await?,
    };
    let Found { target, container, through } = found;
    let way = Way {
        encapsulation: through,
        mtu: source.mtu,
        overlay: addresses(&source.overlay),
        underlay: addresses(&source.underlay),
    };
    let waiting = || format!("probing {}", args.target);
    let probed = probe(&way, &target, container, source.port, args.count.into(), args.interval);
    let outcome = told(waiting, probed).await.map_err(|reason| {
        Failure::new(Kind::Other, format!("cannot open what probes are sent with: {reason}; are you root?"))
    })?;
    let report = Report::new(&target, &way, outcome);
    match args.output {
        ReportForm::Json => output::print_json(&report)?,
        ReportForm::Yaml => output::print_yaml(&report)?,
        ReportForm::Text => output::print(&report.text())?,
    }
    match report.reason {
        None => Ok(()),
        Some(_) => {
            Err(Failure::new(Kind::Problems, format!("{} is not reached as it should be", args.target)))
        }
    }
}

fn not_ready(socket: &Path) -> Failure {
    let text = format!(
        "fland at {} probes no peers: this host is not ready, which flanctl status explains, or its backend sends nothing",
        socket.display()
    );
    Failure::new(Kind::Other, text)
}

/// Reads addresses; the agent writes no others.
fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    api_version: &'static str,
    kind: &'static str,
    /// The host's name; empty if its lease has none.
    host: String,
    subnet: String,
    /// What carries packets between the hosts; null if nothing does.
    through: Option<String>,
    legs: Vec<Leg>,
    /// What is wrong; null if packets pass as they should.
    reason: Option<String>,
    /// What else was not answered, and does not matter to packets.
    note: Option<String>,
}

/// One kind of packet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Leg {
    /// `underlay`, `overlay`, `full`, `fland` or `container`.
    name: &'static str,
    address: IpAddr,
    /// Size of its packets in bytes; null for the question to fland.
    bytes: Option<u16>,
    sent: usize,
    answered: usize,
    /// The fastest, the average and the slowest answer; null if there was none.
    round_trip_microseconds: Option<[u64; 3]>,
    /// Why the kernel refused to send it.
    unsent: Option<String>,
}

impl Report {
    fn new(target: &flan_probes::Target, way: &Way, outcome: Outcome) -> Self {
        Self {
            api_version: API_VERSION,
            kind: "Ping",
            host: target.host.clone(),
            subnet: target.subnet.to_string(),
            through: way.encapsulation.clone(),
            legs: outcome.tallies.into_iter().map(Leg::new).collect(),
            reason: outcome.reason,
            note: outcome.note,
        }
    }

    fn text(&self) -> String {
        let through =
            self.through.as_deref().map_or_else(String::new, |through| format!(" through {through}"));
        let mut lines = vec![printable(&format!("{} {}{through}", self.host, self.subnet)).trim().to_owned()];
        let width = self.legs.iter().map(|leg| leg.address.to_string().len()).max().unwrap_or_default();
        lines.extend(self.legs.iter().map(|leg| leg.text(width)));
        lines.extend(self.reason.as_ref().map(|reason| format!("wrong: {}", printable(reason))));
        lines.extend(self.note.as_ref().map(|note| format!("note: {note}")));
        lines.join("\n")
    }
}

impl Leg {
    fn new(tally: Tally) -> Self {
        let (name, bytes) = match tally.leg {
            PingLeg::Underlay => ("underlay", Some(flan_probes::SMALL)),
            PingLeg::Overlay => ("overlay", Some(flan_probes::SMALL)),
            PingLeg::Full(bytes) => ("full", Some(bytes)),
            PingLeg::Agent => ("fland", None),
            PingLeg::Container => ("container", Some(flan_probes::SMALL)),
        };
        let micros = |time: Duration| time.as_micros() as u64;
        let times = &tally.answers;
        let average = |sum: Duration| sum / times.len().max(1) as u32;
        let ends = times.iter().min().zip(times.iter().max());
        Self {
            name,
            address: tally.to,
            bytes,
            sent: tally.sent,
            answered: times.len(),
            round_trip_microseconds: ends
                .map(|(least, most)| [*least, average(times.iter().sum()), *most].map(micros)),
            unsent: tally.unsent,
        }
    }

    fn text(&self, width: usize) -> String {
        let what = match (self.name, self.bytes) {
            ("full", Some(bytes)) => format!("{bytes} bytes"),
            (name, _) => name.to_owned(),
        };
        let times = self.round_trip_microseconds.map(|times| {
            let [least, average, most] = times.map(|time| format!("{:.2}", time as f64 / 1000.0));
            format!(", {least} / {average} / {most} ms")
        });
        let unsent = self.unsent.as_ref().map(|reason| format!(" ({})", printable(reason)));
        format!(
            "  {what:12}{:width$}  {} of {} answered{}{}",
            self.address.to_string(),
            self.answered,
            self.sent,
            times.unwrap_or_default(),
            unsent.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_way_has_a_line_and_what_is_wrong_stands_last() {
        let tally = |leg, to: &str, answers: &[u64]| Tally {
            leg,
            to: to.parse().unwrap(),
            unsent: None,
            sent: 3,
            answers: answers.iter().map(|micros| Duration::from_micros(*micros)).collect(),
        };
        let target = flan_probes::Target {
            subnet: "10.5.2.0/24".parse().unwrap(),
            host: "h2".to_owned(),
            underlay: "192.168.64.12".parse().unwrap(),
            is_direct: false,
            has_agent: true,
        };
        let way = Way {
            encapsulation: Some("VXLAN (UDP 8472)".to_owned()),
            mtu: 1450,
            overlay: Vec::new(),
            underlay: Vec::new(),
        };
        let unsent = Tally {
            unsent: Some("Message too long".to_owned()),
            ..tally(PingLeg::Full(1450), "10.5.2.0", &[])
        };
        let tallies = vec![tally(PingLeg::Underlay, "192.168.64.12", &[100, 120, 200]), unsent];
        let report =
            Report::new(&target, &way, Outcome { tallies, reason: Some("too large".to_owned()), note: None });
        assert_eq!(
            report.text(),
            "h2 10.5.2.0/24 through VXLAN (UDP 8472)\n\
             \u{20} underlay    192.168.64.12  3 of 3 answered, 0.10 / 0.14 / 0.20 ms\n\
             \u{20} 1450 bytes  10.5.2.0       0 of 3 answered (Message too long)\n\
             wrong: too large"
        );
    }
}
