//! Whose a packet is: by inner address, by the index in a message, by public key. Read by the data path without locks.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use flan_wireguard_keys::PublicKey;
use foldhash::HashMap;
use ipnetwork::IpNetwork;

use super::peer::Peer;
use crate::userspace::twin::Changing;

/// One state of the table.
#[derive(Clone, Default)]
pub(super) struct Table {
    v4: Prefixes<u32>,
    v6: Prefixes<u128>,
    by_index: HashMap<u32, Arc<Peer>>,
    by_key: HashMap<PublicKey, Arc<Peer>>,
}

/// A change of the table.
pub(super) enum Change {
    Add(Arc<Peer>),
    Remove(Arc<Peer>),
    /// Whose these addresses are.
    Addresses(IpNetwork, Option<Arc<Peer>>),
}

impl Table {
    /// Returns the peer of an inner address: that with the longest prefix.
    pub(super) fn by_address(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        match address {
            IpAddr::V4(address) => self.v4.longest(address.to_bits()),
            IpAddr::V6(address) => self.v6.longest(address.to_bits()),
        }
    }

    /// Returns the peer whose message names this receiver.
    pub(super) fn by_receiver(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&Peer::index_of(receiver))
    }

    pub(super) fn by_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(key)
    }
}

impl Changing<Change> for Table {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Add(peer) => {
                self.by_index.insert(peer.index, peer.clone());
                self.by_key.insert(peer.key, peer.clone());
            }
            Change::Remove(peer) => {
                self.by_index.remove(&peer.index);
                self.by_key.remove(&peer.key);
            }
            Change::Addresses(IpNetwork::V4(network), peer) => {
                self.v4.set(network.network().to_bits(), network.prefix(), peer.clone());
            }
            Change::Addresses(IpNetwork::V6(network), peer) => {
                self.v6.set(network.network().to_bits(), network.prefix(), peer.clone());
            }
        }
    }
}

/// The prefixes of one family.
#[derive(Clone)]
struct Prefixes<A> {
    peers: HashMap<(A, u8), Arc<Peer>>,
    /// The lengths of the prefixes, longest first, usually one, with the number of prefixes of each.
    lengths: Vec<(u8, usize)>,
}

impl<A> Default for Prefixes<A> {
    fn default() -> Self {
        Self { peers: HashMap::default(), lengths: Vec::new() }
    }
}

/// An address as a number.
trait Bits: Copy + Eq + Hash {
    /// Keeps only the first bits.
    fn first(self, bits: u8) -> Self;
}

impl Bits for u32 {
    fn first(self, bits: u8) -> Self {
        self & Self::MAX.checked_shl(Self::BITS - u32::from(bits)).unwrap_or(0)
    }
}

impl Bits for u128 {
    fn first(self, bits: u8) -> Self {
        self & Self::MAX.checked_shl(Self::BITS - u32::from(bits)).unwrap_or(0)
    }
}

impl<A: Bits> Prefixes<A> {
    fn longest(&self, address: A) -> Option<&Arc<Peer>> {
        self.lengths.iter().find_map(|&(bits, _)| self.peers.get(&(address.first(bits), bits)))
    }

    fn set(&mut self, address: A, bits: u8, peer: Option<Arc<Peer>>) {
        let added = peer.is_some();
        let before = match peer {
            Some(peer) => self.peers.insert((address, bits), peer),
            None => self.peers.remove(&(address, bits)),
        };
        let at = self.lengths.partition_point(|(length, _)| *length > bits);
        if self.lengths.get(at).is_none_or(|(length, _)| *length != bits) {
            self.lengths.insert(at, (bits, 0));
        }
        let count = &mut self.lengths[at].1;
        *count = *count + usize::from(added) - usize::from(before.is_some());
        if *count == 0 {
            self.lengths.remove(at);
        }
    }
}
