//! Telling what became of each peer and each bad lease, and remembering the peers that cannot be reached from here.

use std::collections::BTreeMap;

use flan_backends::Unreachable;
use flan_subnet_lease::{Changes, Lease, PeerChange, Subnets};
use tracing::{info, warn};

use crate::status::UnreachablePeer;

/// Peers that are told of one by one; of more, only the numbers.
const SHOWN: usize = 5;

/// Logs what has changed.
pub(super) fn tell(changes: &Changes) {
    type Kind = (&'static str, fn(&PeerChange) -> bool);
    let kinds: [Kind; 3] = [
        ("joined", |change| change.before.is_none()),
        ("left", |change| change.after.is_none()),
        ("changed", |change| change.before.is_some() && change.after.is_some()),
    ];
    for (what, is_one) in kinds {
        let count = changes.peers.iter().filter(|change| is_one(change)).count();
        if count > SHOWN {
            info!(peers = count, "peers {what}");
            continue;
        }
        for lease in changes
            .peers
            .iter()
            .filter(|change| is_one(change))
            .filter_map(|change| change.after.as_ref().or(change.before.as_ref()))
        {
            let public_ips: Vec<String> =
                lease.attributes.public_ips.values().map(ToString::to_string).collect();
            let host = lease.attributes.node.host.as_deref().unwrap_or_default();
            info!(subnets = %lease.subnets, public_ip = public_ips.join(","), host, "peer {what}");
        }
    }
    for change in &changes.quarantine {
        match &change.after {
            Some(reason) => {
                warn!(key = %change.key, %reason, "bad lease: no packets are sent to its holder");
            }
            None => info!(key = %change.key, "bad lease is gone or mended"),
        }
    }
}

/// Peers with a good lease that this backend cannot reach from this host.
#[derive(Debug, Default)]
pub(super) struct Unreached(BTreeMap<Subnets, UnreachablePeer>);

impl Unreached {
    /// One more, unless it is known already; it is logged once.
    pub(super) fn note(&mut self, peer: &Lease, reason: &Unreachable) {
        let entry = UnreachablePeer {
            subnets: peer.subnets.to_string(),
            holder: peer.attributes.holder(),
            reason: reason.to_string(),
        };
        if self.0.get(&peer.subnets) != Some(&entry) {
            warn!(subnets = %entry.subnets, holder = %entry.holder, %reason, "cannot reach this peer");
        }
        self.0.insert(peer.subnets, entry);
    }

    /// The peer has gone, or is about to be planned anew.
    pub(super) fn forget(&mut self, peer: &Lease) {
        self.0.remove(&peer.subnets);
    }

    /// None any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn list(&self) -> Vec<UnreachablePeer> {
        self.0.values().cloned().collect()
    }
}
