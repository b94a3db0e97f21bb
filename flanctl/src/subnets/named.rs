//! Resolves what the user typed: a lease by subnet, key or host, a host by addresses or name.

use std::net::IpAddr;

use flan_subnet_lease::{Lease, Listing, PerFamily, Store, Subnets, printable, shown};

use crate::failure::{Failure, Kind};
use crate::output;

/// Returns the key of a lease by its subnet, its exact key, or the name of its holder.
pub(super) fn key<'a>(
    store: &Store,
    text: &str,
    known: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> Result<String, Failure> {
    if let Ok(subnets) = text.parse::<Subnets>() {
        return Ok(subnets.key());
    }
    let mut held = Vec::new();
    for (key, host) in known {
        if is_called(key, text) {
            return Ok(key.to_owned());
        }
        if host.is_some_and(|host| is_called(host, text)) {
            held.push(key);
        }
    }
    match held[..] {
        [key] => Ok(key.to_owned()),
        [] => Err(no_lease(store, text)),
        _ => {
            let message = format!(
                "{} holds several leases: {}; name one of them",
                printable(text),
                output::some(&held)
            );
            Err(Failure::new(Kind::Refused, message))
        }
    }
}

/// Returns the addresses of a host, given as addresses or as the name in its lease.
pub(super) fn addresses(listing: &Listing<Lease>, whom: &[String]) -> Result<PerFamily<IpAddr>, Failure> {
    let given: Result<Vec<IpAddr>, _> = whom.iter().map(|text| text.parse()).collect();
    if let Ok(given) = given {
        let one_of_each: PerFamily<IpAddr> = given.iter().copied().collect();
        return match one_of_each.values().count() == given.len() {
            true => Ok(one_of_each),
            false => Err(Failure::new(Kind::Usage, "--public-ip takes one address of each family")),
        };
    }
    let [name] = whom else {
        return Err(Failure::new(Kind::Usage, "--public-ip takes addresses, or the name of one host"));
    };
    let mut found: Vec<PerFamily<IpAddr>> = Vec::new();
    for lease in listing.readable() {
        let is_meant = lease.attributes.node.host.as_deref().is_some_and(|host| is_called(host, name));
        if is_meant && !found.contains(&lease.attributes.public_ips) {
            found.push(lease.attributes.public_ips);
        }
    }
    match found[..] {
        [one] => Ok(one),
        [] => Err(Failure::new(
            Kind::NotFound,
            format!(
                "{} is no address, and no lease is held by a host of that name; flanctl subnets ls shows who there is",
                printable(name)
            ),
        )),
        _ => {
            let hosts: Vec<String> = found.iter().map(joined).collect();
            let name = printable(name);
            let message = format!("several hosts are called {name}: {}; give an address", hosts.join("; "));
            Err(Failure::new(Kind::Refused, message))
        }
    }
}

/// Formats addresses for people.
pub(super) fn joined(ips: &PerFamily<IpAddr>) -> String {
    ips.values().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

pub(super) fn no_lease(store: &Store, key: &str) -> Failure {
    let message = format!("there is no lease {} below {}/subnets", printable(key), store.prefix());
    Failure::new(Kind::NotFound, message)
}

/// Returns whether this is the host or key, typed as stored or as displayed.
fn is_called(host: &str, name: &str) -> bool {
    host == name || shown(host) == name
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{Credentials, Entry, StoreConfig};

    use super::*;

    fn listing(leases: &[(&str, &str, &str)]) -> Listing<Lease> {
        let entry = |(key, ip, host): &(&str, &str, &str)| Entry {
            key: (*key).to_owned(),
            value: format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"HostName":"{host}"}}"#).into_bytes(),
            create_revision: 1,
            mod_revision: 1,
            etcd_lease: Some(7),
        };
        Listing::of(leases.iter().map(entry).collect(), 9, 1)
    }

    fn key_of(text: &str, known: &[(&str, &str)]) -> Result<String, String> {
        let store = Store::new(StoreConfig {
            endpoints: vec!["http://127.0.0.1:9".parse().unwrap()],
            prefix: "/coreos.com/network".to_owned(),
            credentials: Credentials::default(),
        })
        .unwrap();
        let known = known.iter().map(|(key, host)| (*key, Some(*host)));
        key(&store, text, known).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_lease_is_meant_by_its_subnet_its_key_or_its_host() {
        let known = [("10.5.3.0-24", "h1"), ("10.5.4.0-24", "h2"), ("10.5.5.0-24", "h2"), ("garbage", "h4")];
        for (text, meant) in [
            ("10.5.3.0/24", "10.5.3.0-24"),
            ("10.5.9.0-24", "10.5.9.0-24"),
            ("garbage", "garbage"),
            ("h1", "10.5.3.0-24"),
        ] {
            assert_eq!(key_of(text, &known).as_deref(), Ok(meant), "{text}");
        }
        assert_eq!(
            key_of("h2", &known).unwrap_err(),
            "h2 holds several leases: 10.5.4.0-24, 10.5.5.0-24; name one of them"
        );
        assert_eq!(
            key_of("h3", &known).unwrap_err(),
            "there is no lease h3 below /coreos.com/network/subnets"
        );
    }

    #[test]
    fn a_host_is_meant_by_its_addresses_or_its_name() {
        let listing = listing(&[
            ("10.5.3.0-24", "192.168.64.11", "h1"),
            ("10.5.8.0-24", "192.168.64.11", "h1"),
            ("10.5.4.0-24", "192.168.64.12", "h2"),
            ("10.5.5.0-24", "192.168.64.13", "h2"),
        ]);
        let meant = |whom: &[&str]| {
            let whom: Vec<String> = whom.iter().map(|text| (*text).to_owned()).collect();
            addresses(&listing, &whom).map(|ips| joined(&ips)).map_err(|failure| failure.to_string())
        };
        assert_eq!(meant(&["192.168.64.99", "fd64::99"]).unwrap(), "192.168.64.99,fd64::99");
        assert_eq!(meant(&["h1"]).unwrap(), "192.168.64.11");
        assert_eq!(
            meant(&["h2"]).unwrap_err(),
            "several hosts are called h2: 192.168.64.12; 192.168.64.13; give an address"
        );
        assert!(meant(&["192.168.64"]).unwrap_err().starts_with("192.168.64 is no address, and no lease"));
        assert!(meant(&["192.168.64.1", "192.168.64.2"]).unwrap_err().contains("one address of each family"));
        assert!(meant(&["192.168.64.1", "h1"]).unwrap_err().contains("the name of one host"));
    }
}
