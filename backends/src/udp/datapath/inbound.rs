//! From the wire to the device: receives what is queued, checks its source, merges what belongs together, writes it.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use flan_kernel::tun::{TunMode, is_gone};
use flan_kernel::udp_socket::{self, ReceiveBatch};
use tracing::{debug, warn};

use super::endpoints::Endpoints;
use super::rules::{self, Refusal};
use crate::udp::coalescing::{Coalescer, Merging, PushError};
use crate::udp::counters::{Counters, add};
use crate::udp::icmp::Limit;
use crate::udp::packet::VnetHeader;

pub(super) struct Inbound {
    received: ReceiveBatch,
    coalescer: Coalescer,
    limit: Limit,
}

impl Inbound {
    /// Receives up to `batch` datagrams per call, each possibly merged from many.
    pub(super) fn new(batch: usize, tun: TunMode, mtu: u32) -> Self {
        let mtu = tun.vnet_header.then_some(mtu as usize);
        Self {
            received: ReceiveBatch::new(batch),
            coalescer: Coalescer::new(Merging { mtu, tcp: tun.tso, udp: tun.uso }),
            limit: Limit::new(Instant::now()),
        }
    }

    /// Moves one batch, and returns whether more may be queued. An error means that the device is gone.
    pub(super) fn pass(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        match endpoints.socket.receive(&mut self.received) {
            Ok(_) => self.deliver(endpoints)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // An answer to what was sent earlier, such as "port unreachable": the peer is away.
            Err(error) => {
                debug!(%error, "receive");
                return Ok(false);
            }
        }
        Ok(self.received.is_full())
    }

    fn deliver(&mut self, endpoints: &Endpoints) -> io::Result<()> {
        let Self { received, coalescer, limit } = self;
        let common = &*endpoints.common;
        let counters = &common.gauge.counters;
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
                    endpoints.send_icmp(packet, reason);
                }
            }
        }
        let mut merging_refused = false;
        for write in batch.writes() {
            match endpoints.write(write.header, iter::once(write.headers).chain(write.payload())) {
                Err(error) if write.count > 1 && is_refused(&error) => {
                    merging_refused = true;
                    for packet in write.packets() {
                        counted(counters, 1, endpoints.write(VnetHeader::default(), iter::once(packet)))?;
                    }
                }
                result => counted(counters, write.count, result)?,
            }
        }
        drop(batch);
        if merging_refused {
            warn!("the device refuses merged packets; writing them one by one from now on");
            common.gauge.merge.store(false, Relaxed);
            let mtu = coalescer.merging().mtu;
            *coalescer = Coalescer::new(Merging { mtu, tcp: false, udp: false });
        }
        Ok(())
    }
}

/// Counts the outcome of a write that carries `packets`. An error means that the device is gone.
pub(super) fn counted(counters: &Counters, packets: usize, result: io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => {
            add(&counters.written, 1);
            add(&counters.merged, packets - 1);
        }
        Err(error) if is_gone(&error) => return Err(error),
        Err(error) if udp_socket::is_full(&error) => add(&counters.dropped_full, packets),
        Err(_) => add(&counters.dropped_refused, packets),
    }
    Ok(())
}

/// Returns whether the kernel rejects such a packet (`tun_get_user` in `drivers/net/tun.c`).
fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
