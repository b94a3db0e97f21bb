//! All leases of the network, folded from the watch, and sorted by the judgement on each.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::admission::{Admission, QuarantineReason, Standing, Taken};
use crate::lease::{InvalidLease, Lease};
use crate::store::{Entry, Listing};
use crate::watch::{Change, WatchEvent};

/// What the store holds, as the watch tells it.
#[derive(Debug, Clone, Default)]
pub struct LeaseSet {
    leases: BTreeMap<String, Result<Lease, InvalidLease>>,
    complete: bool,
    caution: Caution,
    /// The cluster and the revision of the last list.
    last: Option<(u64, i64)>,
    /// Leases that a list lacks, and that are believed in for a while.
    missing: BTreeMap<String, Lease>,
    missing_until: Option<Instant>,
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

/// All leases, judged. Lists are in the order of the keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judged<'a> {
    /// Leases of peers that can be reached.
    pub peers: Vec<&'a Lease>,
    /// Reservations that no host has claimed yet: they block their subnet, and there is nobody to reach.
    pub unclaimed: Vec<&'a Lease>,
    /// Leases that are kept from the kernel.
    pub quarantined: Vec<Quarantined<'a>>,
}

/// A bad lease.
#[derive(Debug, Clone, PartialEq)]
pub struct Quarantined<'a> {
    /// The last part of its key.
    pub key: &'a str,
    /// The lease, where it could be read at all.
    pub lease: Option<&'a Lease>,
    /// What is wrong with it.
    pub reason: QuarantineReason,
}

impl LeaseSet {
    /// A set that doubts lists as `caution` says.
    pub fn with_caution(caution: Caution) -> Self {
        Self { caution, ..Self::default() }
    }

    /// Takes in what the watch said. A listing replaces everything that was known.
    pub fn apply(&mut self, event: &WatchEvent, now: Instant) {
        match event {
            WatchEvent::Listed(listing) => self.replace(listing, now),
            WatchEvent::Changed(changes) => changes.iter().for_each(|change| match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete { key } => {
                    self.leases.remove(key);
                    self.missing.remove(key);
                }
            }),
            WatchEvent::Interrupted { .. } => {}
        }
    }

    /// Takes in a complete list. What it lacks is gone, unless the list is to be doubted.
    pub fn replace(&mut self, listing: &Listing, now: Instant) {
        let known = std::mem::take(&mut self.leases);
        listing.entries.iter().for_each(|entry| self.put(entry));
        let gone: BTreeMap<String, Lease> = known
            .into_iter()
            .filter(|(key, _)| !self.leases.contains_key(key))
            .filter_map(|(key, lease)| Some((key, lease.ok()?)))
            .collect();
        let before = gone.len() + self.leases.len();
        let other = self
            .last
            .is_some_and(|(cluster, revision)| cluster != listing.cluster_id || listing.revision < revision);
        let many = gone.len() * 100 > before * usize::from(self.caution.percent);
        let doubted = (other || many) && !self.caution.grace.is_zero();
        if !gone.is_empty() && doubted {
            warn!(
                missing = gone.len(), listed = self.leases.len(), grace = ?self.caution.grace,
                "the store suddenly lacks many leases, as after it was wiped or restored; their hosts are reached as before for now",
            );
            self.missing.extend(gone);
            self.missing_until = Some(now + self.caution.grace);
        }
        self.last = Some((listing.cluster_id, listing.revision));
        self.complete = true;
    }

    /// When leases that a list lacked will be given up; `None` if there are none.
    pub fn missing_until(&self) -> Option<Instant> {
        self.missing_until.filter(|_| !self.missing.is_empty())
    }

    /// Gives up the leases that a list lacked, once their time is over.
    pub fn expire(&mut self, now: Instant) {
        if self.missing_until().is_some_and(|until| until <= now) {
            warn!(
                leases = self.missing.len(),
                "hosts whose leases the store lost have not come back to it; giving them up"
            );
            self.missing.clear();
        }
    }

    /// Whether a complete list has ever been taken in. Before that, an absent lease means nothing.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// All leases that can be read, good and bad.
    pub fn readable(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter_map(|lease| lease.as_ref().ok())
    }

    /// Number of leases, good and bad.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is no lease at all.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Judges every lease. Older leases come first: of two that overlap, the one created later is bad.
    pub fn judge(&self, admission: &Admission) -> Judged<'_> {
        let mut standings: BTreeMap<&str, Standing> = BTreeMap::new();
        let mut by_age: Vec<(&str, &Lease)> = Vec::with_capacity(self.leases.len());
        for (key, lease) in &self.leases {
            match lease {
                Ok(lease) => by_age.push((key, lease)),
                Err(error) => {
                    let reason = QuarantineReason::Unreadable(error.clone());
                    standings.insert(key, Standing::Quarantined(reason));
                }
            }
        }
        by_age.sort_by_key(|(_, lease)| lease.create_revision);
        // Behind all that the store holds now: what is there wins over what was.
        by_age.extend(self.missing.iter().map(|(key, lease)| (key.as_str(), lease)));
        let mut taken = Taken::default();
        for (key, lease) in by_age {
            let standing = match admission.standing(lease) {
                Ok(Standing::Own) => Standing::Own,
                Ok(standing) => match taken.conflict(lease) {
                    Some(reason) => Standing::Quarantined(reason),
                    None => {
                        taken.insert(lease);
                        standing
                    }
                },
                Err(reason) => Standing::Quarantined(reason),
            };
            standings.insert(key, standing);
        }
        self.sort_out(standings)
    }

    fn put(&mut self, entry: &Entry) {
        self.missing.remove(&entry.key);
        self.leases.insert(entry.key.clone(), Lease::from_entry(entry));
    }

    fn sort_out(&self, mut standings: BTreeMap<&str, Standing>) -> Judged<'_> {
        let mut judged = Judged::default();
        for (key, lease) in &self.leases {
            let lease = lease.as_ref().ok();
            match (standings.remove(key.as_str()), lease) {
                (Some(Standing::Peer), Some(lease)) => judged.peers.push(lease),
                (Some(Standing::Unclaimed), Some(lease)) => judged.unclaimed.push(lease),
                (Some(Standing::Quarantined(reason)), lease) => {
                    judged.quarantined.push(Quarantined { key, lease, reason });
                }
                _ => {}
            }
        }
        for (key, lease) in &self.missing {
            if standings.remove(key.as_str()) == Some(Standing::Peer) {
                judged.peers.push(lease);
            }
        }
        judged
    }
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
            config: NetworkConfig::parse(br#"{"Network": "10.5.0.0/16"}"#).unwrap(),
            own: Some(OwnLease {
                subnets: "10.5.1.0/24".parse().unwrap(),
                addresses: ["192.168.64.11", "203.0.113.11"].map(|ip| ip.parse().unwrap()).into(),
                macs: PerFamily { v4: Some("02:00:00:00:00:01".parse().unwrap()), v6: None },
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

    fn set(entries: Vec<Entry>) -> LeaseSet {
        let mut set = LeaseSet::default();
        set.replace(&Listing { entries, revision: 100, cluster_id: 1 }, Instant::now());
        set
    }

    fn peers(judged: &Judged<'_>) -> Vec<String> {
        judged.peers.iter().map(|lease| lease.subnets.to_string()).collect()
    }

    #[test]
    fn good_peers_stand_beside_our_own_lease() {
        let set = set(vec![
            entry("10.5.1.0-24", &good(11), 1),
            entry("10.5.2.0-24", &good(12), 2),
            entry("10.5.3.0-24", &good(13), 3),
        ]);
        let judged = set.judge(&admission());
        assert_eq!(peers(&judged), ["10.5.2.0/24", "10.5.3.0/24"]);
        assert_eq!(judged.quarantined, []);
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
            ("10.5.1.128-25", good(25), "overlaps our own subnet 10.5.1.0/24"),
            ("10.5.2.128-25", good(26), "overlaps the older lease 10.5.2.0/24"),
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
                "public address 192.168.64.11 is our own",
            ),
            (
                "10.5.39.0-24",
                vxlan("203.0.113.11", "02:00:00:00:01:27"),
                "public address 203.0.113.11 is our own",
            ),
            (
                "10.5.40.0-24",
                vxlan("192.168.64.40", "02:00:00:00:01:0c"),
                "VTEP MAC 02:00:00:00:01:0c is that of the older lease 10.5.2.0/24",
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
                "VTEP MAC 02:00:00:00:00:01 is our own",
            ),
            ("10.5.38.0-24", good(38).replace("\"VNI\":1", "\"VNI\":2"), "VNI is 2, this network's is 1"),
        ];
        let mut entries: Vec<Entry> =
            cases.iter().zip(50..).map(|((key, value, _), revision)| entry(key, value, revision)).collect();
        entries.push(entry("10.5.2.0-24", &good(12), 2));
        entries.push(entry("10.5.99.0-24", &good(99), 99));
        let set = set(entries);
        let judged = set.judge(&admission());
        assert_eq!(peers(&judged), ["10.5.2.0/24", "10.5.99.0/24"]);
        for (key, _, reason) in &cases {
            let found =
                judged.quarantined.iter().find(|bad| bad.key == *key).map(|bad| bad.reason.to_string());
            assert_eq!(found.as_deref(), Some(*reason), "{key}");
        }
        assert_eq!(judged.quarantined.len(), cases.len());
    }

    #[test]
    fn one_host_may_hold_two_leases_with_one_mac() {
        let set = set(vec![entry("10.5.2.0-24", &good(12), 2), entry("10.5.3.0-24", &good(12), 3)]);
        assert_eq!(peers(&set.judge(&admission())), ["10.5.2.0/24", "10.5.3.0/24"]);
    }

    #[test]
    fn a_bad_lease_takes_no_place_from_a_younger_good_one() {
        let bad = entry("10.5.2.0-25", &vxlan("127.0.0.1", "02:00:00:00:01:0b"), 1);
        let set = set(vec![bad, entry("10.5.2.0-24", &good(12), 2)]);
        assert_eq!(peers(&set.judge(&admission())), ["10.5.2.0/24"]);
    }

    #[test]
    fn a_reservation_without_a_backend_waits_for_its_host() {
        let reservation = Entry {
            etcd_lease: None,
            ..entry("10.5.2.0-24", r#"{"PublicIP":"192.168.64.12","PublicIPv6":null}"#, 1)
        };
        let set = set(vec![reservation]);
        let judged = set.judge(&admission());
        assert_eq!((judged.peers.len(), judged.unclaimed.len(), judged.quarantined.len()), (0, 1, 0));
    }

    #[test]
    fn a_listing_replaces_and_a_change_updates() {
        let mut set = set(vec![entry("10.5.2.0-24", &good(12), 1), entry("10.5.3.0-24", &good(13), 2)]);
        set.apply(
            &WatchEvent::Changed(vec![
                Change::Put(entry("10.5.2.0-24", &good(42), 1)),
                Change::Delete { key: "10.5.3.0-24".to_owned() },
                Change::Put(entry("10.5.4.0-24", &good(14), 3)),
            ]),
            Instant::now(),
        );
        assert_eq!(peers(&set.judge(&admission())), ["10.5.2.0/24", "10.5.4.0/24"]);
        let moved = set.judge(&admission()).peers[0].attributes.public_ips.v4;
        assert_eq!(moved, Some("192.168.64.42".parse().unwrap()));
        set.replace(&Listing { entries: vec![], revision: 101, cluster_id: 1 }, Instant::now());
        assert!(set.is_empty() && set.is_complete());
    }

    fn listing(keys: &[u8], revision: i64, cluster_id: u64) -> Listing {
        let entries = keys.iter().map(|key| entry(&format!("10.5.{key}.0-24"), &good(*key), i64::from(*key)));
        Listing { entries: entries.collect(), revision, cluster_id }
    }

    fn known(set: &LeaseSet) -> Vec<String> {
        let mut peers = peers(&set.judge(&admission()));
        peers.sort();
        peers
    }

    #[test]
    fn a_list_that_lacks_a_few_leases_is_believed() {
        let (mut set, now) = (LeaseSet::default(), Instant::now());
        set.replace(&listing(&[2, 3, 4, 5], 100, 1), now);
        set.replace(&listing(&[2, 3], 101, 1), now);
        assert_eq!(known(&set), ["10.5.2.0/24", "10.5.3.0/24"]);
        assert_eq!(set.missing_until(), None);
    }

    #[test]
    fn a_list_that_lacks_most_leases_is_believed_after_the_grace_period() {
        let (mut set, now) = (LeaseSet::default(), Instant::now());
        set.replace(&listing(&[2, 3, 4], 100, 1), now);
        set.replace(&listing(&[4], 101, 1), now);
        assert_eq!(known(&set), ["10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24"]);
        let until = set.missing_until().unwrap();
        set.expire(until - Duration::from_secs(1));
        assert_eq!(known(&set).len(), 3);
        set.expire(until);
        assert_eq!(known(&set), ["10.5.4.0/24"]);
    }

    #[test]
    fn any_lease_that_another_cluster_or_an_earlier_time_lacks_is_held_until_its_host_is_back() {
        for after in [listing(&[2, 3, 4], 5, 1), listing(&[2, 3, 4], 101, 2)] {
            let (mut set, now) = (LeaseSet::default(), Instant::now());
            set.replace(&listing(&[2, 3, 4, 5], 100, 1), now);
            set.replace(&after, now);
            assert_eq!(known(&set).len(), 4);
            set.apply(&WatchEvent::Changed(vec![Change::Put(entry("10.5.5.0-24", &good(5), 6))]), now);
            assert_eq!((known(&set).len(), set.missing_until()), (4, None));
        }
    }

    #[test]
    fn what_the_store_holds_wins_over_what_it_lost() {
        let (mut set, now) = (LeaseSet::default(), Instant::now());
        set.replace(&listing(&[2], 100, 1), now);
        set.replace(&listing(&[], 1, 2), now);
        let half = Change::Put(entry("10.5.2.0-25", &good(9), 7));
        set.apply(&WatchEvent::Changed(vec![half]), now);
        assert_eq!(known(&set), ["10.5.2.0/25"]);
    }
}
