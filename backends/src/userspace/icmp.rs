//! ICMP errors to the sender of a packet that cannot be forwarded (RFC 792, RFC 1812 section 4.3.2).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::checksum::Sum;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No peer has the destination: network unreachable.
    NoPeer,
    /// A peer has the destination, or should, but cannot be reached: host unreachable.
    PeerAway,
    /// The time to live expired in transit.
    TtlExpired,
    /// The packet is larger than the path's limit in bytes, and must not be fragmented.
    TooBig(u16),
}

/// Bytes of the packet that an error quotes after the IP header.
const QUOTED: usize = 8;
const ICMP: u8 = 1;
const HEADERS: usize = 28;

/// Returns the error for `packet`, sent by us from `from`. `None` if none may be sent: for an ICMP error, a later
/// fragment, a packet from or to more than one host, or one that is not IPv4.
pub(crate) fn error(packet: &[u8], from: Ipv4Addr, reason: Reason) -> Option<Vec<u8>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    if packet[0] >> 4 != 4 || header < 20 || packet.len() < header {
        return None;
    }
    let later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let source = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
    let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
    let group = destination.is_multicast() || destination.is_broadcast();
    if later_fragment || group || !is_one_host(source) {
        return None;
    }
    // Only queries are answered: echo, timestamp and so on, never another error.
    if packet[9] == ICMP && !matches!(packet.get(header), Some(0 | 8 | 13..=18)) {
        return None;
    }
    let quote = &packet[..packet.len().min(header + QUOTED)];
    let (kind, code, rest) = match reason {
        Reason::NoPeer => (3, 0, 0),
        Reason::PeerAway => (3, 1, 0),
        Reason::TtlExpired => (11, 0, 0),
        Reason::TooBig(mtu) => (3, 4, u32::from(mtu)),
    };
    let length = u16::try_from(HEADERS + quote.len()).ok()?;
    let mut error = Vec::with_capacity(usize::from(length));
    error.extend([0x45, 0xc0]); // precedence internetwork control, RFC 1812 section 4.3.2.5
    error.extend(length.to_be_bytes());
    error.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    error.extend(from.octets());
    error.extend(source.octets());
    let sum = Sum::of(&error[..20]).checksum();
    error[10..12].copy_from_slice(&sum.to_be_bytes());
    error.extend([kind, code, 0, 0]);
    error.extend(rest.to_be_bytes());
    error.extend(quote);
    let sum = Sum::of(&error[20..]).checksum();
    error[22..24].copy_from_slice(&sum.to_be_bytes());
    Some(error)
}

/// Returns whether an address may belong to a single host that can be answered: RFC 1122, 3.2.2.
fn is_one_host(address: Ipv4Addr) -> bool {
    const CLASS_E: u8 = 240; // and above; the broadcast address is among them
    !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && address.octets()[0] < CLASS_E
}

/// Limits the errors per second, and allows as many at once after a quiet second.
pub(crate) struct Limit {
    left: u32,
    since: Instant,
}

const PER_SECOND: u32 = 100;

impl Limit {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: PER_SECOND, since: now }
    }

    /// Returns whether another one may be sent.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.left, self.since) = (PER_SECOND, now);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 5, 1, 0);

    /// Returns a UDP packet from 10.5.1.2 to 10.5.9.2 with 100 bytes after its IPv4 header.
    fn packet() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 120, 0, 0, 0, 0, 64, 17, 0, 0, 10, 5, 1, 2, 10, 5, 9, 2];
        packet.resize(120, 7);
        packet
    }

    #[test]
    fn the_sender_is_told_with_what_it_sent() {
        let error = error(&packet(), FROM, Reason::NoPeer).unwrap();
        assert_eq!(error.len(), 20 + 8 + 28);
        assert_eq!((&error[12..16], &error[16..20]), (&[10, 5, 1, 0][..], &[10, 5, 1, 2][..]));
        assert_eq!((error[9], error[20], error[21]), (1, 3, 0));
        assert_eq!(error[28..], packet()[..28]);
        assert_eq!((Sum::of(&error[..20]).checksum(), Sum::of(&error[20..]).checksum()), (0, 0));
    }

    #[test]
    fn a_packet_that_is_too_big_is_told_what_would_fit() {
        let error = error(&packet(), FROM, Reason::TooBig(1400)).unwrap();
        assert_eq!((error[20], error[21], &error[24..28]), (3, 4, &1400u32.to_be_bytes()[..]));
    }

    #[test]
    fn an_error_is_never_answered_with_an_error() {
        let mut unreachable = packet();
        (unreachable[9], unreachable[20]) = (1, 3);
        assert_eq!(error(&unreachable, FROM, Reason::NoPeer), None);
        unreachable[20] = 8;
        assert!(error(&unreachable, FROM, Reason::NoPeer).is_some());
        let mut fragment = packet();
        fragment[7] = 1;
        assert_eq!(error(&fragment, FROM, Reason::NoPeer), None);
        let mut multicast = packet();
        multicast[16] = 224;
        assert_eq!(error(&multicast, FROM, Reason::NoPeer), None);
    }

    #[test]
    fn what_comes_from_no_single_host_is_not_answered() {
        for first in [0, 127, 224, 240, 255] {
            let mut packet = packet();
            packet[12..16].copy_from_slice(&[first, 0, 0, 0]);
            assert_eq!(error(&packet, FROM, Reason::NoPeer), None, "{first}.0.0.0");
        }
    }

    #[test]
    fn a_flood_is_answered_a_hundred_times_a_second() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert_eq!((0..1000).filter(|_| limit.allows(start)).count(), 100);
        assert!(limit.allows(start + Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = error(&packet, FROM, Reason::NoPeer);
        }
    }
}
