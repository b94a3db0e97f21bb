//! What is wrong on this host although the agent itself works: each kind has a code, and the log and the status show it
//! alike.

use std::fmt;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

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

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

fn as_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_by_its_code_in_the_log_and_in_the_status() {
        let text = "8472 is taken by vxlan10".to_owned();
        let problem = Problem { code: Code::PortTaken, text, since: SystemTime::UNIX_EPOCH };
        assert_eq!(problem.code.to_string(), "port-taken");
        assert_eq!(
            serde_json::to_value(problem).unwrap(),
            serde_json::json!({
                "code": "port-taken", "text": "8472 is taken by vxlan10", "since": "1970-01-01T00:00:00Z",
            })
        );
    }
}
