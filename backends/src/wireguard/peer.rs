//! One peer: what it is told to be, where it is, and the tunnel to it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flan_wireguard_keys::{PresharedKey, PublicKey};
use ipnetwork::IpNetwork;

use super::tunnel::Tunnels;

/// What a peer is told to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerSettings {
    /// Where it is at first. Later it is where its last authentic message came from.
    pub endpoint: Option<SocketAddr>,
    /// A secret that both sides mix into each handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Seconds between packets that only keep a path open. `None` or 0: no such packets.
    pub keepalive: Option<u16>,
    /// The addresses behind it: packets to these go to it, and it may send from these alone.
    pub allowed: BTreeSet<IpNetwork>,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReport {
    /// Who it is.
    pub key: PublicKey,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// The addresses behind it, as they were set.
    pub allowed: BTreeSet<IpNetwork>,
    /// How long ago the last handshake succeeded.
    pub latest_handshake: Option<Duration>,
    /// Bytes of all its authentic messages, without IP and UDP headers.
    pub received_bytes: u64,
    /// Bytes of all messages to it, likewise.
    pub sent_bytes: u64,
}

/// A peer, as the threads share it.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    /// Its number, of 23 bits. With one bit for the tunnel and eight for the session, it is the index by which messages
    /// from the peer name us.
    pub(super) index: u32,
    state: Mutex<State>,
}

/// What changes about a peer.
pub(super) struct State {
    pub(super) settings: PeerSettings,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) tunnels: Tunnels,
    /// When to send the next packet that keeps the path open.
    pub(super) keepalive_due: Option<Instant>,
    pub(super) latest_handshake: Option<Instant>,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    /// It is no peer any more, though a thread may still look at it.
    pub(super) is_removed: bool,
}

impl PeerSettings {
    /// Returns the time between packets that only keep a path open.
    pub(super) fn keepalive(&self) -> Option<Duration> {
        self.keepalive.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()))
    }
}

impl Peer {
    /// Indexes in use at a time, at most.
    pub(super) const INDEXES: u32 = 1 << 23;

    pub(super) fn new(key: PublicKey, index: u32, settings: PeerSettings, now: Instant) -> Self {
        let state = State {
            endpoint: settings.endpoint,
            tunnels: Tunnels::new(key, index),
            keepalive_due: settings.keepalive().map(|_| now),
            settings,
            latest_handshake: None,
            received_bytes: 0,
            sent_bytes: 0,
            is_removed: false,
        };
        Self { key, index, state: Mutex::new(state) }
    }

    /// Returns the number of the peer to which a message for this receiver belongs.
    pub(super) fn index_of(receiver: u32) -> u32 {
        receiver >> 9
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self, now: Instant) -> PeerReport {
        let state = self.lock();
        PeerReport {
            key: self.key,
            endpoint: state.endpoint,
            allowed: state.settings.allowed.clone(),
            latest_handshake: state.latest_handshake.map(|then| now.saturating_duration_since(then)),
            received_bytes: state.received_bytes,
            sent_bytes: state.sent_bytes,
        }
    }
}

impl State {
    /// Takes other settings, and returns the previous ones.
    pub(super) fn set(&mut self, settings: PeerSettings, now: Instant) -> PeerSettings {
        // One that is as it was says nothing of where the peer has moved since.
        if settings.endpoint != self.settings.endpoint {
            self.endpoint = settings.endpoint.or(self.endpoint);
        }
        if settings.keepalive() != self.settings.keepalive() {
            self.keepalive_due = settings.keepalive().map(|_| now);
        }
        if settings.preshared_key != self.settings.preshared_key {
            self.tunnels.begin_another(now);
        }
        std::mem::replace(&mut self.settings, settings)
    }

    /// Ends everything with this peer, and forgets its secrets.
    pub(super) fn remove(&mut self) {
        self.is_removed = true;
        self.tunnels.forget();
        self.settings = PeerSettings::default();
    }
}
