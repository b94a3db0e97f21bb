//! Judges a group of leases that may be in conflict with each other.

use std::collections::{BTreeMap, HashMap};

use super::LeaseSet;
use super::table::{Group, Id, Table};
use crate::admission::{QuarantineReason, Standing};
use crate::backend_config::BackendConfig;
use crate::family::{Family, bits, overlap, span};
use crate::identity::Identity;
use crate::lease::Lease;

impl LeaseSet {
    /// Judges these leases again, with all that may be affected: those in conflict with one of them, those in conflict
    /// with these, and so on. Normally a lease conflicts with none.
    pub(super) fn rejudge(&mut self, mut group: Group) {
        // Of so many, most are in the group anyway, so add all instead of searching.
        let all = group.ids.len() > self.table.len() / 2;
        if all {
            group.ids = self.table.iter().map(|(id, _)| id).collect();
        }
        let mut by_age: Vec<(Age, Id)> = Vec::new();
        while let Some(id) = group.ids.pop() {
            let Some(slot) = self.table.get_mut(id) else { continue };
            if std::mem::replace(&mut slot.mark, true) {
                continue;
            }
            by_age.push(((slot.missing, slot.lease.create_revision), id));
            if all {
                continue;
            }
            let lease = slot.lease.clone();
            if matches!(self.admission.standing(&lease), Ok(Standing::Peer | Standing::Unclaimed)) {
                self.table.reach(&lease, &self.admission.config, &mut group);
            }
        }
        let subnets = |id: Id| self.table.get(id).map(|slot| slot.lease.subnets);
        by_age.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| subnets(a.1).cmp(&subnets(b.1))));
        let mut older = Older::default();
        for (_, id) in by_age {
            let Some(slot) = self.table.get_mut(id) else { continue };
            slot.mark = false;
            let verdict = self.admission.standing(&slot.lease).and_then(|standing| {
                if standing != Standing::Own {
                    older.take(&self.table, id, &self.admission.config.backend)?;
                }
                Ok(standing)
            });
            self.set_verdict(id, verdict);
        }
    }
}

/// Lower is older. Leases missing from a doubted list rank after all that the store holds; next counts the revision of
/// their creation, then their place in the network.
type Age = (bool, i64);

#[derive(Default)]
struct Older {
    /// Disjoint subnets by their first address: finds an overlap without comparing each with all.
    subnets: BTreeMap<(Family, [u8; 16]), Id>,
    /// The identities of peers.
    identities: HashMap<(Family, Identity), Sharing>,
}

/// The leases that share an identity, so far.
struct Sharing {
    youngest: Id,
    leases: usize,
}

/// Most leases with one identity. A host that moves from subnet to subnet holds a few until they expire; each costs room
/// in what the kernel knows of the one peer.
const MOST_OF_ONE: usize = 256;

impl Older {
    /// Takes what the lease claims, if all of it is free.
    fn take(&mut self, table: &Table, id: Id, backend: &BackendConfig) -> Result<(), QuarantineReason> {
        let Some(slot) = table.get(id) else { return Ok(()) };
        let lease = &slot.lease;
        if let Some(reason) = self.overlap(table, lease).or_else(|| self.double(table, lease, backend)) {
            return Err(reason);
        }
        for (family, subnet) in lease.subnets.iter() {
            self.subnets.insert((family, bits(subnet.network()).to_be_bytes()), id);
            if let Some(identity) = backend.identity(lease.attributes.data.get(family)) {
                let sharing = self.identities.entry((family, identity));
                let sharing = sharing.or_insert(Sharing { youngest: id, leases: 0 });
                (sharing.youngest, sharing.leases) = (id, sharing.leases + 1);
            }
        }
        Ok(())
    }

    fn overlap(&self, table: &Table, lease: &Lease) -> Option<QuarantineReason> {
        lease.subnets.iter().find_map(|(family, subnet)| {
            let (_, last) = span(&subnet);
            let below = (family, [0; 16])..=(family, last.to_be_bytes());
            let older = table.get(*self.subnets.range(below).next_back()?.1)?.lease.subnets;
            overlap(&older.get(family)?, &subnet).then_some(QuarantineReason::Overlaps { older })
        })
    }

    fn double(&self, table: &Table, lease: &Lease, backend: &BackendConfig) -> Option<QuarantineReason> {
        lease.subnets.iter().find_map(|(family, _)| {
            let identity = backend.identity(lease.attributes.data.get(family))?;
            let &Sharing { youngest, leases } = self.identities.get(&(family, identity))?;
            let older = &table.get(youngest)?.lease;
            // One host may hold two leases for a while; they lead to the same place.
            let address =
                |lease: &Lease| lease.attributes.public_ips.get(backend.underlay_of(family)).copied();
            let same = address(older) == address(lease);
            if !same {
                let holder = lease.attributes.holder_and_node();
                return Some(QuarantineReason::IdentityTaken { holder, identity, older: older.subnets });
            }
            (leases >= MOST_OF_ONE).then_some(QuarantineReason::TooManyLeases { identity, leases })
        })
    }
}
