//! Telling once what became of each peer, and of each bad lease.

use std::collections::BTreeMap;

use flan_subnet_lease::{Judged, LeaseAttributes};
use tracing::{info, warn};

use crate::status::QuarantinedLease;

/// What was told already.
#[derive(Default)]
pub(super) struct PeerLog {
    peers: BTreeMap<String, LeaseAttributes>,
    quarantined: BTreeMap<String, String>,
}

/// Peers that are told of one by one; of more, only the numbers.
const SHOWN: usize = 5;

impl PeerLog {
    /// Logs what is new.
    pub(super) fn tell(&mut self, judged: &Judged<'_>) {
        let peers: BTreeMap<String, LeaseAttributes> =
            judged.peers.iter().map(|lease| (lease.subnets.to_string(), lease.attributes.clone())).collect();
        self.tell_peers(&peers);
        self.peers = peers;

        let quarantined: BTreeMap<String, String> =
            judged.quarantined.iter().map(|bad| (bad.key.to_owned(), bad.reason.to_string())).collect();
        for (key, reason) in &quarantined {
            if self.quarantined.get(key) != Some(reason) {
                warn!(key, reason, "bad lease: no packets are sent to its holder");
            }
        }
        for key in self.quarantined.keys().filter(|key| !quarantined.contains_key(*key)) {
            info!(key, "bad lease is gone or mended");
        }
        self.quarantined = quarantined;
    }

    /// The bad leases.
    pub(super) fn quarantined(&self) -> Vec<QuarantinedLease> {
        let lease =
            |(key, reason): (&String, &String)| QuarantinedLease { key: key.clone(), reason: reason.clone() };
        self.quarantined.iter().map(lease).collect()
    }

    fn tell_peers(&self, peers: &BTreeMap<String, LeaseAttributes>) {
        let joined: Vec<_> = peers.keys().filter(|subnets| !self.peers.contains_key(*subnets)).collect();
        let left: Vec<_> = self.peers.keys().filter(|subnets| !peers.contains_key(*subnets)).collect();
        let changed: Vec<_> = peers
            .iter()
            .filter(|(subnets, now)| self.peers.get(*subnets).is_some_and(|before| before != *now))
            .map(|(subnets, _)| subnets)
            .collect();
        for (what, which) in [("joined", joined), ("left", left), ("changed", changed)] {
            if which.len() > SHOWN {
                info!(peers = which.len(), "peers {what}");
                continue;
            }
            for subnets in which {
                let attributes = peers.get(subnets).or(self.peers.get(subnets));
                let public_ips: Vec<String> = attributes
                    .iter()
                    .flat_map(|one| one.public_ips.values())
                    .map(ToString::to_string)
                    .collect();
                let host = attributes.and_then(|one| one.node.host.as_deref()).unwrap_or_default();
                info!(%subnets, public_ip = public_ips.join(","), host, "peer {what}");
            }
        }
    }
}
