//! Packets that their host left unfinished for its network card: without checksum, or larger than the MTU.
//!
//! A kernel that encapsulates (FOU) sends such packets if the interface below promises to finish them. Virtual interfaces
//! promise it and pass them on as they are, so they arrive here.

use super::checksum::Sum;
use super::packet::{Ip, TCP, TcpSegment, UDP, UdpDatagram, VnetHeader};

/// Returns how the kernel must finish this packet; `None` if it is complete.
///
/// An unfinished packet has the sum of its pseudo-header in its checksum field. One in 65,536 complete packets has it by
/// chance; its checksum is then computed again, and not checked.
pub(crate) fn unfinished(packet: &[u8], ip: &Ip<'_>, mtu: usize) -> Option<VnetHeader> {
    if ip.is_fragment() || ip.packet_len() != packet.len() {
        return None;
    }
    let transport = ip.payload();
    let (field, checksum, header_len) = match ip.protocol() {
        TCP => {
            let tcp = TcpSegment::parse(transport)?;
            (TcpSegment::CHECKSUM, tcp.checksum(), tcp.header_len())
        }
        UDP => {
            let udp = UdpDatagram::parse(transport)?;
            (UdpDatagram::CHECKSUM, udp.checksum(), UdpDatagram::HEADER_LEN)
        }
        _ => return None,
    };
    if checksum != ip.pseudo_header(transport.len() as u16).fold() {
        return None;
    }
    let header_len = ip.header_len() + header_len;
    let mut header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        csum_start: ip.header_len() as u16,
        csum_offset: field as u16,
        ..VnetHeader::default()
    };
    if ip.protocol() == TCP && packet.len() > mtu && header_len < mtu {
        header.gso_type = match ip {
            Ip::V4(_) => VnetHeader::GSO_TCPV4,
            Ip::V6(_) => VnetHeader::GSO_TCPV6,
        };
        header.hdr_len = header_len as u16;
        header.gso_size = (mtu - header_len) as u16;
    }
    Some(header)
}

/// Completes the checksum of such a packet in place. A packet larger than the MTU stays so.
pub(crate) fn finish_checksum(packet: &mut [u8]) {
    let Some(ip) = Ip::parse(packet) else { return };
    let Some(header) = unfinished(packet, &ip, usize::MAX) else { return };
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    let checksum = Sum::of(&packet[start..]).checksum();
    let is_udp = ip.protocol() == UDP;
    // Zero would mean: no checksum.
    let checksum = if is_udp && checksum == 0 { 0xffff } else { checksum };
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userspace::packet::{Hop, samples::Sample};
    use crate::userspace::segmentation::Segments;

    const MTU: usize = 1472;

    fn of_size(protocol: u8, payload: usize) -> Vec<u8> {
        Sample::new(false, protocol, &vec![7; payload]).bytes()
    }

    /// Returns a packet as it leaves a kernel that expects a card to finish it.
    fn left_to_the_card(mut packet: Vec<u8>) -> Vec<u8> {
        let ip = Ip::parse(&packet).unwrap();
        let field =
            ip.header_len() + if ip.protocol() == TCP { TcpSegment::CHECKSUM } else { UdpDatagram::CHECKSUM };
        let sum = ip.pseudo_header(ip.payload().len() as u16).fold();
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn of(packet: &[u8]) -> Option<VnetHeader> {
        unfinished(packet, &Ip::parse(packet).unwrap(), MTU)
    }

    /// Returns what the header makes of the packet.
    fn finished(header: VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = [&header.to_bytes()[..], packet].concat();
        let mut segments = Segments::new(Hop::Counts);
        let split = segments.split(&mut bytes).unwrap();
        split.segments().map(|(headers, payload)| [headers, payload].concat()).collect()
    }

    #[test]
    fn a_complete_packet_needs_nothing() {
        assert_eq!(of(&of_size(TCP, 1000)), None);
        assert_eq!(of(&of_size(UDP, 1000)), None);
    }

    #[test]
    fn a_checksum_is_completed() {
        for packet in [of_size(TCP, 1000), of_size(UDP, 1000)] {
            let left = left_to_the_card(packet.clone());
            let header = of(&left).unwrap();
            assert_eq!(header.gso_type, VnetHeader::GSO_NONE);
            let mut complete = packet;
            crate::userspace::packet::decrement_ttl(&mut complete);
            assert_eq!(finished(header, &left), [complete.clone()]);
            let mut in_place = left;
            finish_checksum(&mut in_place);
            crate::userspace::packet::decrement_ttl(&mut in_place);
            assert_eq!(in_place, complete);
        }
    }

    #[test]
    fn a_large_segment_is_cut_to_the_mtu() {
        let left = left_to_the_card(of_size(TCP, 10_000));
        let cut = finished(of(&left).unwrap(), &left);
        assert_eq!(cut.len(), 7);
        assert!(cut.iter().all(|packet| packet.len() <= MTU && of(packet).is_none()), "{cut:?}");
        let payload: usize = cut.iter().map(|packet| packet.len() - 40).sum();
        assert_eq!(payload, 10_000);
    }
}
