//! The document of `GET /status`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use flan_backends::udp::Totals;
use flan_subnet_lease::{NetworkName, Quarantined, shown};
use serde::{Deserialize, Serialize};

use crate::problem::{Code, Problem};

/// Format of this document. It changes when a field is removed or changes its meaning.
pub const API_VERSION: &str = "flan/v1";

/// Limit of each list whose length the store decides.
pub const SHOWN_IN_LISTS: usize = 100;

/// The state of the agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// [`API_VERSION`].
    pub api_version: Cow<'static, str>,
    /// The default network, and the problems of this host.
    #[serde(flatten)]
    pub default: NetworkStatus,
    /// The networks beside the default one that this host is in: those of `--networks`, then others as it joined them.
    pub networks: Vec<NamedNetwork>,
    /// What concerns all networks.
    #[serde(flatten)]
    pub host: HostStatus,
}

/// A network beside the default one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Its state.
    #[serde(flatten)]
    pub status: NetworkStatus,
}

/// The state of the host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostStatus {
    /// How often the agent repaired a change by another program.
    pub repairs: Repairs,
    /// The embedded store, if this host has one.
    pub embedded_store: Option<EmbeddedStore>,
}

/// The state of one network.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkStatus {
    /// Whether the subnet file is written and the backend works.
    pub ready: bool,
    /// What the agent waits for before it is ready.
    pub waiting_for: Option<String>,
    /// Our subnets.
    pub subnets: Vec<String>,
    /// Our underlay addresses.
    pub public_ips: Vec<String>,
    /// The backend's name.
    pub backend: Cow<'static, str>,
    /// Largest packet in bytes that containers may send.
    pub mtu: u32,
    /// Number of peers that packets are sent to.
    pub peers: usize,
    /// The first [`SHOWN_IN_LISTS`] peers with a good lease that this backend cannot reach from this host.
    pub unreachable: Vec<UnreachablePeer>,
    /// Their total number.
    pub unreachable_count: usize,
    /// How many peers answer probes; `None` if they are not probed.
    pub probed: Option<Probed>,
    /// The first [`SHOWN_IN_LISTS`] leases that are not applied to the kernel.
    pub quarantined: Vec<QuarantinedLease>,
    /// Their total number.
    pub quarantined_count: usize,
    /// Who moves the packets of the udp or the wireguard backend; `None` with another backend.
    pub path: Option<PathInForce>,
    /// The data path, if packets pass through the agent.
    pub datapath: Option<Datapath>,
    /// Everything that is wrong, sorted by code, at most one problem of each.
    pub problems: Vec<Problem>,
}

impl NetworkStatus {
    /// Returns what is wrong of this kind, if anything.
    pub fn problem(&self, code: Code) -> Option<&str> {
        self.problems.iter().find(|problem| problem.code == code).map(|problem| problem.text.as_str())
    }
}

/// How peers answer the probes of this host. A peer of two families counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probed {
    /// Those that answer.
    pub reachable: usize,
    /// Those that do not.
    pub unreachable: usize,
    /// Those of which too little is known yet.
    pub unknown: usize,
    /// Whether none answers of those that did.
    pub all_lost: bool,
}

/// Number of repairs by kind of object: `route`, `nexthop`; `rules` stands for packet filter rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Repairs(BTreeMap<Cow<'static, str>, u64>);

impl Repairs {
    /// Creates counters at zero for these kinds.
    pub fn of_kinds(kinds: impl IntoIterator<Item = &'static str>) -> Self {
        Self(kinds.into_iter().map(|kind| (kind.into(), 0)).collect())
    }

    /// Adds to a counter.
    pub fn add(&mut self, kind: &'static str, more: u64) {
        *self.0.entry(kind.into()).or_default() += more;
    }

    /// Returns the kinds of which something was repaired.
    pub fn done(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| (&**kind, *count))
    }

    /// Returns all kinds, with their counts.
    pub fn all(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(kind, count)| (&**kind, *count))
    }

    /// Returns the count of this kind.
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or_default()
    }
}

/// The data path of the udp backend: active modes and all counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// How packets are exchanged with the TUN device.
    pub tun: String,
    /// Whether many datagrams are sent at once.
    pub gso: bool,
    /// Whether many datagrams are received at once.
    pub gro: bool,
    /// Whether received segments are merged for the device.
    pub merge: bool,
    /// The counters.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Who moves the packets of a backend that has two ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInForce {
    /// `kernel` or `user`.
    pub path: Cow<'static, str>,
    /// Why, for people.
    pub reason: String,
}

/// A store in the agent's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddedStore {
    /// Its data directory.
    pub data_dir: String,
    /// The URLs on which it listens.
    pub listen: Vec<String>,
}

/// A bad lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedLease {
    /// The last part of its key, printable and truncated.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl From<Quarantined<'_>> for QuarantinedLease {
    fn from(bad: Quarantined<'_>) -> Self {
        Self { key: shown(bad.key).into_owned(), reason: bad.reason.to_string() }
    }
}

/// A peer that cannot be reached from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreachablePeer {
    /// Its subnets.
    pub subnets: String,
    /// Its address and, if known, its name.
    pub holder: String,
    /// Why not.
    pub reason: String,
}
