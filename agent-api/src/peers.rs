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
    /// The peers, by their first subnet.
    pub peers: Vec<Peer>,
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
