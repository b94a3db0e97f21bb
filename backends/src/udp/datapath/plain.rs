//! Plain mode: each packet is read, sent, received and written by its own call, as in flannel. It needs nothing but what
//! every kernel has.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use flan_kernel::tun::AsyncTun;
use flan_kernel::udp_socket;
use tokio::net::UdpSocket;
use tracing::{debug, warn};

use super::common::Common;
use super::rules::{self, Refusal};
use crate::userspace::counters::add;
use crate::userspace::endpoints::counted;
use crate::userspace::icmp::{self, Limit, Reason};
use crate::userspace::packet::{Hop, Ip, Ttl, VnetHeader, decrement_ttl};
use crate::userspace::partial::unfinished;
use crate::userspace::segmentation::Segments;

/// Bytes of the largest packet.
const LARGEST: usize = 65_535;

/// A device and a socket, between which one task moves packets.
pub(super) struct Plain {
    pub(super) common: Arc<Common>,
    /// The device's queues. The kernel gives the packets of a flow to one of them.
    pub(super) queues: [AsyncTun; 2],
    pub(super) socket: UdpSocket,
}

impl Plain {
    /// Runs until the device is gone.
    pub(super) async fn run(self) {
        let [first, second] = &self.queues;
        let ended = tokio::select! {
            ended = self.outbound(first) => ended,
            ended = self.outbound(second) => ended,
            ended = self.inbound(first) => ended,
        };
        let Err(reason) = ended;
        warn!(%reason, "the device is gone");
    }

    async fn outbound(&self, queue: &AsyncTun) -> io::Result<Infallible> {
        let (mut buffer, mut limit) = (vec![0; LARGEST], Limit::new(Instant::now()));
        loop {
            // The device never makes a task yield: without this, packets that are all dropped would starve the rest.
            tokio::task::consume_budget().await;
            let length = queue.recv(&mut buffer).await?;
            let packet = &mut buffer[..length];
            let passes = match Ip::parse(packet) {
                Some(ip) if ip.packet_len() == length => rules::outbound(&self.common.table.read(), packet),
                _ => Err(Refusal::Malformed),
            };
            let told = match passes {
                Ok(peer) => self.send(packet, peer.address).await,
                Err(refusal) => refusal.count(&self.common.running.gauge.counters, 1),
            };
            self.tell(queue, &mut limit, packet, told).await;
        }
    }

    async fn inbound(&self, queue: &AsyncTun) -> io::Result<Infallible> {
        // Before a packet there is room for the header of one that must be cut.
        let (mut buffer, mut limit) = (vec![0; VnetHeader::LEN + LARGEST], Limit::new(Instant::now()));
        let mut segments = Segments::new(Hop::Counts);
        let counters = &self.common.running.gauge.counters;
        loop {
            tokio::task::consume_budget().await;
            let (length, source) = match self.socket.recv_from(&mut buffer[VnetHeader::LEN..]).await {
                Ok(received) => received,
                // An answer to what was sent earlier, such as "port unreachable": the peer is away.
                Err(error) => {
                    debug!(%error, "receive");
                    continue;
                }
            };
            let (front, packet) = buffer[..VnetHeader::LEN + length].split_at_mut(VnetHeader::LEN);
            add(&counters.received_batches, 1);
            add(&counters.received_packets, 1);
            add(&counters.received_bytes, length);
            let unfinished =
                Ip::parse(packet).and_then(|ip| unfinished(packet, &ip, self.common.settings.mtu as usize));
            match self.lets_in(source, packet, unfinished.is_none()) {
                Ok(()) if unfinished.is_some() => {
                    front.copy_from_slice(&unfinished.unwrap_or_default().to_bytes());
                    self.finish(queue, &mut segments, &mut buffer[..VnetHeader::LEN + length]).await?;
                }
                Ok(()) => counted(counters, 1, queue.send(packet).await.map(drop))?,
                Err(refusal) => {
                    let told = refusal.count(counters, 1);
                    self.tell(queue, &mut limit, packet, told).await;
                }
            }
        }
    }

    /// Writes an [unfinished] packet, which follows its header, as those that a network card would have made.
    async fn finish(&self, queue: &AsyncTun, segments: &mut Segments, packet: &mut [u8]) -> io::Result<()> {
        let counters = &self.common.running.gauge.counters;
        let Ok(split) = segments.split(packet) else {
            Refusal::TtlExpired.count(counters, 1);
            return Ok(());
        };
        for (headers, payload) in split.segments() {
            counted(counters, 1, queue.send(&[headers, payload].concat()).await.map(drop))?;
        }
        Ok(())
    }

    /// Checks a packet that arrived, and lowers its time to live if it is `finished`.
    fn lets_in(&self, source: SocketAddr, packet: &mut [u8], finished: bool) -> Result<(), Refusal> {
        let routes = self.common.table.read();
        let SocketAddr::V4(source) = source else { return Err(Refusal::ForeignSource) };
        if !routes.is_peer(*source.ip()) {
            return Err(Refusal::ForeignSource);
        }
        rules::inbound(&routes, *source.ip(), packet, self.common.settings.strict)?;
        if !finished {
            return Ok(());
        }
        match decrement_ttl(packet) {
            Ttl::Forward => Ok(()),
            Ttl::Expired => Err(Refusal::TtlExpired),
            Ttl::NotIp => Err(Refusal::Malformed),
        }
    }

    /// Sends a packet, and returns what its sender must be told.
    async fn send(&self, packet: &mut [u8], peer: Ipv4Addr) -> Option<Reason> {
        decrement_ttl(packet);
        let counters = &self.common.running.gauge.counters;
        let to = SocketAddr::new(peer.into(), self.common.settings.port);
        match self.socket.send_to(packet, to).await {
            Ok(_) => {
                add(&counters.sent_batches, 1);
                add(&counters.sent_packets, 1);
                add(&counters.sent_bytes, packet.len());
                return None;
            }
            Err(error) if udp_socket::is_too_big(&error) => {
                add(&counters.dropped_too_big, 1);
                return Some(Reason::TooBig(self.common.settings.mtu.try_into().unwrap_or(u16::MAX)));
            }
            Err(error) if udp_socket::is_full(&error) => add(&counters.dropped_full, 1),
            Err(_) => add(&counters.dropped_refused, 1),
        }
        None
    }

    /// Writes an ICMP error for the sender of `packet` to the device, if one is due.
    async fn tell(&self, queue: &AsyncTun, limit: &mut Limit, packet: &[u8], reason: Option<Reason>) {
        let Some(reason) = reason.filter(|_| limit.allows(Instant::now())) else { return };
        let Some(error) = icmp::error(packet, self.common.settings.address, reason) else { return };
        if queue.send(&error).await.is_ok() {
            add(&self.common.running.gauge.counters.icmp_sent, 1);
        }
    }
}
