//! From the device to the wire: read what waits, cut it into wire packets, send those in as few calls as possible.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use flan_kernel::udp_socket::{self, MAX_GSO_BYTES, MAX_SEGMENTS, Message};
use tracing::warn;

use super::worker::Port;
use crate::udp::counters::add;
use crate::udp::icmp::{self, Limit, Reason};
use crate::udp::packet::{Ip, VnetHeader};
use crate::udp::segmentation::{Refused, Segments, Split};

/// Bytes that are read before anything is sent: few enough to be still in the processor's cache, and enough that the
/// tail of one large packet, which a single send does not take, leaves with the next.
const BATCH_BYTES: usize = 192 << 10;
/// Bytes of the largest packet, with its virtio-net header.
const BUFFER: usize = VnetHeader::LEN + 65_536;

/// What this direction needs.
pub(super) struct Outbound {
    slots: Vec<Slot>,
    limit: Limit,
}

/// Room for one packet and its segments' headers.
struct Slot {
    buffer: Box<[u8]>,
    length: usize,
    segments: Segments,
}

impl Outbound {
    /// `batch` packets at most are read before anything is sent.
    pub(super) fn new(batch: usize) -> Self {
        let slot = || Slot { buffer: vec![0; BUFFER].into(), length: 0, segments: Segments::new() };
        Self { slots: std::iter::repeat_with(slot).take(batch).collect(), limit: Limit::new(Instant::now()) }
    }

    /// Moves one batch, and says whether more may wait. An error means that the device is gone.
    pub(super) fn pass(&mut self, port: Port<'_>) -> io::Result<bool> {
        let (count, more) = self.read(port)?;
        if count > 0 {
            self.forward(port, count);
        }
        Ok(more)
    }

    /// Reads what waits, at most one batch, and says how many that is and whether more may wait.
    fn read(&mut self, port: Port<'_>) -> io::Result<(usize, bool)> {
        // In plain mode the packet goes where it would be with a header, and the header says "nothing to do".
        let start = if port.shared.tun.vnet_header { 0 } else { VnetHeader::LEN };
        let mut bytes = 0;
        for (count, slot) in self.slots.iter_mut().enumerate() {
            if bytes >= BATCH_BYTES {
                return Ok((count, true));
            }
            match port.queue.read(&mut slot.buffer[start..]) {
                Ok(length) => slot.length = start + length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((count, false)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok((count, true)),
                Err(error) => return Err(error),
            }
            bytes += slot.length;
        }
        Ok((self.slots.len(), true))
    }

    fn forward(&mut self, port: Port<'_>, count: usize) {
        let Self { slots, limit } = self;
        let shared = port.shared;
        let counters = &shared.gauge.counters;
        let mut tell = |packet: &[u8], reason| {
            if limit.allows(Instant::now()) && send_icmp(port, packet, reason) {
                add(&counters.icmp_sent, 1);
            }
        };
        let routes = shared.table.read();
        let mut outgoing = Outgoing::new(port);
        for slot in &mut slots[..count] {
            let packet = &mut slot.buffer[..slot.length];
            let inner = packet.get(VnetHeader::LEN..).unwrap_or_default();
            let Some(IpAddr::V4(destination)) = Ip::parse(inner).map(|ip| ip.destination()) else {
                add(&counters.dropped_malformed, 1);
                continue;
            };
            let Some(peer) = routes.peer(destination) else {
                add(&counters.dropped_no_peer, 1);
                tell(inner, Reason::NoPeer);
                continue;
            };
            // Asked before the packet is changed: the error quotes it as it came.
            if inner[TTL_AT] <= 1 {
                add(&counters.dropped_ttl, 1);
                tell(inner, Reason::TtlExpired);
                continue;
            }
            match slot.segments.split(packet) {
                Ok(split) => outgoing.add(peer, &split),
                Err(Refused::TtlExpired) => add(&counters.dropped_ttl, 1),
                Err(_) => add(&counters.dropped_malformed, 1),
            }
        }
        let mtu = u16::try_from(shared.settings.mtu).unwrap_or(u16::MAX);
        outgoing.send(|packet| tell(packet, Reason::TooBig(mtu)));
    }
}

/// Where the time to live stands in an IPv4 header.
const TTL_AT: usize = 8;

/// Wire packets on their way, those to one peer and of one size together.
struct Outgoing<'a> {
    port: Port<'a>,
    /// Whether the kernel takes several wire packets in one piece.
    gso: bool,
    /// Two for each wire packet: headers and payload.
    slices: Vec<IoSlice<'a>>,
    trains: Vec<Train>,
}

/// Wire packets that leave in one piece.
struct Train {
    peer: Ipv4Addr,
    /// Bytes of each but the last.
    size: usize,
    /// Bytes of the last one so far.
    last: usize,
    bytes: usize,
    /// Which of the slices.
    first: usize,
    count: usize,
}

impl<'a> Outgoing<'a> {
    fn new(port: Port<'a>) -> Self {
        let gso = port.shared.gauge.gso.load(Relaxed);
        Self { port, gso, slices: Vec::with_capacity(256), trains: Vec::with_capacity(16) }
    }

    fn add(&mut self, peer: Ipv4Addr, split: &Split<'a>) {
        for (headers, payload) in split.segments() {
            let size = headers.len() + payload.len();
            let first = self.slices.len();
            self.slices.extend([IoSlice::new(headers), IoSlice::new(payload)]);
            match self.trains.last_mut().filter(|train| self.gso && train.takes(peer, size)) {
                Some(train) => {
                    train.bytes += size;
                    train.count += 1;
                    train.last = size;
                }
                None => self.trains.push(Train { peer, size, last: size, bytes: size, first, count: 1 }),
            }
        }
    }

    /// Sends everything; `too_big` is given each packet that the path does not carry.
    fn send(&self, mut too_big: impl FnMut(&[u8])) {
        let gso = &self.port.shared.gauge.gso;
        let mut rest = &self.trains[..];
        while let [first, after @ ..] = rest {
            let several = first.count > 1;
            if several && !gso.load(Relaxed) {
                self.send_singly(first, &mut too_big);
                rest = after;
                continue;
            }
            match self.hand_over(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if several && udp_socket::is_gso_refused(&error) => {
                    warn!(%error, "the kernel refuses batches (UDP_SEGMENT); sending packets one by one from now on");
                    gso.store(false, Relaxed);
                }
                // Alone they are cut into fragments where the path needs it.
                Err(error) if several && udp_socket::is_too_big(&error) => {
                    self.send_singly(first, &mut too_big);
                    rest = after;
                }
                Err(error) => {
                    self.lost(first, &error, &mut too_big);
                    rest = after;
                }
            }
        }
    }

    /// Sends each wire packet of a train by itself.
    fn send_singly(&self, train: &Train, too_big: &mut impl FnMut(&[u8])) {
        let singles: Vec<Train> = self.singles(train).collect();
        let mut rest = &singles[..];
        while let [first, after @ ..] = rest {
            match self.hand_over(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) => {
                    self.lost(first, &error, too_big);
                    rest = after;
                }
            }
        }
    }

    /// Gives the kernel as many trains as it takes, and says how many that is.
    fn hand_over(&self, trains: &[Train]) -> io::Result<usize> {
        let messages: Vec<Message<'_>> = trains.iter().map(|train| self.message(train)).collect();
        let sent = self.port.socket.send_many(&messages)?;
        self.count(&trains[..sent]);
        Ok(sent)
    }

    fn message(&self, train: &Train) -> Message<'_> {
        Message {
            to: SocketAddr::new(train.peer.into(), self.port.shared.settings.port),
            slices: &self.slices[train.first..train.first + 2 * train.count],
            segment_size: u16::try_from(train.size).ok().filter(|_| train.count > 1),
        }
    }

    fn singles(&self, train: &Train) -> impl Iterator<Item = Train> {
        let (peer, first) = (train.peer, train.first);
        (0..train.count).map(move |number| {
            let first = first + 2 * number;
            let size = self.slices[first].len() + self.slices[first + 1].len();
            Train { peer, size, last: size, bytes: size, first, count: 1 }
        })
    }

    fn count(&self, sent: &[Train]) {
        let counters = &self.port.shared.gauge.counters;
        add(&counters.sent_batches, 1);
        add(&counters.sent_packets, sent.iter().map(|train| train.count).sum());
        add(&counters.sent_bytes, sent.iter().map(|train| train.bytes).sum());
    }

    fn lost(&self, train: &Train, error: &io::Error, too_big: &mut impl FnMut(&[u8])) {
        let counters = &self.port.shared.gauge.counters;
        if udp_socket::is_too_big(error) {
            add(&counters.dropped_too_big, train.count);
            too_big(&gathered(&self.slices[train.first..train.first + 2]));
        } else if udp_socket::is_full(error) {
            add(&counters.dropped_full, train.count);
        } else {
            add(&counters.dropped_refused, train.count);
        }
    }
}

impl Train {
    /// Whether one more wire packet of this size may follow: all but the last have one size.
    fn takes(&self, peer: Ipv4Addr, size: usize) -> bool {
        self.peer == peer
            && self.last == self.size
            && size <= self.size
            && self.count < MAX_SEGMENTS
            && self.bytes + size <= MAX_GSO_BYTES
    }
}

/// The bytes of a wire packet in one piece.
fn gathered(slices: &[IoSlice<'_>]) -> Vec<u8> {
    slices.iter().flat_map(|slice| slice.iter().copied()).collect()
}

/// Gives the device an ICMP error for the sender of `packet`. Answers whether there was one to give.
pub(super) fn send_icmp(port: Port<'_>, packet: &[u8], reason: Reason) -> bool {
    let Some(error) = icmp::error(packet, port.shared.settings.address, reason) else { return false };
    let header = [0; VnetHeader::LEN];
    let header = if port.shared.tun.vnet_header { &header[..] } else { &[] };
    port.queue.write(&[IoSlice::new(header), IoSlice::new(&error)]).is_ok()
}
