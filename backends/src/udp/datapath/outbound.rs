//! From the device to the wire: reads what is queued, cuts it into wire packets, sends these in few calls.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::common::Common;
use super::pacing::Entrance;
use super::rules;
use crate::userspace::counters::add;
use crate::userspace::endpoints::Endpoints;
use crate::userspace::icmp::{self, Limit, Reason};
use crate::userspace::outgoing::Outgoing;
use crate::userspace::packet::Hop;
use crate::userspace::segmentation::SplitError;
use crate::userspace::slots::Slots;

pub(super) struct Outbound {
    common: Arc<Common>,
    slots: Slots,
    limit: Limit,
    /// Where packets for paced peers go.
    paced: Entrance,
}

impl Outbound {
    /// Reads up to `batch` packets before sending.
    pub(super) fn new(batch: usize, common: Arc<Common>, paced: Entrance) -> Self {
        Self { common, slots: Slots::new(batch, Hop::Counts), limit: Limit::new(Instant::now()), paced }
    }

    /// Moves one batch, and returns whether more may be queued. An error means that the device is gone.
    pub(super) fn pass(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        let Self { common, slots, limit, paced } = self;
        let (slots, more) = slots.read(endpoints)?;
        if slots.is_empty() {
            return Ok(more);
        }
        let (settings, counters) = (&common.settings, &common.running.gauge.counters);
        let mut tell = |packet: &[u8], reason| {
            if limit.allows(Instant::now()) {
                endpoints.tell(icmp::error(packet, settings.address, reason).as_deref());
            }
        };
        let routes = common.table.read();
        let mut outgoing = Outgoing::new(&common.running.gauge, &endpoints.socket);
        for slot in slots {
            let inner = slot.inner();
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
            let (segments, packet) = slot.parts();
            match segments.split(packet) {
                Ok(split) if peer.paced => {
                    add(&counters.dropped_full, paced.leave(peer.address, &split));
                }
                Ok(split) => {
                    let to = SocketAddr::new(peer.address.into(), settings.port);
                    for (headers, payload) in split.segments() {
                        outgoing.add(to, [IoSlice::new(headers), IoSlice::new(payload)]);
                    }
                }
                Err(SplitError::TtlExpired) => add(&counters.dropped_ttl, 1),
                Err(_) => add(&counters.dropped_malformed, 1),
            }
        }
        let mtu = u16::try_from(settings.mtu).unwrap_or(u16::MAX);
        outgoing.send(|packet| tell(packet, Reason::TooBig(mtu)));
        Ok(more)
    }
}
