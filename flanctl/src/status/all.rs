//! `flanctl status --all`: every host, as its agent tells the store and as its lease says.

use std::collections::{BTreeMap, BTreeSet};

use flan_agent_api::{API_VERSION, HostSummary};
use flan_subnet_lease::{Store, printable, shown};
use serde::Serialize;

use crate::args::Form;
use crate::failure::{Failure, Kind};
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
    /// Its agent lives, and was told to say no more (`--publish-status=false`).
    Withheld,
    /// An earlier lease of a host that has another one now. It ends by itself.
    Former,
    /// Its lease is of flannel, which tells nothing.
    Flannel,
    /// A subnet that is kept for a host that has not come yet.
    Reserved,
    /// Its lease is bad, and no host sends packets there.
    Bad,
}

impl HostList {
    /// Reads all leases and what agents say. Where the leases cannot be judged, it shows what agents say, and why.
    pub(super) async fn read(store: &Store) -> Result<Self, Failure> {
        let said = store.summaries().list().await?;
        let summaries: BTreeMap<String, HostSummary> = said
            .readable()
            .filter_map(|entry| Some((entry.key.clone(), HostSummary::read(&entry.value)?)))
            .collect();
        let leases = match subnets::without_times(store).await {
            Ok(leases) => leases.items,
            Err(failure) if matches!(failure.kind, Kind::NoConfig | Kind::Usage) => {
                eprintln!("flanctl: without the leases: {}", output::printable_lines(&failure.to_string()));
                Vec::new()
            }
            Err(failure) => return Err(failure),
        };
        let mut told = BTreeSet::new();
        let mut items: Vec<Host> =
            leases.into_iter().map(|lease| Host::of(lease, &summaries, &mut told)).collect();
        // An agent that has no lease yet, or lost it.
        let others = summaries.into_iter().filter(|(key, _)| !told.contains(key));
        items.extend(others.map(|(_, summary)| Host::without_lease(summary)));
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
    fn of(lease: Subnet, summaries: &BTreeMap<String, HostSummary>, told: &mut BTreeSet<String>) -> Self {
        let key = lease.node_id.as_ref().or(lease.host.as_ref());
        let found = key.and_then(|key| summaries.get_key_value(key));
        let is_its = |summary: &HostSummary| summary.subnets.is_empty() || summary.subnets == lease.subnets;
        let is_of_flan = key.is_some();
        let state = match (found, lease.state) {
            (_, State::Bad) => HostState::Bad,
            (_, State::Reserved) => HostState::Reserved,
            (Some((_, summary)), State::Active) if summary.withheld => HostState::Withheld,
            (Some((_, summary)), State::Active) if !is_its(summary) => HostState::Former,
            (Some((_, summary)), State::Active) if summary.ready => HostState::Ready,
            (Some(_), State::Active) => HostState::NotReady,
            (None, State::Active) if is_of_flan => HostState::Silent,
            (None, State::Active) if lease.reservation => HostState::Reserved,
            (None, State::Active) => HostState::Flannel,
        };
        let of_this_lease = !matches!(state, HostState::Bad | HostState::Former);
        let summary = found.filter(|_| of_this_lease).map(|(key, summary)| {
            told.insert(key.clone());
            summary.clone()
        });
        Self { host: lease.host, subnets: lease.subnets, public_ips: lease.public_ips, state, summary }
    }

    fn without_lease(summary: HostSummary) -> Self {
        let host = Some(summary.host.clone()).filter(|host| !host.is_empty());
        let state = match (summary.withheld, summary.ready) {
            (true, _) => HostState::Withheld,
            (false, true) => HostState::Ready,
            (false, false) => HostState::NotReady,
        };
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
            HostState::Withheld => "alive",
            HostState::Former => "former lease",
            HostState::Flannel => "flannel",
            HostState::Reserved => "reserved",
            HostState::Bad => "bad lease",
        };
        let summary = self.summary.as_ref();
        let summary = summary.filter(|summary| !summary.withheld);
        let peers = summary.map(|summary| match summary.reachable.saturating_add(summary.unreachable) {
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
            row.push(table::or_dash(self.summary.as_ref().map(|summary| shown(&summary.version)).as_deref()));
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(subnet: &str, node_id: Option<&str>) -> Subnet {
        Subnet {
            key: subnet.replace('/', "-"),
            subnets: vec![subnet.to_owned()],
            host: None,
            node_id: node_id.map(str::to_owned),
            public_ips: Vec::new(),
            backend: Some("vxlan".to_owned()),
            backend_data: Vec::new(),
            expires_in_seconds: None,
            reservation: false,
            reservation_lost: false,
            state: State::Active,
            reason: None,
            last_alive: None,
            mod_revision: None,
            etcd_lease: None,
        }
    }

    fn state_of(lease: Subnet, summary: &HostSummary) -> (HostState, bool) {
        let summaries = BTreeMap::from([("one".to_owned(), summary.clone())]);
        let host = Host::of(lease, &summaries, &mut BTreeSet::new());
        (host.state, host.is_wrong())
    }

    #[test]
    fn a_host_is_as_its_agent_says_and_of_two_leases_the_one_that_it_names_is_its() {
        let subnets = vec!["10.5.2.0/24".to_owned()];
        let said = HostSummary { ready: true, subnets, ..HostSummary::default() };
        let now = || lease("10.5.2.0/24", Some("one"));
        assert_eq!(state_of(now(), &said), (HostState::Ready, false));
        assert_eq!(state_of(lease("10.5.1.0/24", Some("one")), &said), (HostState::Former, false));
        assert_eq!(state_of(lease("10.5.3.0/24", Some("two")), &said), (HostState::Silent, true));
        assert_eq!(state_of(lease("10.5.4.0/24", None), &said), (HostState::Flannel, false));
        let waits = HostSummary { ready: false, ..said.clone() };
        assert_eq!(state_of(now(), &waits), (HostState::NotReady, true));
        let has_problem = HostSummary { problem_count: 1, ..said };
        assert_eq!(state_of(now(), &has_problem), (HostState::Ready, true));
        assert_eq!(state_of(now(), &HostSummary::withheld("h1", "0.1.0")), (HostState::Withheld, false));
        let bad = Subnet { state: State::Bad, ..now() };
        assert_eq!(state_of(bad, &has_problem), (HostState::Bad, true));
    }
}
