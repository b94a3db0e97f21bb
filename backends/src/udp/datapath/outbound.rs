//! From the device to the wire: reads what is queued, cuts it into wire packets, sends these in few calls.

use std::io::{self, IoSlice};
use std::time::Instant;

use super::endpoints::Endpoints;
use super::outgoing::Outgoing;
use super::pacing::Entrance;
use super::rules;
use crate::udp::counters::add;
use crate::udp::icmp::{Limit, Reason};
use crate::udp::packet::VnetHeader;
use crate::udp::segmentation::{Segments, SplitError};

/// Bytes to read before sending: few enough to stay in the processor's cache, and enough that the tail of one large
/// packet, which a single send does not take, leaves with the next.
const BATCH_BYTES: usize = 192 << 10;
/// Bytes of the largest packet, with its virtio-net header.
const BUFFER: usize = VnetHeader::LEN + 65_536;

pub(super) struct Outbound {
    slots: Vec<Slot>,
    limit: Limit,
    /// Where packets for paced peers go.
    paced: Entrance,
}

/// Room for one packet and its segments' headers.
struct Slot {
    buffer: Box<[u8]>,
    length: usize,
    segments: Segments,
}

impl Outbound {
    /// Reads up to `batch` packets before sending.
    pub(super) fn new(batch: usize, paced: Entrance) -> Self {
        let slot = || Slot { buffer: vec![0; BUFFER].into(), length: 0, segments: Segments::new() };
        Self {
            slots: std::iter::repeat_with(slot).take(batch).collect(),
            limit: Limit::new(Instant::now()),
            paced,
        }
    }

    /// Moves one batch, and returns whether more may be queued. An error means that the device is gone.
    pub(super) fn pass(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        let (count, more) = self.read(endpoints)?;
        if count > 0 {
            self.forward(endpoints, count);
        }
        Ok(more)
    }

    /// Reads at most one batch. Returns the number of packets, and whether more may be queued.
    fn read(&mut self, endpoints: &Endpoints) -> io::Result<(usize, bool)> {
        // In plain mode, put the packet where it would be with a header; the header says "nothing to do".
        let start = if endpoints.common.tun.vnet_header { 0 } else { VnetHeader::LEN };
        let mut bytes = 0;
        for (count, slot) in self.slots.iter_mut().enumerate() {
            if bytes >= BATCH_BYTES {
                return Ok((count, true));
            }
            match endpoints.queue.read(&mut slot.buffer[start..]) {
                Ok(length) => slot.length = start + length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((count, false)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok((count, true)),
                Err(error) => return Err(error),
            }
            bytes += slot.length;
        }
        Ok((self.slots.len(), true))
    }

    fn forward(&mut self, endpoints: &Endpoints, count: usize) {
        let Self { slots, limit, paced } = self;
        let common = &*endpoints.common;
        let counters = &common.gauge.counters;
        let mut tell = |packet: &[u8], reason| {
            if limit.allows(Instant::now()) {
                endpoints.send_icmp(packet, reason);
            }
        };
        let routes = common.table.read();
        let mut outgoing = Outgoing::new(common, &endpoints.socket);
        for slot in &mut slots[..count] {
            let packet = &mut slot.buffer[..slot.length];
            let inner = packet.get(VnetHeader::LEN..).unwrap_or_default();
            // Checked before the packet is changed: the error quotes the original.
            let peer = match rules::outbound(&routes, inner) {
                Ok(peer) => peer,
                Err(refusal) => {
                    if let Some(reason) = refusal.count(counters, 1) {
                        tell(inner, reason);
                    }
                    continue;
                }
            };
            match slot.segments.split(packet) {
                Ok(split) if peer.paced => {
                    add(&counters.dropped_full, paced.leave(peer.address, &split));
                }
                Ok(split) => {
                    for (headers, payload) in split.segments() {
                        outgoing.add(peer.address, [IoSlice::new(headers), IoSlice::new(payload)]);
                    }
                }
                Err(SplitError::TtlExpired) => add(&counters.dropped_ttl, 1),
                Err(_) => add(&counters.dropped_malformed, 1),
            }
        }
        let mtu = u16::try_from(common.settings.mtu).unwrap_or(u16::MAX);
        outgoing.send(|packet| tell(packet, Reason::TooBig(mtu)));
    }
}
