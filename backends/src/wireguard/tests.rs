//! Two hosts that exchange packets and messages in memory.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flan_kernel::netlink::SILENT_AFTER;
use flan_wireguard_keys::{PresharedKey, PrivateKey, PublicKey};
use proptest::prelude::*;

use super::ends::{Arrival, End, MTU, Message, settle};
use super::exchange::{Exchange, Unreachable};
use super::peer::PeerSettings;
use super::wire::{OVERHEAD, Wire};
use crate::userspace::counters::Counters;
use crate::userspace::packet::samples::{Sample, noise};
use crate::userspace::packet::{Hop, TCP, UDP, VnetHeader};
use crate::userspace::segmentation::Segments;

const INIT: u8 = 1;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Returns two hosts, each with the other for its peer. The subnets are those of [`Sample`]'s addresses.
fn pair() -> (End, End) {
    let one = End::new(1, at("192.168.64.11:51820"));
    let other = End::new(2, at("[fd00::12]:51820"));
    one.add(&other, &THEIRS);
    other.add(&one, &OURS);
    (one, other)
}

const OURS: [&str; 2] = ["10.5.1.0/24", "fd00:5:1::/48"];
const THEIRS: [&str; 2] = ["10.5.2.0/24", "fd00:5:2::/48"];

/// Returns a pair with a session, on which each has sent.
fn connected() -> (End, End) {
    let (mut one, mut other) = pair();
    let init = one.send(&packet(false, b"first")).unwrap();
    settle(&mut one, &mut other, init);
    (one, other)
}

/// Returns a UDP packet from our subnet to theirs.
fn packet(is_ipv6: bool, payload: &[u8]) -> Vec<u8> {
    between(is_ipv6, 1, 2, payload)
}

/// Returns a UDP packet from one subnet to another.
fn between(is_ipv6: bool, from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Sample::new(is_ipv6, UDP, payload).bytes();
    address(&mut bytes, from, to);
    bytes
}

fn address(bytes: &mut [u8], from: u8, to: u8) {
    let addresses: [IpAddr; 2] = if bytes[0] >> 4 == 6 {
        [format!("fd00:5:{from}::7").parse().unwrap(), format!("fd00:5:{to}::8").parse().unwrap()]
    } else {
        [[10, 5, from, 7].into(), [10, 5, to, 8].into()]
    };
    match addresses {
        [IpAddr::V4(from), IpAddr::V4(to)] => {
            bytes[12..20].copy_from_slice(&[from.octets(), to.octets()].concat());
        }
        [IpAddr::V6(from), IpAddr::V6(to)] => {
            bytes[8..40].copy_from_slice(&[from.octets(), to.octets()].concat());
        }
        _ => unreachable!(),
    }
}

/// Returns the only message, which must be encrypted data.
fn only(mut messages: Vec<Message>) -> Vec<u8> {
    let last = messages.pop().expect("a message");
    assert_eq!((messages.len(), last.1[0]), (0, DATA));
    last.1
}

fn kinds(messages: &[Message]) -> Vec<u8> {
    messages.iter().map(|(_, message)| message[0]).collect()
}

#[test]
fn what_waited_for_the_handshake_arrives_in_order_and_both_families_pass_both_ways() {
    let (mut one, mut other) = pair();
    let sent: Vec<Vec<u8>> = (0..5).map(|number| packet(number % 2 == 1, &[number; 40])).collect();
    let mut messages = Vec::new();
    for packet in &sent {
        messages.extend(one.send(packet).unwrap());
    }
    assert_eq!((messages.len(), messages[0].0, messages[0].1[0]), (1, other.address, INIT));
    let [_, arrived] = settle(&mut one, &mut other, messages);
    assert_eq!(arrived, sent);
    for is_ipv6 in [false, true] {
        let back = between(is_ipv6, 2, 1, b"back");
        let messages = other.send(&back).unwrap();
        assert_eq!(settle(&mut one, &mut other, messages), [vec![back], vec![]]);
    }
    assert_eq!((one.totals().handshakes, other.totals().handshakes), (1, 1));
}

#[test]
fn what_waited_at_the_side_that_was_called_leaves_with_the_first_packet_from_the_other() {
    let (mut one, mut other) = pair();
    // Its own handshake gets lost.
    other.send(&between(false, 2, 1, b"waits")).unwrap();
    let init = one.send(&packet(false, b"first")).unwrap();
    let [back, there] = settle(&mut one, &mut other, init);
    assert_eq!((back, there), (vec![between(false, 2, 1, b"waits")], vec![packet(false, b"first")]));
}

#[test]
fn a_large_packet_leaves_as_messages_of_one_size_and_its_time_to_live_stays() {
    let (mut one, mut other) = connected();
    let sample = Sample { ttl: 1, ..Sample::new(true, TCP, &noise(10_000, 1)) };
    let mut large = sample.super_packet(1360);
    address(&mut large[VnetHeader::LEN..], 1, 2);
    let messages = one.send_large(&large).unwrap();
    assert_eq!(messages.len(), 8);
    assert!(messages[..7].iter().all(|(_, message)| message.len() == MTU + OVERHEAD));
    let [_, arrived] = settle(&mut one, &mut other, messages);
    assert_eq!(arrived.iter().map(|packet| packet.len() - 60).sum::<usize>(), 10_000);
    assert!(arrived.iter().all(|packet| packet[7] == 1));
}

#[test]
fn a_packet_is_padded_to_sixteen_bytes_but_not_beyond_the_mtu() {
    let (mut one, mut other) = connected();
    let mut length =
        |payload: usize| only(one.send(&packet(false, &vec![7; payload])).unwrap()).len() - OVERHEAD;
    assert_eq!([length(0), length(4), length(5), length(MTU - 28)], [32, 32, 48, MTU]);
    let message = only(one.send(&packet(false, b"odd")).unwrap());
    assert_eq!(other.take(one.address, &message, message.len()).packets, [packet(false, b"odd")]);
}

#[test]
fn a_message_that_arrives_twice_passes_once() {
    let (mut one, mut other) = connected();
    let message = only(one.send(&packet(false, b"once")).unwrap());
    let twice = [&message[..], &message].concat();
    assert_eq!(other.take(one.address, &twice, message.len()).packets, [packet(false, b"once")]);
    assert_eq!(other.totals().dropped_replayed, 1);
}

#[test]
fn a_packet_from_addresses_that_are_not_the_peers_is_dropped() {
    let (mut one, mut other) = connected();
    // Those of its own host, of another peer, of nobody.
    other.add(&End::new(3, at("192.168.64.13:51820")), &["10.5.3.0/24", "fd00:5:3::/48"]);
    for (is_ipv6, from) in [(false, 2), (false, 3), (false, 9), (true, 2), (true, 3), (true, 9)] {
        let message = only(one.send(&between(is_ipv6, from, 2, b"foreign")).unwrap());
        assert_eq!(other.take(one.address, &message, message.len()), Arrival::default());
    }
    assert_eq!(other.totals().dropped_not_allowed, 6);
}

#[test]
fn a_destination_without_peer_or_endpoint_is_unreachable() {
    let (mut one, _) = pair();
    assert_eq!(one.send(&between(false, 1, 9, b"nobody")), None);
    assert_eq!(one.totals().dropped_no_peer, 1);
    let allowed = ["10.5.9.0/24".parse().unwrap()].into();
    one.peers.set(PrivateKey::from([9; 32]).public(), PeerSettings { allowed, ..PeerSettings::default() });
    assert_eq!(one.send(&between(false, 1, 9, b"nowhere")), None);
    assert_eq!(one.totals().dropped_no_endpoint, 1);
}

#[test]
fn answers_go_where_the_last_authentic_message_came_from() {
    let (mut one, mut other) = connected();
    let moved = at("203.0.113.5:4000");
    let message = only(one.send(&packet(false, b"moved")).unwrap());
    other.take(moved, &message, message.len());
    assert_eq!(other.send(&between(false, 2, 1, b"back")).unwrap()[0].0, moved);
    // Neither a forged message nor one that is repeated takes the peer elsewhere.
    let mut forged = only(one.send(&packet(false, b"forged")).unwrap());
    *forged.last_mut().unwrap() ^= 1;
    for bad in [forged, message] {
        other.take(at("203.0.113.6:1"), &bad, bad.len());
    }
    assert_eq!(other.peers.reports()[0].endpoint, Some(moved));
    assert_eq!((other.totals().dropped_undecryptable, other.totals().dropped_replayed), (1, 1));
    // Settings that name the same endpoint as before leave it; others move it.
    other.add(&one, &OURS);
    assert_eq!(other.peers.reports()[0].endpoint, Some(moved));
    one.address = at("192.168.64.99:51820");
    other.add(&one, &OURS);
    assert_eq!(other.peers.reports()[0].endpoint, Some(one.address));
    // One that fell silent is looked for where its lease says.
    let message = only(one.send(&packet(false, b"moved again")).unwrap());
    other.take(moved, &message, message.len());
    other.tick(Instant::now() + SILENT_AFTER / 2);
    assert_eq!(other.peers.reports()[0].endpoint, Some(moved));
    other.tick(Instant::now() + SILENT_AFTER);
    assert_eq!(other.peers.reports()[0].endpoint, Some(one.address));
}

#[test]
fn a_change_of_addresses_keeps_the_session_and_counts_at_once() {
    let (mut one, mut other) = connected();
    one.add(&other, &["10.5.3.0/24"]);
    assert_eq!(one.send(&packet(false, b"gone")), None);
    let message = only(one.send(&between(false, 1, 3, b"there")).unwrap());
    assert_eq!(other.take(one.address, &message, message.len()).packets, [between(false, 1, 3, b"there")]);
}

#[test]
fn a_removed_peer_is_neither_sent_to_nor_heard() {
    let (mut one, mut other) = connected();
    let message = only(one.send(&packet(false, b"late")).unwrap());
    other.peers.remove(&one.key);
    assert_eq!(other.take(one.address, &message, message.len()), Arrival::default());
    assert_eq!(other.send(&between(false, 2, 1, b"back")), None);
    assert_eq!((other.totals().dropped_unknown_session, other.totals().dropped_no_peer), (1, 1));
    // Nor may it begin anew.
    let mut again = End::new(1, one.address);
    again.add(&other, &THEIRS);
    let init = again.send(&packet(false, b"again")).unwrap();
    assert_eq!(settle(&mut again, &mut other, init), [vec![], vec![] as Vec<Vec<u8>>]);
    assert_eq!(other.totals().dropped_handshake, 1);
}

#[test]
fn a_thread_that_still_sees_a_removed_peer_makes_no_session_with_it() {
    let (mut one, other) = pair();
    let init = one.send(&packet(false, b"first")).unwrap().remove(0).1;
    let (table, identity) = (other.peers.table(), other.peers.identity());
    other.peers.remove(&one.key);
    let counters = Counters::default();
    let exchange =
        Exchange { table: &table, identity: &identity, counters: &counters, mtu: MTU, now: Instant::now() };
    let mut wire = Wire::default();
    exchange.inbound(one.address, &init, init.len(), &mut &mut [][..], &mut wire, |_| panic!("a packet"));
    let mut back = [&[0; VnetHeader::LEN][..], &between(false, 2, 1, b"back")].concat();
    let sent = exchange.outbound(&mut Segments::new(Hop::IsFree), &mut back, VnetHeader::LEN, &mut wire);
    assert_eq!(sent, Err(Unreachable));
    assert!(wire.is_empty());
}

#[test]
fn a_host_with_another_key_begins_anew() {
    let (mut one, mut other) = connected();
    let new = PrivateKey::from([3; 32]);
    let old = only(other.send(&between(false, 2, 1, b"old")).unwrap());
    one.peers.set_private_key(&new);
    assert_eq!(one.take(other.address, &old, old.len()), Arrival::default());
    assert_eq!(one.totals().dropped_unknown_session, 1);
    other.peers.remove(&one.key);
    one.key = new.public();
    other.add(&one, &OURS);
    let init = one.send(&packet(false, b"anew")).unwrap();
    assert_eq!(kinds(&init), [INIT]);
    assert_eq!(settle(&mut one, &mut other, init)[1], [packet(false, b"anew")]);
}

/// Returns the settings of a peer with a preshared key.
fn with_secret(peer: &End, allowed: &[&str], secret: u8) -> PeerSettings {
    PeerSettings {
        endpoint: Some(peer.address),
        preshared_key: Some(PresharedKey::from([secret; 32])),
        allowed: allowed.iter().map(|network| network.parse().unwrap()).collect(),
        ..PeerSettings::default()
    }
}

#[test]
fn a_session_goes_on_until_both_sides_have_the_new_preshared_key() {
    let (mut one, mut other) = connected();
    one.peers.set(other.key, with_secret(&other, &THEIRS, 5));
    // The handshake with the new key fails, and the packet goes with the old one.
    let messages = one.send(&packet(false, b"meanwhile")).unwrap();
    assert_eq!(kinds(&messages), [INIT, DATA]);
    assert_eq!(settle(&mut one, &mut other, messages)[1], [packet(false, b"meanwhile")]);
    assert_eq!((one.totals().handshakes, one.totals().dropped_handshake), (1, 1));
    let back = other.send(&between(false, 2, 1, b"back")).unwrap();
    assert_eq!(settle(&mut one, &mut other, back)[0], [between(false, 2, 1, b"back")]);
    // Now the other side has it, too.
    other.peers.set(one.key, with_secret(&one, &OURS, 5));
    let messages = other.send(&between(false, 2, 1, b"both")).unwrap();
    assert_eq!(settle(&mut one, &mut other, messages)[0], [between(false, 2, 1, b"both")]);
    assert_eq!((one.totals().handshakes, other.totals().handshakes), (2, 2));
    let message = one.send(&packet(false, b"new")).unwrap();
    assert_eq!(kinds(&message), [DATA]);
    assert_eq!(settle(&mut one, &mut other, message)[1], [packet(false, b"new")]);
}

#[test]
fn hosts_with_unequal_preshared_keys_do_not_meet() {
    let (mut one, mut other) = pair();
    one.peers.set(other.key, with_secret(&other, &THEIRS, 5));
    other.peers.set(one.key, with_secret(&one, &OURS, 6));
    let init = one.send(&packet(false, b"first")).unwrap();
    assert_eq!(settle(&mut one, &mut other, init), [vec![], vec![] as Vec<Vec<u8>>]);
    assert_eq!((one.totals().handshakes, other.totals().handshakes), (0, 0));
}

#[test]
fn a_flood_of_handshakes_is_answered_with_cookies_and_who_shows_one_gets_in() {
    let (mut one, mut other) = pair();
    let init = one.send(&packet(false, b"first")).unwrap();
    let (_, first) = &init[0];
    // One is good, and all are work, until there are too many in a second.
    let arrival = other.take(at("203.0.113.66:9"), &first.repeat(600), first.len());
    let cookies = kinds(&arrival.answers).iter().filter(|kind| **kind == COOKIE).count();
    assert_eq!((arrival.answers.len(), cookies), (101, 100));
    assert_eq!((other.totals().cookies_sent, other.totals().dropped_handshake), (100, 499));
    // A third host gets a cookie, too. It is as good as no answer; the next handshake shows it, and is answered.
    let mut third = End::new(3, at("192.168.64.13:51820"));
    third.add(&other, &THEIRS);
    other.add(&third, &["10.5.3.0/24"]);
    let init = third.send(&between(false, 3, 2, b"third")).unwrap();
    let Arrival { answers, .. } = other.take(third.address, &init[0].1, init[0].1.len());
    assert_eq!(kinds(&answers), [COOKIE]);
    let (_, cookie) = &answers[0];
    assert_eq!(third.take(other.address, cookie, cookie.len()), Arrival::default());
    // boringtun repeats it after five seconds, which are not ours to shorten.
    let (mut again, to) = (vec![0; 148], other.address);
    let peer = third.peers.all().remove(0);
    peer.lock().tunnels.existing().unwrap().tunn.format_handshake_initiation(&mut again, true);
    assert_eq!(settle(&mut third, &mut other, vec![(to, again)])[1], [between(false, 3, 2, b"third")]);
}

#[test]
fn a_path_is_kept_open_at_the_interval_that_was_set() {
    let (mut one, mut other) = pair();
    let now = Instant::now();
    let keepalive = |seconds| PeerSettings { keepalive: Some(seconds), ..with_secret(&other, &THEIRS, 0) };
    one.peers.set(other.key, PeerSettings { preshared_key: None, ..keepalive(25) });
    // The first one begins the session.
    let init = one.tick(now + Duration::from_millis(1));
    assert_eq!(kinds(&init), [INIT]);
    settle(&mut one, &mut other, init);
    assert_eq!(one.tick(now + Duration::from_secs(24)), []);
    let kept = one.tick(now + Duration::from_millis(25_002));
    assert_eq!((kinds(&kept), kept[0].1.len()), (vec![DATA], OVERHEAD));
    assert_eq!(settle(&mut one, &mut other, kept), [vec![], vec![] as Vec<Vec<u8>>]);
    assert_eq!(other.totals().dropped_malformed, 0);
    // Another interval counts at once, on the same session; none is none.
    one.add(&other, &THEIRS);
    assert_eq!(one.tick(now + Duration::from_secs(100)), []);
}

#[test]
fn packets_beyond_what_may_wait_are_counted() {
    let (mut one, mut other) = pair();
    let mut messages = Vec::new();
    for number in 0..300_u16 {
        messages.extend(one.send(&packet(false, &number.to_be_bytes())).unwrap());
    }
    assert_eq!((kinds(&messages), one.totals().dropped_full), (vec![INIT], 44));
    assert_eq!(settle(&mut one, &mut other, messages)[1].len(), 256);
    assert_eq!(kinds(&one.send(&packet(false, b"next")).unwrap()), [DATA]);
}

#[test]
fn a_report_says_when_where_and_how_much() {
    let (one, other) = pair();
    assert_eq!(one.peers.reports()[0].latest_handshake, None);
    let (one, other) = {
        drop((one, other));
        connected()
    };
    let reports = [&one.peers.reports()[0], &other.peers.reports()[0]].map(Clone::clone);
    assert_eq!((reports[0].key, reports[0].endpoint), (other.key, Some(other.address)));
    assert!(reports.iter().all(|report| report.latest_handshake.is_some_and(|ago| ago.as_secs() < 60)));
    assert_eq!(reports[0].sent_bytes, reports[1].received_bytes);
    // The first message of the handshake, an empty packet, and one with 33 bytes that became 48.
    assert_eq!(reports[0].sent_bytes, 148 + 32 + 48 + 32);
    assert_eq!(reports[0].allowed, THEIRS.iter().map(|network| network.parse().unwrap()).collect());
}

#[test]
fn addresses_belong_to_the_last_who_claimed_them_until_it_gives_them_up() {
    let (mut one, other) = pair();
    let third = End::new(3, at("192.168.64.13:51820"));
    let to =
        |one: &mut End| one.send(&packet(false, b"whose")).unwrap_or_default().first().map(|(to, _)| *to);
    one.add(&third, &["10.5.2.0/24"]);
    assert_eq!(to(&mut one), Some(third.address));
    // The longest prefix counts first.
    let fourth = End::new(4, at("192.168.64.14:51820"));
    one.add(&fourth, &["10.5.2.8/32"]);
    assert_eq!(to(&mut one), Some(fourth.address));
    one.peers.remove(&fourth.key);
    one.peers.remove(&third.key);
    assert_eq!(to(&mut one), Some(other.address));
    one.peers.replace_all([]);
    assert_eq!((to(&mut one), one.peers.reports().len()), (None, 0));
}

#[test]
fn a_network_whose_host_bits_are_set_is_the_network() {
    let (mut one, other) = pair();
    one.add(&other, &["10.5.2.9/24", "10.5.2.0/24"]);
    assert!(one.send(&packet(false, b"there")).is_some());
    one.add(&other, &["10.5.2.0/24"]);
    assert!(one.send(&packet(false, b"there")).is_some());
}

#[test]
fn ten_thousand_peers_are_there_before_a_tunnel_for_each_could_be_made() {
    let one = End::new(1, at("192.168.64.11:51820"));
    let begun = Instant::now();
    for number in 0..10_000_u32 {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let allowed = [IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + number)).into()].into();
        one.peers.set(PublicKey::from(key), PeerSettings { allowed, ..PeerSettings::default() });
    }
    let took = begun.elapsed();
    // Sixteen tunnels, of as many peers, in the same build.
    let begun = Instant::now();
    let identity = one.peers.identity();
    for peer in one.peers.all().iter().take(16) {
        peer.lock().tunnels.current(&identity, None);
    }
    assert!(took < begun.elapsed() * 10_000 / 16, "{took:?}");
    assert_eq!(one.peers.reports().len(), 10_000);
}

#[test]
fn a_change_copies_no_table_while_nobody_reads_it() {
    let (one, _) = pair();
    let mut tables = HashSet::new();
    for number in 0..100_u8 {
        let third = End::new(100 + number, at("192.168.64.13:51820"));
        one.add(&third, &[]);
        tables.insert(Arc::as_ptr(&one.peers.table()));
    }
    assert_eq!(tables.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_bytes_bring_no_packet_and_harm_no_session(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        kind in 0..6_u8, size in 1..200_usize, flips in proptest::collection::vec((0..200_usize, 1..=255_u8), 1..4),
    ) {
        let (mut one, mut other) = connected();
        let from = at("203.0.113.66:9");
        let mut typed = bytes.clone();
        if typed.len() >= 4 {
            typed[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        let genuine = only(one.send(&packet(false, &[7; 100])).unwrap());
        let mut damaged = genuine.clone();
        for (at, flip) in &flips {
            let at = at % damaged.len();
            damaged[at] ^= flip;
        }
        for hostile in [bytes, typed, damaged.clone()] {
            if hostile == genuine {
                continue;
            }
            let arrival = other.take(from, &hostile, size.max(hostile.len() / 64));
            prop_assert_eq!(arrival.packets.len(), 0);
            prop_assert_eq!(arrival.answers, vec![]);
        }
        prop_assert_eq!(other.take(one.address, &genuine, genuine.len()).packets.len(), 1);
        prop_assert_eq!(other.peers.reports()[0].endpoint, Some(one.address));
    }

    #[test]
    fn any_packet_of_the_device_is_sent_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (mut one, _) = connected();
        let _ = one.send_large(&bytes);
        let _ = one.send(&bytes);
    }
}
