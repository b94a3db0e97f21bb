//! `flanctl subnets`: lists, reserves and releases leases.

mod alive;
mod named;
mod release;
mod reserve;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use flan_subnet_lease::{
    Admission, Caution, Lease, LeaseSet, NetworkConfig, Store, StoreError, WatchEvent, Watcher, printable,
};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::args::Form;
use crate::config;
use crate::failure::{Failure, Kind};
use crate::output::{self, SubnetList};
use crate::table;

pub(crate) use release::{delete, release};
pub(crate) use reserve::reserve;

/// Number of concurrent requests for remaining times.
const AT_ONCE: usize = 64;
/// With `--watch`, changes within this time are shown together.
const GATHER: Duration = Duration::from_millis(200);

/// Prints all leases.
pub(crate) async fn list(store: &Store, socket: &Path, form: Form) -> Result<(), Failure> {
    let mut list = document(store).await?;
    alive::add(&mut list, socket).await;
    if list.items.is_empty() && matches!(form, Form::Table | Form::Wide) {
        return output::print(&format!("no leases below {}/subnets", store.prefix()));
    }
    print(&list, form)
}

/// Returns all leases, with verdicts, without times.
pub(crate) async fn without_times(store: &Store) -> Result<SubnetList, Failure> {
    let config = config::parsed(store).await?;
    Ok(SubnetList::new(&listed(store, config).await?, &[]))
}

/// Returns all leases, with verdicts and times.
pub(crate) async fn document(store: &Store) -> Result<SubnetList, Failure> {
    let config = config::parsed(store).await?;
    Ok(judged(store, &listed(store, config).await?).await)
}

/// Prints all leases, and again after each change, until interrupted.
pub(crate) async fn watch(store: &Store, socket: &Path, form: Form) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(Watcher::new(store.leases()).run(sender));
    // A command that only displays loses no packets, so it trusts every list.
    let believe_all = Caution { percent: 100, grace: Duration::ZERO };
    let mut leases = LeaseSet::new(Admission { config, own: None }, believe_all);
    while let Some(event) = events.recv().await {
        let mut changed = take(&mut leases, event);
        let gathered = Instant::now() + GATHER;
        while let Ok(Some(event)) = tokio::time::timeout_at(gathered, events.recv()).await {
            changed |= take(&mut leases, event);
        }
        if changed {
            let mut list = judged(store, &leases).await;
            alive::add(&mut list, socket).await;
            print(&list, form)?;
            output::print("")?;
        }
    }
    Ok(())
}

/// Handles an event. Returns whether it concerns the leases.
fn take(leases: &mut LeaseSet, event: WatchEvent<Lease>) -> bool {
    if let WatchEvent::Interrupted { reason } = event {
        eprintln!("flanctl: lost sight of the leases, trying again: {}", printable(&reason));
        return false;
    }
    leases.apply(event, Instant::now());
    leases.take_changes(); // discarded, because everything is printed again
    true
}

/// Prints one lease.
pub(crate) async fn show(store: &Store, subnet: &str, form: Form) -> Result<(), Failure> {
    let mut list = document(store).await?;
    let known = list.items.iter().map(|item| (item.key.as_str(), item.host.as_deref()));
    let key = named::key(store, subnet, known)?;
    list.items.retain(|item| item.key == key);
    if list.items.is_empty() {
        return Err(named::no_lease(store, &key));
    }
    match form {
        Form::Table | Form::Wide => print(&list, form),
        Form::Json => output::print_json(&list.items[0]),
        Form::Yaml => output::print_yaml(&list.items[0]),
    }
}

/// Returns all leases, judged as by a host without a lease.
async fn listed(store: &Store, config: NetworkConfig) -> Result<LeaseSet, Failure> {
    let mut leases = LeaseSet::new(Admission { config, own: None }, Caution::default());
    leases.apply(WatchEvent::Listed(store.leases().list().await?), Instant::now());
    Ok(leases)
}

/// Returns all leases with verdicts and times. Leaves out times that the store does not tell, and the records of
/// reservations if these may not be read.
async fn judged(store: &Store, leases: &LeaseSet) -> SubnetList {
    let mut list = SubnetList::new(leases, &store.reservations().await.unwrap_or_default());
    let ask = |lease| async move { (lease, store.time_to_live(lease).await.ok().map(|(left, _)| left)) };
    let left: BTreeMap<i64, Option<Duration>> =
        futures::stream::iter(list.etcd_leases()).map(ask).buffer_unordered(AT_ONCE).collect().await;
    list.set_expiry(|lease| left.get(&lease).copied().flatten());
    list
}

fn print(list: &SubnetList, form: Form) -> Result<(), Failure> {
    match form {
        Form::Table | Form::Wide => output::print(&table::render(list, form == Form::Wide)),
        Form::Json => output::print_json(list),
        Form::Yaml => output::print_yaml(list),
    }
}

/// Returns an empty value if the credentials may not read the records of reservations.
fn remembered<T: Default>(answer: Result<T, StoreError>) -> Result<T, StoreError> {
    match answer {
        Err(StoreError::Unauthorised { .. }) => Ok(T::default()),
        answer => answer,
    }
}

/// Returns whether a host holds the lease. An unclaimed reservation contains only the address.
fn is_claimed(lease: &Lease) -> bool {
    let said = &lease.attributes;
    !lease.is_reservation() || said.backend.is_some() || said.node.id.is_some()
}

fn changed_meanwhile(key: &str) -> Failure {
    Failure::new(
        Kind::Refused,
        format!("somebody else wrote {key} at the same moment; nothing was done, look and try again"),
    )
}
