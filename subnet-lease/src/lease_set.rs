//! All leases of the network, collected from the watch, each with a judgement.
//!
//! An event costs the same whatever the number of leases: it judges only the changed lease and those in conflict with
//! it. There are tens of thousands of leases, so each is stored once and takes some 300 bytes in all.

mod changes;
mod judging;
mod table;
#[cfg(test)]
mod whole;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::Instant;
use tracing::warn;

use crate::admission::{Admission, OwnLease, QuarantineReason, Standing};
use crate::family::Family;
use crate::key::Subnets;
use crate::lease::Lease;
use crate::stored::{KeyChange, Listing, Read, Unreadable};
use crate::watch::WatchEvent;
use changes::Touched;
pub use changes::{Changes, PeerChange, QuarantineChange};
use table::{Group, Id, Judgement, Slot, Table};

/// What the store holds according to the watch, each lease judged.
#[derive(Debug, Clone)]
pub struct LeaseSet {
    admission: Admission,
    caution: Caution,
    /// The readable leases, including those missing from a doubted list and still believed in.
    table: Table,
    /// The bad leases by key, including unreadable ones, without missing ones.
    quarantine: BTreeMap<Box<str>, Bad>,
    unreadable: usize,
    peers: usize,
    missing: usize,
    missing_until: Option<Instant>,
    touched: Touched,
    /// What the store holds under our key, if it said so since the last look.
    own_key: Option<OwnKey>,
    complete: bool,
    /// The cluster and the revision of the last list.
    last: Option<(u64, i64)>,
}

/// What the store holds under our own key: the revision of its last write, or `None` for nothing.
pub type OwnKey = Option<i64>;

/// When not to believe a list at once. A store that was wiped or restored is more likely than a network whose hosts all
/// left at the same moment, and the hosts write their leases to it again within seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caution {
    /// A list is doubted if it is missing more than this percentage of the known leases, comes from another cluster, or
    /// is from an earlier revision.
    pub percent: u8,
    /// How long to believe in leases that a doubted list is missing; zero to believe every list.
    pub grace: Duration,
}

impl Default for Caution {
    fn default() -> Self {
        Self { percent: 50, grace: Duration::from_secs(60) }
    }
}

/// A bad lease.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quarantined<'a> {
    /// The last part of its key.
    pub key: &'a str,
    /// The lease, if readable.
    pub lease: Option<&'a Lease>,
    /// What is wrong with it.
    pub reason: &'a QuarantineReason,
}

#[derive(Debug, Clone)]
struct Bad {
    /// `None` if the lease is unreadable.
    id: Option<Id>,
    reason: QuarantineReason,
}

impl LeaseSet {
    /// Creates an empty set that judges leases by `admission` and doubts lists according to `caution`.
    pub fn new(admission: Admission, caution: Caution) -> Self {
        Self {
            admission,
            caution,
            table: Table::default(),
            quarantine: BTreeMap::new(),
            unreadable: 0,
            peers: 0,
            missing: 0,
            missing_until: None,
            touched: Touched::default(),
            own_key: None,
            complete: false,
            last: None,
        }
    }

    /// Returns what leases are judged against.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Judges all leases again, against a new state of ours.
    pub fn set_own(&mut self, own: Option<OwnLease>) {
        self.admission.own = own;
        let mut group = Group::default();
        group.ids.extend(self.table.iter().map(|(id, _)| id));
        self.rejudge(group);
    }

    /// Judges all leases again, under another config.
    pub fn set_admission(&mut self, admission: Admission) {
        let mut group = Group::default();
        group.ids.extend(self.table.iter().map(|(id, _)| id));
        group.ids.iter().for_each(|id| self.forget_verdict(*id));
        // The backend says what identifies a host.
        self.table.index_by(&admission.config.backend);
        self.admission = admission;
        self.rejudge(group);
    }

    /// Applies an event of the watch. A list replaces everything.
    pub fn apply(&mut self, event: WatchEvent<Lease>, now: Instant) {
        match event {
            WatchEvent::Listed(listing) => self.replace(listing, now),
            WatchEvent::Changed(changes) => {
                let mut group = Group::default();
                for change in changes {
                    match change {
                        KeyChange::Put(read) => self.put(read, &mut group),
                        KeyChange::Delete { key } => self.delete(&key, &mut group),
                    }
                }
                self.rejudge(group);
            }
            WatchEvent::Interrupted { .. } => {}
        }
    }

    /// Returns when missing leases will be given up; `None` if there are none.
    pub fn missing_until(&self) -> Option<Instant> {
        self.missing_until.filter(|_| self.missing > 0)
    }

    /// Gives up missing leases whose time is over.
    pub fn expire(&mut self, now: Instant) {
        if self.missing_until().is_some_and(|until| until <= now) {
            warn!(
                leases = self.missing,
                "hosts have not restored the leases that the store lost; giving them up"
            );
            let mut group = Group::default();
            let missing: Vec<Id> =
                self.table.iter().filter(|(_, slot)| slot.missing).map(|(id, _)| id).collect();
            missing.into_iter().for_each(|id| self.remove(id, &mut group));
            self.rejudge(group);
        }
    }

    /// Returns whether a complete list was ever applied. Before that, a missing lease means nothing.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Returns the changes of peers and bad leases since the last call. Applied to the previous [`LeaseSet::peers`]
    /// they give the current ones, except for revisions and unknown fields.
    pub fn take_changes(&mut self) -> Changes {
        let Self { touched, table, quarantine, .. } = self;
        let peer = |subnets: &Subnets| {
            let slot = table.get(table.find(subnets)?)?;
            (slot.judgement == Judgement::Good(Standing::Peer)).then(|| slot.lease.clone())
        };
        touched.take(peer, |key| quarantine.get(key).map(|bad| &bad.reason))
    }

    /// Returns what the store said about our key since the last call; `None` if nothing.
    pub fn take_own_key(&mut self) -> Option<OwnKey> {
        self.own_key.take()
    }

    /// Returns the leases of reachable peers, ordered by subnet.
    pub fn peers(&self) -> impl Iterator<Item = &Lease> {
        self.table
            .in_order()
            .filter(|slot| slot.judgement == Judgement::Good(Standing::Peer))
            .map(|slot| &*slot.lease)
    }

    /// Returns the leases of peers that overlap this network, ordered by subnet. The cost depends on their number, not
    /// on that of all peers.
    pub fn peers_in(&self, network: &IpNetwork) -> Vec<&Lease> {
        let family = Family::of(network.ip());
        let mut found: Vec<Id> = Vec::new();
        if let Some(pool) = self.admission.config.pools.get(family) {
            self.table.overlapping(family, network, pool.subnet_len(), |id| found.push(id));
        }
        let peer = |id| self.table.get(id).filter(|slot| slot.judgement == Judgement::Good(Standing::Peer));
        let mut peers: Vec<&Lease> = found.into_iter().filter_map(peer).map(|slot| &*slot.lease).collect();
        peers.sort_unstable_by_key(|lease| lease.subnets);
        peers.dedup_by_key(|lease| lease.subnets);
        peers
    }

    /// Returns the number of peers.
    pub fn peer_count(&self) -> usize {
        self.peers
    }

    /// Returns the reservations that no host has claimed yet, ordered by subnet. They block their subnet, but nobody
    /// can be reached there.
    pub fn unclaimed(&self) -> impl Iterator<Item = &Lease> {
        let unclaimed =
            |slot: &&Slot| !slot.missing && slot.judgement == Judgement::Good(Standing::Unclaimed);
        self.table.in_order().filter(unclaimed).map(|slot| &*slot.lease)
    }

    /// Returns the leases that are kept from the kernel, ordered by key.
    pub fn quarantined(&self) -> impl Iterator<Item = Quarantined<'_>> {
        self.quarantine.iter().map(|(key, bad)| Quarantined {
            key,
            lease: bad.id.and_then(|id| self.table.get(id)).map(|slot| &*slot.lease),
            reason: &bad.reason,
        })
    }

    /// Returns the number of leases that are kept from the kernel.
    pub fn quarantined_count(&self) -> usize {
        self.quarantine.len()
    }

    /// Returns all readable leases, good and bad, ordered by subnet.
    pub fn readable(&self) -> impl Iterator<Item = &Lease> {
        self.table.in_order().filter(|slot| !slot.missing).map(|slot| &*slot.lease)
    }

    /// Returns the number of leases, good and bad.
    pub fn len(&self) -> usize {
        self.table.len() - self.missing + self.unreadable
    }

    /// Returns whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Applies a complete list. What it lacks is gone, unless the list is doubted.
    fn replace(&mut self, listing: Listing<Lease>, now: Instant) {
        let mut group = Group::default();
        // What is still marked after the last entry is not in the list.
        self.table.iter_mut().for_each(|(_, slot)| slot.mark = !slot.missing);
        let unreadable = self.quarantine.iter().filter(|(_, bad)| bad.id.is_none());
        let unreadable: Vec<Box<str>> = unreadable.map(|(key, _)| key.clone()).collect();
        unreadable.iter().for_each(|key| self.discharge(key));
        self.table.reserve(listing.items.len());
        self.own_key = self.admission.own.is_some().then_some(None);
        listing.items.into_iter().for_each(|read| self.put(read, &mut group));
        let gone: Vec<Id> = self
            .table
            .iter_mut()
            .filter_map(|(id, slot)| std::mem::take(&mut slot.mark).then_some(id))
            .collect();

        let before = self.len();
        let other = self
            .last
            .is_some_and(|(cluster, revision)| cluster != listing.cluster_id || listing.revision < revision);
        let many = gone.len() * 100 > before * usize::from(self.caution.percent);
        let doubted = (other || many) && !self.caution.grace.is_zero();
        if !gone.is_empty() && doubted {
            warn!(
                missing = gone.len(), listed = before - gone.len(), grace = ?self.caution.grace,
                "the store is suddenly missing many leases, as after a wipe or restore; keeping their hosts as peers for now",
            );
            gone.into_iter().for_each(|id| self.miss(id, &mut group));
            self.missing_until = Some(now + self.caution.grace);
        } else {
            gone.into_iter().for_each(|id| self.remove(id, &mut group));
        }
        self.rejudge(group);
        self.last = Some((listing.cluster_id, listing.revision));
        self.complete = true;
    }

    /// Adds or updates one lease; the group decides which leases to judge.
    fn put(&mut self, read: Read<Lease>, group: &mut Group) {
        let mut lease = match read {
            Ok(lease) => lease,
            Err(bad) => {
                let Unreadable { entry, reason } = *bad;
                self.delete(&entry.key, group);
                if let Ok(subnets) = Subnets::from_key(&entry.key) {
                    self.hear_of(&subnets, Some(entry.mod_revision));
                }
                self.unreadable += 1;
                self.admit_to_quarantine(&entry.key, None, QuarantineReason::Unreadable(reason));
                return;
            }
        };
        self.hear_of(&lease.subnets, Some(lease.mod_revision));
        if lease.attributes.other.is_some() {
            // Nobody here needs the unknown fields, and they may be large.
            Arc::make_mut(&mut lease).attributes.other = None;
        }
        match self.table.find(&lease.subnets) {
            Some(id) => {
                if self.table.get_mut(id).is_some_and(|slot| renew(slot, &lease)) {
                    return;
                }
                self.remove(id, group);
            }
            None if self.unreadable > 0 => self.discharge(&lease.subnets.key()),
            None => {}
        }
        group.ids.push(self.table.insert(lease, &self.admission.config.backend));
    }

    /// Removes one lease, readable or not.
    fn delete(&mut self, key: &str, group: &mut Group) {
        let subnets = Subnets::from_key(key).ok();
        if let Some(subnets) = &subnets {
            self.hear_of(subnets, None);
        }
        match subnets.and_then(|subnets| self.table.find(&subnets)) {
            Some(id) => self.remove(id, group),
            None => self.discharge(key),
        }
    }

    /// Records what the store holds under these subnets, if they are ours.
    fn hear_of(&mut self, subnets: &Subnets, revision: OwnKey) {
        if self.admission.own.as_ref().is_some_and(|own| own.subnets == *subnets) {
            self.own_key = Some(revision);
        }
    }

    /// Removes one readable lease, and adds what it was in conflict with to the group.
    fn remove(&mut self, id: Id, group: &mut Group) {
        self.forget_verdict(id);
        let Some(slot) = self.table.get(id) else { return };
        self.missing -= usize::from(slot.missing);
        self.table.reach(&slot.lease, &self.admission.config, group);
        self.table.remove(id, &self.admission.config.backend);
    }

    /// Handles a lease that a doubted list lacks: it is still believed in, but ranks after all others.
    fn miss(&mut self, id: Id, group: &mut Group) {
        self.forget_verdict(id);
        let Some(slot) = self.table.get_mut(id) else { return };
        slot.missing = true;
        self.missing += 1;
        let lease = slot.lease.clone();
        self.table.reach(&lease, &self.admission.config, group);
        group.ids.push(id);
    }

    fn set_verdict(&mut self, id: Id, verdict: Result<Standing, QuarantineReason>) {
        let Some(slot) = self.table.get(id) else { return };
        let (lease, missing) = (&slot.lease, slot.missing);
        let same = match &verdict {
            Ok(standing) => slot.judgement == Judgement::Good(*standing),
            Err(_) if missing => slot.judgement == Judgement::Bad,
            Err(reason) => {
                slot.judgement == Judgement::Bad
                    && self
                        .quarantine
                        .get(lease.subnets.key().as_str())
                        .is_some_and(|bad| bad.reason == *reason)
            }
        };
        if same {
            return;
        }
        let subnets = lease.subnets;
        self.forget_verdict(id);
        let judgement = match verdict {
            Ok(standing) => {
                if standing == Standing::Peer {
                    self.touched.peer(subnets, None);
                    self.peers += 1;
                }
                Judgement::Good(standing)
            }
            Err(reason) => {
                if !missing {
                    self.admit_to_quarantine(&subnets.key(), Some(id), reason);
                }
                Judgement::Bad
            }
        };
        if let Some(slot) = self.table.get_mut(id) {
            slot.judgement = judgement;
        }
    }

    fn forget_verdict(&mut self, id: Id) {
        let Some(slot) = self.table.get_mut(id) else { return };
        match std::mem::replace(&mut slot.judgement, Judgement::Unjudged) {
            Judgement::Good(Standing::Peer) => {
                self.touched.peer(slot.lease.subnets, Some(&slot.lease));
                self.peers -= 1;
            }
            Judgement::Bad if !slot.missing => {
                let key = slot.lease.subnets.key();
                self.discharge(&key);
            }
            _ => {}
        }
    }

    fn admit_to_quarantine(&mut self, key: &str, id: Option<Id>, reason: QuarantineReason) {
        self.touched.quarantine(key, None);
        self.quarantine.insert(key.into(), Bad { id, reason });
    }

    fn discharge(&mut self, key: &str) {
        if let Some(bad) = self.quarantine.remove(key) {
            self.unreadable -= usize::from(bad.id.is_none());
            self.touched.quarantine(key, Some(bad.reason));
        }
    }
}

/// Updates a lease in place if no judgement depends on the difference. Returns whether it did.
fn renew(slot: &mut Slot, lease: &Lease) -> bool {
    let known = &slot.lease;
    let same = known.attributes == lease.attributes
        && known.create_revision == lease.create_revision
        && known.is_reservation() == lease.is_reservation()
        && !slot.missing;
    slot.mark &= !same;
    let (etcd_lease, mod_revision) = (lease.etcd_lease, lease.mod_revision);
    if same && (known.etcd_lease, known.mod_revision) != (etcd_lease, mod_revision) {
        let known = Arc::make_mut(&mut slot.lease);
        (known.etcd_lease, known.mod_revision) = (etcd_lease, mod_revision);
    }
    same
}

#[cfg(test)]
mod tests;
