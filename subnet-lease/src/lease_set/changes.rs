//! The changes of peers and bad leases between two looks.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admission::QuarantineReason;
use crate::key::Subnets;
use crate::lease::Lease;

/// The changes since the last look. Applied to the previous state they give the current one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Each peer that changed, once, ordered by subnet.
    pub peers: Vec<PeerChange>,
    /// Each lease that became bad, is no longer bad, or is bad for another reason, once, ordered by key.
    pub quarantine: Vec<QuarantineChange>,
}

/// The change of a peer. At least one of the fields is set; if both are, the subnets are equal and the attributes are
/// not. Renewals and changes of unknown fields, such as the claim of another host, do not count.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerChange {
    /// The previous lease; `None` for a new peer.
    pub before: Option<Arc<Lease>>,
    /// The current lease; `None` if it is gone.
    pub after: Option<Arc<Lease>>,
}

/// The change of a bad lease. At least one of the two reasons is set.
#[derive(Debug, Clone, PartialEq)]
pub struct QuarantineChange {
    /// The last part of its key.
    pub key: Box<str>,
    /// Why it was bad; `None` if it was good or did not exist.
    pub before: Option<QuarantineReason>,
    /// Why it is bad; `None` if it is gone or good now.
    pub after: Option<QuarantineReason>,
}

impl Changes {
    /// Returns whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.quarantine.is_empty()
    }
}

impl PeerChange {
    /// Returns the peer's subnets.
    pub fn subnets(&self) -> Option<Subnets> {
        self.after.as_ref().or(self.before.as_ref()).map(|lease| lease.subnets)
    }
}

/// The state at the last look, of everything touched since.
#[derive(Debug, Clone, Default)]
pub(super) struct Touched {
    peers: BTreeMap<Subnets, Option<Arc<Lease>>>,
    quarantine: BTreeMap<Box<str>, Option<QuarantineReason>>,
}

impl Touched {
    /// Notes that a peer is about to change; only the first change after a look counts.
    pub(super) fn peer(&mut self, subnets: Subnets, before: Option<&Arc<Lease>>) {
        self.peers.entry(subnets).or_insert_with(|| before.cloned());
    }

    /// Notes that a bad lease has changed; only the first change after a look counts.
    pub(super) fn quarantine(&mut self, key: &str, before: Option<QuarantineReason>) {
        if !self.quarantine.contains_key(key) {
            self.quarantine.insert(key.into(), before);
        }
    }

    /// Returns the changes up to the current state, and starts the next look.
    pub(super) fn take<'a>(
        &mut self,
        peer: impl Fn(&Subnets) -> Option<Arc<Lease>>,
        reason: impl Fn(&str) -> Option<&'a QuarantineReason>,
    ) -> Changes {
        let Self { peers, quarantine } = std::mem::take(self);
        let peers = peers.into_iter().filter_map(|(subnets, before)| {
            let after = peer(&subnets);
            let same = match (&before, &after) {
                // Packets do not depend on unknown fields.
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
