//! What became of the peers, and of the bad leases, between two looks.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admission::QuarantineReason;
use crate::key::Subnets;
use crate::lease::Lease;

/// What changed since the last look. Applied to what was there then, it gives what is there now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Each peer of which something else is known than before, once, in the order of their subnets.
    pub peers: Vec<PeerChange>,
    /// Each bad lease that came, went, or is bad for another reason, once, in the order of their keys.
    pub quarantine: Vec<QuarantineChange>,
}

/// What became of a peer. At least one of the two is there, and if both are, the subnets are the same and the
/// attributes are not: a lease that was merely renewed is no change, nor is a field that only others know, such as the
/// claim of another host.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerChange {
    /// Its lease as it was; `None` for a new peer.
    pub before: Option<Arc<Lease>>,
    /// Its lease as it is; `None` for one that is gone.
    pub after: Option<Arc<Lease>>,
}

/// What became of a bad lease. At least one of the two reasons is there.
#[derive(Debug, Clone, PartialEq)]
pub struct QuarantineChange {
    /// The last part of its key.
    pub key: Box<str>,
    /// Why it was bad; `None` if it was not, or was not there.
    pub before: Option<QuarantineReason>,
    /// Why it is bad; `None` if it is gone or mended.
    pub after: Option<QuarantineReason>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.quarantine.is_empty()
    }
}

impl PeerChange {
    /// The peer's subnets.
    pub fn subnets(&self) -> Option<Subnets> {
        self.after.as_ref().or(self.before.as_ref()).map(|lease| lease.subnets)
    }
}

/// What was there at the last look, of all that was touched since.
#[derive(Debug, Clone, Default)]
pub(super) struct Touched {
    peers: BTreeMap<Subnets, Option<Arc<Lease>>>,
    quarantine: BTreeMap<Box<str>, Option<QuarantineReason>>,
}

impl Touched {
    /// A peer is about to change; only the first change after a look counts.
    pub(super) fn peer(&mut self, subnets: Subnets, before: Option<&Arc<Lease>>) {
        self.peers.entry(subnets).or_insert_with(|| before.cloned());
    }

    /// A bad lease has changed; only the first change after a look counts.
    pub(super) fn quarantine(&mut self, key: &str, before: Option<QuarantineReason>) {
        if !self.quarantine.contains_key(key) {
            self.quarantine.insert(key.into(), before);
        }
    }

    /// The changes, given what is there now. This is the next look.
    pub(super) fn take<'a>(
        &mut self,
        peer: impl Fn(&Subnets) -> Option<Arc<Lease>>,
        reason: impl Fn(&str) -> Option<&'a QuarantineReason>,
    ) -> Changes {
        let Self { peers, quarantine } = std::mem::take(self);
        let peers = peers.into_iter().filter_map(|(subnets, before)| {
            let after = peer(&subnets);
            let same = match (&before, &after) {
                // What only others know is nothing that packets depend on.
                (Some(before), Some(after)) => before.attributes.says_the_same(&after.attributes),
                (before, after) => before.is_none() && after.is_none(),
            };
            (!same).then_some(PeerChange { before, after })
        });
        let quarantine = quarantine.into_iter().filter_map(|(key, before)| {
            let after = reason(&key);
            (before.as_ref() != after).then(|| QuarantineChange {
                before,
                after: after.cloned(),
                key: key.clone(),
            })
        });
        Changes { peers: peers.collect(), quarantine: quarantine.collect() }
    }
}
