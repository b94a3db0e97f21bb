//! From the device to the wire: read what waits, cut it into wire packets, send those in as few calls as possible.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use flan_kernel::tun::{TunMode, TunQueue, Waker, wait_readable};
use flan_kernel::udp_socket::{self, MAX_GSO_BYTES, MAX_SEGMENTS, Message};
use tracing::warn;

use super::Shared;
use crate::udp::counters::add;
use crate::udp::icmp::{self, Limit, Reason};
use crate::udp::packet::{Ip, VnetHeader};
use crate::udp::segmentation::{Refused, Segments, Split};

/// Packets that are read before anything is sent.
const BATCH: usize = 32;
/// Bytes of the largest packet, with its virtio-net header.
const BUFFER: usize = VnetHeader::LEN + 65_536;

/// One queue's thread.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    queue: Arc<TunQueue>,
    waker: Waker,
    mode: TunMode,
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
    pub(super) fn new(shared: Arc<Shared>, queue: Arc<TunQueue>, waker: Waker, mode: TunMode) -> Self {
        let slot = || Slot { buffer: vec![0; BUFFER].into(), length: 0, segments: Segments::new() };
        let slots = std::iter::repeat_with(slot).take(BATCH).collect();
        Self { shared, queue, waker, mode, slots, limit: Limit::new(Instant::now()) }
    }

    /// Runs until it is woken, or the device is gone.
    pub(super) fn run(mut self) {
        loop {
            match wait_readable(self.queue.as_fd(), self.waker.as_fd()) {
                Ok(ready) if ready.woken || ready.hung_up => return,
                Ok(_) => {}
                Err(reason) => return warn!(%reason, "cannot wait for the device"),
            }
            loop {
                let count = match self.read() {
                    Ok(count) => count,
                    Err(reason) => return warn!(%reason, "the device is gone"),
                };
                self.forward(count);
                if count < BATCH {
                    break;
                }
            }
        }
    }

    /// Reads what waits, at most one batch.
    fn read(&mut self) -> io::Result<usize> {
        // In plain mode the packet goes where it would be with a header, and the header says "nothing to do".
        let start = if self.mode.vnet_header { 0 } else { VnetHeader::LEN };
        for (count, slot) in self.slots.iter_mut().enumerate() {
            match self.queue.read(&mut slot.buffer[start..]) {
                Ok(length) => slot.length = start + length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(self.slots.len())
    }

    fn forward(&mut self, count: usize) {
        let Self { shared, slots, queue, mode, limit, .. } = self;
        let counters = &shared.gauge.counters;
        let mut tell = |packet: &[u8], reason| {
            if limit.allows(Instant::now()) && send_icmp(shared, queue, *mode, packet, reason) {
                add(&counters.icmp_sent, 1);
            }
        };
        let routes = shared.table.read();
        let mut outgoing = Outgoing::new(shared);
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
    shared: &'a Shared,
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
    fn new(shared: &'a Shared) -> Self {
        Self { shared, slices: Vec::with_capacity(4 * BATCH), trains: Vec::with_capacity(BATCH) }
    }

    fn add(&mut self, peer: Ipv4Addr, split: &Split<'a>) {
        for (headers, payload) in split.segments() {
            let size = headers.len() + payload.len();
            let first = self.slices.len();
            self.slices.extend([IoSlice::new(headers), IoSlice::new(payload)]);
            match self.trains.last_mut().filter(|train| train.takes(peer, size)) {
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
    fn send(self, mut too_big: impl FnMut(&[u8])) {
        let mut rest = &self.trains[..];
        while !rest.is_empty() && self.shared.gauge.gso.load(Relaxed) {
            let messages: Vec<Message<'_>> = rest.iter().map(|train| self.message(train)).collect();
            match self.shared.socket.send_many(&messages) {
                Ok(sent) => {
                    self.count(&rest[..sent]);
                    rest = &rest[sent..];
                }
                Err(error) if rest[0].count > 1 && udp_socket::is_gso_refused(&error) => {
                    warn!(%error, "the kernel refuses batches (UDP_SEGMENT); sending packets one by one from now on");
                    self.shared.gauge.gso.store(false, Relaxed);
                }
                Err(error) => {
                    self.lost(&rest[0], &error, &mut too_big);
                    rest = &rest[1..];
                }
            }
        }
        let singles: Vec<Train> = rest.iter().flat_map(|train| self.singles(train)).collect();
        let mut rest = &singles[..];
        while !rest.is_empty() {
            let messages: Vec<Message<'_>> = rest.iter().map(|train| self.message(train)).collect();
            match self.shared.socket.send_many(&messages) {
                Ok(sent) => {
                    self.count(&rest[..sent]);
                    rest = &rest[sent..];
                }
                Err(error) => {
                    self.lost(&rest[0], &error, &mut too_big);
                    rest = &rest[1..];
                }
            }
        }
    }

    fn message(&self, train: &Train) -> Message<'_> {
        Message {
            to: SocketAddr::new(train.peer.into(), self.shared.settings.port),
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
        let counters = &self.shared.gauge.counters;
        add(&counters.sent_batches, 1);
        add(&counters.sent_packets, sent.iter().map(|train| train.count).sum());
        add(&counters.sent_bytes, sent.iter().map(|train| train.bytes).sum());
    }

    fn lost(&self, train: &Train, error: &io::Error, too_big: &mut impl FnMut(&[u8])) {
        let counters = &self.shared.gauge.counters;
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
pub(super) fn send_icmp(
    shared: &Shared,
    queue: &TunQueue,
    mode: TunMode,
    packet: &[u8],
    reason: Reason,
) -> bool {
    let Some(error) = icmp::error(packet, shared.settings.address, reason) else { return false };
    let header = [0; VnetHeader::LEN];
    let header = if mode.vnet_header { &header[..] } else { &[] };
    queue.write(&[IoSlice::new(header), IoSlice::new(&error)]).is_ok()
}
