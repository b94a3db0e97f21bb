//! Turns the packets of one receive batch into writes to the TUN: merges neighbouring segments of one flow, as the
//! kernel's GRO does (net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c), if the merge can be undone exactly.

use super::checksum::Sum;
use super::packet::{Hop, Ip, TCP, TcpSegment, Ttl, UDP, UdpDatagram, VnetHeader, decrement_ttl};
use super::partial::{finish_checksum, unfinished};

/// Most segments in one write.
pub(crate) const MAX_SEGMENTS: usize = 64;

/// Most bytes in one merged packet, IP header included: the limit of a 16-bit length.
pub(crate) const MAX_PACKET: usize = 65_535;

/// Flows that can be open at a time; of two that share a slot, one is not merged. A power of two.
const SLOTS: usize = 256;

/// No group, in a slot; no further segment, in a chain.
const NONE: u32 = u32::MAX;

/// Which protocols are merged, and what else the TUN does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merging {
    /// The device's MTU, if it takes virtio-net headers, and so [finishes](unfinished) packets.
    pub(crate) mtu: Option<usize>,
    /// TCP over IPv4 and IPv6: the TUN accepts TSO packets (`TUN_F_TSO4`, `TUN_F_TSO6`).
    pub(crate) tcp: bool,
    /// UDP: the TUN accepts USO packets (`TUN_F_USO4`, `TUN_F_USO6`, kernel 6.2).
    pub(crate) udp: bool,
    pub(crate) hop: Hop,
    /// Whether checksums of TCP and UDP are checked before a merge hides them. Not on WireGuard, as in the kernel's:
    /// the packet is as its sender made it.
    pub(crate) checks: bool,
}

/// Why a received packet, which is unchanged, is not written to the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum PushError {
    #[error("not a whole IPv4 or IPv6 packet")]
    NotIp,
    #[error("time to live exceeded")]
    TtlExpired,
}

/// Merges received packets. Reuses its memory, so that after warm-up no packet costs an allocation.
#[derive(Debug)]
pub(crate) struct Coalescer {
    merging: Merging,
    /// For each slot of flows the only group that another packet may join: the newest with a packet of these flows.
    slots: [u32; SLOTS],
    /// Headers of merged packets.
    headers: Vec<u8>,
    groups: Vec<Group<'static>>,
    segments: Vec<Segment<'static>>,
}

impl Coalescer {
    pub(crate) fn new(merging: Merging) -> Self {
        Self { merging, slots: [NONE; SLOTS], headers: Vec::new(), groups: Vec::new(), segments: Vec::new() }
    }

    pub(crate) fn merging(&self) -> Merging {
        self.merging
    }

    pub(crate) fn batch<'p>(&mut self) -> Batch<'_, 'p> {
        self.slots.fill(NONE);
        let (groups, segments) = (std::mem::take(&mut self.groups), std::mem::take(&mut self.segments));
        Batch { coalescer: self, groups, segments }
    }
}

/// The packets of one receive batch, in order.
#[derive(Debug)]
pub(crate) struct Batch<'c, 'p> {
    coalescer: &'c mut Coalescer,
    groups: Vec<Group<'p>>,
    segments: Vec<Segment<'p>>,
}

impl<'p> Batch<'_, 'p> {
    /// Takes the inner packet of one datagram and lowers its time to live where that [counts](Hop). The packet always
    /// becomes part of a write of this batch. It is merged only if it can be restored by recomputing its lengths and
    /// its IP and TCP or UDP checksums, which were correct, as far as that is [checked](Merging::checks).
    ///
    /// # Errors
    /// [`PushError`], with the unchanged packet, if it must not be forwarded.
    pub(crate) fn push(&mut self, packet: &'p mut [u8]) -> Result<(), (PushError, &'p mut [u8])> {
        match self.coalescer.merging.hop {
            Hop::Counts => match decrement_ttl(packet) {
                Ttl::Forward => {}
                Ttl::Expired => return Err((PushError::TtlExpired, packet)),
                Ttl::NotIp => return Err((PushError::NotIp, packet)),
            },
            Hop::IsFree if Ip::parse(packet).is_none() => return Err((PushError::NotIp, packet)),
            Hop::IsFree => {}
        }
        if self.coalescer.merging.mtu.is_none() {
            finish_checksum(packet);
        }
        let packet: &'p [u8] = packet;
        let Some(ip) = Ip::parse(packet) else { return Ok(()) };
        match Parsed::new(packet, ip, self.coalescer.merging) {
            Parsed::Mergeable(candidate) => self.merge(packet, candidate),
            Parsed::Alone { slot, header } => {
                self.coalescer.slots[slot] = NONE;
                let group = self.start(packet, None);
                self.groups[group as usize].alone = header;
            }
            Parsed::FlowUnknown => {
                self.coalescer.slots.fill(NONE);
                self.start(packet, None);
            }
            Parsed::Unrelated => {
                self.start(packet, None);
            }
        }
        Ok(())
    }

    fn merge(&mut self, packet: &'p [u8], candidate: Candidate<'p>) {
        let slot = candidate.slot;
        let len = candidate.transport.payload().len();
        // A segment that ends a merge (PSH, or shorter than the first) leaves the slot empty.
        let open = self.groups.get_mut(self.coalescer.slots[slot] as usize);
        if let Some(group) = open.filter(|group| group.admits(&candidate)) {
            let index = self.segments.len() as u32;
            self.segments.push(Segment { packet, next: NONE });
            self.segments[group.last as usize].next = index;
            group.last = index;
            group.count += 1;
            group.payload_len += len;
            group.pushed = candidate.is_pushed();
            if group.pushed || len < group.segment_size() {
                self.coalescer.slots[slot] = NONE;
            }
            return;
        }
        let is_pushed = candidate.is_pushed();
        let index = self.start(packet, Some(candidate));
        self.coalescer.slots[slot] = if is_pushed { NONE } else { index };
    }

    fn start(&mut self, packet: &'p [u8], first: Option<Candidate<'p>>) -> u32 {
        let index = self.groups.len() as u32;
        let segment = self.segments.len() as u32;
        let payload_len = first.as_ref().map_or(0, |first| first.transport.payload().len());
        self.segments.push(Segment { packet, next: NONE });
        self.groups.push(Group {
            packet,
            payload_len,
            first,
            first_segment: segment,
            last: segment,
            count: 1,
            pushed: false,
            headers_at: 0,
            alone: VnetHeader::default(),
        });
        index
    }

    /// Returns the writes to the TUN for this batch. Packets of one flow keep their order.
    pub(crate) fn writes(&mut self) -> impl ExactSizeIterator<Item = Write<'_>> {
        let headers = &mut self.coalescer.headers;
        headers.clear();
        for group in &mut self.groups {
            group.write_headers(headers);
        }
        let (headers, segments) = (&headers[..], &self.segments[..]);
        self.groups.iter().map(move |group| group.as_write(headers, segments))
    }
}

impl Drop for Batch<'_, '_> {
    fn drop(&mut self) {
        self.coalescer.groups = recycled(std::mem::take(&mut self.groups));
        self.coalescer.segments = recycled(std::mem::take(&mut self.segments));
    }
}

/// Returns the memory of `used` for items of the same size: collecting into it again happens in place.
fn recycled<A, B>(mut used: Vec<A>) -> Vec<B> {
    used.clear();
    used.into_iter().filter_map(|_| None).collect()
}

/// One write to the TUN: `header`, `headers` and the pieces of [`payload`](Self::payload), concatenated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write<'a> {
    pub(crate) header: VnetHeader,
    /// The headers of a merged packet, or all of an unmerged one.
    pub(crate) headers: &'a [u8],
    /// How many received packets this carries: 1 to [`MAX_SEGMENTS`].
    pub(crate) count: usize,
    segments: &'a [Segment<'a>],
    first_segment: u32,
}

impl<'a> Write<'a> {
    /// Returns the pieces of the payload: none for an unmerged packet, else [`count`](Self::count).
    pub(crate) fn payload(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let (merged, header_len) = (self.count > 1, self.headers.len());
        // The packets of a merged one have headers of equal length.
        self.packets().filter(move |_| merged).map(move |packet| &packet[header_len..])
    }

    /// Returns the packets in this write without the merging: [`count`](Self::count).
    pub(crate) fn packets(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let (segments, mut next) = (self.segments, self.first_segment);
        std::iter::from_fn(move || {
            let segment = segments.get(next as usize)?;
            next = segment.next;
            Some(segment.packet)
        })
    }
}

/// A packet in the chain of its group.
#[derive(Debug)]
struct Segment<'p> {
    packet: &'p [u8],
    next: u32,
}

#[derive(Debug)]
struct Group<'p> {
    packet: &'p [u8],
    /// The first packet, if others may follow it.
    first: Option<Candidate<'p>>,
    first_segment: u32,
    last: u32,
    count: u32,
    payload_len: usize,
    /// Whether the last one has PSH.
    pushed: bool,
    headers_at: usize,
    /// The header of a packet that stays alone.
    alone: VnetHeader,
}

impl Group<'_> {
    fn segment_size(&self) -> usize {
        self.first.as_ref().map_or(0, |first| first.transport.payload().len())
    }

    /// Returns whether `next` equals the next segment that splitting the merged packet would make.
    fn admits(&self, next: &Candidate<'_>) -> bool {
        let Some(first) = &self.first else { return false };
        let len = next.transport.payload().len();
        len <= self.segment_size()
            && (self.count as usize) < MAX_SEGMENTS
            && first.header_len + self.payload_len + len <= MAX_PACKET
            && first.ip_admits(next, self.count as u16)
            && first.transport.admits(&next.transport, self.payload_len as u32)
    }

    fn write_headers(&mut self, headers: &mut Vec<u8>) {
        let Some(first) = self.first.as_ref().filter(|_| self.count > 1) else { return };
        self.headers_at = headers.len();
        headers.extend_from_slice(&self.packet[..first.header_len]);
        let (ip, transport) = headers[self.headers_at..].split_at_mut(first.ip.header_len());
        let transport_len = (transport.len() + self.payload_len) as u16;
        match first.ip {
            Ip::V4(_) => {
                put(ip, 2, ip.len() as u16 + transport_len);
                put(ip, 10, 0);
                put(ip, 10, Sum::of(ip).checksum());
            }
            Ip::V6(_) => put(ip, 4, transport_len),
        }
        match first.transport {
            Transport::Tcp(_) if self.pushed => transport[13] |= TcpSegment::PSH,
            Transport::Tcp(_) => {}
            Transport::Udp(_) => put(transport, 4, transport_len),
        }
        // The kernel completes it, and does not even check it for a receiver on this host (CHECKSUM_PARTIAL).
        put(transport, first.transport.checksum_offset(), first.ip.pseudo_header(transport_len).fold());
    }

    fn as_write<'a>(&'a self, headers: &'a [u8], segments: &'a [Segment<'a>]) -> Write<'a> {
        let Some(first) = self.first.as_ref().filter(|_| self.count > 1) else {
            return Write {
                header: self.alone,
                headers: self.packet,
                count: 1,
                segments,
                first_segment: self.first_segment,
            };
        };
        let gso_type = match (first.transport, first.ip) {
            (Transport::Tcp(_), Ip::V4(_)) => VnetHeader::GSO_TCPV4,
            (Transport::Tcp(_), Ip::V6(_)) => VnetHeader::GSO_TCPV6,
            (Transport::Udp(_), _) => VnetHeader::GSO_UDP_L4,
        };
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: first.header_len as u16,
            gso_size: self.segment_size() as u16,
            csum_start: first.ip.header_len() as u16,
            csum_offset: first.transport.checksum_offset() as u16,
        };
        let headers = &headers[self.headers_at..][..first.header_len];
        Write { header, headers, count: self.count as usize, segments, first_segment: self.first_segment }
    }
}

/// What a packet means for later ones.
enum Parsed<'p> {
    /// It may join others, or be joined.
    Mergeable(Candidate<'p>),
    /// It stays alone, and later ones of its flow must not overtake it.
    Alone { slot: usize, header: VnetHeader },
    /// The same, but its flow is unknown.
    FlowUnknown,
    /// It belongs to no flow that is merged.
    Unrelated,
}

impl<'p> Parsed<'p> {
    fn new(packet: &'p [u8], ip: Ip<'p>, merging: Merging) -> Self {
        /// Protocols without flows that may follow an IP header directly: ICMP, GRE, ESP, ICMPv6, SCTP.
        const UNRELATED: [u8; 5] = [1, 47, 50, 58, 132];
        if UNRELATED.contains(&ip.protocol()) {
            return Self::Unrelated;
        }
        if ip.is_fragment() {
            return Self::FlowUnknown;
        }
        let transport = match ip.protocol() {
            TCP => TcpSegment::parse(ip.payload()).map(Transport::Tcp),
            UDP => UdpDatagram::parse(ip.payload()).map(Transport::Udp),
            _ => None,
        };
        let Some(transport) = transport else { return Self::FlowUnknown };
        let slot = slot(&ip, transport.ports());
        let header_len = ip.header_len() + transport.header_len();
        let candidate = Candidate { ip, transport, header_len, slot };
        let wanted = match transport {
            Transport::Tcp(_) => merging.tcp,
            Transport::Udp(_) => merging.udp,
        };
        if wanted
            && ip.packet_len() == packet.len()
            && candidate.is_plain()
            && candidate.is_intact(merging.checks)
        {
            Self::Mergeable(candidate)
        } else {
            let header = merging.mtu.and_then(|mtu| unfinished(packet, &ip, mtu));
            Self::Alone { slot, header: header.unwrap_or_default() }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Transport<'p> {
    Tcp(TcpSegment<'p>),
    Udp(UdpDatagram<'p>),
}

impl<'p> Transport<'p> {
    fn ports(&self) -> u32 {
        match self {
            Self::Tcp(tcp) => tcp.ports(),
            Self::Udp(udp) => udp.ports(),
        }
    }

    fn header_len(&self) -> usize {
        match self {
            Self::Tcp(tcp) => tcp.header_len(),
            Self::Udp(_) => UdpDatagram::HEADER_LEN,
        }
    }

    fn checksum_offset(&self) -> usize {
        match self {
            Self::Tcp(_) => TcpSegment::CHECKSUM,
            Self::Udp(_) => UdpDatagram::CHECKSUM,
        }
    }

    fn payload(&self) -> &'p [u8] {
        match self {
            Self::Tcp(tcp) => tcp.payload(),
            Self::Udp(udp) => udp.payload(),
        }
    }

    /// Returns whether `next` follows this one after `offset` bytes of payload.
    fn admits(&self, next: &Self, offset: u32) -> bool {
        match (self, next) {
            (Self::Tcp(tcp), Self::Tcp(next)) => {
                tcp.ports() == next.ports()
                    && tcp.sequence().wrapping_add(offset) == next.sequence()
                    && tcp.acknowledgement() == next.acknowledgement()
                    && tcp.window() == next.window()
                    && tcp.urgent_pointer() == next.urgent_pointer()
                    && tcp.options() == next.options()
            }
            (Self::Udp(udp), Self::Udp(next)) => udp.ports() == next.ports(),
            _ => false,
        }
    }
}

/// A packet that may be merged: complete, plain, its checksums correct.
#[derive(Debug)]
struct Candidate<'p> {
    ip: Ip<'p>,
    transport: Transport<'p>,
    /// Bytes of IP and transport header.
    header_len: usize,
    slot: usize,
}

impl Candidate<'_> {
    /// Returns whether nothing in the headers forbids a merge.
    fn is_plain(&self) -> bool {
        // A checksum field of 0xffff for a sum of zero is correct too, but a split would not recreate it. In UDP it is
        // the usual form, and zero means no checksum.
        let ip = match self.ip {
            Ip::V4(ip) => self.ip.header_len() == 20 && ip.checksum() != 0xffff,
            Ip::V6(_) => true,
        };
        let transport = match self.transport {
            Transport::Tcp(tcp) => {
                tcp.flags() & !TcpSegment::PSH == TcpSegment::ACK
                    && tcp.reserved() == 0
                    && tcp.checksum() != 0xffff
            }
            Transport::Udp(udp) => udp.checksum() != 0,
        };
        ip && transport && !self.transport.payload().is_empty()
    }

    fn is_intact(&self, checks: bool) -> bool {
        let ip = match self.ip {
            Ip::V4(ip) => ip.is_intact(),
            Ip::V6(_) => true,
        };
        let transport = self.ip.payload();
        ip && (!checks || self.ip.pseudo_header(transport.len() as u16).bytes(transport).is_intact())
    }

    fn is_pushed(&self) -> bool {
        matches!(self.transport, Transport::Tcp(tcp) if tcp.flags() & TcpSegment::PSH != 0)
    }

    /// Returns whether the IP header of `next` matches the segment `index` after this one.
    fn ip_admits(&self, next: &Self, index: u16) -> bool {
        let headers = match (self.ip, next.ip) {
            (Ip::V4(ip), Ip::V4(next)) => {
                ip.tos() == next.tos()
                    && ip.fragment_field() == next.fragment_field()
                    && (ip.dont_fragment() || ip.id().wrapping_add(index) == next.id())
            }
            (Ip::V6(ip), Ip::V6(next)) => ip.class_and_flow() == next.class_and_flow(),
            _ => false,
        };
        headers && self.ip.ttl() == next.ip.ttl() && self.ip.addresses() == next.ip.addresses()
    }
}

/// Returns the slot of a flow: both directions of a flow, and TCP and UDP, may share one.
fn slot(ip: &Ip<'_>, ports: u32) -> usize {
    let (words, _) = ip.addresses().as_chunks::<4>();
    // Multiplicative hashing by 2^64 over the golden ratio (Knuth, volume 3, 6.4).
    let hash = words.iter().fold(u64::from(ports), |hash, word| {
        (hash.rotate_left(5) ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (hash >> (u64::BITS - SLOTS.trailing_zeros())) as usize
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests;
