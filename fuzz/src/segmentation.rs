//! A packet from the TUN becomes the packets that its sender would have made of it, or is refused and left alone.

use flan_backends::udp::fuzz::Splitter;

use crate::packet::{
    Layout, TCP, UDP, assert_forwarded, checksum, double_word, fit_lengths, is_right, put, word,
};

/// Bytes of the virtio-net header.
const VNET: usize = 10;
const NEEDS_CSUM: u8 = 1;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// `bytes` are a virtio-net header and an IP packet.
pub fn check(bytes: &[u8]) {
    let mut splitter = Splitter::default();
    check_split(&mut splitter, bytes);
    // Again with the lengths that the fuzzer would have to guess; the splitter has been used by then.
    if let Some((header, packet)) = bytes.split_at_checked(VNET) {
        let mut packet = packet.to_vec();
        fit_lengths(&mut packet);
        check_split(&mut splitter, &[header, &packet].concat());
    }
}

fn check_split(splitter: &mut Splitter, bytes: &[u8]) {
    let mut read = bytes.to_vec();
    let Some(wire) = splitter.split(&mut read) else {
        assert_eq!(read, bytes, "refused, and changed");
        assert!(!must_pass(bytes), "refused what only needs forwarding");
        return;
    };
    let (header, packet) = bytes.split_at(VNET);
    let layout = Layout::of(packet).expect("taken without being a whole IP packet");
    assert_eq!(layout.len, packet.len(), "taken with a wrong length");
    assert!(packet[layout.ttl_at] > 1, "taken at the end of its life");
    if header[1] == 0 {
        assert_eq!(wire.len(), 1);
        assert_forwarded(&completed(header, packet, &layout), &wire[0]);
    } else {
        check_segments(header, packet, &layout, &wire);
    }
}

/// Whether there is nothing to do but to lower the time to live.
fn must_pass(bytes: &[u8]) -> bool {
    let Some((header, packet)) = bytes.split_at_checked(VNET) else { return false };
    let whole = Layout::of(packet).filter(|layout| layout.len == packet.len());
    whole.is_some_and(|layout| packet[layout.ttl_at] > 1 && header[0] & NEEDS_CSUM == 0 && header[1] == 0)
}

/// `packet` with the checksum that its virtio-net header asks for.
fn completed(header: &[u8], packet: &[u8], layout: &Layout) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if header[0] & NEEDS_CSUM != 0 {
        assert!(!layout.is_fragment, "a fragment holds no sum of the whole");
        let (start, offset) = (usize::from(host_word(header, 6)), usize::from(host_word(header, 8)));
        assert!(start >= layout.header_len, "a checksum over the IP header");
        let sum = checksum(&packet[start..]);
        put(&mut packet, start + offset, if layout.protocol == UDP && sum == 0 { 0xffff } else { sum });
    }
    packet
}

/// Compares `wire` with the segments of `packet`, made here field by field.
fn check_segments(header: &[u8], packet: &[u8], layout: &Layout, wire: &[Vec<u8>]) {
    let wanted = match (header[1], layout.is_ipv4) {
        (0x01 | 0x81, true) | (0x04 | 0x84, false) => TCP,
        (0x05, _) => UDP,
        (other, _) => panic!("cut with GSO type {other}"),
    };
    assert_eq!(layout.protocol, wanted, "cut as another protocol");
    assert!(!layout.is_fragment && header[0] & NEEDS_CSUM != 0, "cut, but not to be cut");
    let headers_len = layout.headers_len(packet).expect("cut without a whole header");
    let (headers, payload) = packet.split_at(headers_len);
    let size = usize::from(host_word(header, 4));
    assert!(size > 0, "segments of nothing");
    assert_eq!(wire.len(), payload.len().div_ceil(size).max(1), "number of segments");

    let at = layout.header_len;
    for (index, made) in wire.iter().enumerate() {
        let is_last = index + 1 == wire.len();
        let piece = &payload[index * size..((index + 1) * size).min(payload.len())];
        let mut segment = [headers, piece].concat();
        segment[layout.ttl_at] -= 1;
        if layout.is_ipv4 {
            put(&mut segment, 4, word(packet, 4).wrapping_add(index as u16));
        }
        if layout.protocol == TCP {
            let sequence = double_word(packet, at + 4).wrapping_add((index * size) as u32);
            segment[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
            if index > 0 {
                segment[at + 13] &= !CWR;
            }
            if !is_last {
                segment[at + 13] &= !FIN_PSH;
            }
        }
        crate::packet::seal(&mut segment);
        assert_eq!(*made, segment, "segment {index} of {}", wire.len());
        assert!(is_right(made), "segment {index} of {}: {made:02x?}", wire.len());
    }
    let carried: Vec<u8> = wire.iter().flat_map(|segment| &segment[headers_len..]).copied().collect();
    assert_eq!(carried, payload, "payload");
}

/// The virtio-net header is in host order.
fn host_word(header: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}
