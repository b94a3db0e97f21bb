//! What is wrong on this host although the agent itself works: each kind has a code, and the log and the status show it
//! alike.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use tracing::{info, warn};

/// The kinds of problems. The name in kebab case is stable: scripts and people look for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A start would choose another external interface than the one in use.
    OtherInterface,
    /// The address that peers send to is one of a kind that rarely works, such as a link-local one.
    DoubtfulAddress,
    /// Our own subnet overlaps a network or route of this host.
    SubnetOverlap,
    /// A peer's subnet overlaps a network or route of this host.
    PeerOverlap,
    /// Somebody else's packet filter rules can drop what we forward or receive.
    PacketFilter,
    /// A device or socket of another program has the port of our backend.
    PortTaken,
    /// docker0 or the CNI bridge is not as `subnet.env` says.
    BridgeDiffers,
    /// A reservation of this host became an ordinary lease.
    ReservationLost,
    /// Another machine claims our lease.
    Clone,
    /// Packets of the overlay are taken from anybody, as the kernel cannot check who sends.
    UncheckedSenders,
    /// The network config works, but not as its author may expect.
    DoubtfulConfig,
    /// Authentication is switched off in the store, and we have a user for it.
    AuthenticationOff,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind of problem.
    pub code: Code,
    /// What is wrong and what to do, for a person.
    pub text: String,
    /// When it was first seen.
    #[serde(serialize_with = "as_rfc3339")]
    pub since: SystemTime,
}

/// All problems of this moment, at most one of each kind.
#[derive(Debug, Clone, Default)]
pub struct Problems(BTreeMap<Code, Problem>);

impl Problems {
    /// Notes what is wrong of this kind at the moment, or that nothing is. Logs only what that changes.
    pub fn report(&mut self, code: Code, wrong: Option<String>, now: SystemTime) {
        let before = self.0.get(&code);
        let Some(text) = wrong else {
            if let Some(gone) = self.0.remove(&code) {
                info!(problem = %code, "solved: {}", gone.text);
            }
            return;
        };
        if before.is_none_or(|before| before.text != text) {
            warn!(problem = %code, "{text}");
        }
        let since = before.map_or(now, |before| before.since);
        self.0.insert(code, Problem { code, text, since });
    }
}

impl Serialize for Problems {
    /// A list of [`Problem`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.values())
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(formatter)
    }
}

fn as_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_problem_keeps_its_time_while_it_lasts_and_goes_when_solved() {
        let start = SystemTime::UNIX_EPOCH;
        let mut problems = Problems::default();
        problems.report(Code::PortTaken, Some("8472 is taken by vxlan9".to_owned()), start);
        let later = start + Duration::from_secs(9);
        problems.report(Code::PortTaken, Some("8472 is taken by vxlan10".to_owned()), later);
        assert_eq!(
            serde_json::to_value(&problems).unwrap(),
            serde_json::json!([{
                "code": "port-taken", "text": "8472 is taken by vxlan10", "since": "1970-01-01T00:00:00Z",
            }])
        );
        problems.report(Code::PortTaken, None, later);
        assert_eq!(serde_json::to_value(&problems).unwrap(), serde_json::json!([]));
    }

    #[test]
    fn a_code_is_shown_as_it_is_in_the_status() {
        assert_eq!(Code::BridgeDiffers.to_string(), "bridge-differs");
    }
}
