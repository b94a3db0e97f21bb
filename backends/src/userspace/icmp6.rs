//! ICMPv6 errors to the sender of a packet that cannot be forwarded (RFC 4443).

use std::net::Ipv6Addr;

use super::checksum::Sum;
use super::packet::Ip;

const ICMPV6: u8 = 58;
const IP_HEADER: usize = 40;
const HEADERS: usize = IP_HEADER + 8;
/// Bytes of the largest error: what every path carries (RFC 4443, 2.4 c).
const LARGEST: usize = 1280;
/// Next headers that are extensions. What is behind them may be an error, so such a packet is not answered.
const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];

/// Returns "destination unreachable: address unreachable" for `packet`, sent by us from `from`. `None` if no error may
/// be sent (RFC 4443, 2.4 e): for an error, a packet from or to more than one host, or one that is not IPv6.
pub(crate) fn unreachable(packet: &[u8], from: Ipv6Addr) -> Option<Vec<u8>> {
    let ip = Ip::parse(packet).filter(|ip| matches!(ip, Ip::V6(_)))?;
    let (source, destination) = (&packet[8..24], &packet[24..40]);
    let is_group = |address: &[u8]| address[0] == 0xff;
    let is_one_host = !is_group(source) && source[..15].iter().any(|byte| *byte != 0);
    let is_error = ip.protocol() == ICMPV6 && packet.get(IP_HEADER).is_none_or(|kind| *kind < 128);
    if !is_one_host || is_group(destination) || is_error || EXTENSIONS.contains(&ip.protocol()) {
        return None;
    }
    let quote = &packet[..packet.len().min(LARGEST - HEADERS)];
    let length = u16::try_from(HEADERS - IP_HEADER + quote.len()).ok()?;
    let mut error = Vec::with_capacity(HEADERS + quote.len());
    error.extend([0x60, 0, 0, 0]);
    error.extend(length.to_be_bytes());
    error.extend([ICMPV6, 64]);
    error.extend(from.octets());
    error.extend(source);
    error.extend([1, 3, 0, 0, 0, 0, 0, 0]);
    error.extend(quote);
    let sum = Sum::pseudo_header(&error[8..40], ICMPV6, length).bytes(&error[IP_HEADER..]).checksum();
    error[IP_HEADER + 2..IP_HEADER + 4].copy_from_slice(&sum.to_be_bytes());
    Some(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::UDP;
    use super::super::packet::samples::Sample;
    use super::*;

    const FROM: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 1, 0, 0, 0, 0, 0);

    fn packet() -> Vec<u8> {
        Sample::new(true, UDP, &[7; 2000]).bytes()
    }

    #[test]
    fn the_sender_is_told_with_as_much_as_every_path_carries() {
        let error = unreachable(&packet(), FROM).unwrap();
        assert_eq!(
            (error.len(), &error[8..24], &error[24..40]),
            (1280, &FROM.octets()[..], &packet()[8..24])
        );
        assert_eq!((&error[40..42], &error[48..]), (&[1, 3][..], &packet()[..1232]));
        let ip = Ip::parse(&error).unwrap();
        assert!(ip.pseudo_header(1240).bytes(ip.payload()).is_intact());
    }

    #[test]
    fn an_error_a_group_and_an_extension_are_not_answered() {
        for (at, byte) in [(6, 0), (6, 44), (24, 0xff), (8, 0xff)] {
            let mut packet = packet();
            packet[at] = byte;
            assert_eq!(unreachable(&packet, FROM), None, "{at}: {byte}");
        }
        let mut ping = packet();
        (ping[6], ping[40]) = (ICMPV6, 128);
        assert!(unreachable(&ping, FROM).is_some());
        ping[40] = 1;
        assert_eq!(unreachable(&ping, FROM), None);
        let mut unspecified = packet();
        unspecified[8..24].fill(0);
        assert_eq!(unreachable(&unspecified, FROM), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = unreachable(&packet, FROM);
        }
    }
}
