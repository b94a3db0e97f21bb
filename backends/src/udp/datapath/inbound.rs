//! From the wire to the device: receives what is queued, checks its source, merges what belongs together, writes it.

use std::io;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use flan_kernel::tun::{TunMode, is_gone};
use flan_kernel::udp_socket::{self, ReceiveBatch};
use ipnetwork::Ipv4Network;
use tracing::{debug, warn};

use super::endpoints::Endpoints;
use crate::udp::coalescing::{Coalescer, Merging, PushError};
use crate::udp::counters::{Counters, add};
use crate::udp::forwarding::Routes;
use crate::udp::icmp::{Limit, Reason};
use crate::udp::packet::{Ip, VnetHeader};

pub(super) struct Inbound {
    received: ReceiveBatch,
    coalescer: Coalescer,
    limit: Limit,
}

impl Inbound {
    /// Receives up to `batch` datagrams per call, each possibly merged from many.
    pub(super) fn new(batch: usize, tun: TunMode) -> Self {
        Self {
            received: ReceiveBatch::new(batch),
            coalescer: Coalescer::new(Merging { tcp: tun.tso, udp: tun.uso }),
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
                add(&counters.dropped_foreign_source, packets);
                continue;
            }
            for packet in datagram.bytes.chunks_mut(datagram.segment_size) {
                let Some(inner) = inner_source(packet) else {
                    add(&counters.dropped_malformed, 1);
                    continue;
                };
                let is_refused =
                    |own: Ipv4Network| !is_of(&routes, inner, *source.ip()) || !goes_to(packet, own);
                if common.settings.strict.is_some_and(is_refused) {
                    add(&counters.dropped_strict_source, 1);
                    continue;
                }
                match batch.push(packet) {
                    Ok(()) => {}
                    Err((PushError::TtlExpired, packet)) => {
                        add(&counters.dropped_ttl, 1);
                        if limit.allows(Instant::now()) {
                            endpoints.send_icmp(packet, Reason::TtlExpired);
                        }
                    }
                    Err((PushError::NotIp, _)) => add(&counters.dropped_malformed, 1),
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
            *coalescer = Coalescer::new(Merging { tcp: false, udp: false });
        }
        Ok(())
    }
}

/// Counts the outcome of a write that carries `packets`. An error means that the device is gone.
fn counted(counters: &Counters, packets: usize, result: io::Result<()>) -> io::Result<()> {
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

/// Returns the source of the IPv4 packet at the start of `bytes`.
fn inner_source(bytes: &[u8]) -> Option<Ipv4Addr> {
    match Ip::parse(bytes)?.source() {
        IpAddr::V4(source) => Some(source),
        IpAddr::V6(_) => None,
    }
}

/// Returns whether the IPv4 packet at the start of `bytes` goes to `network`.
fn goes_to(bytes: &[u8], network: Ipv4Network) -> bool {
    match Ip::parse(bytes).map(|ip| ip.destination()) {
        Some(IpAddr::V4(destination)) => network.contains(destination),
        _ => false,
    }
}

/// Returns whether the peer at `outer` holds the subnet of `inner`.
fn is_of(routes: &Routes, inner: Ipv4Addr, outer: Ipv4Addr) -> bool {
    routes.peer(inner).is_some_and(|peer| peer.address == outer)
}
