//! What the agent says of itself in `GET /status`.

use std::collections::BTreeMap;

use flan_backends::udp::Totals;
use flan_subnet_lease::{Quarantined, shown};
use serde::Serialize;

use crate::problem::Problem;

/// The form of this document; it changes when a field changes its meaning or goes.
pub const API_VERSION: &str = "flan/v1";

/// Entries of each list whose length the store decides.
pub const SHOWN_IN_LISTS: usize = 100;

/// The agent's state in short.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Whether `subnet.env` is written and the backend stands.
    pub ready: bool,
    /// What the agent waits for, before it is ready.
    pub waiting_for: Option<String>,
    /// Our subnets.
    pub subnets: Vec<String>,
    /// Our underlay addresses.
    pub public_ips: Vec<String>,
    /// The backend's name.
    pub backend: &'static str,
    /// Largest packet in bytes that containers may send.
    pub mtu: u32,
    /// Number of peers that packets are sent to.
    pub peers: usize,
    /// Peers with a good lease that this backend cannot reach from this host: the first [`SHOWN_IN_LISTS`].
    pub unreachable: Vec<UnreachablePeer>,
    /// How many there are.
    pub unreachable_count: usize,
    /// Leases that are kept from the kernel: the first [`SHOWN_IN_LISTS`].
    pub quarantined: Vec<QuarantinedLease>,
    /// How many there are.
    pub quarantined_count: usize,
    /// How often something of ours was put right that another program had changed.
    pub repairs: Repairs,
    /// The store, where this host carries it.
    pub embedded_store: Option<EmbeddedStore>,
    /// The data path, where packets pass through the agent.
    pub datapath: Option<Datapath>,
    /// Why our lease could not be renewed, while that lasts.
    pub lease_problem: Option<String>,
    /// Why the network config is not the one that this agent runs with.
    pub config_problem: Option<String>,
    /// Why the view of the leases may be out of date.
    pub store_problem: Option<String>,
    /// Why the kernel is not as it should be.
    pub kernel_problem: Option<String>,
    /// What is wrong on this host although the agent itself works, as far as the agent has noticed: at most one of a
    /// kind.
    pub problems: Vec<Problem>,
}

/// How often each kind of object was repaired, by its name: `route`, `nexthop`; `rules` are the packet filter's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Repairs(BTreeMap<&'static str, u64>);

impl Repairs {
    /// None yet of any of these kinds.
    pub fn of_kinds(kinds: impl IntoIterator<Item = &'static str>) -> Self {
        Self(kinds.into_iter().map(|kind| (kind, 0)).collect())
    }

    /// So many more.
    pub fn add(&mut self, kind: &'static str, more: u64) {
        *self.0.entry(kind).or_default() += more;
    }

    /// How many of this kind.
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or_default()
    }
}

/// The data path of the udp backend: the modes in force, and all counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Datapath {
    /// How packets are exchanged with the TUN device.
    pub tun: String,
    /// Whether many datagrams are sent at once.
    pub gso: bool,
    /// Whether many datagrams are received at once.
    pub gro: bool,
    /// Whether segments that arrive are merged for the device.
    pub merge: bool,
    /// The counters.
    #[serde(flatten)]
    pub totals: Totals,
}

/// A store in the agent's own process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddedStore {
    /// The directory of its data.
    pub data_dir: String,
    /// The URLs that it listens at.
    pub listen: Vec<String>,
}

/// A bad lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantinedLease {
    /// The last part of its key, printable; of a long one the beginning.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreachablePeer {
    /// Its subnets.
    pub subnets: String,
    /// Its address and, where it says one, its name.
    pub holder: String,
    /// Why not.
    pub reason: String,
}
