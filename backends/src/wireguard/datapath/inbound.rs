//! From the peers to the device: receives what is queued, decrypts it, merges what belongs together, writes it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flan_kernel::udp_socket::ReceiveBatch;

use super::Common;
use crate::userspace::coalescing::{Coalescer, Merging};
use crate::userspace::counters::add;
use crate::userspace::endpoints::Endpoints;
use crate::userspace::packet::Hop;
use crate::wireguard::wire::Wire;

/// Bytes of the largest datagram, or of the largest that was merged from several.
const LARGEST: usize = 65_536;

pub(super) struct Inbound {
    common: Arc<Common>,
    received: ReceiveBatch,
    /// Room for what is in the received messages. Memory that no packet reaches is never touched, and costs nothing.
    room: Box<[u8]>,
    coalescer: Coalescer,
    /// Answers.
    wire: Wire,
}

impl Inbound {
    /// Receives up to `batch` datagrams per call, each possibly merged from many.
    pub(super) fn new(batch: usize, common: Arc<Common>) -> Self {
        let tun = common.running.tun;
        let mtu = tun.vnet_header.then_some(common.settings.mtu as usize);
        let merging = Merging { mtu, tcp: tun.tso, udp: tun.uso, hop: Hop::IsFree, checks: false };
        Self {
            common,
            received: ReceiveBatch::new(batch),
            room: vec![0; batch * LARGEST].into(),
            coalescer: Coalescer::new(merging),
            wire: Wire::default(),
        }
    }

    /// Moves one batch, and returns whether more may be queued. An error means that the device is gone.
    pub(super) fn pass(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        if !endpoints.receive(&mut self.received) {
            return Ok(false);
        }
        self.deliver(endpoints)?;
        Ok(self.received.is_full())
    }

    fn deliver(&mut self, endpoints: &Endpoints) -> io::Result<()> {
        let Self { common, received, room, coalescer, wire } = self;
        let counters = &common.running.gauge.counters;
        add(&counters.received_batches, 1);
        let (table, identity) = (common.peers.table(), common.peers.identity());
        let exchange = common.exchange(&table, &identity);
        let mut room = &mut room[..];
        let mut batch = coalescer.batch();
        for datagram in received.datagrams() {
            add(&counters.received_packets, datagram.bytes.len().div_ceil(datagram.segment_size));
            add(&counters.received_bytes, datagram.bytes.len());
            let from = match datagram.source.ip().to_canonical() {
                IpAddr::V4(address) => SocketAddr::new(address.into(), datagram.source.port()),
                IpAddr::V6(_) => datagram.source,
            };
            exchange.inbound(from, datagram.bytes, datagram.segment_size, &mut room, wire, |packet| {
                if batch.push(packet).is_err() {
                    add(&counters.dropped_malformed, 1);
                }
            });
        }
        let merging_refused = endpoints.deliver(&mut batch)?;
        drop(batch);
        if merging_refused {
            let merging = Merging { tcp: false, udp: false, ..coalescer.merging() };
            *coalescer = Coalescer::new(merging);
        }
        common.send(wire, &endpoints.socket);
        Ok(())
    }
}
