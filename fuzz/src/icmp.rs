//! An ICMP error is well formed, quotes the packet that it is about, and answers nothing that must not be answered.

use std::net::Ipv4Addr;

use flan_backends::udp::fuzz::icmp_errors;

use crate::packet::{checksum, double_word, word};

const FROM: Ipv4Addr = Ipv4Addr::new(10, 5, 1, 0);
const ICMP: u8 = 1;
/// Types that ask or answer a question (RFC 1122 section 3.2.2), so that they are no errors.
const QUERIES: [u8; 8] = [0, 8, 13, 14, 15, 16, 17, 18];

/// `bytes` are an MTU and a packet.
pub fn check(bytes: &[u8]) {
    let Some((mtu, packet)) = bytes.split_at_checked(2) else { return };
    let mtu = word(mtu, 0);
    let kinds = [([3, 0], 0), ([11, 0], 0), ([3, 4], u32::from(mtu))];
    for (error, (kind, rest)) in icmp_errors(packet, FROM, mtu).into_iter().zip(kinds) {
        assert_eq!(error.is_some(), may_be_answered(packet), "answered, or not, against the rules");
        if let Some(error) = error {
            check_error(&error, packet, kind, rest);
        }
    }
}

fn check_error(error: &[u8], packet: &[u8], kind: [u8; 2], rest: u32) {
    assert_eq!(error[0], 0x45);
    assert_eq!(usize::from(word(error, 2)), error.len(), "length");
    assert_eq!(word(error, 6), 0, "a fragment");
    assert!(error[8] > 1 && error[9] == ICMP);
    assert_eq!(error[12..16], FROM.octets());
    assert_eq!(error[16..20], packet[12..16], "not sent to the sender");
    assert_eq!((checksum(&error[..20]), checksum(&error[20..])), (0, 0), "checksums {error:02x?}");
    assert_eq!((&error[20..22], double_word(error, 24)), (&kind[..], rest));
    let header = usize::from(packet[0] % 16) * 4;
    assert_eq!(error[28..], packet[..packet.len().min(header + 8)], "quote");
}

/// RFC 1122 section 3.2.2, for an IPv4 packet of which at least the header is there.
fn may_be_answered(packet: &[u8]) -> bool {
    let Some(first) = packet.first() else { return false };
    let header = usize::from(first % 16) * 4;
    if first / 16 != 4 || header < 20 || packet.len() < header {
        return false;
    }
    let (source, destination) = (packet[12..16].to_vec(), packet[16..20].to_vec());
    let is_group = |address: &[u8]| (224..240).contains(&address[0]) || address == [255; 4];
    let is_later_fragment = word(packet, 6) & 0x1fff != 0;
    let is_error = packet[9] == ICMP && packet.get(header).is_none_or(|kind| !QUERIES.contains(kind));
    // Neither loopback, nor a group, nor class E.
    let is_host = source != [0; 4] && source[0] != 127 && source[0] < 224;
    is_host && !is_group(&destination) && !is_later_fragment && !is_error
}
