use super::*;
use crate::config::NetworkConfig;
use crate::entry::Entry;
use crate::family::PerFamily;
use crate::identity::Identity;
use crate::samples::{self, entry};

/// Host 10.5.1.0/24 of 10.5.0.0/16, at 192.168.64.11 with MAC 02:00:00:00:00:01.
fn admission() -> Admission {
    Admission {
        config: samples::config(),
        own: Some(OwnLease {
            subnets: "10.5.1.0/24".parse().unwrap(),
            addresses: ["192.168.64.11", "203.0.113.11"].map(|ip| ip.parse().unwrap()).into(),
            identities: PerFamily { v4: Some(Identity::Mac("02:00:00:00:00:01".parse().unwrap())), v6: None },
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

fn empty() -> LeaseSet {
    LeaseSet::new(admission(), Caution::default())
}

fn set(entries: Vec<Entry>) -> LeaseSet {
    let mut set = empty();
    set.replace(Listing::of(entries, 100, 1), Instant::now());
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
        ("10.5.21.0-24", "{".to_owned(), "unreadable value: EOF while parsing an object at line 1 column 1"),
        ("10.6.22.0-24", good(22), "10.6.22.0/24 is outside Network 10.5.0.0/16"),
        ("10.5.128.0-17", good(23), "10.5.128.0/17 is larger than this network's subnets of length /24"),
        ("fd00::-64", good(24), "the network uses IPv4, the lease IPv6"),
        (
            "10.5.1.128-25",
            good(25),
            "192.168.64.25 holds it, and it overlaps our own subnet 10.5.1.0/24; release one of the two with flanctl subnets release, and restart fland and Docker there",
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
            "public address 192.168.64.11 is our own, but 192.168.64.11 holds the lease: two machines have one address, or that machine no longer exists; give one of them another address or --public-ip, or delete the lease with flanctl subnets release",
        ),
        (
            "10.5.39.0-24",
            vxlan("203.0.113.11", "02:00:00:00:01:27"),
            "public address 203.0.113.11 is our own, but 203.0.113.11 holds the lease: two machines have one address, or that machine no longer exists; give one of them another address or --public-ip, or delete the lease with flanctl subnets release",
        ),
        (
            "10.5.40.0-24",
            vxlan("192.168.64.40", "02:00:00:00:01:0c"),
            "VTEP MAC 02:00:00:00:01:0c of 192.168.64.40 is that of the older lease 10.5.2.0/24: one machine is a clone of the other; delete the VXLAN device of one of them (ip link del flannel.VNI), give it a --node-id of its own, and restart fland there",
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
            "VTEP MAC 02:00:00:00:00:01 is our own, but 192.168.64.37 holds the lease: one machine is a clone of the other; delete the VXLAN device of one of them (ip link del flannel.VNI), give it a --node-id of its own, and restart fland there",
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
fn where_addresses_alone_tell_hosts_apart_what_another_backend_wrote_makes_nobody_a_copy() {
    let config = NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}"#).unwrap();
    let mut set = LeaseSet::new(Admission { config, own: None }, Caution::default());
    let leases = [("10.5.2.0-24", "192.168.64.12"), ("10.5.3.0-24", "192.168.64.13")];
    let entry = |(key, ip)| entry(key, &vxlan(ip, "02:00:00:00:01:01"), 2);
    set.replace(Listing::of(leases.map(entry).into(), 9, 1), Instant::now());
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
        "it is a former lease of this host, which holds 10.5.1.0/24 now; it expires by itself, or at once with flanctl subnets release"
    );
    let named =
        "public address 192.168.64.11 is our own, but 192.168.64.11 (h1), node id b holds the lease: ";
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
    let put = |value: &str| KeyChange::put(Entry { mod_revision: 9, ..entry("10.5.2.0-24", value, 1) });
    set.apply(WatchEvent::Changed(vec![put(&claimed)]), Instant::now());
    assert!(set.take_changes().is_empty());
    assert_eq!(set.peers().next().unwrap().mod_revision, 9);
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
fn what_the_store_says_of_our_own_key_is_reported_once() {
    let mut set = set(vec![entry("10.5.1.0-24", &good(11), 7), entry("10.5.2.0-24", &good(12), 8)]);
    assert_eq!((set.take_own_key(), set.take_own_key()), (Some(Some(7)), None));
    let put = |key: &str, value: &str, revision| KeyChange::put(entry(key, value, revision));
    let delete = |key: &str| KeyChange::Delete { key: key.to_owned() };
    for (change, reported) in [
        (put("10.5.2.0-24", &good(22), 9), None),
        (put("10.5.1.0-25", &good(31), 10), None),
        (delete("10.5.1.0-25"), None),
        (put("10.5.1.0-24", &good(66), 11), Some(Some(11))),
        (put("10.5.1.0-24", "{", 12), Some(Some(12))),
        (delete("10.5.1.0-24"), Some(None)),
    ] {
        set.apply(WatchEvent::Changed(vec![change.clone()]), Instant::now());
        assert_eq!(set.take_own_key(), reported, "{change:?}");
    }
    set.replace(listing(&[1, 2], 101, 1), Instant::now());
    assert_eq!(set.take_own_key(), Some(Some(1)));
    set.replace(listing(&[2], 102, 1), Instant::now());
    assert_eq!(set.take_own_key(), Some(None));
    set.set_own(
        set.admission().own.clone().map(|own| OwnLease { subnets: "10.5.9.0/24".parse().unwrap(), ..own }),
    );
    set.apply(WatchEvent::Changed(vec![delete("10.5.1.0-24")]), Instant::now());
    assert_eq!(set.take_own_key(), None);
}

#[test]
fn a_listing_replaces_and_a_change_updates() {
    let mut set = set(vec![entry("10.5.2.0-24", &good(12), 1), entry("10.5.3.0-24", &good(13), 2)]);
    set.apply(
        WatchEvent::Changed(vec![
            KeyChange::put(entry("10.5.2.0-24", &good(42), 1)),
            KeyChange::Delete { key: "10.5.3.0-24".to_owned() },
            KeyChange::put(entry("10.5.4.0-24", &good(14), 3)),
        ]),
        Instant::now(),
    );
    assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.4.0/24"]);
    let moved = set.peers().next().unwrap().attributes.public_ips.v4;
    assert_eq!(moved, Some("192.168.64.42".parse().unwrap()));
    set.replace(Listing::of(vec![], 101, 1), Instant::now());
    assert!(set.is_empty() && set.is_complete());
}

#[test]
fn a_lease_that_changed_while_nobody_watched_is_seen_in_the_next_list() {
    let mut set = set(vec![entry("10.5.2.0-24", &good(12), 1)]);
    let _ = set.take_changes();
    let moved = Listing::of(vec![entry("10.5.2.0-24", &good(42), 2)], 101, 1);
    set.replace(moved, Instant::now());
    let ip = set.peers().next().unwrap().attributes.public_ips.v4;
    assert_eq!(ip, Some("192.168.64.42".parse().unwrap()));
    assert!(!set.take_changes().is_empty());
}

fn listing(keys: &[u8], revision: i64, cluster_id: u64) -> Listing<Lease> {
    let entries = keys.iter().map(|key| entry(&format!("10.5.{key}.0-24"), &good(*key), i64::from(*key)));
    Listing::of(entries.collect(), revision, cluster_id)
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
        set.apply(WatchEvent::Changed(vec![KeyChange::put(entry("10.5.5.0-24", &good(5), 6))]), now);
        assert_eq!((peers(&set).len(), set.missing_until()), (4, None));
    }
}

#[test]
fn what_the_store_holds_wins_over_what_it_lost() {
    let (mut set, now) = (empty(), Instant::now());
    set.replace(listing(&[2], 100, 1), now);
    set.replace(listing(&[], 1, 2), now);
    let half = KeyChange::put(entry("10.5.2.0-25", &good(9), 7));
    set.apply(WatchEvent::Changed(vec![half]), now);
    assert_eq!(peers(&set), ["10.5.2.0/25"]);
}

#[test]
fn a_renewal_is_no_change_and_what_comes_and_goes_between_two_looks_is_none() {
    let mut set = set(vec![entry("10.5.2.0-24", &good(12), 1), entry("10.5.1.0-24", &good(11), 2)]);
    assert_eq!(set.take_changes().peers.len(), 1);
    let renewed = Entry { mod_revision: 9, etcd_lease: Some(8), ..entry("10.5.2.0-24", &good(12), 1) };
    let guest = entry("10.5.3.0-24", &good(13), 10);
    set.apply(WatchEvent::Changed(vec![KeyChange::put(renewed), KeyChange::put(guest)]), Instant::now());
    set.apply(WatchEvent::Changed(vec![KeyChange::Delete { key: "10.5.3.0-24".to_owned() }]), Instant::now());
    assert!(set.take_changes().is_empty());
    assert_eq!(set.peers().next().unwrap().mod_revision, 9);
}

/// Returns a walk over all of them for each one would take minutes.
#[test]
fn thousands_of_leases_in_one_conflict_are_judged_in_one_walk() {
    let one_mac = |host: u32| {
        let key = format!("10.{}.{}.0-24", 4 + (host >> 8), host & 255);
        let ip = format!("192.168.{}.{}", host >> 8, host & 255);
        entry(&key, &vxlan(&ip, "02:00:00:00:01:01"), i64::from(host))
    };
    let config = NetworkConfig::parse(br#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#).unwrap();
    let mut set = LeaseSet::new(Admission { config, own: None }, Caution::default());
    let entries = (1..10_000).map(one_mac).collect();
    set.apply(WatchEvent::Listed(Listing::of(entries, 100, 1)), Instant::now());
    assert_eq!((peers(&set), set.quarantined().count()), (vec!["10.4.1.0/24".to_owned()], 9_998));
    let oldest = KeyChange::Delete { key: "10.4.1.0-24".to_owned() };
    set.apply(WatchEvent::Changed(vec![oldest]), Instant::now());
    assert_eq!(peers(&set), ["10.4.2.0/24"]);
    assert!(set.quarantined().all(|bad| bad.reason.to_string().contains("older lease 10.4.2.0/24")));
}

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

/// Returns a set of a wireguard network in this mode, whose own lease has the address 203.0.113.11.
fn wireguard_set(mode: &str, leases: &[(&str, &str)]) -> LeaseSet {
    let json = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"wireguard","Mode":"{mode}"}}}}"#);
    let own = OwnLease {
        subnets: "10.5.1.0/24".parse().unwrap(),
        addresses: ["203.0.113.11".parse().unwrap()].into(),
        identities: PerFamily::default(),
        node_id: Some("ours".into()),
    };
    let config = NetworkConfig::parse(json.as_bytes()).unwrap();
    let mut set = LeaseSet::new(Admission { config, own: Some(own) }, Caution::default());
    let entries =
        leases.iter().zip(2..).map(|((key, value), revision)| entry(key, value, revision)).collect();
    set.apply(WatchEvent::Listed(Listing::of(entries, 9, 1)), Instant::now());
    set
}

fn wireguard(addresses: &str, key: &str) -> String {
    format!(r#"{{{addresses},"BackendType":"wireguard","BackendData":{{"PublicKey":"{key}"}}}}"#)
}

#[test]
fn where_keys_tell_hosts_apart_they_may_share_an_address() {
    let other = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";
    let behind = |key: &str| wireguard(r#""PublicIP":"203.0.113.11""#, key);
    let zero = wireguard(r#""PublicIP":"192.168.64.12""#, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let (one, two) = (behind(KEY), behind(other));
    let set =
        wireguard_set("separate", &[("10.5.2.0-24", &one), ("10.5.3.0-24", &two), ("10.5.4.0-24", &zero)]);
    assert_eq!(peers(&set), ["10.5.2.0/24", "10.5.3.0/24"]);
    let reason = set.quarantined().next().unwrap().reason.to_string();
    assert!(reason.ends_with("= is all zeros, which no key is"), "{reason}");
}

#[test]
fn two_machines_with_one_key_are_clones_by_the_addresses_that_packets_go_to() {
    let at = |ip: &str| wireguard(&format!(r#""PublicIP":"0.0.0.0","PublicIPv6":"{ip}""#), KEY);
    let (one, two, mapped) = (at("fd64::12"), at("fd64::13"), at("::ffff:192.168.64.12"));
    let set =
        wireguard_set("ipv6", &[("10.5.2.0-24", &one), ("10.5.3.0-24", &two), ("10.5.4.0-24", &mapped)]);
    assert_eq!(peers(&set), ["10.5.2.0/24"]);
    let reasons: Vec<String> = set.quarantined().map(|bad| bad.reason.to_string()).collect();
    assert!(
        reasons.iter().any(|reason| reason.contains("is that of the older lease 10.5.2.0/24")),
        "{reasons:?}"
    );
    assert!(
        reasons.iter().any(|reason| reason.contains("192.168.64.12 is not a usable host address")),
        "{reasons:?}"
    );
}

#[test]
fn a_host_with_more_leases_than_any_needs_keeps_the_oldest_and_costs_nobody_else() {
    let crowd = (0..300).map(|number| (format!("10.5.{}.{}-32", 10 + number / 100, number % 100), number));
    let mut entries: Vec<Entry> = crowd.map(|(key, age)| entry(&key, &good(20), 10 + age)).collect();
    entries.push(entry("10.5.2.0-24", &good(12), 1000));
    let set = set(entries);
    assert_eq!(set.peer_count(), 256 + 1);
    assert!(peers(&set).contains(&"10.5.2.0/24".to_owned()));
    let bad = set.quarantined().next().unwrap();
    assert_eq!(
        (bad.key, bad.reason.to_string().as_str()),
        (
            "10.5.12.56-32",
            "VTEP MAC 02:00:00:00:01:14 has 256 older leases; release those that its host no longer holds with \
             flanctl subnets release"
        )
    );
}
