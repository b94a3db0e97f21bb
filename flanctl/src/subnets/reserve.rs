//! `flanctl subnets reserve`: reserves a subnet for one host.

use std::net::IpAddr;

use flan_subnet_lease::{
    Entry, Family, Lease, Listing, NetworkConfig, NodeIdentity, PerFamily, Reservation, Store, StoreError,
    Subnets, is_host_address,
};

use super::{changed_meanwhile, named};
use crate::config;
use crate::failure::{Failure, Kind};
use crate::output;

/// Reserves a subnet permanently. With `now`, a host that holds another subnet is moved.
pub(crate) async fn reserve(
    store: &Store,
    subnets: &Subnets,
    whom: &[String],
    now: bool,
) -> Result<(), Failure> {
    let config = config::parsed(store).await?;
    let listing = store.leases().list().await?;
    let public_ips = named::addresses(&listing, whom)?;
    check(&config, subnets, &public_ips)?;
    let reservation = Reservation { subnets: *subnets, public_ips };
    let standing = store.leases().get(&subnets.key()).await?;
    let (value, seen) = match &standing {
        Some(entry) => (same_host(entry, subnets, &public_ips)?, entry.mod_revision),
        None => {
            refuse_overlap(&listing, subnets)?;
            (reservation.to_json(), 0)
        }
    };
    let others = held_beside(&listing, subnets, &public_ips);
    if let Some(other) = others.iter().find(|lease| lease.is_reservation() && !now) {
        let message = format!(
            "{} is reserved for {} already; release it first, or give --now to replace it",
            other.subnets,
            named::joined(&public_ips)
        );
        return Err(Failure::new(Kind::Refused, message));
    }
    let was_lost = standing.is_some_and(|entry| entry.etcd_lease.is_some())
        && super::remembered(store.reservation(subnets).await)?.is_some();
    let replaced: &[&Lease] = if now { &others } else { &[] };
    match write(store, &reservation, &value, seen, replaced).await? {
        Some(_) => output::print(&outcome(&reservation, was_lost, &others, now)),
        None => Err(changed_meanwhile(&subnets.key())),
    }
}

/// Writes the reservation and, if the credentials permit, its record.
async fn write(
    store: &Store,
    reservation: &Reservation,
    value: &[u8],
    seen: i64,
    replaced: &[&Lease],
) -> Result<Option<i64>, StoreError> {
    match store.reserve(reservation, value, seen, replaced).await {
        Err(StoreError::Unauthorised { .. }) if replaced.is_empty() => {
            let written = store.leases().put(&reservation.subnets.key(), value, None, seen).await?;
            eprintln!(
                "flanctl: warning: these credentials may not write {prefix}/reservations/, so nobody will notice when a \
                 flanneld makes an ordinary lease of it; grant it with: etcdctl role grant-permission ROLE --prefix=true \
                 readwrite {prefix}/reservations/",
                prefix = store.prefix()
            );
            Ok(written)
        }
        written => written,
    }
}

/// Describes what was done, and the consequences.
fn outcome(reservation: &Reservation, was_lost: bool, others: &[&Lease], now: bool) -> String {
    let Reservation { subnets, public_ips } = reservation;
    let whom = named::joined(public_ips);
    let mut text = match was_lost {
        true => format!("{subnets} had become an ordinary lease, and is reserved for {whom} again"),
        false => format!("reserved {subnets} for {whom}"),
    };
    let held = others.iter().map(|lease| lease.subnets.to_string()).collect::<Vec<_>>().join(" and ");
    if !held.is_empty() && now {
        text += &format!(
            "\n{whom} moves there from {held} now: restart Docker on it, or its containers stay cut off"
        );
    } else if !held.is_empty() {
        text += &format!(
            "\n{whom} holds {held} and keeps it until fland starts there again; then it moves to {subnets}, and Docker must \
             be restarted on it. To move it at once, give --now"
        );
    }
    text
}

/// Returns the host's other leases, if it does not hold the subnet itself.
fn held_beside<'a>(
    listing: &'a Listing<Lease>,
    subnets: &Subnets,
    public_ips: &PerFamily<IpAddr>,
) -> Vec<&'a Lease> {
    let is_of_host = |lease: &&Lease| lease.attributes.is_held_by(public_ips, &NodeIdentity::default());
    let (here, beside): (Vec<&Lease>, Vec<&Lease>) =
        listing.readable().filter(is_of_host).partition(|lease| lease.subnets == *subnets);
    if here.into_iter().any(super::is_claimed) { Vec::new() } else { beside }
}

fn refuse_overlap(listing: &Listing<Lease>, subnets: &Subnets) -> Result<(), Failure> {
    match listing.taken().find(|(taken, _)| taken.overlaps(subnets)) {
        Some((taken, _)) => {
            let message = format!("{subnets} overlaps the lease {}", taken.key());
            Err(Failure::new(Kind::Refused, message))
        }
        None => Ok(()),
    }
}

fn check(config: &NetworkConfig, subnets: &Subnets, public_ips: &PerFamily<IpAddr>) -> Result<(), Failure> {
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

/// Returns the lease's value, to keep it in the reservation. Refuses another host's lease.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, json: &str, etcd_lease: Option<i64>) -> Entry {
        let (key, value) = (key.to_owned(), json.as_bytes().to_vec());
        Entry { key, value, create_revision: 1, mod_revision: 1, etcd_lease }
    }

    const HELD: &str = r#"{"PublicIP":"192.168.64.11","PublicIPv6":null,"BackendType":"vxlan","NodeID":"a"}"#;
    const WAITS: &str = r#"{"PublicIP":"192.168.64.11","PublicIPv6":null}"#;

    fn beside(entries: Vec<Entry>) -> Vec<String> {
        let listing = Listing::of(entries, 9, 1);
        let ips = PerFamily { v4: Some("192.168.64.11".parse().unwrap()), v6: None };
        let subnets = "10.5.77.0/24".parse().unwrap();
        held_beside(&listing, &subnets, &ips).iter().map(|lease| lease.subnets.to_string()).collect()
    }

    #[test]
    fn a_host_that_holds_another_subnet_is_told_what_becomes_of_it() {
        let held = entry("10.5.3.0-24", HELD, Some(7));
        let stranger = entry("10.5.4.0-24", r#"{"PublicIP":"192.168.64.12"}"#, Some(7));
        assert_eq!(beside(vec![held.clone(), stranger]), ["10.5.3.0/24"]);
        // Also once it is reserved, until the host takes it.
        assert_eq!(beside(vec![held.clone(), entry("10.5.77.0-24", WAITS, None)]), ["10.5.3.0/24"]);
        // Its previous lease is left over.
        assert_eq!(beside(vec![held.clone(), entry("10.5.77.0-24", HELD, None)]), Vec::<String>::new());

        let reservation = Reservation {
            subnets: "10.5.77.0/24".parse().unwrap(),
            public_ips: PerFamily { v4: Some("192.168.64.11".parse().unwrap()), v6: None },
        };
        assert_eq!(outcome(&reservation, false, &[], true), "reserved 10.5.77.0/24 for 192.168.64.11");
        assert_eq!(
            outcome(&reservation, true, &[], false),
            "10.5.77.0/24 had become an ordinary lease, and is reserved for 192.168.64.11 again"
        );
        let held = Lease::from_entry(&held).unwrap();
        let text = outcome(&reservation, false, &[&held], false);
        assert!(text.contains("holds 10.5.3.0/24 and keeps it until fland starts there again"), "{text}");
        let text = outcome(&reservation, false, &[&held], true);
        assert!(text.contains("moves there from 10.5.3.0/24 now: restart Docker"), "{text}");
    }
}
