//! Views of the headers that the data path reads, over untrusted bytes, and the virtio-net header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{self, Sum};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// A complete IP packet: IPv4 (RFC 791) or IPv6 (RFC 8200).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ip<'a> {
    V4(Ipv4<'a>),
    V6(Ipv6<'a>),
}

impl<'a> Ip<'a> {
    /// Returns `None` unless `bytes` begin with an IP header and hold the whole packet that it announces. More may
    /// follow; see [`packet_len`](Self::packet_len).
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Ipv4::parse(bytes).map(Self::V4),
            6 => Ipv6::parse(bytes).map(Self::V6),
            _ => None,
        }
    }

    /// Returns the bytes of the IP header, with IPv4 options, without IPv6 extension headers.
    pub(crate) fn header_len(&self) -> usize {
        match self {
            Self::V4(ip) => ip.header_len(),
            Self::V6(_) => Ipv6::HEADER_LEN,
        }
    }

    /// Returns the bytes of the packet, header included, according to its header; never more than there are.
    pub(crate) fn packet_len(&self) -> usize {
        match self {
            Self::V4(ip) => ip.total_len(),
            Self::V6(ip) => Ipv6::HEADER_LEN + ip.payload_len(),
        }
    }

    /// Returns what follows the header, up to the end of the packet.
    pub(crate) fn payload(&self) -> &'a [u8] {
        let bytes = match self {
            Self::V4(ip) => ip.bytes,
            Self::V6(ip) => ip.bytes,
        };
        &bytes[self.header_len()..self.packet_len()]
    }

    /// Returns the protocol of the payload; for IPv6 the number of the next header, which may be an extension.
    pub(crate) fn protocol(&self) -> u8 {
        match self {
            Self::V4(ip) => ip.header[9],
            Self::V6(ip) => ip.header[6],
        }
    }

    /// Returns the time to live, or hop limit.
    pub(crate) fn ttl(&self) -> u8 {
        match self {
            Self::V4(ip) => ip.header[8],
            Self::V6(ip) => ip.header[7],
        }
    }

    /// Returns whether this is a fragment by its IPv4 header. An IPv6 fragment has the [`protocol`](Self::protocol) 44.
    pub(crate) fn is_fragment(&self) -> bool {
        matches!(self, Self::V4(ip) if ip.is_fragment())
    }

    /// Returns source and destination as in the header: 8 or 32 bytes.
    pub(crate) fn addresses(&self) -> &'a [u8] {
        match self {
            Self::V4(ip) => &ip.header[12..20],
            Self::V6(ip) => &ip.header[8..40],
        }
    }

    pub(crate) fn source(&self) -> IpAddr {
        match self {
            Self::V4(ip) => ipv4_at(ip.header, 12),
            Self::V6(ip) => ipv6_at(ip.header, 8),
        }
    }

    pub(crate) fn destination(&self) -> IpAddr {
        match self {
            Self::V4(ip) => ipv4_at(ip.header, 16),
            Self::V6(ip) => ipv6_at(ip.header, 24),
        }
    }

    /// Returns the sum of the pseudo-header before a transport header and payload of `length` bytes.
    pub(crate) fn pseudo_header(&self, length: u16) -> Sum {
        Sum::pseudo_header(self.addresses(), self.protocol(), length)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipv4<'a> {
    header: &'a [u8; 20],
    bytes: &'a [u8],
}

impl<'a> Ipv4<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ip = Self { header: bytes.first_chunk()?, bytes };
        let fits = ip.header_len() >= 20 && (ip.header_len()..=bytes.len()).contains(&ip.total_len());
        fits.then_some(ip)
    }

    fn header_len(&self) -> usize {
        usize::from(self.header[0] & 0x0f) * 4
    }

    fn total_len(&self) -> usize {
        usize::from(u16_at(self.header, 2))
    }

    pub(crate) fn id(&self) -> u16 {
        u16_at(self.header, 4)
    }

    /// Returns the three flags and the fragment offset, as one word.
    pub(crate) fn fragment_field(&self) -> u16 {
        u16_at(self.header, 6)
    }

    /// Returns whether routers must not fragment this packet (DF).
    pub(crate) fn dont_fragment(&self) -> bool {
        self.fragment_field() & 0x4000 != 0
    }

    /// Returns whether more fragments follow (MF), or this is not the first.
    pub(crate) fn is_fragment(&self) -> bool {
        self.fragment_field() & 0x3fff != 0
    }

    /// Returns the type of service: DSCP and ECN.
    pub(crate) fn tos(&self) -> u8 {
        self.header[1]
    }

    pub(crate) fn checksum(&self) -> u16 {
        u16_at(self.header, 10)
    }

    /// Returns whether the header's checksum is correct.
    pub(crate) fn is_intact(&self) -> bool {
        Sum::of(&self.bytes[..self.header_len()]).is_intact()
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipv6<'a> {
    header: &'a [u8; 40],
    bytes: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Bytes of the fixed header.
    pub(crate) const HEADER_LEN: usize = 40;

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ip = Self { header: bytes.first_chunk()?, bytes };
        (Self::HEADER_LEN + ip.payload_len() <= bytes.len()).then_some(ip)
    }

    fn payload_len(&self) -> usize {
        usize::from(u16_at(self.header, 4))
    }

    /// Returns version, traffic class (DSCP and ECN) and flow label, as one double word.
    pub(crate) fn class_and_flow(&self) -> u32 {
        u32_at(self.header, 0)
    }
}

/// A TCP segment (RFC 9293), header and payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpSegment<'a> {
    header: &'a [u8; 20],
    bytes: &'a [u8],
}

impl<'a> TcpSegment<'a> {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const CWR: u8 = 0x80;
    /// Offset of the checksum in the header, bytes.
    pub(crate) const CHECKSUM: usize = 16;

    /// Returns `None` unless `bytes` hold the whole header.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let tcp = Self { header: bytes.first_chunk()?, bytes };
        (20..=bytes.len()).contains(&tcp.header_len()).then_some(tcp)
    }

    /// Returns source and destination port, as one double word.
    pub(crate) fn ports(&self) -> u32 {
        u32_at(self.header, 0)
    }

    pub(crate) fn sequence(&self) -> u32 {
        u32_at(self.header, 4)
    }

    pub(crate) fn acknowledgement(&self) -> u32 {
        u32_at(self.header, 8)
    }

    /// Returns the bytes of the header, options included (the data offset).
    pub(crate) fn header_len(&self) -> usize {
        usize::from(self.header[12] >> 4) * 4
    }

    /// Returns the four bits between data offset and [`flags`](Self::flags); AccECN uses the lowest.
    pub(crate) fn reserved(&self) -> u8 {
        self.header[12] & 0x0f
    }

    /// Returns CWR, ECE, URG, ACK, PSH, RST, SYN and FIN.
    pub(crate) fn flags(&self) -> u8 {
        self.header[13]
    }

    pub(crate) fn window(&self) -> u16 {
        u16_at(self.header, 14)
    }

    pub(crate) fn checksum(&self) -> u16 {
        u16_at(self.header, Self::CHECKSUM)
    }

    pub(crate) fn urgent_pointer(&self) -> u16 {
        u16_at(self.header, 18)
    }

    pub(crate) fn options(&self) -> &'a [u8] {
        &self.bytes[20..self.header_len()]
    }

    pub(crate) fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len()..]
    }
}

/// A UDP datagram (RFC 768), header and payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UdpDatagram<'a> {
    header: &'a [u8; 8],
    bytes: &'a [u8],
}

impl<'a> UdpDatagram<'a> {
    pub(crate) const HEADER_LEN: usize = 8;
    /// Offset of the checksum in the header, bytes.
    pub(crate) const CHECKSUM: usize = 6;

    /// Returns `None` unless the datagram is exactly as long as it says.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk()?;
        (usize::from(u16_at(header, 4)) == bytes.len()).then_some(Self { header, bytes })
    }

    /// Returns source and destination port, as one double word.
    pub(crate) fn ports(&self) -> u32 {
        u32_at(self.header, 0)
    }

    pub(crate) fn checksum(&self) -> u16 {
        u16_at(self.header, Self::CHECKSUM)
    }

    pub(crate) fn payload(&self) -> &'a [u8] {
        &self.bytes[Self::HEADER_LEN..]
    }
}

/// What a data path does to the time to live of the packets that it moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Hop {
    /// It lowers it, at both ends, and drops a packet whose time has come: udp, as flannel does.
    #[default]
    Counts,
    /// It leaves it alone: WireGuard.
    IsFree,
}

/// The outcome for a packet to be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ttl {
    /// Forward it; its time to live was lowered.
    Forward,
    /// Drop it; it is unchanged: its time to live was 1 or 0.
    Expired,
    /// Not a complete IP packet; it is unchanged.
    NotIp,
}

/// Decrements the time to live (IPv6: hop limit) of the IP packet at the start of `packet`, as a router does, and
/// updates the IPv4 header checksum by the difference: a wrong one stays wrong.
pub(crate) fn decrement_ttl(packet: &mut [u8]) -> Ttl {
    let Some(ip) = Ip::parse(packet) else { return Ttl::NotIp };
    let (ttl, is_ipv4) = (ip.ttl(), matches!(ip, Ip::V4(_)));
    if ttl <= 1 {
        return Ttl::Expired;
    }
    if is_ipv4 {
        let old = u16_at(packet, 8);
        let checksum = checksum::update(u16_at(packet, 10), old, old - 0x100);
        packet[8] = ttl - 1;
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        packet[7] = ttl - 1;
    }
    Ttl::Forward
}

/// `struct virtio_net_hdr` of linux/virtio_net.h: ten bytes before each packet of a TUN device with `IFF_VNET_HDR`, in
/// host order unless changed with `TUNSETVNETLE` or `TUNSETVNETBE`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    /// [`NEEDS_CSUM`](Self::NEEDS_CSUM) and others.
    pub(crate) flags: u8,
    /// One of the `GSO_` constants.
    pub(crate) gso_type: u8,
    /// Bytes of all headers. The kernel gives the length of the first piece of its buffer, which may be more.
    pub(crate) hdr_len: u16,
    /// Bytes of payload in each segment but the last.
    pub(crate) gso_size: u16,
    /// Where the checksummed part begins, bytes from the start of the IP packet.
    pub(crate) csum_start: u16,
    /// Where the checksum goes, bytes from `csum_start`.
    pub(crate) csum_offset: u16,
}

impl VnetHeader {
    pub(crate) const LEN: usize = 10;
    /// In `flags`: the checksum field holds only the sum of the pseudo-header.
    pub(crate) const NEEDS_CSUM: u8 = 1;
    pub(crate) const GSO_NONE: u8 = 0;
    pub(crate) const GSO_TCPV4: u8 = 1;
    pub(crate) const GSO_TCPV6: u8 = 4;
    pub(crate) const GSO_UDP_L4: u8 = 5;
    /// A bit besides the TCP types: the packet has CWR set, which applies only to its first segment.
    pub(crate) const GSO_ECN: u8 = 0x80;

    /// Returns `None` if `bytes` are fewer than [`LEN`](Self::LEN).
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// Returns the bytes to write before the packet.
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn ipv4_at(header: &[u8; 20], at: usize) -> IpAddr {
    Ipv4Addr::from_bits(u32_at(header, at)).into()
}

fn ipv6_at(header: &[u8; 40], at: usize) -> IpAddr {
    let half = |at| u128::from(u32_at(header, at)) << 32 | u128::from(u32_at(header, at + 4));
    Ipv6Addr::from_bits(half(at) << 64 | half(at + 8)).into()
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
