//! All leases of the network, folded from the watch, and sorted by the judgement on each.
//!
//! One event costs the same whatever the number of leases: the lease it is about is judged, and those that are in
//! conflict with it. There are tens of thousands of leases, so each is held once and takes some 300 bytes in all.

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

/// What the store holds, as the watch tells it, each lease judged.
#[derive(Debug, Clone)]
pub struct LeaseSet {
    admission: Admission,
    caution: Caution,
    /// The leases that can be read, also those that a doubted list lacks and that are believed in for a while.
    table: Table,
    /// The bad leases by their keys, those that cannot be read among them; without the missing ones.
    quarantine: BTreeMap<Box<str>, Bad>,
    /// How many leases cannot be read.
    unreadable: usize,
    peers: usize,
    missing: usize,
    missing_until: Option<Instant>,
    touched: Touched,
    /// What the store said of our key since the last look.
    own_key: Option<OwnKey>,
    complete: bool,
    /// The cluster and the revision of the last list.
    last: Option<(u64, i64)>,
}

/// What the store holds under our own key: the revision of its last write, or `None` for nothing.
pub type OwnKey = Option<i64>;

/// When a list is not believed at once. A store that was wiped or restored is likelier than a network whose hosts all
/// left in one moment, and its hosts come back to it within seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caution {
    /// A list that lacks more than this part of the known leases, in percent, is doubted; so is any list of another
    /// cluster, or of an earlier time.
    pub percent: u8,
    /// How long leases that such a list lacks are believed in; zero to believe every list.
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
    /// The lease, where it could be read at all.
    pub lease: Option<&'a Lease>,
    /// What is wrong with it.
    pub reason: &'a QuarantineReason,
}

#[derive(Debug, Clone)]
struct Bad {
    /// `None` where the lease cannot be read.
    id: Option<Id>,
    reason: QuarantineReason,
}

impl LeaseSet {
    /// An empty set, which measures leases by `admission` and doubts lists as `caution` says.
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

    /// What the leases are measured by.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Measures the leases by something else of ours from now on.
    pub fn set_own(&mut self, own: Option<OwnLease>) {
        self.admission.own = own;
        let mut group = Group::default();
        group.ids.extend(self.table.iter().map(|(id, _)| id));
        self.rejudge(group);
    }

    /// Takes in what the watch said. A listing replaces everything that was known.
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

    /// When leases that a list lacked will be given up; `None` if there are none.
    pub fn missing_until(&self) -> Option<Instant> {
        self.missing_until.filter(|_| self.missing > 0)
    }

    /// Gives up the leases that a list lacked, once their time is over.
    pub fn expire(&mut self, now: Instant) {
        if self.missing_until().is_some_and(|until| until <= now) {
            warn!(
                leases = self.missing,
                "hosts whose leases the store lost have not come back to it; giving them up"
            );
            let mut group = Group::default();
            let missing: Vec<Id> =
                self.table.iter().filter(|(_, slot)| slot.missing).map(|(id, _)| id).collect();
            missing.into_iter().for_each(|id| self.remove(id, &mut group));
            self.rejudge(group);
        }
    }

    /// Whether a complete list has ever been taken in. Before that, an absent lease means nothing.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What became of the peers and of the bad leases since the last call. Applied to what [`LeaseSet::peers`] gave
    /// then, it gives what it gives now, but for revisions and fields that only others know.
    pub fn take_changes(&mut self) -> Changes {
        let Self { touched, table, quarantine, .. } = self;
        let peer = |subnets: &Subnets| {
            let slot = table.get(table.find(subnets)?)?;
            (slot.judgement == Judgement::Good(Standing::Peer)).then(|| slot.lease.clone())
        };
        touched.take(peer, |key| quarantine.get(key).map(|bad| &bad.reason))
    }

    /// What the store said of our key since the last call; `None` if it did not say anything of it.
    pub fn take_own_key(&mut self) -> Option<OwnKey> {
        self.own_key.take()
    }

    /// Leases of peers that can be reached, in the order of their subnets.
    pub fn peers(&self) -> impl Iterator<Item = &Lease> {
        self.table
            .in_order()
            .filter(|slot| slot.judgement == Judgement::Good(Standing::Peer))
            .map(|slot| &*slot.lease)
    }

    /// Leases of peers that share an address with this network, in the order of their subnets. Costs what there are of
    /// them, whatever the number of peers.
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

    /// Number of peers.
    pub fn peer_count(&self) -> usize {
        self.peers
    }

    /// Reservations that no host has claimed yet, in the order of their subnets: they block their subnet, and there is
    /// nobody to reach.
    pub fn unclaimed(&self) -> impl Iterator<Item = &Lease> {
        let unclaimed =
            |slot: &&Slot| !slot.missing && slot.judgement == Judgement::Good(Standing::Unclaimed);
        self.table.in_order().filter(unclaimed).map(|slot| &*slot.lease)
    }

    /// Leases that are kept from the kernel, in the order of their keys.
    pub fn quarantined(&self) -> impl Iterator<Item = Quarantined<'_>> {
        self.quarantine.iter().map(|(key, bad)| Quarantined {
            key,
            lease: bad.id.and_then(|id| self.table.get(id)).map(|slot| &*slot.lease),
            reason: &bad.reason,
        })
    }

    /// Number of leases that are kept from the kernel.
    pub fn quarantined_count(&self) -> usize {
        self.quarantine.len()
    }

    /// All leases that can be read, good and bad, in the order of their subnets.
    pub fn readable(&self) -> impl Iterator<Item = &Lease> {
        self.table.in_order().filter(|slot| !slot.missing).map(|slot| &*slot.lease)
    }

    /// Number of leases, good and bad.
    pub fn len(&self) -> usize {
        self.table.len() - self.missing + self.unreadable
    }

    /// Whether there is no lease at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in a complete list. What it lacks is gone, unless the list is to be doubted.
    fn replace(&mut self, listing: Listing<Lease>, now: Instant) {
        let mut group = Group::default();
        // What is still marked behind the last entry is not in the list.
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
                "the store suddenly lacks many leases, as after it was wiped or restored; their hosts are reached as before for now",
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

    /// Takes in one lease, and leaves the judgement on it to the group.
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
            // Nobody asks here what only others know, and it may be much.
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

    /// Takes out one lease, whether it can be read or not.
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

    /// Notes what the store says of these subnets, if they are ours.
    fn hear_of(&mut self, subnets: &Subnets, revision: OwnKey) {
        if self.admission.own.as_ref().is_some_and(|own| own.subnets == *subnets) {
            self.own_key = Some(revision);
        }
    }

    /// Takes out one lease that can be read. Whatever it was in conflict with is in the group then.
    fn remove(&mut self, id: Id, group: &mut Group) {
        self.forget_verdict(id);
        let Some(slot) = self.table.get(id) else { return };
        self.missing -= usize::from(slot.missing);
        self.table.reach(&slot.lease, &self.admission.config, group);
        self.table.remove(id, &self.admission.config.backend);
    }

    /// A doubted list lacks the lease: it is believed in, but comes behind all others.
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

/// Takes over what the lease says where nothing of that bears on a judgement. Answers whether that was so.
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
