//! `flanctl status --all`: every host, as its agent tells the store and as its lease says.

use std::collections::HashMap;

use flan_agent_api::{API_VERSION, HostSummary};
use flan_subnet_lease::{Store, printable, shown};
use serde::Serialize;

use crate::args::Form;
use crate::failure::Failure;
use crate::output::{self, State, Subnet};
use crate::subnets;
use crate::table;

/// All hosts, by subnet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostList {
    api_version: &'static str,
    kind: &'static str,
    items: Vec<Host>,
}

/// One host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    /// Its name, if it has told one.
    host: Option<String>,
    subnets: Vec<String>,
    #[serde(rename = "publicIPs")]
    public_ips: Vec<String>,
    state: HostState,
    /// What its agent says; null if it says nothing.
    summary: Option<HostSummary>,
}

/// How a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum HostState {
    /// Its agent says that it takes part.
    Ready,
    /// Its agent says that it does not yet, or no longer.
    NotReady,
    /// It has a lease of flan, and its agent has told the store nothing for 45 s.
    Silent,
    /// Its lease is of flannel, which tells nothing.
    Flannel,
    /// A subnet that is kept for a host that has not come yet.
    Reserved,
    /// Its lease is bad, and no host sends packets there.
    Bad,
}

impl HostList {
    /// Reads all leases and what agents say.
    pub(super) async fn read(store: &Store) -> Result<Self, Failure> {
        let leases = subnets::document(store).await?;
        let said = store.summaries().list().await?;
        let mut summaries: HashMap<String, HostSummary> = said
            .readable()
            .filter_map(|entry| Some((entry.key.clone(), HostSummary::read(&entry.value)?)))
            .collect();
        let mut items: Vec<Host> =
            leases.items.into_iter().map(|lease| Host::of(lease, &mut summaries)).collect();
        // An agent that has no lease yet, or lost it.
        let mut others: Vec<HostSummary> = summaries.into_values().collect();
        others.sort_by(|one, other| one.host.cmp(&other.host));
        items.extend(others.into_iter().map(Host::without_lease));
        Ok(Self { api_version: API_VERSION, kind: "HostList", items })
    }

    /// Returns how many hosts have problems or are not as they should be.
    pub(super) fn wrong(&self) -> usize {
        self.items.iter().filter(|host| host.is_wrong()).count()
    }

    /// Formats it.
    pub(super) fn shown(&self, form: Form) -> Result<String, Failure> {
        output::in_form(form, self, || match self.items.is_empty() {
            true => "no hosts".to_owned(),
            false => self.text(form == Form::Wide),
        })
    }

    /// What is wrong stands first.
    fn text(&self, wide: bool) -> String {
        let mut lines = Vec::new();
        for host in &self.items {
            for problem in host.summary.iter().flat_map(|summary| &summary.problems) {
                let (code, name) = (problem.code, shown(&problem.name));
                lines.push(format!("{}: {code} {name}: {}", host.name(), shown(&problem.text)));
            }
        }
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let mut header = vec!["HOST", "SUBNET", "STATE", "PEERS", "PROBLEMS"];
        if wide {
            header.extend(["PUBLIC IP", "VERSION"]);
        }
        let text = table::plain(&header, self.items.iter().map(|host| host.row(wide)));
        let lines: Vec<String> = lines.iter().map(|line| printable(line).into_owned()).collect();
        if lines.is_empty() { text } else { format!("{}\n{text}", lines.join("\n")) }
    }
}

impl Host {
    fn of(lease: Subnet, summaries: &mut HashMap<String, HostSummary>) -> Self {
        let key = lease.node_id.as_ref().or(lease.host.as_ref());
        let summary = key.and_then(|key| summaries.remove(key));
        let state = match (&summary, lease.state) {
            (_, State::Reserved) => HostState::Reserved,
            (_, State::Bad) => HostState::Bad,
            (Some(summary), State::Active) if summary.ready => HostState::Ready,
            (Some(_), State::Active) => HostState::NotReady,
            (None, State::Active) if lease.node_id.is_some() => HostState::Silent,
            (None, State::Active) => HostState::Flannel,
        };
        Self { host: lease.host, subnets: lease.subnets, public_ips: lease.public_ips, state, summary }
    }

    fn without_lease(summary: HostSummary) -> Self {
        let host = Some(summary.host.clone()).filter(|host| !host.is_empty());
        let state = if summary.ready { HostState::Ready } else { HostState::NotReady };
        Self { host, subnets: summary.subnets.clone(), public_ips: Vec::new(), state, summary: Some(summary) }
    }

    fn is_wrong(&self) -> bool {
        let has_problems = self.summary.as_ref().is_some_and(|summary| summary.problem_count > 0);
        has_problems || matches!(self.state, HostState::NotReady | HostState::Silent | HostState::Bad)
    }

    fn name(&self) -> String {
        let name = self.host.as_deref().map(|host| shown(host).into_owned());
        name.unwrap_or_else(|| self.public_ips.first().cloned().unwrap_or_else(|| "-".to_owned()))
    }

    fn row(&self, wide: bool) -> Vec<String> {
        let state = match self.state {
            HostState::Ready => "ready",
            HostState::NotReady => "not ready",
            HostState::Silent => "silent: no fland",
            HostState::Flannel => "flannel",
            HostState::Reserved => "reserved",
            HostState::Bad => "bad lease",
        };
        let summary = self.summary.as_ref();
        let peers = summary.map(|summary| match summary.reachable + summary.unreachable {
            0 => summary.peers.to_string(),
            asked => format!("{} of {asked} answer", summary.reachable),
        });
        let mut row = vec![
            self.name(),
            self.subnets.join(","),
            state.to_owned(),
            table::or_dash(peers.as_deref()),
            table::or_dash(summary.map(|summary| summary.problem_count.to_string()).as_deref()),
        ];
        if wide {
            row.push(table::or_dash(Some(&self.public_ips.join(","))));
            row.push(table::or_dash(summary.map(|summary| shown(&summary.version)).as_deref()));
        }
        row
    }
}
