//! The leases by number, and indexes of what two leases can conflict over: addresses and identities.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::admission::Standing;
use crate::backend_config::BackendConfig;
use crate::config::NetworkConfig;
use crate::family::{Family, bits, span};
use crate::identity::Identity;
use crate::key::Subnets;
use crate::lease::Lease;

/// The number of a lease while it is in the table; reused afterwards.
pub(super) type Id = u32;

/// The readable leases, each with its judgement.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<Id>,
    /// By the first address of the subnet, in network byte order.
    v4: BTreeSet<([u8; 4], Id)>,
    v6: BTreeSet<([u8; 16], Id)>,
    identities: BTreeSet<(Family, Identity, Id)>,
}

/// One lease. 16 bytes: there is one per host of the network.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) lease: Arc<Lease>,
    pub(super) judgement: Judgement,
    /// Whether a doubted list lacks it.
    pub(super) missing: bool,
    /// Scratch space for walks over many leases.
    pub(super) mark: bool,
}

/// The last judgement on a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// None yet.
    Unjudged,
    /// Not bad.
    Good(Standing),
    /// Bad; the quarantine has the reason, unless the lease is missing.
    Bad,
}

/// Leases that may be in conflict with each other, as found so far.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) ids: Vec<Id>,
    /// What was searched already: once is enough, however many leases share it.
    reached: HashSet<Reach>,
}

/// What two leases can conflict over.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Reach {
    Subnet(IpNetwork),
    Identity(Family, Identity),
}

impl Table {
    /// Returns the number of leases, including missing ones.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Makes room for this many leases in total.
    pub(super) fn reserve(&mut self, leases: usize) {
        self.slots.reserve_exact(leases.saturating_sub(self.slots.len()));
    }

    pub(super) fn get(&self, id: Id) -> Option<&Slot> {
        self.slots.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Slot> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Slot)> {
        (0..).zip(&self.slots).filter_map(|(id, slot)| Some((id, slot.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Id, &mut Slot)> {
        (0..).zip(&mut self.slots).filter_map(|(id, slot)| Some((id, slot.as_mut()?)))
    }

    /// Returns all leases by their subnets: those with IPv4 first, by IPv4 subnet.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Slot> {
        let v4 = self.v4.iter().filter_map(|(_, id)| self.get(*id));
        let v6 = self.v6.iter().filter_map(|(_, id)| self.get(*id));
        v4.chain(v6.filter(|slot| slot.lease.subnets.get(Family::V4).is_none()))
    }

    /// Returns the lease of exactly these subnets.
    pub(super) fn find(&self, subnets: &Subnets) -> Option<Id> {
        let (family, subnet) = subnets.iter().next()?;
        let (first, _) = span(&subnet);
        let mut found = None;
        self.starting(family, first, first, |id, slot| {
            if slot.lease.subnets == *subnets {
                found = Some(id);
            }
        });
        found
    }

    pub(super) fn insert(&mut self, lease: Arc<Lease>, backend: &BackendConfig) -> Id {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Id::try_from(self.slots.len() - 1).expect("a store holds fewer than 2^32 leases")
        });
        for (family, subnet) in lease.subnets.iter() {
            let first = bits(subnet.network());
            match family {
                Family::V4 => self.v4.insert((v4(first), id)),
                Family::V6 => self.v6.insert((v6(first), id)),
            };
            let identity = backend.identity(lease.attributes.data.get(family));
            self.identities.extend(identity.map(|identity| (family, identity, id)));
        }
        self.slots[id as usize] =
            Some(Slot { lease, judgement: Judgement::Unjudged, missing: false, mark: false });
        id
    }

    /// Indexes the identities anew, by what identifies a host with this backend.
    pub(super) fn index_by(&mut self, backend: &BackendConfig) {
        let identities = self.iter().flat_map(|(id, slot)| {
            let Lease { subnets, attributes, .. } = &*slot.lease;
            let identity = move |family| Some((family, backend.identity(attributes.data.get(family))?, id));
            subnets.iter().filter_map(move |(family, _)| identity(family))
        });
        self.identities = identities.collect();
    }

    pub(super) fn remove(&mut self, id: Id, backend: &BackendConfig) {
        let Some(Slot { lease, .. }) = self.slots.get_mut(id as usize).and_then(Option::take) else { return };
        for (family, subnet) in lease.subnets.iter() {
            let first = bits(subnet.network());
            match family {
                Family::V4 => self.v4.remove(&(v4(first), id)),
                Family::V6 => self.v6.remove(&(v6(first), id)),
            };
            if let Some(identity) = backend.identity(lease.attributes.data.get(family)) {
                self.identities.remove(&(family, identity, id));
            }
        }
        self.free.push(id);
    }

    /// Adds to the group all leases that this one, if good by itself, may conflict with.
    pub(super) fn reach(&self, lease: &Lease, config: &NetworkConfig, group: &mut Group) {
        let Group { ids, reached } = group;
        for (family, subnet) in lease.subnets.iter() {
            let Some(pool) = config.pools.get(family) else { continue };
            if reached.insert(Reach::Subnet(subnet)) {
                self.overlapping(family, &subnet, pool.subnet_len(), |id| ids.push(id));
            }
            let data = lease.attributes.data.get(family);
            let Some(identity) = config.backend.identity(data) else { continue };
            if reached.insert(Reach::Identity(family, identity)) {
                let all = (family, identity, 0)..=(family, identity, Id::MAX);
                ids.extend(self.identities.range(all).map(|(.., id)| *id));
            }
        }
    }

    /// Returns every lease with a subnet that overlaps this one. Omits prefixes shorter than `shortest`, which are bad
    /// by themselves. Of two overlapping subnets, one contains the other.
    pub(super) fn overlapping(
        &self,
        family: Family,
        subnet: &IpNetwork,
        shortest: u8,
        mut found: impl FnMut(Id),
    ) {
        let (first, last) = span(subnet);
        self.starting(family, first, last, |id, _| found(id));
        for length in shortest..subnet.prefix() {
            let host_bits = u32::from(family.width() - length);
            let base = first.checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
            if base == first {
                return; // and so on from here; these were among those inside
            }
            self.starting(family, base, base, |id, slot| {
                let around = slot.lease.subnets.get(family).is_some_and(|other| span(&other).1 >= first);
                if around {
                    found(id);
                }
            });
        }
    }

    /// Visits every lease whose subnet of this family starts in this range.
    fn starting(&self, family: Family, first: u128, last: u128, mut found: impl FnMut(Id, &Slot)) {
        let mut found = |id: &Id| {
            if let Some(slot) = self.get(*id) {
                found(*id, slot);
            }
        };
        match family {
            Family::V4 => {
                self.v4.range((v4(first), 0)..=(v4(last), Id::MAX)).for_each(|(_, id)| found(id));
            }
            Family::V6 => {
                self.v6.range((v6(first), 0)..=(v6(last), Id::MAX)).for_each(|(_, id)| found(id));
            }
        }
    }
}

fn v4(bits: u128) -> [u8; 4] {
    (bits as u32).to_be_bytes()
}

fn v6(bits: u128) -> [u8; 16] {
    bits.to_be_bytes()
}
