//! `flanctl subnets`: the leases.

mod named;
mod release;
mod reserve;

use std::collections::BTreeMap;
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

/// How many times are asked of the store at once.
const AT_ONCE: usize = 64;
/// With `--watch`, changes within this time are shown together.
const GATHER: Duration = Duration::from_millis(200);

/// Prints all leases.
pub(crate) async fn list(store: &Store, form: Form) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let list = judged(store, &listed(store, config).await?).await;
    if list.items.is_empty() && matches!(form, Form::Table | Form::Wide) {
        return output::print(&format!("no leases below {}/subnets", store.prefix()));
    }
    print(&list, form)
}

/// Prints all leases, again after each change, until it is interrupted.
pub(crate) async fn watch(store: &Store, form: Form) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(Watcher::new(store.leases()).run(sender));
    // What is shown is what the store holds: an onlooker has no packets to lose, and believes every list.
    let believe_all = Caution { percent: 100, grace: Duration::ZERO };
    let mut leases = LeaseSet::new(Admission { config, own: None }, believe_all);
    while let Some(event) = events.recv().await {
        let mut changed = take(&mut leases, event);
        let gathered = Instant::now() + GATHER;
        while let Ok(Some(event)) = tokio::time::timeout_at(gathered, events.recv()).await {
            changed |= take(&mut leases, event);
        }
        if changed {
            print(&judged(store, &leases).await, form)?;
            output::print("")?;
        }
    }
    Ok(())
}

/// Takes in an event. Answers whether it says anything of the leases.
fn take(leases: &mut LeaseSet, event: WatchEvent<Lease>) -> bool {
    if let WatchEvent::Interrupted { reason } = event {
        eprintln!("flanctl: lost sight of the leases, trying again: {}", printable(&reason));
        return false;
    }
    leases.apply(event, Instant::now());
    leases.take_changes(); // all is shown again, so they need not be kept
    true
}

/// Prints one lease.
pub(crate) async fn show(store: &Store, subnet: &str, form: Form) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let mut list = judged(store, &listed(store, config).await?).await;
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

/// All leases as an onlooker judges them.
async fn listed(store: &Store, config: NetworkConfig) -> Result<LeaseSet, Failure> {
    let mut leases = LeaseSet::new(Admission { config, own: None }, Caution::default());
    leases.apply(WatchEvent::Listed(store.leases().list().await?), Instant::now());
    Ok(leases)
}

/// All leases with their standing and their times. A time that the store does not tell is left out, and so is what is
/// remembered of reservations.
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

/// What is remembered of reservations, of which nothing is known to those whose credentials may not read it.
fn remembered<T: Default>(answer: Result<T, StoreError>) -> Result<T, StoreError> {
    match answer {
        Err(StoreError::Unauthorised { .. }) => Ok(T::default()),
        answer => answer,
    }
}

/// Whether a host holds the lease: a reservation that waits for its host says nothing but the address.
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
