//! From the device to the peers: reads what is queued, cuts it into wire packets, encrypts them, sends them in few
//! calls.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Common;
use crate::userspace::endpoints::Endpoints;
use crate::userspace::icmp::{self, Limit, Reason};
use crate::userspace::icmp6;
use crate::userspace::packet::{Hop, VnetHeader};
use crate::userspace::slots::Slots;
use crate::wireguard::wire::Wire;

pub(super) struct Outbound {
    common: Arc<Common>,
    slots: Slots,
    wire: Wire,
    limit: Limit,
}

impl Outbound {
    /// Reads up to `batch` packets before sending.
    pub(super) fn new(batch: usize, common: Arc<Common>) -> Self {
        Self {
            common,
            slots: Slots::new(batch, Hop::IsFree),
            wire: Wire::default(),
            limit: Limit::new(Instant::now()),
        }
    }

    /// Moves one batch, and returns whether more may be queued. An error means that the device is gone.
    pub(super) fn pass(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        let Self { common, slots, wire, limit } = self;
        let (slots, more) = slots.read(endpoints)?;
        if slots.is_empty() {
            return Ok(more);
        }
        let (table, identity) = (common.peers.table(), common.peers.identity());
        let exchange = common.exchange(&table, &identity);
        for slot in slots {
            let (segments, packet) = slot.parts();
            let sent = exchange.outbound(segments, packet, VnetHeader::LEN, wire);
            if sent.is_err() && limit.allows(exchange.now) {
                endpoints.tell(common.unreachable(slot.inner()).as_deref());
            }
        }
        common.send(wire, &endpoints.socket);
        Ok(more)
    }
}

impl Common {
    /// Returns the ICMP error for a packet that cannot be sent, as the kernel's WireGuard answers.
    fn unreachable(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let own = &self.settings.addresses;
        match (packet.first()? >> 4, own.v4, own.v6) {
            (4, Some(IpAddr::V4(from)), _) => icmp::error(packet, from, Reason::PeerAway),
            (6, _, Some(IpAddr::V6(from))) => icmp6::unreachable(packet, from),
            _ => None,
        }
    }
}
