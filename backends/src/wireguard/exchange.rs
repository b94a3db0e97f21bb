//! What becomes of a packet of the device, of a message from the wire, and of time that passes. Knows no device and no
//! socket.

use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use flan_kernel::netlink::SILENT_AFTER;
use flan_wireguard_keys::PublicKey;

use super::identity::Identity;
use super::peer::{Peer, State};
use super::table::Table;
use super::tunnel::Tunnel;
use super::wire::{LARGEST_HANDSHAKE, OVERHEAD, Sent, Wire};
use crate::userspace::counters::{Counters, add};
use crate::userspace::packet::Ip;
use crate::userspace::segmentation::Segments;

/// Packets that wait for a session, per peer: boringtun's own limit.
const WAITING: usize = 256;
/// Bytes of the largest packet that waits, with padding.
const LARGEST_WAITING: usize = 65_536;

/// The sender of a packet must be told that its destination cannot be reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreachable;

/// What packets and messages are judged by at one moment.
pub(super) struct Exchange<'a> {
    pub(super) table: &'a Table,
    pub(super) identity: &'a Arc<Identity>,
    pub(super) counters: &'a Counters,
    /// Bytes of the largest inner packet.
    pub(super) mtu: usize,
    pub(super) now: Instant,
}

impl<'a> Exchange<'a> {
    /// Encrypts what `segments` make of `packet`, a virtio-net header and a packet of the device, for the peer that has
    /// its destination.
    pub(super) fn outbound(
        &self,
        segments: &mut Segments,
        packet: &mut [u8],
        inner: usize,
        wire: &mut Wire,
    ) -> Result<(), Unreachable> {
        let Some(ip) = Ip::parse(&packet[inner.min(packet.len())..]) else {
            add(&self.counters.dropped_malformed, 1);
            return Ok(());
        };
        let Some(peer) = self.table.by_address(ip.destination()) else {
            add(&self.counters.dropped_no_peer, 1);
            return Err(Unreachable);
        };
        let mut state = peer.lock();
        let Some(to) = state.endpoint.filter(|_| !state.is_removed) else {
            add(&self.counters.dropped_no_endpoint, 1);
            return Err(Unreachable);
        };
        match segments.split(packet) {
            Ok(split) => {
                let packets = split.segments().map(|(headers, payload)| [headers, payload]);
                self.encrypt(&mut state, to, packets, wire);
            }
            Err(_) => add(&self.counters.dropped_malformed, 1),
        }
        Ok(())
    }

    fn encrypt<'p>(
        &self,
        state: &mut State,
        to: SocketAddr,
        packets: impl Iterator<Item = [&'p [u8]; 2]>,
        wire: &mut Wire,
    ) {
        let State { tunnels, settings, sent_bytes, .. } = state;
        if tunnels.stand_in().is_some() {
            let tunnel = tunnels.current(self.identity, settings.preshared_key.as_ref());
            *sent_bytes += begin_handshake(tunnel, to, wire);
        }
        let tunnel = match tunnels.stand_in() {
            Some(before) => before,
            None => tunnels.current(self.identity, settings.preshared_key.as_ref()),
        };
        for packet in packets {
            if tunnel.waiting >= WAITING && !tunnel.has_session() {
                add(&self.counters.dropped_full, 1);
                *sent_bytes += begin_handshake(tunnel, to, wire);
                continue;
            }
            match wire.encrypt(to, &mut tunnel.tunn, packet, self.mtu) {
                Sent::Packet(length) => *sent_bytes += length as u64,
                Sent::Waits(length) => {
                    tunnel.waiting += 1;
                    *sent_bytes += length as u64;
                }
            }
        }
    }

    /// Takes one datagram, or several of `size` bytes from one sender, the last one possibly shorter. Decrypts packets
    /// into `room`, as many bytes as the datagrams have, and passes them to `arrive`.
    pub(super) fn inbound<'p>(
        &self,
        from: SocketAddr,
        datagrams: &[u8],
        size: usize,
        room: &mut &'p mut [u8],
        wire: &mut Wire,
        mut arrive: impl FnMut(&'p mut [u8]),
    ) {
        let mut messages = datagrams.chunks(size.max(1)).peekable();
        while let Some(first) = messages.next() {
            let Some(peer) = self.peer_of(from, first, wire) else { continue };
            let mut state = peer.lock();
            let mut message = Some(first);
            // Those of one peer usually come in a row, and its lock is taken once for them.
            while let Some(this) = message {
                if let Some(packet) = self.receive(peer, &mut state, from, this, room, wire) {
                    arrive(packet);
                }
                let is_of_peer =
                    |next: &&[u8]| receiver(next).is_some_and(|index| Peer::index_of(index) == peer.index);
                message = messages.next_if(is_of_peer);
            }
        }
    }

    /// Returns the peer that a message is said to come from. Nothing is proved yet, except that a handshake is meant
    /// for us.
    fn peer_of(&self, from: SocketAddr, message: &[u8], wire: &mut Wire) -> Option<&'a Arc<Peer>> {
        let mut cookie = [0; LARGEST_HANDSHAKE];
        let packet = match self.identity.gate.verify_packet(Some(from.ip()), message, &mut cookie) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                add(&self.counters.cookies_sent, 1);
                wire.add(from, cookie.len(), |room| {
                    room[..cookie.len()].copy_from_slice(cookie);
                    cookie.len()
                });
                return None;
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                add(&self.counters.dropped_handshake, 1);
                return None;
            }
            Err(_) => {
                add(&self.counters.dropped_undecryptable, 1);
                return None;
            }
        };
        let (peer, counter) = match &packet {
            Packet::HandshakeInit(init) => {
                let half = parse_handshake_anon(&self.identity.private, &self.identity.public, init).ok();
                let key = half.map(|half| PublicKey::from(half.peer_static_public));
                (key.and_then(|key| self.table.by_key(&key)), &self.counters.dropped_handshake)
            }
            Packet::HandshakeResponse(response) => {
                (self.table.by_receiver(response.receiver_idx), &self.counters.dropped_handshake)
            }
            Packet::PacketCookieReply(reply) => {
                (self.table.by_receiver(reply.receiver_idx), &self.counters.dropped_handshake)
            }
            Packet::PacketData(data) => {
                (self.table.by_receiver(data.receiver_idx), &self.counters.dropped_unknown_session)
            }
        };
        if peer.is_none() {
            add(counter, 1);
        }
        peer
    }

    /// Takes one message that is said to come from `peer`. Returns the packet in it, if that may pass.
    fn receive<'p>(
        &self,
        peer: &Arc<Peer>,
        state: &mut State,
        from: SocketAddr,
        message: &[u8],
        room: &mut &'p mut [u8],
        wire: &mut Wire,
    ) -> Option<&'p mut [u8]> {
        if state.is_removed {
            add(&self.counters.dropped_unknown_session, 1);
            return None;
        }
        let Some(receiver) = receiver(message) else {
            self.shake_hands(state, from, message, wire);
            return None;
        };
        let Some(tunnel) = state.tunnels.by_receiver(receiver) else {
            add(&self.counters.dropped_unknown_session, 1);
            return None;
        };
        let Some((buffer, rest)) = mem::take(room).split_at_mut_checked(message.len()) else {
            add(&self.counters.dropped_full, 1);
            return None;
        };
        *room = rest;
        let (packet, source) = match tunnel.tunn.decapsulate(None, message, buffer) {
            TunnResult::WriteToTunnelV4(packet, source) => (Some(packet), IpAddr::from(source)),
            TunnResult::WriteToTunnelV6(packet, source) => (Some(packet), IpAddr::from(source)),
            TunnResult::Done => (None, from.ip()),
            TunnResult::Err(error) => {
                self.count_bad(&error);
                return None;
            }
            TunnResult::WriteToNetwork(_) => return None,
        };
        if tunnel.unconfirmed == Some(receiver) {
            tunnel.unconfirmed = None;
            self.has_succeeded(state);
        }
        self.is_authentic(state, from, message, wire);
        let packet = packet?;
        if self.table.by_address(source).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
            return Some(packet);
        }
        add(&self.counters.dropped_not_allowed, 1);
        None
    }

    /// Takes a message of a handshake.
    fn shake_hands(&self, state: &mut State, from: SocketAddr, message: &[u8], wire: &mut Wire) {
        const INIT: u8 = 1;
        let tunnel = if message[0] == INIT {
            Some(state.tunnels.current(self.identity, state.settings.preshared_key.as_ref()))
        } else {
            addressee(message).and_then(|receiver| state.tunnels.by_receiver(receiver))
        };
        let Some(tunnel) = tunnel else { return add(&self.counters.dropped_handshake, 1) };
        let mut is_good = false;
        let mut index = None;
        let sent = wire.add(from, LARGEST_HANDSHAKE, |room| {
            match tunnel.tunn.decapsulate(Some(from.ip()), message, room) {
                TunnResult::WriteToNetwork(answer) => {
                    is_good = true;
                    index = answer.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
                    answer.len()
                }
                // A cookie, which shows nothing of where the peer is.
                TunnResult::Done => 0,
                _ => {
                    add(&self.counters.dropped_handshake, 1);
                    0
                }
            }
        });
        if !is_good {
            return;
        }
        state.sent_bytes += sent as u64;
        if message[0] == INIT {
            tunnel.unconfirmed = index;
        } else {
            self.has_succeeded(state);
        }
        // What waits leaves when the session can be used: not before the peer has used one that it began.
        self.is_authentic(state, from, message, wire);
    }

    fn has_succeeded(&self, state: &mut State) {
        add(&self.counters.handshakes, 1);
        state.latest_handshake = Some(self.now);
        state.tunnels.settle(self.now);
    }

    /// Notes where an authentic message came from, and sends what waited for a session.
    fn is_authentic(&self, state: &mut State, from: SocketAddr, message: &[u8], wire: &mut Wire) {
        state.received_bytes += message.len() as u64;
        state.endpoint = Some(from);
        let Some(tunnel) = state.tunnels.existing().filter(|tunnel| tunnel.waiting > 0) else { return };
        while tunnel.waiting > 0 && tunnel.has_session() {
            tunnel.waiting -= 1;
            let sent = wire.add(from, LARGEST_WAITING + OVERHEAD, |room| {
                length(tunnel.tunn.decapsulate(None, &[], room))
            });
            state.sent_bytes += sent as u64;
        }
    }

    fn count_bad(&self, error: &WireGuardError) {
        let counter = match error {
            WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => {
                &self.counters.dropped_replayed
            }
            WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => {
                &self.counters.dropped_unknown_session
            }
            WireGuardError::InvalidPacket => &self.counters.dropped_malformed,
            _ => &self.counters.dropped_undecryptable,
        };
        add(counter, 1);
    }

    /// Does what is due for a peer: repeats handshakes, renews and ends sessions, keeps the path open.
    pub(super) fn tick(&self, peer: &Peer, wire: &mut Wire) {
        let mut state = peer.lock();
        let state = &mut *state;
        // Where it was when it spoke last may be wrong by now, or somebody replayed an old message from there.
        let is_silent = state
            .latest_handshake
            .is_none_or(|then| self.now.saturating_duration_since(then) >= SILENT_AFTER);
        if is_silent && state.settings.endpoint.is_some() {
            state.endpoint = state.settings.endpoint;
        }
        // Without an endpoint there never was a session.
        let Some(to) = state.endpoint.filter(|_| !state.is_removed) else { return };
        state.tunnels.settle(self.now);
        if let Some(tunnel) = state.tunnels.existing() {
            let mut has_failed = false;
            let sent = wire.add(to, LARGEST_HANDSHAKE, |room| match tunnel.tunn.update_timers(room) {
                TunnResult::Err(WireGuardError::ConnectionExpired) => {
                    has_failed = true;
                    0
                }
                result => length(result),
            });
            state.sent_bytes += sent as u64;
            if has_failed {
                add(&self.counters.dropped_no_session, mem::take(&mut tunnel.waiting));
            }
        }
        let (Some(interval), Some(due)) = (state.settings.keepalive(), state.keepalive_due) else { return };
        if due > self.now {
            return;
        }
        state.keepalive_due = Some(self.now + interval);
        let tunnel = state.tunnels.current(self.identity, state.settings.preshared_key.as_ref());
        state.sent_bytes += if tunnel.has_session() {
            wire.add(to, OVERHEAD, |room| length(tunnel.tunn.encapsulate(&[], room))) as u64
        } else {
            begin_handshake(tunnel, to, wire)
        };
    }
}

/// Begins a handshake unless one is in progress. Returns the bytes of its message.
fn begin_handshake(tunnel: &mut Tunnel, to: SocketAddr, wire: &mut Wire) -> u64 {
    wire.add(to, LARGEST_HANDSHAKE, |room| length(tunnel.tunn.format_handshake_initiation(room, false)))
        as u64
}

/// Returns the length of the message that boringtun made.
fn length(result: TunnResult<'_>) -> usize {
    match result {
        TunnResult::WriteToNetwork(message) => message.len(),
        _ => 0,
    }
}

/// Returns the index that a message with a packet names. `None` for other messages.
fn receiver(message: &[u8]) -> Option<u32> {
    match Tunn::parse_incoming_packet(message) {
        Ok(Packet::PacketData(data)) => Some(data.receiver_idx),
        _ => None,
    }
}

/// Returns the index that an answer to a handshake names.
fn addressee(message: &[u8]) -> Option<u32> {
    match Tunn::parse_incoming_packet(message) {
        Ok(Packet::HandshakeResponse(response)) => Some(response.receiver_idx),
        Ok(Packet::PacketCookieReply(reply)) => Some(reply.receiver_idx),
        _ => None,
    }
}
