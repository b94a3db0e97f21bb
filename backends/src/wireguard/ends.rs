//! A host without device and socket, for tests and for the targets in `fuzz/`. Packets and messages are handed over.

use std::net::SocketAddr;
use std::time::Instant;

use flan_wireguard_keys::{PrivateKey, PublicKey};

use super::exchange::Exchange;
use super::peer::PeerSettings;
use super::peers::Peers;
use super::wire::Wire;
use crate::userspace::counters::{Counters, Totals};
use crate::userspace::packet::{Hop, VnetHeader};
use crate::userspace::segmentation::Segments;

/// Bytes of the largest inner packet.
pub const MTU: usize = 1420;

/// A message on the wire, and where it goes.
pub type Message = (SocketAddr, Vec<u8>);

/// One host.
pub struct End {
    /// Its peers.
    pub peers: Peers,
    /// Its public key.
    pub key: PublicKey,
    /// Where it is.
    pub address: SocketAddr,
    counters: Counters,
    wire: Wire,
}

/// What came of datagrams.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Packets for the device.
    pub packets: Vec<Vec<u8>>,
    /// Messages that are sent.
    pub answers: Vec<Message>,
}

impl End {
    /// Creates a host without peers, with a key made of this number.
    pub fn new(number: u8, address: SocketAddr) -> Self {
        let key = PrivateKey::from([number; 32]);
        let (counters, wire) = (Counters::default(), Wire::default());
        Self { peers: Peers::new(&key), key: key.public(), address, counters, wire }
    }

    /// Makes `other` a peer.
    pub fn add(&self, other: &Self, allowed: &[&str]) {
        let allowed = allowed.iter().filter_map(|network| network.parse().ok()).collect();
        let settings = PeerSettings { endpoint: Some(other.address), allowed, ..PeerSettings::default() };
        self.peers.set(other.key, settings);
    }

    /// Returns what leaves for a packet, a virtio-net header and an IP packet. `None` if the sender must be told that
    /// the destination cannot be reached.
    pub fn send_large(&mut self, packet: &[u8]) -> Option<Vec<Message>> {
        let mut packet = packet.to_vec();
        let (table, identity) = (self.peers.table(), self.peers.identity());
        let exchange = exchange(&table, &identity, &self.counters);
        let mut segments = Segments::new(Hop::IsFree);
        exchange.outbound(&mut segments, &mut packet, VnetHeader::LEN, &mut self.wire).ok()?;
        Some(taken(&mut self.wire))
    }

    /// The same for a complete packet.
    pub fn send(&mut self, packet: &[u8]) -> Option<Vec<Message>> {
        self.send_large(&[&[0; VnetHeader::LEN], packet].concat())
    }

    /// Takes datagrams of `size` bytes from one sender.
    pub fn take(&mut self, from: SocketAddr, datagrams: &[u8], size: usize) -> Arrival {
        let (table, identity) = (self.peers.table(), self.peers.identity());
        let exchange = exchange(&table, &identity, &self.counters);
        let mut room = vec![0; datagrams.len()];
        let mut packets = Vec::new();
        let take = |packet: &mut [u8]| packets.push(packet.to_vec());
        exchange.inbound(from, datagrams, size, &mut &mut room[..], &mut self.wire, take);
        Arrival { packets, answers: taken(&mut self.wire) }
    }

    /// Returns what leaves because time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Message> {
        let (table, identity) = (self.peers.table(), self.peers.identity());
        let exchange = Exchange { now, ..exchange(&table, &identity, &self.counters) };
        self.peers.all().iter().for_each(|peer| exchange.tick(peer, &mut self.wire));
        taken(&mut self.wire)
    }

    /// Returns its counters.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }
}

fn exchange<'a>(
    table: &'a super::table::Table,
    identity: &'a std::sync::Arc<super::identity::Identity>,
    counters: &'a Counters,
) -> Exchange<'a> {
    Exchange { table, identity, counters, mtu: MTU, now: Instant::now() }
}

fn taken(wire: &mut Wire) -> Vec<Message> {
    let messages = wire.messages().map(|(to, message)| (to, message.to_vec())).collect();
    wire.clear();
    messages
}

/// Lets two hosts exchange messages until none is left. Returns the packets that arrived at the first and the second.
pub fn settle(one: &mut End, other: &mut End, messages: Vec<Message>) -> [Vec<Vec<u8>>; 2] {
    let mut arrived = [Vec::new(), Vec::new()];
    let mut under_way = messages;
    while !under_way.is_empty() {
        let mut answers = Vec::new();
        for (to, message) in under_way {
            let (at, from, which) =
                if to == one.address { (&mut *one, other.address, 0) } else { (&mut *other, one.address, 1) };
            let Arrival { packets, answers: more } = at.take(from, &message, message.len());
            arrived[which].extend(packets);
            answers.extend(more);
        }
        under_way = answers;
    }
    arrived
}
