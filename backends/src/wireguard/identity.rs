//! What this host is to its peers: its key, and how many handshakes it takes.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use flan_wireguard_keys::PrivateKey;

/// Handshakes a second from which on a cookie is demanded. One costs about a fifth of a millisecond of a processor.
const HANDSHAKES: u64 = 500;

/// A private key and what follows from it.
pub(super) struct Identity {
    pub(super) private: x25519::StaticSecret,
    pub(super) public: x25519::PublicKey,
    /// Checks handshakes before anything else does, and demands cookies.
    pub(super) gate: RateLimiter,
    /// Lets everything through: each tunnel wants one, but the gate has decided by then.
    pub(super) open: Arc<RateLimiter>,
}

impl Identity {
    pub(super) fn new(key: &PrivateKey) -> Self {
        let private = x25519::StaticSecret::from(*key.as_bytes());
        let public = x25519::PublicKey::from(&private);
        let open = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self { private, public, gate: RateLimiter::new(&public, HANDSHAKES), open }
    }
}
