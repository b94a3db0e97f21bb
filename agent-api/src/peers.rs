//! The document of `GET /peers`.

use serde::{Deserialize, Serialize};

/// All peers of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peers {
    /// [`API_VERSION`](crate::API_VERSION).
    pub api_version: String,
    /// The backend's name.
    pub backend: String,
    /// Who moves its packets, `kernel` or `user`; `None` for a backend with one way.
    pub path: Option<String>,
    /// Whence and how they are probed; `None` if they are not.
    #[serde(default)]
    pub probes: Option<ProbeSource>,
    /// The peers, by their first subnet.
    pub peers: Vec<Peer>,
}

/// What this host's probes have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeSource {
    /// This host's addresses on the overlay; empty if packets go unencapsulated.
    pub overlay: Vec<String>,
    /// This host's addresses on the underlay.
    pub underlay: Vec<String>,
    /// The largest packet in bytes that containers may send.
    pub mtu: u16,
    /// UDP port of agents.
    pub port: u16,
}

/// A peer with a good lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its subnets.
    pub subnets: Vec<String>,
    /// The addresses that its lease names.
    pub public_ips: Vec<String>,
    /// Its name, if its lease says one; printable and truncated.
    pub host: Option<String>,
    /// Why it cannot be reached from here.
    pub unreachable: Option<String>,
    /// What WireGuard knows of it.
    pub wireguard: Option<WireguardPeer>,
    /// What probes have found; `None` if it is not probed.
    pub health: Option<PeerHealth>,
}

/// How a peer answers the probes of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerHealth {
    /// What to know first.
    pub state: PeerState,
    /// Seconds since it is so; `None` while it is unknown.
    pub since_seconds: Option<u64>,
    /// Round trip of a small packet through the overlay, smoothed.
    pub round_trip_microseconds: Option<u64>,
    /// The part of the last 32 small packets that was lost.
    pub loss_percent: Option<u32>,
    /// The largest packet in bytes that passes, at most as large as containers may send.
    pub mtu: Option<u16>,
    /// Seconds since anything came from it through the overlay.
    pub answered_seconds: Option<u64>,
    /// Seconds since its agent answered.
    pub agent_answered_seconds: Option<u64>,
    /// What carries its packets, such as `VXLAN (UDP 8472)`; `None` if they go unencapsulated.
    pub through: Option<String>,
    /// Whether it runs flan.
    pub has_agent: bool,
    /// What is wrong.
    pub reason: Option<String>,
}

/// Whether packets come back from a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// They do.
    Reachable,
    /// More than one in ten is lost.
    Lossy,
    /// Large ones do not.
    Narrow,
    /// None do.
    Unreachable,
    /// The agent of this host sends no probes.
    NotProbed,
    /// Too little is known yet, or another version of the agent says more.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What WireGuard knows of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireguardPeer {
    /// Its key, in base64.
    pub public_key: String,
    /// Where its datagrams go now; `None` if only it can begin.
    pub endpoint: Option<String>,
    /// Seconds since the latest handshake; `None` if there was none.
    pub latest_handshake_seconds: Option<u64>,
    /// Bytes of datagrams from it.
    pub received_bytes: u64,
    /// Bytes of datagrams to it.
    pub sent_bytes: u64,
}
