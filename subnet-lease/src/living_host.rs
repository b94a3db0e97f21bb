//! Which hosts are alive: each keeps a key of its own, which ends soon after it does.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, warn};

use crate::entry::Entry;
use crate::lease::NodeIdentity;
use crate::store::{Collection, Store, StoreError};
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
    let (hosts, mut held) = (store.living_hosts(), None);
    let mut is_told = false;
    loop {
        // Meanwhile, the key ends by itself, if this takes long.
        if is_alive.wait_for(|is_alive| *is_alive).await.is_err() {
            return;
        }
        let wait = match renew(&store, &hosts, node.key(), held).await {
            Ok(etcd_lease) => {
                (held, is_told) = (Some(etcd_lease), false);
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

/// Renews the etcd lease, and writes the key if it is not there with that. Returns the etcd lease.
async fn renew(
    store: &Store,
    hosts: &Collection<LivingHost>,
    key: &str,
    held: Option<i64>,
) -> Result<i64, StoreError> {
    let etcd_lease = match held {
        Some(held) => match store.keep_alive(held).await {
            Ok(()) => held,
            Err(StoreError::LeaseGone(_)) => store.grant(LIVING_TTL).await?,
            Err(reason) => return Err(reason),
        },
        None => store.grant(LIVING_TTL).await?,
    };
    let found = hosts.get(key).await?;
    if found.as_ref().is_none_or(|found| found.etcd_lease != Some(etcd_lease)) {
        // Somebody who writes at the same moment is seen at the next look.
        hosts.put(key, b"{}", Some(etcd_lease), found.map_or(0, |found| found.mod_revision)).await?;
    }
    Ok(etcd_lease)
}
