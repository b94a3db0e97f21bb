//! `flanctl status`: what this host's agent does, with what is wrong first; or how all hosts are.

mod all;

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use flan_agent_api::{NetworkStatus, Probed, Problem, Status};
use flan_subnet_lease::{Store, printable};
use serde::Deserialize;
use serde_json::Value;

use self::all::HostList;
use crate::agent;
use crate::args::Form;
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::told;
use crate::table::short;

/// Column at which the values begin.
const WIDTH: usize = 12;
/// The name of the network that has none.
const DEFAULT: &str = "default";

/// Prints the status. Fails if there are problems, once they are printed.
pub(crate) async fn print(socket: &Path, form: Form, watch: bool) -> Result<(), Failure> {
    let found = Cell::new(0);
    output::once_or_again(watch, async || {
        let document: Value = agent::get(socket, "/status").await?;
        let status = Status::deserialize(&document).map_err(|error| {
            Failure::new(Kind::Other, format!("fland is of a version that writes another status: {error}"))
        })?;
        let problems = problems(&status, SystemTime::now());
        found.set(problems.len());
        output::in_form(form, &document, || text(&status, &problems))
    })
    .await?;
    match found.get() {
        0 => Ok(()),
        count => {
            Err(Failure::new(Kind::Problems, format!("this host has {}", output::count(count, "problem"))))
        }
    }
}

/// Prints how all hosts are. Fails if one is not as it should be.
pub(crate) async fn print_all(
    store: &Store,
    form: Form,
    watch: bool,
    waiting: impl Fn() -> String,
) -> Result<(), Failure> {
    let wrong = Cell::new(0);
    output::once_or_again(watch, async || {
        let list = told(&waiting, HostList::read(store)).await?;
        wrong.set(list.wrong());
        list.shown(form)
    })
    .await?;
    match wrong.get() {
        0 => Ok(()),
        1 => Err(Failure::new(Kind::Problems, "1 host is not as it should be")),
        count => Err(Failure::new(Kind::Problems, format!("{count} hosts are not as they should be"))),
    }
}

fn text(status: &Status, problems: &[String]) -> String {
    let mut lines = match problems.is_empty() {
        true => vec![line("problems", "none")],
        false => listed("problems", problems),
    };
    lines.extend(of_network(DEFAULT, &status.default));
    for network in &status.networks {
        lines.extend(of_network(network.name.as_str(), &network.status));
    }
    if let Some(store) = &status.host.embedded_store {
        let listens = format!("this host's own, in {}, at {}", store.data_dir, store.listen.join(" "));
        lines.push(line("store", &listens));
    }
    let repairs: Vec<String> =
        status.host.repairs.done().map(|(kind, count)| format!("{kind} {count}")).collect();
    let repairs = if repairs.is_empty() { "none".to_owned() } else { repairs.join(", ") };
    lines.push(line("repairs", &repairs));
    lines.join("\n")
}

/// Everything that is wrong, each with its code.
fn problems(status: &Status, now: SystemTime) -> Vec<String> {
    let mut found = Vec::new();
    let named = status.networks.iter().map(|network| (Some(network.name.as_str()), &network.status));
    for (name, network) in std::iter::once((None, &status.default)).chain(named) {
        let of = name.map(|name| format!("network {name}: ")).unwrap_or_default();
        found.extend(network.problems.iter().map(|Problem { code, text, since }| {
            let since = now.duration_since(*since).unwrap_or_default();
            format!("{code} {}: {of}{text} (for {})", code.name(), short(since))
        }));
    }
    found
}

fn of_network(name: &str, network: &NetworkStatus) -> Vec<String> {
    let state = if network.ready { "ready" } else { "not ready" };
    let mut head = format!("{name}, {state}");
    if !network.subnets.is_empty() {
        let _ = write!(head, ": {}", network.subnets.join(" "));
    }
    let mut lines = vec![line("network", &head)];
    if !network.public_ips.is_empty() {
        lines.push(line("  address", &network.public_ips.join(" ")));
    }
    if !network.backend.is_empty() {
        let path = network.path.as_ref().map(|path| format!(" ({}: {})", path.path, path.reason));
        let backend = format!("{}{}, MTU {}", network.backend, path.unwrap_or_default(), network.mtu);
        lines.push(line("  backend", &backend));
    }
    let peers = output::count(network.peers, "peer");
    let answers = network.probed.map(|Probed { reachable, unreachable, unknown, .. }| {
        let parts = [(reachable, "answer"), (unreachable, "do not answer"), (unknown, "not known yet")];
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        let parts: Vec<String> = parts.map(|(count, what)| format!("{count} {what}")).collect();
        if parts.is_empty() { String::new() } else { format!("; probes: {}", parts.join(", ")) }
    });
    lines.push(line("  peers", &format!("packets are sent to {peers}{}", answers.unwrap_or_default())));
    if network.unreachable_count > 0 {
        let unreachable: Vec<String> = network
            .unreachable
            .iter()
            .map(|peer| format!("{} of {}: {}", peer.subnets, peer.holder, peer.reason))
            .collect();
        let what = format!("  {} out of reach", network.unreachable_count);
        lines.extend(some_of(&what, &unreachable, network.unreachable_count));
    }
    if network.quarantined_count > 0 {
        let bad: Vec<String> =
            network.quarantined.iter().map(|lease| format!("{}: {}", lease.key, lease.reason)).collect();
        let what = format!("  {}", output::count(network.quarantined_count, "bad lease"));
        lines.extend(some_of(&what, &bad, network.quarantined_count));
    }
    lines
}

fn line(what: &str, text: &str) -> String {
    format!("{what:WIDTH$}{}", printable(text))
}

fn listed(what: &str, items: &[String]) -> Vec<String> {
    let items = items.iter().map(|item| format!("    {}", printable(item)));
    std::iter::once(what.to_owned()).chain(items).collect()
}

/// The same of a list that may have been cut.
fn some_of(what: &str, items: &[String], count: usize) -> Vec<String> {
    let mut lines = listed(what, items);
    if count > items.len() {
        lines.push(format!("    and {} more", count - items.len()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flan_agent_api::{Code, NamedNetwork, QuarantinedLease, UnreachablePeer};

    use super::*;

    fn status() -> Status {
        let default = NetworkStatus {
            ready: true,
            subnets: vec!["10.5.3.0/24".to_owned()],
            public_ips: vec!["192.168.64.11".to_owned()],
            backend: "vxlan".into(),
            mtu: 1450,
            peers: 2,
            ..NetworkStatus::default()
        };
        Status { api_version: flan_agent_api::API_VERSION.into(), default, ..Status::default() }
    }

    #[test]
    fn a_host_without_problems_says_so_first() {
        assert_eq!(
            text(&status(), &problems(&status(), SystemTime::now())),
            "problems    none\n\
             network     default, ready: 10.5.3.0/24\n\
             \u{20} address   192.168.64.11\n\
             \u{20} backend   vxlan, MTU 1450\n\
             \u{20} peers     packets are sent to 2 peers\n\
             repairs     none"
        );
    }

    #[test]
    fn what_is_wrong_stands_first_with_its_network_its_code_and_its_age() {
        let mut status = status();
        let since = SystemTime::UNIX_EPOCH;
        status.host.repairs.add("route", 2);
        let problem = |code, text: &str| Problem { code, text: text.to_owned(), since };
        status.default.problems = vec![problem(Code::Store, "cannot reach the store")];
        status.default.unreachable = vec![UnreachablePeer {
            subnets: "10.5.9.0/24".into(),
            holder: "h9".into(),
            reason: "no way".into(),
        }];
        status.default.unreachable_count = 1;
        status.default.quarantined =
            vec![QuarantinedLease { key: "junk".into(), reason: "no subnet".into() }];
        status.default.quarantined_count = 1;
        let taken = problem(Code::PortTaken, "8472 is taken");
        let blue = NetworkStatus { problems: vec![taken], ..NetworkStatus::default() };
        status.networks = vec![NamedNetwork { name: "blue".parse().unwrap(), status: blue }];
        let text = text(&status, &problems(&status, since + Duration::from_secs(70)));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines[..3],
            [
                "problems",
                "FLAN-E004 store: cannot reach the store (for 1m10s)",
                "FLAN-E017 port-taken: network blue: 8472 is taken (for 1m10s)",
            ]
        );
        for line in ["10.5.9.0/24 of h9: no way", "junk: no subnet", "1 bad lease", "repairs     route 2"] {
            assert!(lines.contains(&line), "{text}");
        }
    }

    #[test]
    fn what_the_agent_writes_is_read() {
        let mut status = status();
        status.host.repairs.add("route", 2);
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        status.default.problems = vec![Problem { code: Code::Clone, text: "twice".to_owned(), since }];
        let json = serde_json::to_value(&status).unwrap();
        let read: Status = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), json);
    }

    #[test]
    fn a_problem_of_a_later_version_is_shown_without_its_code() {
        let json = r#"{"code":"FLAN-E999","text":"it is wrong","since":"2026-11-29T00:00:00Z"}"#;
        let problem: Problem = serde_json::from_str(json).unwrap();
        assert_eq!((problem.code, problem.text.as_str()), (Code::Unknown, "it is wrong"));
    }
}
