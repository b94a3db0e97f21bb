//! From the wire to the device: receives what is queued, checks its source, merges what belongs together, writes it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use flan_kernel::udp_socket::ReceiveBatch;

use super::common::Common;
use super::rules::{self, Refusal};
use crate::userspace::coalescing::{Coalescer, Merging, PushError};
use crate::userspace::counters::add;
use crate::userspace::endpoints::Endpoints;
use crate::userspace::icmp::{self, Limit};
use crate::userspace::packet::Hop;

pub(super) struct Inbound {
    common: Arc<Common>,
    received: ReceiveBatch,
    coalescer: Coalescer,
    limit: Limit,
}

impl Inbound {
    /// Receives up to `batch` datagrams per call, each possibly merged from many.
    pub(super) fn new(batch: usize, common: Arc<Common>) -> Self {
        let tun = common.running.tun;
        let mtu = tun.vnet_header.then_some(common.settings.mtu as usize);
        Self {
            common,
            received: ReceiveBatch::new(batch),
            coalescer: Coalescer::new(Merging {
                mtu,
                tcp: tun.tso,
                udp: tun.uso,
                hop: Hop::Counts,
                checks: true,
            }),
            limit: Limit::new(Instant::now()),
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
        let Self { common, received, coalescer, limit } = self;
        let counters = &common.running.gauge.counters;
        add(&counters.received_batches, 1);
        let routes = common.table.read();
        let mut batch = coalescer.batch();
        for datagram in received.datagrams() {
            let SocketAddr::V4(source) = datagram.source else { continue };
            let packets = datagram.bytes.len().div_ceil(datagram.segment_size);
            add(&counters.received_packets, packets);
            add(&counters.received_bytes, datagram.bytes.len());
            if !routes.is_peer(*source.ip()) {
                Refusal::ForeignSource.count(counters, packets);
                continue;
            }
            for packet in datagram.bytes.chunks_mut(datagram.segment_size) {
                let passes = rules::inbound(&routes, *source.ip(), packet, common.settings.strict);
                let (refusal, packet) = match passes {
                    Err(refusal) => (refusal, packet),
                    Ok(()) => match batch.push(packet) {
                        Ok(()) => continue,
                        Err((PushError::TtlExpired, packet)) => (Refusal::TtlExpired, packet),
                        Err((PushError::NotIp, packet)) => (Refusal::Malformed, packet),
                    },
                };
                if let Some(reason) = refusal.count(counters, 1).filter(|_| limit.allows(Instant::now())) {
                    endpoints.tell(icmp::error(packet, common.settings.address, reason).as_deref());
                }
            }
        }
        let merging_refused = endpoints.deliver(&mut batch)?;
        drop(batch);
        if merging_refused {
            let merging = Merging { tcp: false, udp: false, ..coalescer.merging() };
            *coalescer = Coalescer::new(merging);
        }
        Ok(())
    }
}
