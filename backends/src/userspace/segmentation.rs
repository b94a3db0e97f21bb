//! Turns one packet from the TUN into the packets on the wire: cuts TCP and UDP super-packets, completes checksums,
//! lowers the time to live where that [counts](Hop). The payload is summed, but neither copied nor changed.
//!
//! Cut packets look like those of the kernel's own software segmentation: `inet_gso_segment` in net/ipv4/af_inet.c,
//! `tcp_gso_segment` in net/ipv4/tcp_offload.c, `__udp_gso_segment` in net/ipv4/udp_offload.c.

use std::ops::Range;

use super::checksum::Sum;
use super::packet::{Hop, Ip, TCP, TcpSegment, Ttl, UDP, UdpDatagram, VnetHeader, decrement_ttl};

/// Most segments of one packet. TCP's smallest segment size (48 bytes, `tcp_min_snd_mss`) makes 1364 of 64 KiB, and
/// `UDP_MAX_SEGMENTS` is 128.
pub(crate) const MAX_SEGMENTS: usize = 2048;

/// The longest IPv4 header and the longest TCP header, bytes.
const MAX_HEADERS: usize = 60 + 60;

/// Why a packet from the TUN, which is unchanged, is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum SplitError {
    #[error("shorter than a virtio-net header")]
    Truncated,
    #[error("not a whole IPv4 or IPv6 packet")]
    NotIp,
    #[error("more or fewer bytes than the IP or UDP header says")]
    Length,
    #[error("time to live exceeded")]
    TtlExpired,
    #[error("a place for the checksum outside the packet's payload")]
    ChecksumPlace,
    #[error("a GSO type that was not asked for")]
    GsoType,
    #[error("a GSO segment size of zero, or one that makes too many segments")]
    GsoSize,
    #[error("a GSO packet whose headers are not what its virtio-net header says")]
    GsoHeaders,
    #[error("a fragment whose checksum is yet to be completed")]
    Fragment,
}

/// Cuts packets. Owns the headers that it makes, so that after warm-up no packet costs an allocation.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    headers: Vec<u8>,
    hop: Hop,
}

impl Segments {
    pub(crate) fn new(hop: Hop) -> Self {
        Self { headers: Vec::new(), hop }
    }

    /// Returns what to send for `packet`, a virtio-net header and IP packet as read from the TUN.
    ///
    /// The packet may be changed in place. For its destination before that, see [`Ip::parse`].
    ///
    /// # Errors
    /// [`SplitError`], with `packet` unchanged, for one whose time to live expires and for anything that the kernel
    /// never sends.
    pub(crate) fn split<'a>(&'a mut self, packet: &'a mut [u8]) -> Result<Split<'a>, SplitError> {
        let vnet = VnetHeader::parse(packet).ok_or(SplitError::Truncated)?;
        let packet = &mut packet[VnetHeader::LEN..];
        let ip = Ip::parse(packet).ok_or(SplitError::NotIp)?;
        if ip.packet_len() != packet.len() {
            return Err(SplitError::Length);
        }
        if self.hop == Hop::Counts && ip.ttl() <= 1 {
            return Err(SplitError::TtlExpired);
        }
        if vnet.gso_type == VnetHeader::GSO_NONE {
            let header_len = ip.header_len();
            finish_whole(&vnet, packet, self.hop)?;
            let (headers, payload) = packet.split_at(header_len);
            let payload_size = payload.len();
            return Ok(Split { headers, header_len, payload, payload_size, count: 1 });
        }

        let template = Template::new(&vnet, &ip, packet, self.hop)?;
        let payload = &packet[template.header_len..];
        let payload_size = usize::from(vnet.gso_size).min(payload.len());
        let count = payload.len().div_ceil(payload_size.max(1)).max(1);
        if count > MAX_SEGMENTS {
            return Err(SplitError::GsoSize);
        }
        let header_len = template.header_len;
        let len = header_len * count;
        if self.headers.len() < len {
            self.headers.resize(len, 0);
        }
        let headers = &mut self.headers[..len];
        for (index, header) in headers.chunks_exact_mut(header_len).enumerate() {
            let range = payload_range(index, payload_size, payload.len());
            template.write(header, index, range.start, &payload[range], index + 1 == count);
        }
        Ok(Split { headers, header_len, payload, payload_size, count })
    }
}

/// The wire packets of one packet from the TUN, each in two pieces: headers and payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split<'a> {
    headers: &'a [u8],
    header_len: usize,
    payload: &'a [u8],
    payload_size: usize,
    count: usize,
}

impl<'a> Split<'a> {
    /// Returns the wire packets in order, as (headers, payload): at least one, at most [`MAX_SEGMENTS`], which may be
    /// more than one send takes. All but the last have equal length. The payload may be empty, the headers never are.
    pub(crate) fn segments(&self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + Clone + use<'a> {
        let Self { headers, header_len, payload, payload_size, count, .. } = *self;
        (0..count).map(move |index| {
            let header = &headers[index * header_len..][..header_len];
            (header, &payload[payload_range(index, payload_size, payload.len())])
        })
    }
}

fn payload_range(index: usize, size: usize, len: usize) -> Range<usize> {
    (index * size).min(len)..((index + 1) * size).min(len)
}

/// Completes a packet that needs no cutting in place: checksum, then time to live.
fn finish_whole(vnet: &VnetHeader, packet: &mut [u8], hop: Hop) -> Result<(), SplitError> {
    let ip = Ip::parse(packet).ok_or(SplitError::NotIp)?;
    if vnet.flags & VnetHeader::NEEDS_CSUM != 0 {
        if ip.is_fragment() {
            return Err(SplitError::Fragment);
        }
        let start = usize::from(vnet.csum_start);
        let field = start + usize::from(vnet.csum_offset);
        if start < ip.header_len() || !vnet.csum_offset.is_multiple_of(2) || field + 2 > packet.len() {
            return Err(SplitError::ChecksumPlace);
        }
        // The field holds the sum of the pseudo-header, so summing includes it.
        let checksum = nonzero_if_udp(ip.protocol(), Sum::of(&packet[start..]).checksum());
        packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    if hop == Hop::IsFree {
        return Ok(());
    }
    match decrement_ttl(packet) {
        Ttl::Forward => Ok(()),
        Ttl::Expired => Err(SplitError::TtlExpired),
        Ttl::NotIp => Err(SplitError::NotIp),
    }
}

/// Replaces a UDP checksum of zero, which means no checksum, by the equal 0xffff (RFC 768).
fn nonzero_if_udp(protocol: u8, checksum: u16) -> u16 {
    if protocol == UDP && checksum == 0 { 0xffff } else { checksum }
}

/// The headers that all segments share, with zeros in the fields that differ, and their sums.
struct Template {
    headers: [u8; MAX_HEADERS],
    ip_header_len: usize,
    header_len: usize,
    is_ipv4: bool,
    protocol: u8,
    /// IPv4 identification of the first segment.
    id: u16,
    /// Sum of the IPv4 header.
    ip_sum: Sum,
    /// TCP sequence number of the first segment.
    sequence: u32,
    flags: u8,
    /// Sum of pseudo-header and transport header.
    transport_sum: Sum,
}

impl Template {
    fn new(vnet: &VnetHeader, ip: &Ip<'_>, packet: &[u8], hop: Hop) -> Result<Self, SplitError> {
        let protocol = expected_protocol(vnet.gso_type, ip)?;
        if vnet.gso_size == 0 {
            return Err(SplitError::GsoSize);
        }
        let (ip_header_len, transport) = (ip.header_len(), ip.payload());
        let (transport_len, checksum, sequence, flags) = match protocol {
            TCP => {
                let tcp = TcpSegment::parse(transport).ok_or(SplitError::GsoHeaders)?;
                if tcp.flags() & (TcpSegment::SYN | TcpSegment::RST) != 0 {
                    return Err(SplitError::GsoHeaders);
                }
                (tcp.header_len(), TcpSegment::CHECKSUM, tcp.sequence(), tcp.flags())
            }
            _ => {
                UdpDatagram::parse(transport).ok_or(SplitError::Length)?;
                (UdpDatagram::HEADER_LEN, UdpDatagram::CHECKSUM, 0, 0)
            }
        };
        // hdr_len is only a hint: for a forwarded packet it covers some of the payload.
        let consistent = protocol == ip.protocol()
            && !ip.is_fragment()
            && vnet.flags & VnetHeader::NEEDS_CSUM != 0
            && usize::from(vnet.csum_start) == ip_header_len
            && usize::from(vnet.csum_offset) == checksum
            && usize::from(vnet.hdr_len) <= packet.len();
        if !consistent {
            return Err(SplitError::GsoHeaders);
        }

        let header_len = ip_header_len + transport_len;
        let mut headers = [0; MAX_HEADERS];
        headers[..header_len].copy_from_slice(&packet[..header_len]);
        let (ip_header, transport) = headers[..header_len].split_at_mut(ip_header_len);
        let lower = u8::from(hop == Hop::Counts);
        let id = match ip {
            Ip::V4(ip) => {
                ip_header[8] -= lower;
                ip_header[2..6].fill(0);
                ip_header[10..12].fill(0);
                ip.id()
            }
            Ip::V6(_) => {
                ip_header[7] -= lower;
                0
            }
        };
        transport[checksum..checksum + 2].fill(0);
        if protocol == TCP {
            transport[4..8].fill(0);
            transport[13] = 0;
        } else {
            transport[4..6].fill(0);
        }
        let (ip_sum, transport_sum) = (Sum::of(ip_header), ip.pseudo_header(0).bytes(transport));
        let is_ipv4 = matches!(ip, Ip::V4(_));
        Ok(Self {
            headers,
            ip_header_len,
            header_len,
            is_ipv4,
            protocol,
            id,
            ip_sum,
            sequence,
            flags,
            transport_sum,
        })
    }

    /// Writes the headers of segment `index`, whose `payload` begins `offset` bytes into the whole one.
    fn write(&self, headers: &mut [u8], index: usize, offset: usize, payload: &[u8], is_last: bool) {
        headers.copy_from_slice(&self.headers[..self.header_len]);
        let (ip, transport) = headers.split_at_mut(self.ip_header_len);
        // No length exceeds 65535: no segment is longer than the packet, whose length was in its header.
        let transport_len = (transport.len() + payload.len()) as u16;
        if self.is_ipv4 {
            let total_len = self.ip_header_len as u16 + transport_len;
            let id = self.id.wrapping_add(index as u16);
            put(ip, 2, total_len);
            put(ip, 4, id);
            put(ip, 10, self.ip_sum.word(total_len).word(id).checksum());
        } else {
            put(ip, 4, transport_len);
        }
        let sum = self.transport_sum.word(transport_len).bytes(payload);
        if self.protocol == TCP {
            let sequence = self.sequence.wrapping_add(offset as u32);
            let mut flags = self.flags;
            if index > 0 {
                flags &= !TcpSegment::CWR;
            }
            if !is_last {
                flags &= !(TcpSegment::FIN | TcpSegment::PSH);
            }
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            transport[13] = flags;
            put(transport, TcpSegment::CHECKSUM, sum.double_word(sequence).word(u16::from(flags)).checksum());
        } else {
            put(transport, 4, transport_len);
            put(transport, UdpDatagram::CHECKSUM, nonzero_if_udp(UDP, sum.word(transport_len).checksum()));
        }
    }
}

fn expected_protocol(gso_type: u8, ip: &Ip<'_>) -> Result<u8, SplitError> {
    const TCPV4_ECN: u8 = VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN;
    const TCPV6_ECN: u8 = VnetHeader::GSO_TCPV6 | VnetHeader::GSO_ECN;
    match (gso_type, ip) {
        (VnetHeader::GSO_TCPV4 | TCPV4_ECN, Ip::V4(_)) => Ok(TCP),
        (VnetHeader::GSO_TCPV6 | TCPV6_ECN, Ip::V6(_)) => Ok(TCP),
        (VnetHeader::GSO_UDP_L4, _) => Ok(UDP),
        (VnetHeader::GSO_TCPV4 | TCPV4_ECN | VnetHeader::GSO_TCPV6 | TCPV6_ECN, _) => {
            Err(SplitError::GsoHeaders)
        }
        _ => Err(SplitError::GsoType),
    }
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests;
