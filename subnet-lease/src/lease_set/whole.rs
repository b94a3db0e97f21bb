//! Compares the set with the naive way: keep everything, and judge everything after each event.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use tokio::time::{Duration, Instant};

use super::{Caution, Changes, LeaseSet};
use crate::admission::{Admission, OwnLease, QuarantineReason, Standing};
use crate::backend_config::BackendConfig;
use crate::config::NetworkConfig;
use crate::entry::Entry;
use crate::family::{PerFamily, overlap, span};
use crate::identity::Identity;
use crate::lease::{InvalidLease, Lease, LeaseAttributes};
use crate::stored::{KeyChange, Listing, Read};
use crate::watch::WatchEvent;

/// What the store holds, judged from scratch each time.
#[derive(Default)]
struct Whole {
    leases: BTreeMap<String, Result<Lease, InvalidLease>>,
    missing: BTreeMap<String, Lease>,
    missing_until: Option<Instant>,
    last: Option<(u64, i64)>,
}

/// The result: peers and unclaimed reservations with their attributes, bad leases with their reasons.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    peers: BTreeMap<String, LeaseAttributes>,
    unclaimed: BTreeMap<String, LeaseAttributes>,
    quarantined: BTreeMap<String, QuarantineReason>,
    readable: BTreeSet<(String, i64, Option<i64>)>,
    len: usize,
    missing_until: Option<Instant>,
}

impl Whole {
    fn apply(&mut self, event: WatchEvent<Lease>, caution: Caution, now: Instant) {
        match event {
            WatchEvent::Listed(listing) => self.list(&listing, caution, now),
            WatchEvent::Changed(changes) => changes.into_iter().for_each(|change| match change {
                KeyChange::Put(read) => self.put(&read),
                KeyChange::Delete { key } => {
                    self.leases.remove(&key);
                    self.missing.remove(&key);
                }
            }),
            WatchEvent::Interrupted { .. } => {}
        }
    }

    fn list(&mut self, listing: &Listing<Lease>, caution: Caution, now: Instant) {
        let known = std::mem::take(&mut self.leases);
        listing.items.iter().for_each(|read| self.put(read));
        let mut gone = BTreeMap::new();
        for (key, lease) in known {
            if let Ok(lease) = lease
                && !self.leases.contains_key(&key)
            {
                gone.insert(key, lease);
            }
        }
        let of = gone.len() + self.leases.len();
        let other =
            self.last.is_some_and(|(cluster, at)| cluster != listing.cluster_id || listing.revision < at);
        if !gone.is_empty() && (other || gone.len() * 100 > of * usize::from(caution.percent)) {
            self.missing.extend(gone);
            self.missing_until = Some(now + caution.grace);
        }
        self.last = Some((listing.cluster_id, listing.revision));
    }

    fn put(&mut self, read: &Read<Lease>) {
        let (key, lease) = match read {
            Ok(lease) => (lease.subnets.key(), Ok(Lease::clone(lease))),
            Err(bad) => (bad.entry.key.clone(), Err(bad.reason.clone())),
        };
        self.missing.remove(&key);
        self.leases.insert(key, lease);
    }

    fn expire(&mut self, now: Instant) {
        if self.missing_until.is_some_and(|until| until <= now) {
            self.missing.clear();
        }
    }

    fn judge(&self, admission: &Admission) -> Seen {
        let mut seen = Seen {
            len: self.leases.len(),
            missing_until: self.missing_until.filter(|_| !self.missing.is_empty()),
            ..Seen::default()
        };
        let mut all: Vec<(bool, i64, &String, &Lease)> = Vec::new();
        for (key, lease) in &self.leases {
            match lease {
                Ok(lease) => {
                    all.push((false, lease.create_revision, key, lease));
                    seen.readable.insert((key.clone(), lease.mod_revision, lease.etcd_lease));
                }
                Err(error) => {
                    seen.quarantined.insert(key.clone(), QuarantineReason::Unreadable(error.clone()));
                }
            }
        }
        all.extend(self.missing.iter().map(|(key, lease)| (true, lease.create_revision, key, lease)));
        all.sort_by_key(|(missing, age, _, lease)| (*missing, *age, lease.subnets));
        let mut accepted: Vec<&Lease> = Vec::new();
        for (missing, _, key, lease) in all {
            let attributes = lease.attributes.clone();
            let verdict = admission.standing(lease).and_then(|standing| match standing {
                Standing::Own => Ok(standing),
                _ => conflict(lease, &accepted, &admission.config.backend).map_or(Ok(standing), Err),
            });
            match verdict {
                Ok(Standing::Own) => continue,
                Ok(Standing::Peer) => {
                    seen.peers.insert(key.clone(), attributes);
                }
                Ok(Standing::Unclaimed) if !missing => {
                    seen.unclaimed.insert(key.clone(), attributes);
                }
                Ok(Standing::Unclaimed) => {}
                Err(reason) => {
                    if !missing {
                        seen.quarantined.insert(key.clone(), reason);
                    }
                    continue;
                }
            }
            accepted.push(lease);
        }
        seen
    }
}

/// Returns the conflict of the lease with earlier ones.
fn conflict(lease: &Lease, accepted: &[&Lease], backend: &BackendConfig) -> Option<QuarantineReason> {
    for (family, subnet) in lease.subnets.iter() {
        let start = |other: &Lease| span(&other.subnets.get(family).unwrap()).0;
        let overlapping = accepted
            .iter()
            .filter(|other| other.subnets.get(family).is_some_and(|theirs| overlap(&theirs, &subnet)))
            .max_by_key(|other| start(other));
        if let Some(older) = overlapping {
            return Some(QuarantineReason::Overlaps { older: older.subnets });
        }
    }
    for (family, _) in lease.subnets.iter() {
        let of = |lease: &Lease| backend.identity(lease.attributes.data.get(family));
        let Some(identity) = of(lease) else { continue };
        let over = backend.underlay_of(family);
        let ip = lease.attributes.public_ips.get(over);
        let youngest =
            accepted.iter().rfind(|other| other.subnets.get(family).is_some() && of(other) == Some(identity));
        if let Some(older) = youngest.filter(|older| older.attributes.public_ips.get(over) != ip) {
            let holder = lease.attributes.holder_and_node();
            return Some(QuarantineReason::IdentityTaken { holder, identity, older: older.subnets });
        }
    }
    None
}

fn seen(set: &LeaseSet) -> Seen {
    let known = |lease: &Lease| (lease.subnets.key(), lease.attributes.clone());
    let seen = Seen {
        peers: set.peers().map(known).collect(),
        unclaimed: set.unclaimed().map(known).collect(),
        quarantined: set.quarantined().map(|bad| (bad.key.to_owned(), bad.reason.clone())).collect(),
        readable: set
            .readable()
            .map(|lease| (lease.subnets.key(), lease.mod_revision, lease.etcd_lease))
            .collect(),
        len: set.len(),
        missing_until: set.missing_until(),
    };
    assert_eq!((set.peers().count(), set.peer_count()), (seen.peers.len(), seen.peers.len()));
    assert!(set.peers().is_sorted_by_key(|lease| lease.subnets));
    for bad in set.quarantined() {
        assert!(bad.lease.is_none_or(|lease| lease.subnets.key() == bad.key));
    }
    seen
}

/// Applies the set's changes to the state at the last look.
fn replay(looked: &mut Seen, changes: Changes) {
    for change in changes.peers {
        let key = change.subnets().unwrap().key();
        let before = change.before.map(|lease| lease.attributes.clone());
        let after = change.after.map(|lease| lease.attributes.clone());
        assert!(before != after, "{key} is listed and did not change");
        assert_eq!(looked.peers.remove(&key), before, "{key}");
        looked.peers.extend(after.map(|after| (key, after)));
    }
    for change in changes.quarantine {
        assert!(change.before != change.after, "{} is listed and did not change", change.key);
        assert_eq!(looked.quarantined.remove(&*change.key), change.before, "{}", change.key);
        looked.quarantined.extend(change.after.map(|after| (change.key.into(), after)));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Event(WatchEvent<Lease>),
    Wait(u64),
    Own(usize),
    Config(usize),
    Look,
}

const V4: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const BOTH: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "IPv6SubnetLen": 64,
    "Backend": {"Type": "vxlan"}}"#;
const V6: &str = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48",
    "Backend": {"Type": "vxlan"}}"#;
const UDP: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}"#;
const CONFIGS: [&str; 4] = [V4, BOTH, V6, UDP];
const V4_KEYS: [&str; 13] = [
    "10.5.1.0-24",
    "10.5.2.0-24",
    "10.5.2.0-25",
    "10.5.2.128-25",
    "10.5.2.128-26",
    "10.5.2.192-26",
    "10.5.2.0-26",
    "10.5.2.200-32",
    "10.5.3.0-24",
    "10.5.10.0-24",
    "10.5.2.0-23",
    "10.6.2.0-24",
    "0.0.0.0-0",
];
const V6_KEYS: [&str; 7] = [
    "fd00:5:0:1::-64",
    "fd00:5:0:2::-64",
    "fd00:5:0:2::-65",
    "fd00:5:0:2:8000::-65",
    "fd00:5:0:2:8000::-128",
    "fd00:5:0:3::-64",
    "::-0",
];
const OWN: [Option<&str>; 6] = [
    None,
    Some("10.5.1.0/24"),
    Some("10.5.2.0/24"),
    Some("10.5.3.0/24,fd00:5:0:3::/64"),
    Some("fd00:5:0:1::/64"),
    Some("10.5.2.0/24,fd00:5:0:1::/64"),
];

fn key() -> impl Strategy<Value = String> {
    let v4 = || (0..V4_KEYS.len()).prop_map(|at| V4_KEYS[at].to_owned());
    let v6 = || (0..V6_KEYS.len()).prop_map(|at| V6_KEYS[at].to_owned());
    prop_oneof![
        6 => v4(),
        4 => v6(),
        6 => (v4(), v6()).prop_map(|(v4, v6)| format!("{v4}&{v6}")),
        1 => Just("garbage".to_owned()),
        1 => Just("10.5.2.1-24".to_owned()),
    ]
}

fn value() -> impl Strategy<Value = String> {
    let data = |ip: u8, mac: u8, mac6: u8, vni: u8| {
        format!(
            r#"{{"PublicIP":"192.168.64.{ip}","PublicIPv6":"fd64::{ip}","BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"02:00:00:00:00:0{mac}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"02:00:00:00:00:0{mac6}"}}}}"#
        )
    };
    let good = (10..14u8, 1..5u8, 1..5u8).prop_map(move |(ip, mac, mac6)| data(ip, mac, mac6, 1));
    let bad =
        (10..12u8, 0..3u8, 0..3u8, 1..3u8).prop_map(move |(ip, mac, mac6, vni)| data(ip, mac, mac6, vni));
    prop_oneof![
        12 => good,
        3 => bad,
        2 => Just(r#"{"PublicIP":"192.168.64.10","PublicIPv6":"fd64::10"}"#.to_owned()),
        1 => Just("{".to_owned()),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (key(), value(), 1..9i64, 1..9i64, proptest::option::weighted(0.7, 1..3i64)).prop_map(
        |(key, value, create_revision, mod_revision, etcd_lease)| Entry {
            key,
            value: value.into_bytes(),
            create_revision,
            mod_revision,
            etcd_lease,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let put = || entry().prop_map(KeyChange::put);
    let delete = || key().prop_map(|key| KeyChange::Delete { key });
    let change = prop_oneof![3 => put(), 1 => delete()];
    let listing = (proptest::collection::vec(entry(), 0..16), 1..9i64, 1..3u64).prop_map(
        |(entries, revision, cluster_id)| {
            let entries: BTreeMap<String, Entry> =
                entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
            Listing::of(entries.into_values().collect(), revision, cluster_id)
        },
    );
    prop_oneof![
        12 => proptest::collection::vec(change, 1..4).prop_map(|changes| Step::Event(WatchEvent::Changed(changes))),
        3 => listing.prop_map(|listing| Step::Event(WatchEvent::Listed(listing))),
        2 => (1..90u64).prop_map(Step::Wait),
        1 => (0..OWN.len()).prop_map(Step::Own),
        1 => (0..CONFIGS.len()).prop_map(Step::Config),
        3 => Just(Step::Look),
    ]
}

fn admission(config: &str, own: usize) -> Admission {
    let address = |ip: &str| -> IpAddr { ip.parse().unwrap() };
    Admission {
        config: NetworkConfig::parse(config.as_bytes()).unwrap(),
        own: OWN[own].map(|subnets| OwnLease {
            subnets: subnets.parse().unwrap(),
            addresses: [address("192.168.64.11"), address("fd64::11")].into(),
            identities: PerFamily { v4: Some(Identity::Mac("02:00:00:00:00:01".parse().unwrap())), v6: None },
            node_id: None,
        }),
    }
}

fn check(mut config: &'static str, steps: Vec<Step>) {
    let caution = Caution::default();
    let mut now = Instant::now();
    let mut own = 0;
    let (mut set, mut whole) = (LeaseSet::new(admission(config, own), caution), Whole::default());
    let mut looked = Seen::default();
    for step in steps {
        match step {
            Step::Event(event) => {
                whole.apply(event.clone(), caution, now);
                set.apply(event, now);
            }
            Step::Wait(seconds) => {
                now += Duration::from_secs(seconds);
                whole.expire(now);
                set.expire(now);
            }
            Step::Own(other) => {
                own = other;
                set.set_own(admission(config, own).own);
            }
            Step::Config(other) => {
                config = CONFIGS[other];
                set.set_admission(admission(config, own));
            }
            Step::Look => {
                let changes = set.take_changes();
                replay(&mut looked, changes);
            }
        }
        assert_eq!(seen(&set), whole.judge(&admission(config, own)));
    }
    let changes = set.take_changes();
    replay(&mut looked, changes);
    assert_eq!(looked.peers, seen(&set).peers);
    assert_eq!(looked.quarantined, seen(&set).quarantined);
    assert!(set.take_changes().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn after_any_events_the_set_is_as_if_all_had_been_judged_anew(
        config in prop_oneof![3 => Just(V4), 3 => Just(BOTH), 2 => Just(V6), 1 => Just(UDP)],
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        check(config, steps);
    }
}
