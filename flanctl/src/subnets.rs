//! `flanctl subnets`: the leases.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::net::IpAddr;
use std::time::Duration;

use flan_subnet_lease::{
    Admission, Caution, Entry, Family, Lease, LeaseAttributes, LeaseSet, LeaseWatch, NetworkConfig,
    NodeIdentity, PerFamily, Store, Subnets, WatchEvent, is_host_address,
};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::args::Form;
use crate::config;
use crate::failure::{Failure, Kind};
use crate::output::{self, SubnetList};
use crate::table;

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
    tokio::spawn(LeaseWatch::new(store.clone()).run(sender));
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
fn take(leases: &mut LeaseSet, event: WatchEvent) -> bool {
    if let WatchEvent::Interrupted { reason } = event {
        eprintln!("flanctl: lost sight of the leases, trying again: {reason}");
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
    let key = key_of(subnet);
    list.items.retain(|item| item.key == key);
    if list.items.is_empty() {
        return Err(no_lease(store, &key));
    }
    match form {
        Form::Table | Form::Wide => print(&list, form),
        Form::Json => output::print_json(&list.items[0]),
        Form::Yaml => output::print_yaml(&list.items[0]),
    }
}

/// Keeps a subnet for one host for ever.
pub(crate) async fn reserve(store: &Store, subnets: &Subnets, public_ip: &[IpAddr]) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let public_ips: PerFamily<IpAddr> = public_ip.iter().copied().collect();
    if public_ips.values().count() != public_ip.len() {
        return Err(Failure::new(Kind::Usage, "--public-ip takes one address of each family"));
    }
    check_reservation(&config, subnets, &public_ips)?;
    let listing = store.list().await?;
    let standing = listing.entries.iter().find(|entry| entry.key == subnets.key());
    let (value, seen) = match standing {
        Some(entry) => (same_host(entry, subnets, &public_ips)?, entry.mod_revision),
        None => {
            let overlapping = listing
                .entries
                .iter()
                .find(|entry| Subnets::from_key(&entry.key).is_ok_and(|taken| taken.overlaps(subnets)));
            if let Some(taken) = overlapping {
                let message = format!("{subnets} overlaps the lease {}", taken.key);
                return Err(Failure::new(Kind::Refused, message));
            }
            (LeaseAttributes { public_ips, ..LeaseAttributes::default() }.to_json(), 0)
        }
    };
    match store.put(&subnets.key(), &value, None, seen).await? {
        Some(_) => {
            let whom = public_ips.values().map(ToString::to_string).collect::<Vec<_>>().join(",");
            output::print(&format!("reserved {subnets} for {whom}"))
        }
        None => Err(changed_meanwhile(&subnets.key())),
    }
}

/// Deletes a lease.
pub(crate) async fn release(store: &Store, subnet: &str, yes: bool) -> Result<(), Failure> {
    let key = key_of(subnet);
    let entry = store.get(&key).await?.ok_or_else(|| no_lease(store, &key))?;
    let holder = match LeaseAttributes::from_json(&entry.value) {
        Ok(attributes) => format!(", held by {}? Its containers lose the other hosts.", attributes.holder()),
        Err(reason) => format!(", with an {reason}?"),
    };
    if !yes && !confirmed(&format!("Release {key}{holder} [y/N] "))? {
        return Err(Failure::new(Kind::Refused, "nothing was released"));
    }
    if !store.delete(&key, entry.mod_revision).await? {
        return Err(changed_meanwhile(&key));
    }
    output::print(&format!("released {}", output::printable(subnet)))
}

/// The key that a person means: that of a subnet, or any other as it stands.
fn key_of(subnet: &str) -> String {
    subnet.parse::<Subnets>().map_or_else(|_| subnet.to_owned(), |subnets| subnets.key())
}

/// All leases as an onlooker judges them.
async fn listed(store: &Store, config: NetworkConfig) -> Result<LeaseSet, Failure> {
    let mut leases = LeaseSet::new(Admission { config, own: None }, Caution::default());
    leases.apply(WatchEvent::Listed(store.list().await?), Instant::now());
    Ok(leases)
}

/// All leases with their standing and their times. A time that the store does not tell is left out.
async fn judged(store: &Store, leases: &LeaseSet) -> SubnetList {
    let mut list = SubnetList::new(leases);
    let ask = |lease| async move { (lease, store.time_to_live(lease).await.ok().map(|(left, _)| left)) };
    let left: BTreeMap<i64, Option<Duration>> =
        futures::stream::iter(list.etcd_leases()).map(ask).buffer_unordered(AT_ONCE).collect().await;
    list.set_expiry(|lease| left.get(&lease).copied().flatten());
    list
}

fn check_reservation(
    config: &NetworkConfig,
    subnets: &Subnets,
    public_ips: &PerFamily<IpAddr>,
) -> Result<(), Failure> {
    let usage = |message: String| Err(Failure::new(Kind::Usage, message));
    for (family, subnet) in subnets.iter() {
        let Some(pool) = config.pools.get(family) else { continue };
        if !pool.admits(&subnet) {
            return usage(format!(
                "{subnet} is none of the /{} subnets from {} to {} in {}",
                pool.subnet_len(),
                pool.min(),
                pool.max(),
                pool.network()
            ));
        }
    }
    for family in Family::ALL {
        let wanted = config.pools.get(family).is_some();
        if wanted != subnets.get(family).is_some() {
            let verb = if wanted { "uses" } else { "does not use" };
            return usage(format!(
                "the network {verb} {family}: {subnets} does not fit; give it as 10.5.52.0/24,fd00:5:0:34::/64"
            ));
        }
        match public_ips.get(family) {
            None if wanted => {
                return usage(format!("the network uses {family}: --public-ip needs an {family} address"));
            }
            Some(ip) if config.networks().any(|(_, network)| network.contains(*ip)) => {
                return usage(format!(
                    "--public-ip {ip} lies inside the overlay network; give the host's own address"
                ));
            }
            Some(ip) if !is_host_address(*ip) => {
                return usage(format!(
                    "--public-ip {ip} is not the address of one host, such as 192.168.64.12"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The value of a lease that is to become a reservation: as it is, if it is the same host's.
fn same_host(entry: &Entry, subnets: &Subnets, public_ips: &PerFamily<IpAddr>) -> Result<Vec<u8>, Failure> {
    let holder = Lease::from_entry(entry).map(|lease| lease.attributes);
    match holder {
        Ok(attributes) if attributes.is_held_by(public_ips, &NodeIdentity::default()) => {
            Ok(entry.value.clone())
        }
        Ok(attributes) => {
            let message = format!("{subnets} is taken by {}; release it first", attributes.holder());
            Err(Failure::new(Kind::Refused, message))
        }
        Err(reason) => {
            let message = format!("{subnets} is taken by a lease with an {reason}; release it first");
            Err(Failure::new(Kind::Refused, message))
        }
    }
}

pub(crate) fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Kind::Usage, "there is nobody to ask; give --yes"));
    }
    eprint!("{question}");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::new(Kind::Other, error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print(list: &SubnetList, form: Form) -> Result<(), Failure> {
    match form {
        Form::Table | Form::Wide => output::print(&table::render(list, form == Form::Wide)),
        Form::Json => output::print_json(list),
        Form::Yaml => output::print_yaml(list),
    }
}

fn no_lease(store: &Store, key: &str) -> Failure {
    Failure::new(Kind::NotFound, format!("there is no lease {key} below {}/subnets", store.prefix()))
}

fn changed_meanwhile(key: &str) -> Failure {
    Failure::new(
        Kind::Refused,
        format!("somebody else wrote {key} at the same moment; nothing was done, look and try again"),
    )
}
