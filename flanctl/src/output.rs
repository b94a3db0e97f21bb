//! What programs read: the documents that `-o json` and `-o yaml` print.
//!
//! The form is versioned by `apiVersion`: within `flan/v1` fields may come, none goes or changes its meaning.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::time::Duration;

use flan_agent::status::API_VERSION;
use flan_subnet_lease::{BackendData, Lease, LeaseSet, PerFamily, Reservation, Subnets};
use serde::Serialize;

use crate::failure::{Failure, Kind};

/// How many keys a message names.
const SHOWN: usize = 5;

/// Prints lines. A reader that has seen enough and closed the pipe is no failure: the process ends, as others do.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| Failure::new(Kind::Other, format!("cannot print: {error}"))),
    }
}

/// Prints a document as JSON.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(document).map_err(|error| Failure::new(Kind::Other, error))?)
}

/// Prints a document as YAML.
pub(crate) fn print_yaml(document: &impl Serialize) -> Result<(), Failure> {
    print(&serde_yaml_ng::to_string(document).map_err(|error| Failure::new(Kind::Other, error))?)
}

/// Leases are written by anybody who may write to the store: nothing in them shall steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A number of things, in words.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The first of some keys, and how many more there are.
pub(crate) fn some<T: AsRef<str>>(keys: &[T]) -> String {
    let shown = keys.iter().take(SHOWN).map(|key| printable(key.as_ref())).collect::<Vec<_>>().join(", ");
    match keys.len().saturating_sub(SHOWN) {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
    }
}

/// Where the lease with this key stands in a list: by subnet, what names none last.
pub(crate) fn place(key: &str) -> impl Ord + use<> {
    let subnets = key.parse::<Subnets>().ok();
    (subnets.is_none(), subnets, key.to_owned())
}

/// All leases. A list, sorted by subnet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SubnetList {
    api_version: &'static str,
    kind: &'static str,
    pub(crate) items: Vec<Subnet>,
}

/// One lease.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Subnet {
    /// The last part of the key in the store.
    pub(crate) key: String,
    /// `10.5.52.0/24`, one for each family; empty where the key cannot be read.
    pub(crate) subnets: Vec<String>,
    /// The holder's name, where it said one.
    pub(crate) host: Option<String>,
    /// The holder's machine, where it said one.
    pub(crate) node_id: Option<String>,
    /// The holder's underlay addresses.
    #[serde(rename = "publicIPs")]
    pub(crate) public_ips: Vec<String>,
    /// `vxlan`, `host-gw`, ...; null for backends that write none, and for a reservation that nobody has claimed.
    pub(crate) backend: Option<String>,
    /// What the backend wrote, for each family, as it stands.
    pub(crate) backend_data: Vec<serde_json::Value>,
    /// Seconds until the lease ends if its holder does not renew it; null for a reservation, or where the store did
    /// not say.
    pub(crate) expires_in_seconds: Option<u64>,
    /// Whether the lease never ends.
    pub(crate) reservation: bool,
    /// Whether the lease was a reservation, and ends with its holder since a flanneld took it.
    pub(crate) reservation_lost: bool,
    /// `active`: packets are sent to the holder. `reserved`: kept for a host that has not come yet. `bad`: kept from
    /// the kernel, for `reason`.
    pub(crate) state: State,
    /// What is wrong with a bad lease, or doubtful about another.
    pub(crate) reason: Option<String>,
    /// Store revision of the last write; null where the value cannot be read.
    pub(crate) mod_revision: Option<i64>,
    /// The etcd lease behind the key.
    #[serde(skip)]
    pub(crate) etcd_lease: Option<i64>,
}

/// Whether a lease is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Active,
    Reserved,
    Bad,
}

impl SubnetList {
    /// The leases as judged, without their times, beside what is remembered of reservations.
    pub(crate) fn new(leases: &LeaseSet, remembered: &[Reservation]) -> Self {
        let remembered: HashMap<Subnets, &Reservation> =
            remembered.iter().map(|reservation| (reservation.subnets, reservation)).collect();
        let is_lost = |lease: &Lease| {
            let reservation = remembered.get(&lease.subnets);
            reservation.is_some_and(|one| one.is_lost_in(&lease.attributes, lease.etcd_lease))
        };
        let known = |lease: &Lease, state| {
            let item = Subnet::new(&lease.subnets.key(), Some(lease), state, None);
            Subnet { reservation_lost: is_lost(lease), ..item }
        };
        let mut items: Vec<Subnet> = leases.peers().map(|lease| known(lease, State::Active)).collect();
        items.extend(leases.unclaimed().map(|lease| known(lease, State::Reserved)));
        items.extend(
            leases
                .quarantined()
                .map(|bad| Subnet::new(bad.key, bad.lease, State::Bad, Some(bad.reason.to_string()))),
        );
        items.sort_by_cached_key(|item| place(&item.key));
        tell_of_doubts(&mut items);
        Self { api_version: API_VERSION, kind: "SubnetList", items }
    }

    /// All etcd leases behind the items, each once.
    pub(crate) fn etcd_leases(&self) -> Vec<i64> {
        let mut leases: Vec<i64> = self.items.iter().filter_map(|item| item.etcd_lease).collect();
        leases.sort_unstable();
        leases.dedup();
        leases
    }

    /// Fills in how long each lease lasts.
    pub(crate) fn set_expiry(&mut self, left: impl Fn(i64) -> Option<Duration>) {
        for item in &mut self.items {
            item.expires_in_seconds = item.etcd_lease.and_then(&left).map(|left| left.as_secs());
        }
    }
}

impl Subnet {
    fn new(key: &str, lease: Option<&Lease>, state: State, reason: Option<String>) -> Self {
        let attributes = lease.map(|lease| &lease.attributes);
        let texts = |subnets: &Subnets| subnets.iter().map(|(_, one)| one.to_string()).collect();
        let subnets = key.parse().ok();
        Self {
            key: key.to_owned(),
            subnets: subnets.as_ref().map(texts).unwrap_or_default(),
            host: attributes.and_then(|one| one.node.host.as_deref().map(str::to_owned)),
            node_id: attributes.and_then(|one| one.node.id.as_deref().map(str::to_owned)),
            public_ips: attributes.map(|one| strings(&one.public_ips)).unwrap_or_default(),
            backend: attributes.and_then(|one| one.backend.as_deref().map(str::to_owned)),
            backend_data: attributes
                .map(|one| one.data.values().map(BackendData::to_value).collect())
                .unwrap_or_default(),
            expires_in_seconds: None,
            reservation: lease.is_some_and(Lease::is_reservation),
            reservation_lost: false,
            state,
            reason,
            mod_revision: lease.map(|lease| lease.mod_revision),
            etcd_lease: lease.and_then(|lease| lease.etcd_lease),
        }
    }
}

/// Says what is doubtful of leases that are not bad.
///
/// Of several leases with one address, packets reach the holder of one. Which one that is, only the holder knows: an
/// older lease may be its own, left over, or a younger one an impostor's.
fn tell_of_doubts(items: &mut [Subnet]) {
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let active = |item: &&Subnet| item.state == State::Active;
    for item in items.iter().filter(active) {
        for ip in &item.public_ips {
            holders.entry(ip.clone()).or_default().push(item.key.clone());
        }
    }
    for item in items.iter_mut().filter(|item| item.state == State::Active) {
        let doubled = item.public_ips.iter().find_map(|ip| {
            let other = holders.get(ip)?.iter().find(|key| **key != item.key)?;
            Some(format!(
                "public address {ip} is also that of {other}; at most one of the two can be reached"
            ))
        });
        let lost = item.reservation_lost.then(|| {
            let (subnets, ips) = (item.subnets.join(","), item.public_ips.join(","));
            format!(
                "no longer reserved; make it so again: flanctl subnets reserve {subnets} --public-ip {ips}"
            )
        });
        let doubts: Vec<String> = doubled.into_iter().chain(lost).collect();
        item.reason = (!doubts.is_empty()).then(|| doubts.join("; "));
    }
}

fn strings<T: ToString>(values: &PerFamily<T>) -> Vec<String> {
    values.values().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{Admission, Caution, Entry, Listing, NetworkConfig, WatchEvent};
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_reservation_that_became_an_ordinary_lease_is_noted() {
        let entry = |key: &str, ip: &str, etcd_lease| Entry {
            key: key.to_owned(),
            value: format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#).into_bytes(),
            create_revision: 1,
            mod_revision: 1,
            etcd_lease,
        };
        let entries = vec![
            entry("10.5.7.0-24", "192.168.64.7", Some(1)),
            entry("10.5.8.0-24", "192.168.64.8", None),
            entry("10.5.9.0-24", "192.168.64.9", Some(1)),
        ];
        let config = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#;
        let admission = Admission { config: NetworkConfig::parse(config).unwrap(), own: None };
        let mut leases = LeaseSet::new(admission, Caution::default());
        let listing = Listing { entries, revision: 9, cluster_id: 1 };
        leases.apply(WatchEvent::Listed(listing), Instant::now());
        let remembered = ["7", "8"].map(|n| Reservation {
            subnets: format!("10.5.{n}.0/24").parse().unwrap(),
            public_ips: PerFamily { v4: Some(format!("192.168.64.{n}").parse().unwrap()), v6: None },
        });
        let list = SubnetList::new(&leases, &remembered);
        let lost: Vec<bool> = list.items.iter().map(|item| item.reservation_lost).collect();
        assert_eq!(lost, [true, false, false]);
        assert_eq!(
            list.items[0].reason.as_deref(),
            Some(
                "no longer reserved; make it so again: flanctl subnets reserve 10.5.7.0/24 --public-ip 192.168.64.7"
            )
        );
        assert_eq!((list.items[0].state, &list.items[1].reason), (State::Active, &None));
    }
}
