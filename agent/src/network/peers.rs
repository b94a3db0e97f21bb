//! Logs changes of peers and bad leases, and records the peers that cannot be reached from here.

mod ration;

use std::collections::BTreeMap;

use flan_agent_api::{QuarantinedLease, SHOWN_IN_LISTS, UnreachablePeer};
use flan_backends::Unreachable;
use flan_subnet_lease::{Changes, Lease, LeaseSet, PeerChange, Subnets, shown};
use tokio::time::Instant;
use tracing::{info, warn};

use self::ration::Ration;

/// Up to this many changes at once are logged individually, more only as a number.
const AT_ONCE: usize = 5;

/// Logs changes, with a limited number of lines.
#[derive(Debug, Default)]
pub(super) struct Teller {
    peers: [Ration; KINDS.len()],
    bad: Ration,
    mended: Ration,
}

/// What can happen to a peer, and how to recognise it.
type Kind = (&'static str, fn(&PeerChange) -> bool);
const KINDS: [Kind; 3] = [
    ("joined", |change| change.before.is_none()),
    ("left", |change| change.after.is_none()),
    ("changed", |change| change.before.is_some() && change.after.is_some()),
];

impl Teller {
    pub(super) fn tell(&mut self, changes: &Changes, now: Instant) {
        for ((what, is_one), ration) in KINDS.into_iter().zip(&mut self.peers) {
            let count = changes.peers.iter().filter(|change| is_one(change)).count();
            if count > AT_ONCE {
                if ration.admits(count, now) {
                    info!(peers = count, "peers {what}");
                }
                continue;
            }
            for lease in changes
                .peers
                .iter()
                .filter(|change| is_one(change))
                .filter_map(|change| change.after.as_ref().or(change.before.as_ref()))
            {
                if !ration.admits(1, now) {
                    continue;
                }
                let public_ips: Vec<String> =
                    lease.attributes.public_ips.values().map(ToString::to_string).collect();
                let host = lease.attributes.node.host.as_deref().map(shown).unwrap_or_default();
                info!(subnets = %lease.subnets, public_ip = public_ips.join(","), %host, "peer {what}");
            }
        }
        for change in &changes.quarantine {
            match &change.after {
                Some(reason) if self.bad.admits(1, now) => {
                    warn!(key = %shown(&change.key), %reason, "bad lease: no packets are sent to its holder");
                }
                None if self.mended.admits(1, now) => {
                    info!(key = %shown(&change.key), "bad lease is gone or repaired");
                }
                _ => {}
            }
        }
    }

    /// Returns when the next summary is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let rations = self.peers.iter().chain([&self.bad, &self.mended]);
        rations.filter_map(Ration::due).min()
    }

    /// Logs a summary of what got no line of its own, if due.
    pub(super) fn sum_up(&mut self, leases: &LeaseSet, now: Instant) {
        for ((what, _), ration) in KINDS.into_iter().zip(&mut self.peers) {
            if let Some(more) = ration.more(now) {
                info!(peers = more, "more peers {what} than get a line each");
            }
        }
        let quarantined = leases.quarantined_count();
        if let Some(changes) = self.bad.more(now) {
            warn!(changes, quarantined, "more bad leases than get a line each; flanctl subnets ls shows all");
        }
        if let Some(changes) = self.mended.more(now) {
            info!(changes, quarantined, "more bad leases are gone or repaired");
        }
    }
}

/// Returns the first bad leases, for the status.
pub(super) fn some_quarantined(leases: &LeaseSet) -> Vec<QuarantinedLease> {
    leases.quarantined().take(SHOWN_IN_LISTS).map(Into::into).collect()
}

/// Peers with a good lease that this backend cannot reach from this host.
#[derive(Debug, Default)]
pub(super) struct Unreached {
    peers: BTreeMap<Subnets, UnreachablePeer>,
    ration: Ration,
}

impl Unreached {
    /// Records an unreachable peer, and logs it if that is new.
    pub(super) fn note(&mut self, peer: &Lease, reason: &Unreachable, now: Instant) {
        let entry = UnreachablePeer {
            subnets: peer.subnets.to_string(),
            holder: peer.attributes.holder(),
            reason: reason.to_string(),
        };
        if self.peers.get(&peer.subnets) != Some(&entry) && self.ration.admits(1, now) {
            warn!(subnets = %entry.subnets, holder = %entry.holder, %reason, "cannot reach this peer");
        }
        self.peers.insert(peer.subnets, entry);
    }

    /// Removes a peer that is gone or about to be planned again.
    pub(super) fn forget(&mut self, peer: &Lease) {
        self.peers.remove(&peer.subnets);
    }

    /// Returns why this peer cannot be reached, if so.
    pub(super) fn reason(&self, peer: &Lease) -> Option<String> {
        self.peers.get(&peer.subnets).map(|peer| peer.reason.clone())
    }

    pub(super) fn clear(&mut self) {
        self.peers.clear();
    }

    pub(super) fn count(&self) -> usize {
        self.peers.len()
    }

    /// Returns the first unreachable peers, for the status.
    pub(super) fn some(&self) -> Vec<UnreachablePeer> {
        self.peers.values().take(SHOWN_IN_LISTS).cloned().collect()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.ration.due()
    }

    /// Logs a summary of what got no line of its own, if due.
    pub(super) fn sum_up(&mut self, now: Instant) {
        if let Some(changes) = self.ration.more(now) {
            warn!(changes, unreachable = self.count(), "cannot reach more peers than get a line each");
        }
    }
}
