//! Received packets go to the TUN each in one write, and a merged one can be cut into them again.

use std::collections::{HashMap, VecDeque};

use flan_backends::udp::fuzz::{Merger, Splitter, Written};

use crate::flows::Case;
use crate::packet::{Layout, TCP, UDP, assert_forwarded, checksum, double_word, is_right, word};

/// The bit of IPv4's fragment word that says "don't fragment".
const DONT_FRAGMENT: u16 = 0x4000;
/// Protocols that are no flow, so that nothing is ordered by them: ICMP, GRE, ESP, ICMPv6, SCTP.
const UNRELATED: [u8; 5] = [1, 47, 50, 58, 132];

/// `bytes` are packets in the form of [`Case`].
pub fn check(bytes: &[u8]) {
    let Some(Case { merge_tcp, merge_udp, packets: received }) = Case::read(bytes) else { return };
    let mut merger = Merger::new(merge_tcp, merge_udp);
    let mut packets = received.clone();
    let merged = merger.merge(&mut packets);

    let mut forwarded = Vec::new();
    for ((before, after), taken) in received.iter().zip(packets).zip(&merged.taken) {
        let lives = Layout::of(before).is_some_and(|layout| before[layout.ttl_at] > 1);
        assert_eq!(*taken, lives, "taken or refused against the rules: {before:02x?}");
        if *taken {
            assert_forwarded(before, &after);
            forwarded.push(after);
        } else {
            assert_eq!(*before, after, "refused, and changed");
        }
    }

    let mut wire = Vec::new();
    for write in &merged.writes {
        if write.count == 1 {
            assert_eq!(write.pieces, 0, "pieces of a packet that was not merged");
            assert!(
                write.header == [0; 10] || is_left_to_a_card(&write.packet),
                "header of a packet that was complete: {:02x?}",
                write.packet
            );
            wire.push(Wire { packet: write.packet.clone(), was_merged: false });
        } else {
            check_merged(write, merge_tcp, merge_udp);
            wire.extend(cut_again(write));
        }
    }
    check_order(&forwarded, &wire);

    let mut packets = received.clone();
    assert!(merger.merge(&mut packets) == merged, "the same batch came out otherwise the second time");
}

/// Returns whether the checksum field holds the sum of the pseudo-header alone.
fn is_left_to_a_card(packet: &[u8]) -> bool {
    let Some(layout) = Layout::of(packet) else { return false };
    let field = layout.header_len + layout.checksum_offset();
    let sum = !checksum(&layout.pseudo_header(packet));
    packet.get(field..field + 2) == Some(&sum.to_be_bytes()[..])
}

/// A packet that came out.
struct Wire {
    packet: Vec<u8>,
    was_merged: bool,
}

/// Checks what cutting it again does not show, but the kernel reads.
fn check_merged(write: &Written, merge_tcp: bool, merge_udp: bool) {
    let packet = &write.packet;
    let layout = Layout::of(packet).expect("merged into what is no whole IP packet");
    let headers_len = layout.headers_len(packet).expect("merged without a whole header");
    let at = layout.header_len;
    assert_eq!(layout.len, packet.len(), "length of a merged packet");
    assert!((2..=64).contains(&write.count) && write.pieces == write.count, "{} packets", write.count);
    assert!(if layout.protocol == TCP { merge_tcp } else { merge_udp }, "merged what was not asked for");
    assert!(!layout.is_ipv4 || checksum(&packet[..at]) == 0, "header checksum of a merged packet");
    if layout.protocol == UDP {
        assert_eq!(usize::from(word(packet, at + 4)), packet.len() - at, "length in the UDP header");
    }
    let partial = word(packet, at + layout.checksum_offset());
    assert_eq!(partial % 0xffff, !checksum(&layout.pseudo_header(packet)) % 0xffff, "partial checksum");

    let words =
        [2, 4, 6, 8].map(|at| usize::from(u16::from_ne_bytes([write.header[at], write.header[at + 1]])));
    let [hdr_len, gso_size, csum_start, csum_offset] = words;
    assert_eq!((hdr_len, csum_start, csum_offset), (headers_len, at, layout.checksum_offset()));
    assert_eq!((packet.len() - headers_len).div_ceil(gso_size), write.count, "segment size {gso_size}");
}

/// What the network stack makes of a write.
fn cut_again(write: &Written) -> impl Iterator<Item = Wire> + use<> {
    let mut packet = [&write.header[..], &write.packet].concat();
    let ttl_at = Layout::of(&write.packet).map_or(0, |layout| layout.ttl_at);
    // The split lowers it a second time.
    packet[write.header.len() + ttl_at] += 1;
    let wire = Splitter::default().split(&mut packet).expect("a merged packet cannot be cut");
    assert_eq!(wire.len(), write.count, "packets in a merged one");
    wire.into_iter().map(|packet| Wire { packet, was_merged: true })
}

/// Checks that each of `forwarded` has come out once, and none has overtaken another of its flow.
fn check_order(forwarded: &[Vec<u8>], wire: &[Wire]) {
    assert_eq!(forwarded.len(), wire.len(), "packets lost or doubled");
    let mut places: HashMap<Flow, VecDeque<usize>> = HashMap::new();
    for (place, wire) in wire.iter().enumerate() {
        places.entry(Flow::of(&wire.packet)).or_default().push_back(place);
    }
    let (mut latest, mut barrier) = (None, None);
    for packet in forwarded {
        let flow = Flow::of(packet);
        let place = places.get_mut(&flow).and_then(VecDeque::pop_front);
        let place = place.unwrap_or_else(|| panic!("lost: {packet:02x?}"));
        assert_restored(packet, &wire[place]);
        match flow {
            Flow::None => continue,
            Flow::Unknown => {
                assert!(Some(place) > latest, "overtook: {packet:02x?}");
                barrier = Some(place);
            }
            Flow::Of { .. } => {
                assert!(Some(place) > barrier, "overtook what may be of its flow: {packet:02x?}");
            }
        }
        latest = latest.max(Some(place));
    }
}

/// The identification of a packet that is never cut means nothing (RFC 6864), so a merge need not keep it.
fn assert_restored(packet: &[u8], wire: &Wire) {
    let mut expected = packet.to_vec();
    if wire.was_merged {
        assert!(is_right(&wire.packet), "cut again, but not whole: {:02x?}", wire.packet);
        if packet[0] / 16 == 4 && word(packet, 6) & DONT_FRAGMENT != 0 {
            expected[4..6].copy_from_slice(&wire.packet[4..6]);
            expected[10..12].copy_from_slice(&wire.packet[10..12]);
        }
    }
    assert_eq!(expected, wire.packet, "merged: {}", wire.was_merged);
}

/// What is kept in order.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Flow {
    /// All packets of these addresses, ports and protocol.
    Of { addresses: Vec<u8>, ports: u32, protocol: u8 },
    /// It may be of any flow.
    Unknown,
    /// It is of none.
    None,
}

impl Flow {
    fn of(packet: &[u8]) -> Self {
        let Some(layout) = Layout::of(packet) else { return Self::Unknown };
        let protocol = layout.protocol;
        if UNRELATED.contains(&protocol) {
            return Self::None;
        }
        let at = layout.header_len;
        let whole_udp = || usize::from(word(packet, at + 4)) == layout.len - at;
        if layout.is_fragment || layout.headers_len(packet).is_none() || protocol == UDP && !whole_udp() {
            return Self::Unknown;
        }
        let addresses = if layout.is_ipv4 { &packet[12..20] } else { &packet[8..40] };
        Self::Of { addresses: addresses.to_vec(), ports: double_word(packet, at), protocol }
    }
}
