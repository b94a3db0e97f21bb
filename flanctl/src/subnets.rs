//! `flanctl subnets`: the leases.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::net::IpAddr;
use std::time::Duration;

use flan_subnet_lease::{
    Admission, Entry, Family, Lease, LeaseAttributes, LeaseSet, LeaseWatch, NetworkConfig, NodeIdentity,
    PerFamily, Store, Subnets, WatchEvent,
};
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::args::Form;
use crate::config;
use crate::failure::{Failure, Kind};
use crate::output::SubnetList;
use crate::table;

/// How many times are asked of the store at once.
const AT_ONCE: usize = 64;
/// With `--watch`, changes within this time are shown together.
const GATHER: Duration = Duration::from_millis(200);

/// Prints all leases.
pub(crate) async fn list(store: &Store, form: Form) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let mut leases = LeaseSet::default();
    leases.replace(&store.list().await?);
    let list = judged(store, config, &leases).await;
    if list.items.is_empty() && matches!(form, Form::Table | Form::Wide) {
        println!("no leases below {}/subnets", store.prefix());
        return Ok(());
    }
    print(&list, form)
}

/// Prints all leases, again after each change, until it is interrupted.
pub(crate) async fn watch(store: &Store, form: Form) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(LeaseWatch::new(store.clone()).run(sender));
    let mut leases = LeaseSet::default();
    while let Some(event) = events.recv().await {
        take(&mut leases, &event);
        while let Ok(Some(event)) = tokio::time::timeout(GATHER, events.recv()).await {
            take(&mut leases, &event);
        }
        if leases.is_complete() {
            print(&judged(store, config.clone(), &leases).await, form)?;
            println!();
        }
    }
    Ok(())
}

fn take(leases: &mut LeaseSet, event: &WatchEvent) {
    if let WatchEvent::Interrupted { reason } = event {
        eprintln!("flanctl: lost sight of the leases, trying again: {reason}");
    }
    leases.apply(event);
}

/// Prints one lease.
pub(crate) async fn show(store: &Store, subnets: &Subnets, form: Form) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let mut leases = LeaseSet::default();
    leases.replace(&store.list().await?);
    let mut list = judged(store, config, &leases).await;
    list.items.retain(|item| item.key == subnets.key());
    if list.items.is_empty() {
        return Err(no_lease(store, subnets));
    }
    match form {
        Form::Table | Form::Wide => print(&list, form),
        Form::Json | Form::Yaml => print_document(&list.items[0], form),
    }
}

/// Keeps a subnet for one host for ever.
pub(crate) async fn reserve(store: &Store, subnets: &Subnets, public_ip: &[IpAddr]) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let public_ips: PerFamily<IpAddr> = public_ip.iter().copied().collect();
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
            println!("reserved {subnets} for {whom}");
            Ok(())
        }
        None => Err(changed_meanwhile(subnets)),
    }
}

/// Deletes a lease.
pub(crate) async fn release(store: &Store, subnets: &Subnets, yes: bool) -> Result<(), Failure> {
    let entry = store.get(&subnets.key()).await?.ok_or_else(|| no_lease(store, subnets))?;
    let holder =
        LeaseAttributes::from_json(&entry.value).map(|attributes| describe(&attributes)).unwrap_or_default();
    if !yes && !confirmed(&format!("Release {subnets}{holder}? Its containers lose the other hosts. [y/N] "))?
    {
        return Err(Failure::new(Kind::Refused, "nothing was released"));
    }
    if !store.delete(&subnets.key(), entry.mod_revision).await? {
        return Err(changed_meanwhile(subnets));
    }
    println!("released {subnets}");
    Ok(())
}

/// All leases with their standing and their times. A time that the store does not tell is left out.
async fn judged(store: &Store, config: NetworkConfig, leases: &LeaseSet) -> SubnetList {
    let mut list = SubnetList::new(&leases.judge(&Admission { config, own: None }));
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
        if wanted && public_ips.get(family).is_none() {
            return usage(format!("the network uses {family}: --public-ip needs an {family} address"));
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
            let message = format!("{subnets} is taken{}; release it first", describe(&attributes));
            Err(Failure::new(Kind::Refused, message))
        }
        Err(reason) => {
            let message = format!("{subnets} is taken by a lease with an {reason}; release it first");
            Err(Failure::new(Kind::Refused, message))
        }
    }
}

fn describe(attributes: &LeaseAttributes) -> String {
    let ips = attributes.public_ips.values().map(ToString::to_string).collect::<Vec<_>>().join(",");
    match &attributes.node.host {
        Some(host) => format!(" by {ips} ({host})"),
        None => format!(" by {ips}"),
    }
}

fn confirmed(question: &str) -> Result<bool, Failure> {
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
        Form::Table | Form::Wide => println!("{}", table::render(list, form == Form::Wide)),
        Form::Json | Form::Yaml => return print_document(list, form),
    }
    Ok(())
}

fn print_document(document: &impl serde::Serialize, form: Form) -> Result<(), Failure> {
    let text = match form {
        Form::Yaml => serde_yaml_ng::to_string(document).map_err(|error| Failure::new(Kind::Other, error))?,
        _ => serde_json::to_string_pretty(document).map_err(|error| Failure::new(Kind::Other, error))?,
    };
    println!("{}", text.trim_end());
    Ok(())
}

fn no_lease(store: &Store, subnets: &Subnets) -> Failure {
    Failure::new(
        Kind::NotFound,
        format!("there is no lease {} below {}/subnets", subnets.key(), store.prefix()),
    )
}

fn changed_meanwhile(subnets: &Subnets) -> Failure {
    Failure::new(
        Kind::Refused,
        format!("somebody else wrote {subnets} at the same moment; nothing was done, look and try again"),
    )
}
