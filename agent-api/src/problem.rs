//! Problems on this host while the agent itself works. Each kind has a code, used by both log and status.

use std::fmt;
use std::time::SystemTime;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The kinds of problems. Their names in kebab case are stable, for scripts and searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A start would choose another external interface than the one in use.
    OtherInterface,
    /// The address that peers send to is of a kind that rarely works, such as link-local.
    DoubtfulAddress,
    /// Our own subnet overlaps a network or route of this host.
    SubnetOverlap,
    /// A peer's subnet overlaps a network or route of this host.
    PeerOverlap,
    /// Packet filter rules of another program can drop packets that we forward or receive.
    PacketFilter,
    /// A device or socket of another program has the port of our backend.
    PortTaken,
    /// A device of another program receives IPIP packets, which the kernel path of udp takes or drops.
    OtherTunnel,
    /// docker0 or the CNI bridge differs from `subnet.env`.
    BridgeDiffers,
    /// A reservation of this host became an ordinary lease.
    ReservationLost,
    /// Another machine claims our lease.
    Clone,
    /// Overlay packets are accepted from any sender, because the kernel cannot check them.
    UncheckedSenders,
    /// The network config works, but perhaps not as its author expects.
    DoubtfulConfig,
    /// A WireGuard peer that packets are sent to has had no handshake for three minutes.
    SilentPeer,
    /// A peer does not answer on the overlay.
    PeerUnreachable,
    /// Large packets do not reach a peer.
    PeerMtu,
    /// Packets to a peer are lost.
    PeerLoss,
    /// The agent of a peer does not answer, although packets pass.
    PeerAgent,
    /// The file of this host's WireGuard key is gone, or holds no key.
    WireguardKey,
    /// Docker does not show the networks of the store as they are, or this host's containers are not known there.
    DockerNetworks,
    /// The names of containers are not served on some bridge.
    Names,
    /// We have a user for the store, but its authentication is off.
    AuthenticationOff,
    /// One that another version of the agent knows.
    #[serde(other)]
    Unknown,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Its kind.
    pub code: Code,
    /// What is wrong and what to do.
    pub text: String,
    /// When it was first seen.
    #[serde(serialize_with = "as_rfc3339", deserialize_with = "of_rfc3339")]
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

fn of_rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
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
