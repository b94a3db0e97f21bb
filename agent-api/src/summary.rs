//! What each agent says about itself in the store, for `flanctl status --all`.

use flan_subnet_lease::cut;
use serde::{Deserialize, Serialize};

use crate::problem::Code;
use crate::status::{NetworkStatus, Status};

/// Most problems that are told in full.
const MOST_PROBLEMS: usize = 8;

/// A host in short. A value in the store: it may be anybody's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostSummary {
    /// The host's name.
    pub host: String,
    /// The version of its agent.
    pub version: String,
    /// Whether the rest is kept from the store, as somebody asked for.
    pub withheld: bool,
    /// Whether it takes part in the default network.
    pub ready: bool,
    /// Its subnets there.
    pub subnets: Vec<String>,
    /// Number of peers that it sends packets to.
    pub peers: usize,
    /// How many subnets of peers answer its probes.
    pub reachable: usize,
    /// How many do not.
    pub unreachable: usize,
    /// The first of its problems, in all networks.
    pub problems: Vec<SummaryProblem>,
    /// Their total number.
    pub problem_count: usize,
}

/// A problem in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryProblem {
    /// Its kind.
    pub code: Code,
    /// Its kind by name, for readers that do not know the code.
    #[serde(default)]
    pub name: String,
    /// What is wrong and what to do, perhaps cut, with the network if it is not the default one.
    #[serde(default)]
    pub text: String,
}

impl HostSummary {
    /// Makes one of a status.
    pub fn of(status: &Status, host: &str, version: &str) -> Self {
        let default = &status.default;
        let probed = default.probed.unwrap_or_default();
        let named = status.networks.iter().map(|network| (Some(&network.name), &network.status));
        let all = std::iter::once((None, default)).chain(named);
        let problems: Vec<SummaryProblem> = all
            .flat_map(|(name, network): (_, &NetworkStatus)| {
                let of = name.map(|name| format!("network {name}: ")).unwrap_or_default();
                network.problems.iter().map(move |problem| SummaryProblem {
                    code: problem.code,
                    name: problem.code.name().to_owned(),
                    text: cut(&format!("{of}{}", problem.text)).into_owned(),
                })
            })
            .collect();
        Self {
            host: host.to_owned(),
            version: version.to_owned(),
            withheld: false,
            ready: default.ready,
            subnets: default.subnets.clone(),
            peers: default.peers,
            reachable: probed.reachable,
            unreachable: probed.unreachable,
            problem_count: problems.len(),
            problems: problems.into_iter().take(MOST_PROBLEMS).collect(),
        }
    }

    /// Makes one that says only that the agent lives.
    pub fn withheld(host: &str, version: &str) -> Self {
        Self { host: host.to_owned(), version: version.to_owned(), withheld: true, ..Self::default() }
    }

    /// Returns whether another summary says the same of what matters at once: not of how many peers there are.
    pub fn is_like(&self, other: &Self) -> bool {
        let codes = |one: &Self| one.problems.iter().map(|problem| problem.code).collect::<Vec<_>>();
        let rest = |one: &Self| (one.ready, one.problem_count, one.withheld);
        rest(self) == rest(other) && self.subnets == other.subnets && codes(self) == codes(other)
    }

    /// Reads a value of the store, whoever wrote it: what is too long or too much is cut.
    pub fn read(value: &[u8]) -> Option<Self> {
        let mut summary: Self = serde_json::from_slice(value).ok()?;
        let shorten = |text: &mut String| *text = cut(text).into_owned();
        summary.problems.truncate(MOST_PROBLEMS);
        summary.subnets.truncate(2);
        for problem in &mut summary.problems {
            shorten(&mut problem.name);
            shorten(&mut problem.text);
        }
        summary.subnets.iter_mut().chain([&mut summary.host, &mut summary.version]).for_each(shorten);
        Some(summary)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::problem::Problem;

    #[test]
    fn of_many_problems_with_long_texts_the_first_are_told_and_all_are_counted() {
        let problem = Problem { code: Code::PeerMtu, text: "x".repeat(5000), since: SystemTime::UNIX_EPOCH };
        let mut status = Status::default();
        status.default.problems = vec![problem; 20];
        let summary = HostSummary::of(&status, "h1", "0.1.0");
        assert_eq!((summary.problems.len(), summary.problem_count), (8, 20));
        assert!(serde_json::to_vec(&summary).unwrap().len() < 4096);
    }

    #[test]
    fn what_another_version_writes_is_read_as_far_as_it_goes() {
        let text = r#"{"host":"h9","new":1,"problems":[{"code":"FLAN-E999","name":"of-tomorrow"}]}"#;
        let summary = HostSummary::read(text.as_bytes()).unwrap();
        assert_eq!(summary.problems[0].code, Code::Unknown);
        assert_eq!((summary.host.as_str(), summary.problems[0].name.as_str()), ("h9", "of-tomorrow"));
    }

    #[test]
    fn a_number_of_peers_is_no_news_and_what_is_wrong_is() {
        let problem = |code| SummaryProblem { code, name: String::new(), text: "h2".to_owned() };
        let problems = vec![problem(Code::PeerMtu)];
        let said = HostSummary { ready: true, problems, problem_count: 1, ..HostSummary::default() };
        assert!(said.is_like(&HostSummary { peers: 7, reachable: 6, ..said.clone() }));
        for news in [
            HostSummary { ready: false, ..said.clone() },
            HostSummary { problem_count: 9, ..said.clone() },
            HostSummary { problems: vec![problem(Code::PeerLoss)], ..said.clone() },
            HostSummary { subnets: vec!["10.5.2.0/24".to_owned()], ..said.clone() },
        ] {
            assert!(!said.is_like(&news), "{news:?}");
        }
    }

    #[test]
    fn a_value_of_anybody_is_cut() {
        let value = serde_json::json!({"host": "h".repeat(9999), "subnets": vec!["10.5.0.0/24"; 99]});
        let summary = HostSummary::read(value.to_string().as_bytes()).unwrap();
        assert!(summary.host.len() < 400 && summary.subnets.len() == 2);
        assert_eq!(HostSummary::read(b"{"), None);
    }
}
