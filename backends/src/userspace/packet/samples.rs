//! Packets for tests, built and checked without the code under test.

use proptest::prelude::*;

use super::super::checksum::tests::slow_checksum;
use super::{TCP, UDP, VnetHeader};

/// The parameters of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) is_ipv6: bool,
    /// The last byte of both addresses, and of both ports.
    pub(crate) flow: u8,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    /// IPv4 only, like the next two.
    pub(crate) dont_fragment: bool,
    pub(crate) id: u16,
    pub(crate) ip_options: Vec<u8>,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) tcp_options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Sample {
    pub(crate) fn new(is_ipv6: bool, protocol: u8, payload: &[u8]) -> Self {
        Self {
            is_ipv6,
            flow: 1,
            protocol,
            ttl: 64,
            tos: 0,
            dont_fragment: false,
            id: 0xfffe,
            ip_options: Vec::new(),
            sequence: u32::MAX - 1000,
            acknowledgement: 7,
            flags: 0x10,
            window: 512,
            tcp_options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    pub(crate) fn ip_header_len(&self) -> usize {
        if self.is_ipv6 { 40 } else { 20 + self.ip_options.len() }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.ip_header_len() + if self.protocol == TCP { 20 + self.tcp_options.len() } else { 8 }
    }

    /// Returns the offset of the transport's checksum in its header.
    pub(crate) fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// Returns the IP packet, with all checksums correct.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.ip_header();
        bytes.extend(self.transport());
        let at = self.ip_header_len();
        let checksum = transport_checksum(&bytes, at, self.protocol);
        let checksum = if self.protocol == UDP && checksum == 0 { 0xffff } else { checksum };
        bytes[at + self.checksum_offset()..][..2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn ip_header(&self) -> Vec<u8> {
        let transport_len = self.header_len() - self.ip_header_len() + self.payload.len();
        if self.is_ipv6 {
            let mut bytes = vec![0x60 | self.tos >> 4, self.tos << 4 | 5, 0x12, 0x34];
            bytes.extend((transport_len as u16).to_be_bytes());
            bytes.extend([self.protocol, self.ttl]);
            for host in [self.flow, !self.flow] {
                bytes.extend([0xfd, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
            return bytes;
        }
        let mut bytes = vec![0x40 | (self.ip_header_len() / 4) as u8, self.tos];
        bytes.extend(((self.ip_header_len() + transport_len) as u16).to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, self.protocol, 0, 0]);
        bytes.extend([10, 5, 1, self.flow, 10, 5, 2, !self.flow]);
        bytes.extend(&self.ip_options);
        let checksum = slow_checksum(&bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0x80, self.flow, 0x14, !self.flow];
        if self.protocol == TCP {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledgement.to_be_bytes());
            bytes.extend([((20 + self.tcp_options.len()) * 4) as u8, self.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&self.tcp_options);
        } else {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend([0; 2]);
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// Returns it as the kernel's super-packet: the checksum field holds the sum of the pseudo-header.
    pub(crate) fn super_packet(&self, gso_size: u16) -> Vec<u8> {
        let gso_type = match (self.protocol, self.is_ipv6) {
            (UDP, _) => VnetHeader::GSO_UDP_L4,
            (_, false) => VnetHeader::GSO_TCPV4,
            (_, true) => VnetHeader::GSO_TCPV6,
        };
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: self.header_len() as u16,
            gso_size,
            csum_start: self.ip_header_len() as u16,
            csum_offset: self.checksum_offset() as u16,
        };
        let mut bytes = [&header.to_bytes()[..], &self.bytes()].concat();
        let at = VnetHeader::LEN + self.ip_header_len();
        let pseudo = pseudo_header(&bytes[VnetHeader::LEN..], self.ip_header_len(), self.protocol);
        bytes[at + self.checksum_offset()..][..2].copy_from_slice(&(!slow_checksum(&pseudo)).to_be_bytes());
        bytes
    }

    /// Returns the packets that a split of this makes.
    pub(crate) fn cut(&self, size: usize) -> Vec<Self> {
        let chunks: Vec<&[u8]> = self.payload.chunks(size).collect();
        let count = chunks.len();
        let segment = |(index, chunk): (usize, &[u8])| {
            let mut flags = self.flags;
            if index > 0 {
                flags &= !0x80;
            }
            if index + 1 < count {
                flags &= !0x09;
            }
            Self {
                id: self.id.wrapping_add(index as u16),
                sequence: self.sequence.wrapping_add((index * size) as u32),
                flags,
                payload: chunk.to_vec(),
                ..self.clone()
            }
        };
        chunks.into_iter().enumerate().map(segment).collect()
    }

    /// Returns it with the time to live after `hops` routers.
    pub(crate) fn after(&self, hops: u8) -> Self {
        Self { ttl: self.ttl - hops, ..self.clone() }
    }
}

fn pseudo_header(packet: &[u8], ip_header_len: usize, protocol: u8) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 6 { &packet[8..40] } else { &packet[12..20] };
    let length = (packet.len() - ip_header_len) as u16;
    [addresses, &[0, protocol], &length.to_be_bytes()].concat()
}

fn transport_checksum(packet: &[u8], ip_header_len: usize, protocol: u8) -> u16 {
    slow_checksum(&[&pseudo_header(packet, ip_header_len, protocol), &packet[ip_header_len..]].concat())
}

/// Returns whether all lengths and checksums of a TCP or UDP packet are correct.
pub(crate) fn is_right(packet: &[u8]) -> bool {
    let length = |at: usize| usize::from(packet[at]) << 8 | usize::from(packet[at + 1]);
    let (header_len, protocol, ip) = if packet[0] >> 4 == 6 {
        (40, packet[6], length(4) + 40 == packet.len())
    } else {
        let len = usize::from(packet[0] & 15) * 4;
        (len, packet[9], length(2) == packet.len() && slow_checksum(&packet[..len]) == 0)
    };
    let udp = protocol != UDP || length(header_len + 4) == packet.len() - header_len;
    ip && udp && transport_checksum(packet, header_len, protocol) == 0
}

/// Generates any header, with a payload of some of `lengths` bytes.
pub(crate) fn samples(lengths: std::ops::Range<usize>) -> impl Strategy<Value = Sample> {
    let options = || (0..11_usize, any::<u8>()).prop_map(|(words, byte)| vec![byte; words * 4]);
    let tcp = (any::<u32>(), any::<u32>(), 0..64_u8, any::<u16>(), options(), any::<bool>());
    let payload = (lengths, any::<u64>()).prop_map(|(len, seed)| noise(len, seed));
    (any::<(bool, bool, u8, u8, bool, u16)>(), 4..255_u8, options(), tcp, payload).prop_map(
        |((is_ipv6, is_tcp, flow, tos, dont_fragment, id), ttl, ip_options, tcp, payload)| {
            let (sequence, acknowledgement, flags, window, tcp_options, cwr) = tcp;
            Sample {
                is_ipv6,
                flow,
                protocol: if is_tcp { TCP } else { UDP },
                ttl,
                tos,
                dont_fragment,
                id,
                ip_options: if flow < 64 { ip_options } else { Vec::new() },
                sequence,
                acknowledgement,
                // Without SYN and RST.
                flags: flags & !0x06 | if cwr { 0x80 } else { 0 },
                window,
                tcp_options: tcp_options.into_iter().take(40).collect(),
                payload,
            }
        },
    )
}

/// Returns bytes without a pattern (splitmix64).
pub(crate) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}
