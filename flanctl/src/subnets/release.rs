//! `flanctl subnets release`: deletes a lease, and succeeds only if it stays deleted.

use std::time::Duration;

use flan_subnet_lease::{Lease, LeaseAttributes, Store, StoreError, Subnets, shown};
use tokio::time::Instant;

use super::{changed_meanwhile, named};
use crate::confirm::confirmed;
use crate::failure::{Failure, Kind};
use crate::output;

/// A running agent takes its lease back within milliseconds, or within a second with tens of thousands of leases.
const COMES_BACK: Duration = Duration::from_secs(2);
/// Interval between checks for that.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) async fn release(store: &Store, text: &str, yes: bool) -> Result<(), Failure> {
    let key = key_of(store, text).await?;
    if key.contains(char::REPLACEMENT_CHARACTER) {
        return Err(Failure::new(Kind::Refused, not_whole(store, &key)));
    }
    let Some(entry) = store.leases().get(&key).await? else { return forget(store, &key).await };
    let question = match LeaseAttributes::from_json(&entry.value) {
        Ok(attributes) => format!(", held by {}? Its containers lose the other hosts.", attributes.holder()),
        Err(reason) => format!(", with an {reason}?"),
    };
    if !yes && !confirmed(&format!("Release {}{question} [y/N] ", shown(&key)))? {
        return Err(Failure::new(Kind::Refused, "nothing was released"));
    }
    if !delete(store, &entry.key, entry.mod_revision).await? {
        return Err(changed_meanwhile(&key));
    }
    let shown =
        key.parse::<Subnets>().map_or_else(|_| shown(&key).into_owned(), |subnets| subnets.to_string());
    if let Ok(before) = Lease::from_entry(&entry)
        && super::is_claimed(&before)
        && let Some(after) = back(store, &key).await?
    {
        return match after.attributes.is_held_by(&before.attributes.public_ips, &before.attributes.node) {
            true => Err(Failure::new(Kind::Refused, taken_back(&shown, &before, &after))),
            false => output::print(&format!("released {shown}; {} leased it", after.attributes.holder())),
        };
    }
    output::print(&format!("released {shown}"))
}

async fn key_of(store: &Store, text: &str) -> Result<String, Failure> {
    if let Ok(subnets) = text.parse::<Subnets>() {
        return Ok(subnets.key());
    }
    let listing = store.leases().list().await?;
    let known = listing.items.iter().map(|read| match read {
        Ok(lease) => (lease.subnets.key(), lease.attributes.node.host.as_deref()),
        Err(bad) => (bad.entry.key.clone(), None),
    });
    let known: Vec<(String, Option<&str>)> = known.collect();
    named::key(store, text, known.iter().map(|(key, host)| (key.as_str(), *host)))
}

/// Deletes the record of a reservation that has no lease.
async fn forget(store: &Store, key: &str) -> Result<(), Failure> {
    let Ok(subnets) = key.parse::<Subnets>() else { return Err(named::no_lease(store, key)) };
    if super::remembered(store.reservation(&subnets).await)?.is_none() || !store.release(&subnets, 0).await? {
        return Err(named::no_lease(store, key));
    }
    output::print(&format!("{subnets} had no lease any more; its reservation is forgotten"))
}

/// Deletes a lease if its last write was at `seen`, and the record of its reservation if the credentials permit.
/// Returns whether it was unchanged.
pub(crate) async fn delete(store: &Store, key: &str, seen: i64) -> Result<bool, StoreError> {
    if let Ok(subnets) = Subnets::from_key(key) {
        match store.release(&subnets, seen).await {
            Err(StoreError::Unauthorised { .. }) => {}
            done => return done,
        }
    }
    store.leases().delete(key, seen).await
}

/// Returns the lease under the same key, if one appears.
async fn back(store: &Store, key: &str) -> Result<Option<Lease>, StoreError> {
    let until = Instant::now() + COMES_BACK;
    loop {
        if let Some(entry) = store.leases().get(key).await? {
            return Ok(Lease::from_entry(&entry).ok());
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn not_whole(store: &Store, key: &str) -> String {
    format!(
        "the key {} is not text, or too long, so flanctl does not know it whole; delete what stands between two keys with: \
         etcdctl del {prefix}/subnets/FIRST {prefix}/subnets/BEHIND_THE_LAST",
        shown(key),
        prefix = store.prefix()
    )
}

fn taken_back(shown: &str, before: &Lease, after: &Lease) -> String {
    let holder = after.attributes.holder();
    let what = match before.is_reservation() {
        true => format!(
            "{shown} is no longer reserved, but the agent of {holder} is alive and holds it as an ordinary lease now"
        ),
        false => format!("{shown} is not free: the agent of {holder} is alive and took it back at once"),
    };
    format!("{what}; to free it, stop fland there first (systemctl stop fland), then release it again")
}
