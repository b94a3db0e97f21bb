//! From the device to the wire: read what waits, cut it into wire packets, send those in as few calls as possible.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::time::Instant;

use super::endpoints::Endpoints;
use super::outgoing::Outgoing;
use super::pacing::Entrance;
use crate::udp::counters::add;
use crate::udp::icmp::{Limit, Reason};
use crate::udp::packet::{Ip, VnetHeader};
use crate::udp::segmentation::{Segments, SplitError};

/// Bytes that are read before anything is sent: few enough to be still in the processor's cache, and enough that the
/// tail of one large packet, which a single send does not take, leaves with the next.
const BATCH_BYTES: usize = 192 << 10;
/// Bytes of the largest packet, with its virtio-net header.
const BUFFER: usize = VnetHeader::LEN + 65_536;

/// What this direction needs.
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
    /// `batch` packets at most are read before anything is sent.
    pub(super) fn new(batch: usize, paced: Entrance) -> Self {
        let slot = || Slot { buffer: vec![0; BUFFER].into(), length: 0, segments: Segments::new() };
        Self {
            slots: std::iter::repeat_with(slot).take(batch).collect(),
            limit: Limit::new(Instant::now()),
            paced,
        }
    }

    /// Moves one batch, and says whether more may wait. An error means that the device is gone.
    pub(super) fn pass(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        let (count, more) = self.read(endpoints)?;
        if count > 0 {
            self.forward(endpoints, count);
        }
        Ok(more)
    }

    /// Reads what waits, at most one batch, and says how many that is and whether more may wait.
    fn read(&mut self, endpoints: &Endpoints) -> io::Result<(usize, bool)> {
        // In plain mode the packet goes where it would be with a header, and the header says "nothing to do".
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

/// Where the time to live stands in an IPv4 header.
const TTL_AT: usize = 8;
