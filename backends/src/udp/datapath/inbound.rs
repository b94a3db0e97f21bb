//! From the wire to the device: fetch what waits, check where it comes from, merge what belongs together, write it.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use flan_kernel::tun::{TunMode, TunQueue, Waker, is_gone, wait_readable};
use flan_kernel::udp_socket::{self, ReceiveBatch};
use tracing::warn;

use super::Shared;
use super::outbound::send_icmp;
use crate::udp::coalescing::{Coalescer, MAX_SEGMENTS, Merging, Refused, Write};
use crate::udp::counters::add;
use crate::udp::forwarding::Routes;
use crate::udp::icmp::{Limit, Reason};
use crate::udp::packet::Ip;

/// Datagrams, each perhaps merged from many, that are fetched in one call.
const BATCH: usize = 32;

/// The thread of the socket.
pub(super) struct Inbound {
    shared: Arc<Shared>,
    queue: Arc<TunQueue>,
    waker: Waker,
    mode: TunMode,
    received: ReceiveBatch,
    coalescer: Coalescer,
    limit: Limit,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>, queue: Arc<TunQueue>, waker: Waker, mode: TunMode) -> Self {
        Self {
            shared,
            queue,
            waker,
            mode,
            received: ReceiveBatch::new(BATCH),
            coalescer: Coalescer::new(Merging { tcp: mode.tso, udp: mode.uso }),
            limit: Limit::new(Instant::now()),
        }
    }

    /// Runs until it is woken, or the device is gone.
    pub(super) fn run(mut self) {
        loop {
            match wait_readable(self.shared.socket.as_fd(), self.waker.as_fd()) {
                Ok(ready) if ready.woken => return,
                Ok(_) => {}
                Err(reason) => return warn!(%reason, "cannot wait for the socket"),
            }
            loop {
                let count = match self.shared.socket.receive(&mut self.received) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => break,
                    // An answer to what we sent earlier, such as "port unreachable": the peer is away.
                    Err(error) => {
                        tracing::debug!(%error, "receive");
                        break;
                    }
                };
                if let Err(reason) = self.deliver() {
                    return warn!(%reason, "the device is gone");
                }
                if count < BATCH {
                    break;
                }
            }
        }
    }

    /// Writes what was received to the device.
    fn deliver(&mut self) -> io::Result<()> {
        let Self { shared, queue, mode, received, coalescer, limit, .. } = self;
        let counters = &shared.gauge.counters;
        add(&counters.received_batches, 1);
        let routes = shared.table.read();
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
                let Some(IpAddr::V4(inner)) = Ip::parse(packet).map(|ip| ip.source()) else {
                    add(&counters.dropped_malformed, 1);
                    continue;
                };
                if shared.settings.strict_source && !is_of(&routes, inner, *source.ip()) {
                    add(&counters.dropped_strict_source, 1);
                    continue;
                }
                match batch.push(packet) {
                    Ok(()) => {}
                    Err((Refused::TtlExpired, packet)) => {
                        add(&counters.dropped_ttl, 1);
                        let told = limit.allows(Instant::now())
                            && send_icmp(shared, queue, *mode, packet, Reason::TtlExpired);
                        add(&counters.icmp_sent, usize::from(told));
                    }
                    Err((Refused::NotIp, _)) => add(&counters.dropped_malformed, 1),
                }
            }
        }
        let mut merging_refused = false;
        for write in batch.writes() {
            match put(queue, *mode, &write) {
                Ok(()) => add(&counters.written, 1),
                Err(error) if write.count > 1 && is_refused(&error) => {
                    merging_refused = true;
                    add(&counters.dropped_refused, write.count);
                }
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) if udp_socket::is_full(&error) => add(&counters.dropped_full, write.count),
                Err(_) => add(&counters.dropped_refused, write.count),
            }
        }
        drop(batch);
        if merging_refused {
            warn!("the device refuses merged packets; writing them one by one from now on");
            *coalescer = Coalescer::new(Merging { tcp: false, udp: false });
        }
        Ok(())
    }
}

/// Whether the kernel does not take such a packet (`tun_get_user` in `drivers/net/tun.c`).
fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// Whether the peer at `outer` holds the subnet of `inner`.
fn is_of(routes: &Routes, inner: Ipv4Addr, outer: Ipv4Addr) -> bool {
    routes.peer(inner) == Some(outer)
}

fn put(queue: &TunQueue, mode: TunMode, write: &Write<'_>) -> io::Result<()> {
    let header = write.header.to_bytes();
    let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS + 2];
    let pieces =
        mode.vnet_header.then_some(&header[..]).into_iter().chain([write.headers]).chain(write.payload());
    let mut count = 0;
    for (slice, piece) in slices.iter_mut().zip(pieces) {
        *slice = IoSlice::new(piece);
        count += 1;
    }
    queue.write(&slices[..count])
}
