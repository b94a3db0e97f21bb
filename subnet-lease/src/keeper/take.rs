//! Takes a lease: adopts one that is ours, or creates one.

use std::collections::HashSet;

use ipnetwork::IpNetwork;
use tracing::{debug, info};

use super::claim::{Claim, HeldLease, KeeperError};
use super::contest::Contest;
use super::holders::holders;
use super::own::{Own, choose_own};
use crate::allocate::{NoSubnet, Situation, allocate};
use crate::key::Subnets;
use crate::lease::{Lease, LeaseAttributes};
use crate::store::{Store, StoreError};
use crate::stored::Listing;
use crate::twin::Twin;

pub(super) struct Taken {
    pub(super) held: HeldLease,
    /// The list that decided, without what this attempt wrote.
    pub(super) listing: Listing<Lease>,
    /// Another machine with our node id that has claimed the lease.
    pub(super) twin: Option<Twin>,
}

/// Makes one attempt: reads all leases, then adopts ours or creates one. With a `contest`, at the start of a host,
/// claims leases that are ours only by node id.
pub(super) async fn take(
    store: &Store,
    claim: &Claim,
    listing: Option<Listing<Lease>>,
    contest: Option<&mut Contest>,
    waits: &impl Fn(&str),
) -> Result<Taken, KeeperError> {
    let listing = match listing {
        Some(listing) => listing,
        None => store.leases().list().await?,
    };
    match (choose_own(&listing, claim, contest.as_deref()), contest) {
        (Some(Own { lease, by_node: false }), _) => {
            let (held, twin) = (adopt(store, claim, lease).await?, lease.attributes.claimant());
            return Ok(Taken { held, listing, twin });
        }
        (Some(Own { lease, by_node: true }), Some(contest)) => {
            // Rare and large: boxed, to keep the stack of every start small.
            let contest = Box::pin(contest.run(store, claim, lease, waits));
            let Some(lease) = contest.await? else {
                return Err(KeeperError::LostRace(lease.subnets));
            };
            let held = adopt(store, claim, &lease).await?;
            return Ok(Taken { held, listing, twin: None });
        }
        _ => {}
    }
    let subnets = choose_free(claim, &listing)?;
    let held = put_with_new_lease(store, claim, subnets, &claim.attributes, 0).await?;
    // In a network with one family, the key was free and that is enough. With two, another host may have taken one of
    // our subnets in another combination, under another key, at the same moment.
    if claim.config.networks().count() > 1 && is_late(&held, &store.leases().list().await?) {
        store.leases().delete(&subnets.key(), held.mod_revision).await?;
        if let Some(etcd_lease) = held.etcd_lease {
            store.revoke(etcd_lease).await?;
        }
        return Err(KeeperError::LostRace(subnets));
    }
    info!(%subnets, "leased");
    Ok(Taken { held, listing, twin: None })
}

/// Chooses free subnets, if possible without overlap with this host's own networks.
fn choose_free(claim: &Claim, listing: &Listing<Lease>) -> Result<Subnets, KeeperError> {
    let taken: Vec<Subnets> = listing.taken().map(|(subnets, _)| subnets).collect();
    let networks = claim.networks.borrow().clone();
    let avoid: Vec<IpNetwork> = networks.iter().map(|own| own.network).collect();
    let situation =
        Situation { taken: &taken, avoid: &avoid, overlap: claim.overlap, wish: claim.previous.as_ref() };
    allocate(&claim.config, &situation, &mut rand::rng()).map_err(|reason| {
        let by: Vec<String> = match &reason {
            NoSubnet::Exhausted { .. } => {
                return KeeperError::Exhausted { exhausted: reason, holders: holders(listing) };
            }
            NoSubnet::Overlap { by, .. } => {
                let by: HashSet<&IpNetwork> = by.iter().collect();
                let of_it = networks.iter().filter(|own| by.contains(&own.network));
                of_it.take(SHOWN + 1).map(ToString::to_string).collect()
            }
        };
        KeeperError::Overlap { overlap: reason, by: first(by) }
    })
}

/// Most of the host's networks in an error: a router may have thousands.
const SHOWN: usize = 3;

/// Joins the first of these, and says whether there are others.
fn first(mut texts: Vec<String>) -> String {
    if texts.len() > SHOWN {
        texts.truncate(SHOWN);
        return format!("{} and others", texts.join(", "));
    }
    texts.join(", ")
}

/// Returns whether a list from after our write shows an earlier overlapping lease of another host. Of two such hosts,
/// the later one sees the earlier.
fn is_late(held: &HeldLease, listing: &Listing<Lease>) -> bool {
    listing.taken().any(|(other, since)| since < held.mod_revision && other.overlaps(&held.subnets))
}

/// Updates a lease of ours to what we want, with as few writes as possible: none after a mere restart.
pub(super) async fn adopt(store: &Store, claim: &Claim, lease: &Lease) -> Result<HeldLease, KeeperError> {
    let (subnets, seen) = (lease.subnets, lease.mod_revision);
    let wanted = beside(&claim.attributes, lease.attributes.clone());
    let Some(usable) = usable_lease(store, claim, lease.etcd_lease).await? else {
        let held = put_with_new_lease(store, claim, subnets, &wanted, seen).await?;
        info!(%subnets, "took over our lease");
        return Ok(held);
    };
    let etcd_lease = usable.etcd_lease;
    let reservation = etcd_lease.is_none();
    if lease.attributes == wanted {
        info!(%subnets, reservation, "holding our lease again");
        return Ok(HeldLease { subnets, etcd_lease, mod_revision: seen });
    }
    let written = store.leases().put(&subnets.key(), &wanted.to_json(), etcd_lease, seen).await?;
    let mod_revision = written.ok_or(KeeperError::LostRace(subnets))?;
    info!(%subnets, reservation, "took over our lease");
    Ok(HeldLease { subnets, etcd_lease, mod_revision })
}

/// Returns our value with the fields that others added to our lease. Drops claims on it, and all of those fields if
/// they would make the lease unreadably large.
fn beside(ours: &LeaseAttributes, found: LeaseAttributes) -> LeaseAttributes {
    let wanted = LeaseAttributes { other: found.unclaimed().other, ..ours.clone() };
    match wanted.to_json().len() > LeaseAttributes::MOST_BYTES {
        true => ours.clone(),
        false => wanted,
    }
}

/// An etcd lease that our key can keep.
struct UsableLease {
    /// `None` for a reservation.
    etcd_lease: Option<i64>,
}

/// Returns the etcd lease, renewed, if it lasts as long as ours should; a reservation stays one.
async fn usable_lease(
    store: &Store,
    claim: &Claim,
    etcd_lease: Option<i64>,
) -> Result<Option<UsableLease>, KeeperError> {
    let Some(lease) = etcd_lease else { return Ok(Some(UsableLease { etcd_lease: None })) };
    let kept = match store.time_to_live(lease).await {
        Ok((_, granted)) if granted == claim.ttl => store.keep_alive(lease).await,
        Ok(_) => return Ok(None),
        Err(error) => Err(error),
    };
    match kept {
        Ok(()) => Ok(Some(UsableLease { etcd_lease: Some(lease) })),
        Err(StoreError::LeaseGone(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes our key with a new etcd lease, and revokes that if the write fails.
async fn put_with_new_lease(
    store: &Store,
    claim: &Claim,
    subnets: Subnets,
    attributes: &LeaseAttributes,
    seen: i64,
) -> Result<HeldLease, KeeperError> {
    let etcd_lease = store.grant(claim.ttl).await?;
    let outcome =
        match store.leases().put(&subnets.key(), &attributes.to_json(), Some(etcd_lease), seen).await {
            Ok(Some(mod_revision)) => {
                return Ok(HeldLease { subnets, etcd_lease: Some(etcd_lease), mod_revision });
            }
            Ok(None) => KeeperError::LostRace(subnets),
            Err(error) => error.into(),
        };
    if let Err(reason) = store.revoke(etcd_lease).await {
        debug!(%reason, "an unused lease stays in the store until it expires");
    }
    Err(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn of_many_networks_of_the_host_the_first_are_named() {
        let named = |count: u8| first((0..count).map(|n| format!("10.{n}.0.0/16 on eth{n}")).collect());
        let three = "10.0.0.0/16 on eth0, 10.1.0.0/16 on eth1, 10.2.0.0/16 on eth2";
        assert_eq!(named(3), three);
        assert_eq!(named(4), format!("{three} and others"));
    }

    #[test]
    fn what_others_have_added_stays_unless_it_makes_our_lease_unreadable() {
        let ours = super::super::testing::claim().attributes;
        let added = |bytes: usize| {
            let json = format!(r#"{{"PublicIP":"192.168.64.11","Rack":"{}"}}"#, "x".repeat(bytes));
            beside(&ours, LeaseAttributes::from_json(json.as_bytes()).unwrap())
        };
        assert!(added(100).other.is_some() && added(100).says_the_same(&ours));
        assert_eq!(added(LeaseAttributes::MOST_BYTES - 60), ours);
    }

    #[test]
    fn of_two_that_take_one_subnet_under_different_keys_the_later_is_late() {
        let held = |key: &str, mod_revision| HeldLease {
            subnets: Subnets::from_key(key).unwrap(),
            etcd_lease: Some(7),
            mod_revision,
        };
        let keys = [("10.5.90.0-24&fd00:5:0:1::-64", 5), ("10.5.90.0-24&fd00:5:0:2::-64", 6)];
        let entry = |(key, revision)| samples::entry(key, "{}", revision);
        let listing = Listing::of(keys.map(entry).into(), 6, 1);
        assert_eq!(keys.map(|(key, revision)| is_late(&held(key, revision), &listing)), [false, true]);
    }
}
