//! boringtun's tunnels of one peer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use boringtun::x25519;
use flan_wireguard_keys::{PresharedKey, PublicKey};

use super::identity::Identity;

/// How long a session is good for (`REJECT_AFTER_TIME` in the paper on WireGuard).
const SESSION: Duration = Duration::from_secs(180);

/// The tunnel of a peer, made when it is first needed: 10,000 at once would take a second.
///
/// boringtun cannot change the preshared key of a tunnel. So the next one begins, and the session of the previous one
/// carries the packets until the other side has the new key, too.
pub(super) struct Tunnels {
    key: PublicKey,
    index: u32,
    current: Option<Tunnel>,
    before: Option<(Tunnel, Instant)>,
}

/// One of them.
pub(super) struct Tunnel {
    pub(super) tunn: Tunn,
    identity: Arc<Identity>,
    /// The bit of the index by which it is told from the one before it.
    bit: u32,
    /// Packets that wait for a session.
    pub(super) waiting: usize,
    /// Our index of the session that the peer began, until its first packet shows that it can use it.
    pub(super) unconfirmed: Option<u32>,
}

impl Tunnel {
    pub(super) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }
}

impl Tunnels {
    pub(super) fn new(key: PublicKey, index: u32) -> Self {
        Self { key, index, current: None, before: None }
    }

    /// Returns the current tunnel, made if there is none, or none with this host's key.
    pub(super) fn current(
        &mut self,
        identity: &Arc<Identity>,
        preshared: Option<&PresharedKey>,
    ) -> &mut Tunnel {
        if self.current.as_ref().is_some_and(|tunnel| !Arc::ptr_eq(&tunnel.identity, identity)) {
            self.forget();
        }
        let bit = self.before.as_ref().map_or(0, |(before, _)| before.bit ^ 1);
        let (key, index) = (self.key, self.index << 1 | bit);
        self.current.get_or_insert_with(|| Tunnel {
            tunn: Tunn::new(
                identity.private.clone(),
                x25519::PublicKey::from(*key.as_bytes()),
                preshared.map(|key| *key.as_bytes()),
                None,
                index,
                Some(identity.open.clone()),
            ),
            identity: identity.clone(),
            bit,
            waiting: 0,
            unconfirmed: None,
        })
    }

    /// Returns the current tunnel, if there is one.
    pub(super) fn existing(&mut self) -> Option<&mut Tunnel> {
        self.current.as_mut()
    }

    /// Returns the tunnel whose message names this receiver.
    pub(super) fn by_receiver(&mut self, receiver: u32) -> Option<&mut Tunnel> {
        let bit = receiver >> 8 & 1;
        let before = self.before.as_mut().map(|(before, _)| before);
        self.current.as_mut().into_iter().chain(before).find(|tunnel| tunnel.bit == bit)
    }

    /// Returns the tunnel before the current one, if that alone has a session.
    pub(super) fn stand_in(&mut self) -> Option<&mut Tunnel> {
        let (before, _) = self.before.as_mut().filter(|(before, _)| before.has_session())?;
        let needs_one = !self.current.as_ref().is_some_and(Tunnel::has_session);
        needs_one.then_some(before)
    }

    /// Makes the next tunnel another one, with another preshared key.
    pub(super) fn begin_another(&mut self, now: Instant) {
        if let Some(tunnel) = self.current.take().filter(Tunnel::has_session) {
            self.before = Some((tunnel, now));
        }
    }

    /// Ends the one before the current tunnel, once that has a session or the other's is too old.
    pub(super) fn settle(&mut self, now: Instant) {
        let has_session = self.current.as_ref().is_some_and(Tunnel::has_session);
        self.before.take_if(|(_, since)| has_session || now.saturating_duration_since(*since) > SESSION);
    }

    /// Ends all sessions.
    pub(super) fn forget(&mut self) {
        (self.current, self.before) = (None, None);
    }
}
