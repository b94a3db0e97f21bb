//! All leases of the network, folded from the watch, and sorted by the judgement on each.
//!
//! One event costs the same whatever the number of leases: the lease it is about is judged, and those that are in
//! conflict with it. There are tens of thousands of leases, so each is held once and takes some 300 bytes in all.

mod changes;
mod judging;
mod table;
#[cfg(test)]
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::Instant;
use tracing::warn;

use crate::admission::{Admission, QuarantineReason, Standing};
use crate::family::Family;
use crate::key::Subnets;
use crate::lease::Lease;
use crate::store::{Entry, Listing};
use crate::watch::{Change, WatchEvent};
use changes::Touched;
pub use changes::{Changes, PeerChange, QuarantineChange};
use table::{Group, Id, Slot, State, Table};

/// What the store holds, as the watch tells it, each lease judged.
#[derive(Debug, Clone)]
pub struct LeaseSet {
    admission: Admission,
    caution: Caution,
    /// The leases that can be read, also those that a doubted list lacks and that are believed in for a while.
    table: Table,
    /// The bad leases by their keys, those that cannot be read among them; without the missing ones.
    quarantine: BTreeMap<Box<str>, Bad>,
    /// How many leases cannot be read.
    unreadable: usize,
    peers: usize,
    missing: usize,
    missing_until: Option<Instant>,
    touched: Touched,
    complete: bool,
    /// The cluster and the revision of the last list.
    last: Option<(u64, i64)>,
}

/// When a list is not believed at once. A store that was wiped or restored is likelier than a network whose hosts all
/// left in one moment, and its hosts come back to it within seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caution {
    /// A list that lacks more than this part of the known leases, in percent, is doubted; so is any list of another
    /// cluster, or of an earlier time.
    pub percent: u8,
    /// How long leases that such a list lacks are believed in; zero to believe every list.
    pub grace: Duration,
}

impl Default for Caution {
    fn default() -> Self {
        Self { percent: 50, grace: Duration::from_secs(60) }
    }
}

/// A bad lease.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quarantined<'a> {
    /// The last part of its key.
    pub key: &'a str,
    /// The lease, where it could be read at all.
    pub lease: Option<&'a Lease>,
    /// What is wrong with it.
    pub reason: &'a QuarantineReason,
}

#[derive(Debug, Clone)]
struct Bad {
    /// `None` where the lease cannot be read.
    id: Option<Id>,
    reason: QuarantineReason,
}

impl LeaseSet {
    /// An empty set, which measures leases by `admission` and doubts lists as `caution` says.
    pub fn new(admission: Admission, caution: Caution) -> Self {
        Self {
            admission,
            caution,
            table: Table::default(),
            quarantine: BTreeMap::new(),
            unreadable: 0,
            peers: 0,
            missing: 0,
            missing_until: None,
            touched: Touched::default(),
            complete: false,
            last: None,
        }
    }

    /// What the leases are measured by.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Measures the leases by something else from now on.
    pub fn set_admission(&mut self, admission: Admission) {
        self.admission = admission;
        let mut group = Group::default();
        group.ids.extend(self.table.iter().map(|(id, _)| id));
        self.rejudge(group);
    }

    /// Takes in what the watch said. A listing replaces everything that was known.
    pub fn apply(&mut self, event: WatchEvent, now: Instant) {
        match event {
            WatchEvent::Listed(listing) => self.replace(listing, now),
            WatchEvent::Changed(changes) => {
                let mut group = Group::default();
                for change in changes {
                    match change {
                        Change::Put(entry) => self.put(&entry, &mut group),
                        Change::Delete { key } => self.delete(&key, &mut group),
                    }
                }
                self.rejudge(group);
            }
            WatchEvent::Interrupted { .. } => {}
        }
    }

    /// When leases that a list lacked will be given up; `None` if there are none.
    pub fn missing_until(&self) -> Option<Instant> {
        self.missing_until.filter(|_| self.missing > 0)
    }

    /// Gives up the leases that a list lacked, once their time is over.
    pub fn expire(&mut self, now: Instant) {
        if self.missing_until().is_some_and(|until| until <= now) {
            warn!(
                leases = self.missing,
                "hosts whose leases the store lost have not come back to it; giving them up"
            );
            let mut group = Group::default();
            let missing: Vec<Id> =
                self.table.iter().filter(|(_, slot)| slot.missing).map(|(id, _)| id).collect();
            missing.into_iter().for_each(|id| self.remove(id, &mut group));
            self.rejudge(group);
        }
    }

    /// Whether a complete list has ever been taken in. Before that, an absent lease means nothing.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What became of the peers and of the bad leases since the last call. Applied to what [`LeaseSet::peers`] gave
    /// then, it gives what it gives now, but for revisions and fields that only others know.
    pub fn take_changes(&mut self) -> Changes {
        let Self { touched, table, quarantine, .. } = self;
        let peer = |subnets: &Subnets| {
            let slot = table.get(table.find(subnets)?)?;
            (slot.state == State::Good(Standing::Peer)).then(|| slot.lease.clone())
        };
        touched.take(peer, |key| quarantine.get(key).map(|bad| &bad.reason))
    }

    /// Leases of peers that can be reached, in the order of their subnets.
    pub fn peers(&self) -> impl Iterator<Item = &Lease> {
        self.table
            .in_order()
            .filter(|slot| slot.state == State::Good(Standing::Peer))
            .map(|slot| &*slot.lease)
    }

    /// Leases of peers that share an address with this network, in the order of their subnets. Costs what there are of
    /// them, whatever the number of peers.
    pub fn peers_in(&self, network: &IpNetwork) -> Vec<&Lease> {
        let family = Family::of(network.ip());
        let mut found: Vec<Id> = Vec::new();
        if let Some(pool) = self.admission.config.pools.get(family) {
            self.table.overlapping(family, network, pool.subnet_len(), |id| found.push(id));
        }
        let peer = |id| self.table.get(id).filter(|slot| slot.state == State::Good(Standing::Peer));
        let mut peers: Vec<&Lease> = found.into_iter().filter_map(peer).map(|slot| &*slot.lease).collect();
        peers.sort_unstable_by_key(|lease| lease.subnets);
        peers.dedup_by_key(|lease| lease.subnets);
        peers
    }

    /// Number of peers.
    pub fn peer_count(&self) -> usize {
        self.peers
    }

    /// Reservations that no host has claimed yet, in the order of their subnets: they block their subnet, and there is
    /// nobody to reach.
    pub fn unclaimed(&self) -> impl Iterator<Item = &Lease> {
        let unclaimed = |slot: &&Slot| !slot.missing && slot.state == State::Good(Standing::Unclaimed);
        self.table.in_order().filter(unclaimed).map(|slot| &*slot.lease)
    }

    /// Leases that are kept from the kernel, in the order of their keys.
    pub fn quarantined(&self) -> impl Iterator<Item = Quarantined<'_>> {
        self.quarantine.iter().map(|(key, bad)| Quarantined {
            key,
            lease: bad.id.and_then(|id| self.table.get(id)).map(|slot| &*slot.lease),
            reason: &bad.reason,
        })
    }

    /// All leases that can be read, good and bad, in the order of their subnets.
    pub fn readable(&self) -> impl Iterator<Item = &Lease> {
        self.table.in_order().filter(|slot| !slot.missing).map(|slot| &*slot.lease)
    }

    /// Number of leases, good and bad.
    pub fn len(&self) -> usize {
        self.table.len() - self.missing + self.unreadable
    }

    /// Whether there is no lease at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in a complete list. What it lacks is gone, unless the list is to be doubted.
    fn replace(&mut self, listing: Listing, now: Instant) {
        let mut group = Group::default();
        // What is still marked behind the last entry is not in the list.
        self.table.iter_mut().for_each(|(_, slot)| slot.mark = !slot.missing);
        let mut unlisted: BTreeSet<Box<str>> =
            self.quarantine.iter().filter(|(_, bad)| bad.id.is_none()).map(|(key, _)| key.clone()).collect();
        self.table.reserve(listing.entries.len());
        for entry in listing.entries {
            unlisted.remove(entry.key.as_str());
            self.put(&entry, &mut group);
        }
        unlisted.iter().for_each(|key| self.delete(key, &mut group));
        let gone: Vec<Id> = self
            .table
            .iter_mut()
            .filter_map(|(id, slot)| std::mem::take(&mut slot.mark).then_some(id))
            .collect();

        let before = self.len();
        let other = self
            .last
            .is_some_and(|(cluster, revision)| cluster != listing.cluster_id || listing.revision < revision);
        let many = gone.len() * 100 > before * usize::from(self.caution.percent);
        let doubted = (other || many) && !self.caution.grace.is_zero();
        if !gone.is_empty() && doubted {
            warn!(
                missing = gone.len(), listed = before - gone.len(), grace = ?self.caution.grace,
                "the store suddenly lacks many leases, as after it was wiped or restored; their hosts are reached as before for now",
            );
            gone.into_iter().for_each(|id| self.miss(id, &mut group));
            self.missing_until = Some(now + self.caution.grace);
        } else {
            gone.into_iter().for_each(|id| self.remove(id, &mut group));
        }
        self.rejudge(group);
        self.last = Some((listing.cluster_id, listing.revision));
        self.complete = true;
    }

    /// Takes in one lease, and leaves the judgement on it to the group.
    fn put(&mut self, entry: &Entry, group: &mut Group) {
        let lease = match Lease::from_entry(entry) {
            Ok(lease) => lease,
            Err(error) => {
                self.delete(&entry.key, group);
                self.unreadable += 1;
                self.admit_to_quarantine(&entry.key, None, QuarantineReason::Unreadable(error));
                return;
            }
        };
        match self.table.find(&lease.subnets) {
            Some(id) => {
                if self.table.get_mut(id).is_some_and(|slot| renew(slot, &lease)) {
                    return;
                }
                self.remove(id, group);
            }
            None => self.discharge(&entry.key),
        }
        group.ids.push(self.table.insert(lease));
    }

    /// Takes out one lease, whether it can be read or not.
    fn delete(&mut self, key: &str, group: &mut Group) {
        match Subnets::from_key(key).ok().and_then(|subnets| self.table.find(&subnets)) {
            Some(id) => self.remove(id, group),
            None => self.discharge(key),
        }
    }

    /// Takes out one lease that can be read. Whatever it was in conflict with is in the group then.
    fn remove(&mut self, id: Id, group: &mut Group) {
        self.forget_verdict(id);
        let Some(slot) = self.table.get(id) else { return };
        self.missing -= usize::from(slot.missing);
        self.table.reach(&slot.lease, &self.admission.config, group);
        self.table.remove(id);
    }

    /// A doubted list lacks the lease: it is believed in, but comes behind all others.
    fn miss(&mut self, id: Id, group: &mut Group) {
        self.forget_verdict(id);
        let Some(slot) = self.table.get_mut(id) else { return };
        slot.missing = true;
        self.missing += 1;
        let lease = slot.lease.clone();
        self.table.reach(&lease, &self.admission.config, group);
        group.ids.push(id);
    }

    fn set_verdict(&mut self, id: Id, verdict: Result<Standing, QuarantineReason>) {
        let Some(slot) = self.table.get(id) else { return };
        let (lease, missing) = (&slot.lease, slot.missing);
        let same = match &verdict {
            Ok(standing) => slot.state == State::Good(*standing),
            Err(_) if missing => slot.state == State::Bad,
            Err(reason) => {
                slot.state == State::Bad
                    && self
                        .quarantine
                        .get(lease.subnets.key().as_str())
                        .is_some_and(|bad| bad.reason == *reason)
            }
        };
        if same {
            return;
        }
        let subnets = lease.subnets;
        self.forget_verdict(id);
        let state = match verdict {
            Ok(standing) => {
                if standing == Standing::Peer {
                    self.touched.peer(subnets, None);
                    self.peers += 1;
                }
                State::Good(standing)
            }
            Err(reason) => {
                if !missing {
                    self.admit_to_quarantine(&subnets.key(), Some(id), reason);
                }
                State::Bad
            }
        };
        if let Some(slot) = self.table.get_mut(id) {
            slot.state = state;
        }
    }

    fn forget_verdict(&mut self, id: Id) {
        let Some(slot) = self.table.get_mut(id) else { return };
        match std::mem::replace(&mut slot.state, State::Unjudged) {
            State::Good(Standing::Peer) => {
                self.touched.peer(slot.lease.subnets, Some(&slot.lease));
                self.peers -= 1;
            }
            State::Bad if !slot.missing => {
                let key = slot.lease.subnets.key();
                self.discharge(&key);
            }
            _ => {}
        }
    }

    fn admit_to_quarantine(&mut self, key: &str, id: Option<Id>, reason: QuarantineReason) {
        self.touched.quarantine(key, None);
        self.quarantine.insert(key.into(), Bad { id, reason });
    }

    fn discharge(&mut self, key: &str) {
        if let Some(bad) = self.quarantine.remove(key) {
            self.unreadable -= usize::from(bad.id.is_none());
            self.touched.quarantine(key, Some(bad.reason));
        }
    }
}

/// Takes over what the lease says where nothing of that bears on a judgement. Answers whether that was so.
fn renew(slot: &mut Slot, lease: &Lease) -> bool {
    let known = &slot.lease;
    let same = known.attributes == lease.attributes
        && known.create_revision == lease.create_revision
        && known.is_reservation() == lease.is_reservation()
        && !slot.missing;
    slot.mark &= !same;
    let (etcd_lease, mod_revision) = (lease.etcd_lease, lease.mod_revision);
    if same && (known.etcd_lease, known.mod_revision) != (etcd_lease, mod_revision) {
        let known = Arc::make_mut(&mut slot.lease);
        (known.etcd_lease, known.mod_revision) = (etcd_lease, mod_revision);
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::OwnLease;
    use crate::config::NetworkConfig;
    use crate::family::PerFamily;

    /// Host 10.5.1.0/24 of 10.5.0.0/16, at 192.168.64.11 with MAC 02:00:00:00:00:01.
    fn admission() -> Admission {
        Admission {
            config: NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)
                .unwrap(),
            own: Some(OwnLease {
                subnets: "10.5.1.0/24".parse().unwrap(),
                addresses: ["192.168.64.11", "203.0.113.11"].map(|ip| ip.parse().unwrap()).into(),
                macs: PerFamily { v4: Some("02:00:00:00:00:01".parse().unwrap()), v6: None },
                node_id: Some("a".into()),
            }),
        }
    }

    fn vxlan(ip: &str, mac: &str) -> String {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    }

    fn good(last: u8) -> String {
        vxlan(&format!("192.168.64.{last}"), &format!("02:00:00:00:01:{last:02x}"))
    }

    fn entry(key: &str, value: &str, create_revision: i64) -> Entry {
        Entry {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision,
            mod_revision: create_revision,
            etcd_lease: Some(7),
        }
    }

    fn empty() -> LeaseSet {
        LeaseSet::new(admission(), Caution::default())
    }

    fn set(entries: Vec<Entry>) -> LeaseSet {
        let mut set = empty();
        set.replace(Listing { entries, revision: 100, cluster_id: 1 }, Instant::now());
        set
    }

    fn peers(set: &LeaseSet) -> Vec<String> {
        set.peers().map(|lease| lease.subnets.to_string()).collect()
    }

    #[test]
    fn good_peers_stand_beside_our_own_lease() {
        let set = set(vec![
            entry("10.5.1.0-24", &good(11), 1),
            entry("10.5.2.0-24", &good(12), 2),
            entry("10.5.3.0-24", &good(13), 3),
        ]);
        assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.3.0/24"]);
        assert_eq!(set.quarantined().count(), 0);
    }

    #[test]
    fn each_bad_lease_is_quarantined_with_its_reason_and_stops_nobody() {
        let cases = [
            (
                "garbage",
                good(20),
                r#"unreadable key: "garbage" names no subnet, such as 10.5.52.0/24 or, in a key, 10.5.52.0-24&fd00:5:0:34::-64"#,
            ),
            (
                "10.5.20.1-24",
                good(20),
                "unreadable key: 10.5.20.1/24 is not on a subnet boundary; 10.5.20.0/24 would be",
            ),
            (
                "10.5.21.0-24",
                "{".to_owned(),
                "unreadable value: EOF while parsing an object at line 1 column 1",
            ),
            ("10.6.22.0-24", good(22), "10.6.22.0/24 is outside Network 10.5.0.0/16"),
            ("10.5.128.0-17", good(23), "10.5.128.0/17 is larger than this network's subnets of length /24"),
            ("fd00::-64", good(24), "the network uses IPv4, the lease IPv6"),
            (
                "10.5.1.128-25",
                good(25),
                "it is that of 192.168.64.25 and overlaps our own subnet 10.5.1.0/24; release one of the two with flanctl subnets release, and restart fland and Docker there",
            ),
            (
                "10.5.2.128-25",
                good(26),
                "overlaps the older lease 10.5.2.0/24; release one of the two with flanctl subnets release, and restart fland and Docker on its host",
            ),
            ("10.5.27.0-24", vxlan("0.0.0.0", "02:00:00:00:01:1b"), "has no public IPv4 address"),
            (
                "10.5.28.0-24",
                vxlan("127.0.0.1", "02:00:00:00:01:1c"),
                "public address 127.0.0.1 is not a usable host address",
            ),
            (
                "10.5.29.0-24",
                vxlan("224.0.0.5", "02:00:00:00:01:1d"),
                "public address 224.0.0.5 is not a usable host address",
            ),
            (
                "10.5.30.0-24",
                vxlan("192.168.64.11", "02:00:00:00:01:1e"),
                "public address 192.168.64.11 is our own, and the lease is that of 192.168.64.11: two machines have one address, or that machine is no more; give one of them another address or --public-ip, or end the lease with flanctl subnets release",
            ),
            (
                "10.5.39.0-24",
                vxlan("203.0.113.11", "02:00:00:00:01:27"),
                "public address 203.0.113.11 is our own, and the lease is that of 203.0.113.11: two machines have one address, or that machine is no more; give one of them another address or --public-ip, or end the lease with flanctl subnets release",
            ),
            (
                "10.5.40.0-24",
                vxlan("192.168.64.40", "02:00:00:00:01:0c"),
                "VTEP MAC 02:00:00:00:01:0c of 192.168.64.40 is that of the older lease 10.5.2.0/24: one machine is a copy of the other; delete the VXLAN device of one of them (ip link del flannel.VNI), give it a --node-id of its own, and restart fland there",
            ),
            (
                "10.5.31.0-24",
                vxlan("10.5.2.7", "02:00:00:00:01:1f"),
                "public address 10.5.2.7 lies inside Network 10.5.0.0/16",
            ),
            (
                "10.5.32.0-24",
                r#"{"PublicIP":"192.168.64.32","PublicIPv6":null}"#.to_owned(),
                "backend is none, this network's is vxlan",
            ),
            (
                "10.5.33.0-24",
                r#"{"PublicIP":"192.168.64.33","BackendType":"host-gw"}"#.to_owned(),
                "backend is host-gw, this network's is vxlan",
            ),
            (
                "10.5.34.0-24",
                r#"{"PublicIP":"192.168.64.34","BackendType":"vxlan"}"#.to_owned(),
                "has no readable IPv4 VTEP data",
            ),
            (
                "10.5.35.0-24",
                vxlan("192.168.64.35", "00:00:00:00:00:00"),
                "VTEP MAC 00:00:00:00:00:00 is not a unicast address",
            ),
            (
                "10.5.36.0-24",
                vxlan("192.168.64.36", "01:00:5e:00:00:01"),
                "VTEP MAC 01:00:5e:00:00:01 is not a unicast address",
            ),
            (
                "10.5.37.0-24",
                vxlan("192.168.64.37", "02:00:00:00:00:01"),
                "VTEP MAC 02:00:00:00:00:01 is our own, and the lease is that of 192.168.64.37: one machine is a copy of the other; delete the VXLAN device of one of them (ip link del flannel.VNI), give it a --node-id of its own, and restart fland there",
            ),
            ("10.5.38.0-24", good(38).replace("\"VNI\":1", "\"VNI\":2"), "VNI is 2, this network's is 1"),
        ];
        let mut entries: Vec<Entry> =
            cases.iter().zip(50..).map(|((key, value, _), revision)| entry(key, value, revision)).collect();
        entries.push(entry("10.5.2.0-24", &good(12), 2));
        entries.push(entry("10.5.99.0-24", &good(99), 99));
        let set = set(entries);
        assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.99.0/24"]);
        for (key, _, reason) in &cases {
            let found = set.quarantined().find(|bad| bad.key == *key).map(|bad| bad.reason.to_string());
            assert_eq!(found.as_deref(), Some(*reason), "{key}");
        }
        assert_eq!(set.quarantined().count(), cases.len());
    }

    #[test]
    fn one_host_may_hold_two_leases_with_one_mac() {
        let set = set(vec![entry("10.5.2.0-24", &good(12), 2), entry("10.5.3.0-24", &good(12), 3)]);
        assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.3.0/24"]);
    }

    #[test]
    fn a_bad_lease_takes_no_place_from_a_younger_good_one() {
        let bad = entry("10.5.2.0-25", &vxlan("127.0.0.1", "02:00:00:00:01:0b"), 1);
        let set = set(vec![bad, entry("10.5.2.0-24", &good(12), 2)]);
        assert_eq!(peers(&set), ["10.5.2.0/24"]);
    }

    #[test]
    fn a_reservation_without_a_backend_waits_for_its_host() {
        let reservation = Entry {
            etcd_lease: None,
            ..entry("10.5.2.0-24", r#"{"PublicIP":"192.168.64.12","PublicIPv6":null}"#, 1)
        };
        let set = set(vec![reservation]);
        assert_eq!((set.peer_count(), set.unclaimed().count(), set.quarantined().count()), (0, 1, 0));
    }

    #[test]
    fn another_lease_with_our_address_is_told_by_whose_it_is() {
        let signed = |key: &str, node: &str| {
            let ours = vxlan("192.168.64.11", "02:00:00:00:00:01");
            let value = ours.replacen('{', &format!(r#"{{"HostName":"h1","NodeID":"{node}","#), 1);
            entry(key, &value, 5)
        };
        let set = set(vec![signed("10.5.8.0-24", "a"), signed("10.5.9.0-24", "b")]);
        let reasons: Vec<String> = set.quarantined().map(|bad| bad.reason.to_string()).collect();
        assert_eq!(
            reasons[0],
            "it is a former lease of this host, which holds 10.5.1.0/24 now; it ends by itself, or at once with flanctl subnets release"
        );
        let named = "public address 192.168.64.11 is our own, and the lease is that of 192.168.64.11 (h1), node id b: ";
        assert!(reasons[1].starts_with(named), "{reasons:?}");
    }

    #[test]
    fn a_reservation_for_us_waits_for_our_next_start() {
        let reservation = Entry {
            etcd_lease: None,
            ..entry("10.5.7.0-24", r#"{"PublicIP":"192.168.64.11","PublicIPv6":null}"#, 9)
        };
        let set = set(vec![reservation]);
        assert_eq!((set.unclaimed().count(), set.quarantined().count()), (1, 0));
    }

    #[test]
    fn a_claim_on_a_peers_lease_is_no_change() {
        let mut set = set(vec![entry("10.5.2.0-24", &good(12), 1)]);
        set.take_changes();
        let claimed = good(12).replacen('{', r#"{"Claim":{"PublicIP":"192.168.64.13"},"#, 1);
        let put = |value: &str| Change::Put(Entry { mod_revision: 9, ..entry("10.5.2.0-24", value, 1) });
        set.apply(WatchEvent::Changed(vec![put(&claimed)]), Instant::now());
        assert!(set.take_changes().is_empty());
        assert!(set.peers().next().unwrap().attributes.claimant().is_some());
    }

    #[test]
    fn the_peers_that_share_addresses_with_a_network_are_found() {
        let set = set((2..9).map(|n| entry(&format!("10.5.{n}.0-24"), &good(n), n.into())).collect());
        let found = |network: &str| -> Vec<String> {
            let peers = set.peers_in(&network.parse().unwrap());
            peers.iter().map(|lease| lease.subnets.to_string()).collect()
        };
        assert_eq!(found("10.5.4.0/22"), ["10.5.4.0/24", "10.5.5.0/24", "10.5.6.0/24", "10.5.7.0/24"]);
        assert_eq!(found("10.5.4.7/32"), ["10.5.4.0/24"]);
        assert_eq!(found("10.5.1.0/24"), Vec::<String>::new(), "our own is no peer's");
        assert_eq!(found("192.168.0.0/16"), Vec::<String>::new());
        assert_eq!(found("fd00::/8"), Vec::<String>::new());
    }

    #[test]
    fn a_listing_replaces_and_a_change_updates() {
        let mut set = set(vec![entry("10.5.2.0-24", &good(12), 1), entry("10.5.3.0-24", &good(13), 2)]);
        set.apply(
            WatchEvent::Changed(vec![
                Change::Put(entry("10.5.2.0-24", &good(42), 1)),
                Change::Delete { key: "10.5.3.0-24".to_owned() },
                Change::Put(entry("10.5.4.0-24", &good(14), 3)),
            ]),
            Instant::now(),
        );
        assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.4.0/24"]);
        let moved = set.peers().next().unwrap().attributes.public_ips.v4;
        assert_eq!(moved, Some("192.168.64.42".parse().unwrap()));
        set.replace(Listing { entries: vec![], revision: 101, cluster_id: 1 }, Instant::now());
        assert!(set.is_empty() && set.is_complete());
    }

    fn listing(keys: &[u8], revision: i64, cluster_id: u64) -> Listing {
        let entries = keys.iter().map(|key| entry(&format!("10.5.{key}.0-24"), &good(*key), i64::from(*key)));
        Listing { entries: entries.collect(), revision, cluster_id }
    }

    #[test]
    fn a_list_that_lacks_a_few_leases_is_believed() {
        let (mut set, now) = (empty(), Instant::now());
        set.replace(listing(&[2, 3, 4, 5], 100, 1), now);
        set.replace(listing(&[2, 3], 101, 1), now);
        assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.3.0/24"]);
        assert_eq!(set.missing_until(), None);
    }

    #[test]
    fn a_list_that_lacks_most_leases_is_believed_after_the_grace_period() {
        let (mut set, now) = (empty(), Instant::now());
        set.replace(listing(&[2, 3, 4], 100, 1), now);
        set.replace(listing(&[4], 101, 1), now);
        assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24"]);
        let until = set.missing_until().unwrap();
        set.expire(until - Duration::from_secs(1));
        assert_eq!(peers(&set).len(), 3);
        set.expire(until);
        assert_eq!(peers(&set), ["10.5.4.0/24"]);
    }

    #[test]
    fn any_lease_that_another_cluster_or_an_earlier_time_lacks_is_held_until_its_host_is_back() {
        for after in [listing(&[2, 3, 4], 5, 1), listing(&[2, 3, 4], 101, 2)] {
            let (mut set, now) = (empty(), Instant::now());
            set.replace(listing(&[2, 3, 4, 5], 100, 1), now);
            set.replace(after, now);
            assert_eq!(peers(&set).len(), 4);
            set.apply(WatchEvent::Changed(vec![Change::Put(entry("10.5.5.0-24", &good(5), 6))]), now);
            assert_eq!((peers(&set).len(), set.missing_until()), (4, None));
        }
    }

    #[test]
    fn what_the_store_holds_wins_over_what_it_lost() {
        let (mut set, now) = (empty(), Instant::now());
        set.replace(listing(&[2], 100, 1), now);
        set.replace(listing(&[], 1, 2), now);
        let half = Change::Put(entry("10.5.2.0-25", &good(9), 7));
        set.apply(WatchEvent::Changed(vec![half]), now);
        assert_eq!(peers(&set), ["10.5.2.0/25"]);
    }

    #[test]
    fn a_renewal_is_no_change_and_what_comes_and_goes_between_two_looks_is_none() {
        let mut set = set(vec![entry("10.5.2.0-24", &good(12), 1), entry("10.5.1.0-24", &good(11), 2)]);
        assert_eq!(set.take_changes().peers.len(), 1);
        let renewed = Entry { mod_revision: 9, etcd_lease: Some(8), ..entry("10.5.2.0-24", &good(12), 1) };
        let guest = entry("10.5.3.0-24", &good(13), 10);
        set.apply(WatchEvent::Changed(vec![Change::Put(renewed), Change::Put(guest)]), Instant::now());
        set.apply(
            WatchEvent::Changed(vec![Change::Delete { key: "10.5.3.0-24".to_owned() }]),
            Instant::now(),
        );
        assert!(set.take_changes().is_empty());
        assert_eq!(set.peers().next().unwrap().mod_revision, 9);
    }

    /// A walk over all of them for each of them would take minutes.
    #[test]
    fn thousands_of_leases_in_one_conflict_are_judged_in_one_walk() {
        let one_mac = |host: u32| {
            let key = format!("10.{}.{}.0-24", 4 + (host >> 8), host & 255);
            let ip = format!("192.168.{}.{}", host >> 8, host & 255);
            entry(&key, &vxlan(&ip, "02:00:00:00:01:01"), i64::from(host))
        };
        let config =
            NetworkConfig::parse(br#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#).unwrap();
        let mut set = LeaseSet::new(Admission { config, own: None }, Caution::default());
        let entries = (1..10_000).map(one_mac).collect();
        set.apply(WatchEvent::Listed(Listing { entries, revision: 100, cluster_id: 1 }), Instant::now());
        assert_eq!((peers(&set), set.quarantined().count()), (vec!["10.4.1.0/24".to_owned()], 9_998));
        let oldest = Change::Delete { key: "10.4.1.0-24".to_owned() };
        set.apply(WatchEvent::Changed(vec![oldest]), Instant::now());
        assert_eq!(peers(&set), ["10.4.2.0/24"]);
        assert!(set.quarantined().all(|bad| bad.reason.to_string().contains("older lease 10.4.2.0/24")));
    }
}
