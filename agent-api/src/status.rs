//! What the agent says of itself in `GET /status`.

use std::fmt;

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

/// Repairs, by the kind of what was repaired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repairs {
    /// Devices.
    pub link: u64,
    /// Addresses on them.
    pub address: u64,
    /// Neighbours.
    pub neighbour: u64,
    /// Forwarding entries.
    pub fdb: u64,
    /// Next hop objects.
    pub next_hop: u64,
    /// Routes.
    pub route: u64,
    /// Senders that are let in.
    pub sender: u64,
    /// Packet filter rules.
    pub rules: u64,
}

impl fmt::Display for Repairs {
    /// `2 routes, 1 neighbour`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.link, "link", "links"),
            (self.address, "address", "addresses"),
            (self.neighbour, "neighbour", "neighbours"),
            (self.fdb, "forwarding entry", "forwarding entries"),
            (self.next_hop, "next hop", "next hops"),
            (self.route, "route", "routes"),
            (self.sender, "sender", "senders"),
            (self.rules, "set of rules", "sets of rules"),
        ];
        let parts: Vec<String> = kinds
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
            .collect();
        f.write_str(&parts.join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_told_by_kind_and_number() {
        let repairs = Repairs { route: 2, neighbour: 1, fdb: 3, ..Repairs::default() };
        assert_eq!(repairs.to_string(), "1 neighbour, 3 forwarding entries, 2 routes");
    }
}
