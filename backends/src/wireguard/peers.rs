//! The peers of this host, changed one by one while the data path runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use flan_wireguard_keys::{PrivateKey, PublicKey};
use foldhash::{HashMap, HashSet};
use ipnetwork::IpNetwork;

use super::identity::Identity;
use super::peer::{Peer, PeerReport, PeerSettings};
use super::table::{Change, Table};
use crate::userspace::twin::{Reader, Twin};

/// This host's key and its peers. Clones are the same peers.
///
/// They outlive a [`Datapath`](super::Datapath): the next one goes on with their sessions. The cost of a change does
/// not depend on their number.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    writer: Mutex<Writer>,
    table: Reader<Table>,
    identity: ArcSwap<Identity>,
}

#[derive(Default)]
struct Writer {
    peers: BTreeMap<PublicKey, Arc<Peer>>,
    /// Who wants which addresses. The last one has them.
    claims: HashMap<IpNetwork, Vec<Arc<Peer>>>,
    indexes: HashSet<u32>,
    twin: Twin<Table, Change>,
}

impl Peers {
    /// Returns a host without peers.
    pub fn new(private_key: &PrivateKey) -> Self {
        let writer = Writer::default();
        let table = writer.twin.reader();
        let identity = ArcSwap::from_pointee(Identity::new(private_key));
        Self(Arc::new(Shared { writer: Mutex::new(writer), table, identity }))
    }

    /// Adds a peer, or changes its settings.
    ///
    /// A change keeps its session. It keeps the endpoint, too, which the peer may have moved since, unless the settings
    /// name another one than before. A changed preshared key counts from the next handshake on, which begins at once if
    /// there are packets. Addresses that another peer has go over to this one until it gives them up.
    pub fn set(&self, key: PublicKey, settings: PeerSettings) {
        self.change([(key, Some(settings))]);
    }

    /// Removes a peer and its session.
    pub fn remove(&self, key: &PublicKey) {
        self.change([(*key, None)]);
    }

    /// Sets or removes several peers. The data path sees all of it or nothing.
    pub fn change(&self, peers: impl IntoIterator<Item = (PublicKey, Option<PeerSettings>)>) {
        let mut writer = self.writer();
        let mut news = Vec::new();
        for (key, settings) in peers {
            match settings {
                Some(settings) => writer.set(key, settings, &mut news),
                None => writer.remove(&key, &mut news),
            }
        }
        writer.twin.change(news);
    }

    /// Makes these the only peers. Those that stay keep their sessions.
    pub fn replace_all(&self, peers: impl IntoIterator<Item = (PublicKey, PeerSettings)>) {
        let peers: BTreeMap<_, _> = peers.into_iter().collect();
        let gone: Vec<_> =
            self.writer().peers.keys().filter(|key| !peers.contains_key(key)).copied().collect();
        let here = peers.into_iter().map(|(key, settings)| (key, Some(settings)));
        self.change(gone.into_iter().map(|key| (key, None)).chain(here));
    }

    /// Gives this host another key. All sessions begin anew.
    pub fn set_private_key(&self, private_key: &PrivateKey) {
        self.0.identity.store(Arc::new(Identity::new(private_key)));
        for peer in self.all() {
            peer.lock().tunnels.forget();
        }
    }

    /// Returns what is known of each peer, by key.
    pub fn reports(&self) -> Vec<PeerReport> {
        let now = Instant::now();
        self.all().iter().map(|peer| peer.report(now)).collect()
    }

    /// Returns the current table, for one batch of packets.
    pub(super) fn table(&self) -> Guard<Arc<Table>> {
        self.0.table.read()
    }

    pub(super) fn identity(&self) -> Guard<Arc<Identity>> {
        self.0.identity.load()
    }

    /// Returns all peers. Unlike the table, they may be kept for longer than a batch.
    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.writer().peers.values().cloned().collect()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn set(&mut self, key: PublicKey, mut settings: PeerSettings, news: &mut Vec<Change>) {
        let now = Instant::now();
        settings.allowed = settings.allowed.into_iter().map(normal).collect();
        let allowed = settings.allowed.clone();
        let (peer, before) = match self.peers.get(&key) {
            Some(peer) => (peer.clone(), peer.lock().set(settings, now).allowed),
            None => {
                let index = self.draw_index();
                let peer = Arc::new(Peer::new(key, index, settings, now));
                self.peers.insert(key, peer.clone());
                news.push(Change::Add(peer.clone()));
                (peer, Default::default())
            }
        };
        for network in before.difference(&allowed) {
            self.give_up(*network, &peer, news);
        }
        for network in allowed.difference(&before) {
            let claims = self.claims.entry(*network).or_default();
            claims.retain(|other| !Arc::ptr_eq(other, &peer));
            claims.push(peer.clone());
            news.push(Change::Addresses(*network, Some(peer.clone())));
        }
    }

    fn remove(&mut self, key: &PublicKey, news: &mut Vec<Change>) {
        let Some(peer) = self.peers.remove(key) else { return };
        let allowed = peer.lock().settings.allowed.clone();
        for network in allowed {
            self.give_up(network, &peer, news);
        }
        peer.lock().remove();
        self.indexes.remove(&peer.index);
        news.push(Change::Remove(peer));
    }

    fn give_up(&mut self, network: IpNetwork, peer: &Arc<Peer>, news: &mut Vec<Change>) {
        let Some(claims) = self.claims.get_mut(&network) else { return };
        let had = claims.last().is_some_and(|last| Arc::ptr_eq(last, peer));
        claims.retain(|other| !Arc::ptr_eq(other, peer));
        let heir = claims.last().cloned();
        if heir.is_none() {
            self.claims.remove(&network);
        }
        if had {
            news.push(Change::Addresses(network, heir));
        }
    }

    /// Draws an index that no peer has. It says nothing of how many there are.
    fn draw_index(&mut self) -> u32 {
        loop {
            let index = rand::random_range(0..Peer::INDEXES);
            if self.indexes.insert(index) {
                return index;
            }
        }
    }
}

/// Returns a network without the bits behind its prefix.
fn normal(network: IpNetwork) -> IpNetwork {
    let address: IpAddr = network.network();
    IpNetwork::new(address, network.prefix()).unwrap_or(network)
}
