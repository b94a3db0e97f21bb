//! Which hosts are alive: each keeps a key of its own, which ends soon after it does.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, warn};

use crate::entry::Entry;
use crate::held_key::HeldKey;
use crate::lease::NodeIdentity;
use crate::store::Store;
use crate::stored::Stored;

/// A host that is alive, stored at `<prefix>/hosts/<node id>`; a host without one has its name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingHost {
    /// The last part of the key.
    pub key: String,
}

impl Stored for LivingHost {
    const PLURAL: &'static str = "living hosts";
    type Invalid = Infallible;

    fn read(entry: &Entry) -> Result<Self, Infallible> {
        Ok(Self { key: entry.key.clone() })
    }
}

/// How long the key of a host outlives it.
const LIVING_TTL: Duration = Duration::from_secs(20);
/// How often the key is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// Delay before another attempt.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps this host among the living ones while `is_alive` says so, until nobody can say so any more.
pub async fn stay_alive(store: Store, node: NodeIdentity, mut is_alive: watch::Receiver<bool>) {
    let mut key = HeldKey::new(&store, store.living_hosts(), node.key(), LIVING_TTL);
    let mut is_told = false;
    loop {
        // Meanwhile, the key ends by itself, if this takes long.
        if is_alive.wait_for(|is_alive| *is_alive).await.is_err() {
            return;
        }
        let wait = match key.hold(b"{}").await {
            Ok(()) => {
                is_told = false;
                RENEW
            }
            Err(reason) if !is_told => {
                warn!(%reason, "cannot tell the store that this host is alive; names of its containers may end");
                is_told = true;
                AGAIN
            }
            Err(reason) => {
                debug!(%reason, "cannot tell the store that this host is alive");
                AGAIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}
