//! Tells the store how this host is, for people who look at all hosts at once.

use std::time::Duration;

use flan_agent_api::HostSummary;
use flan_subnet_lease::{HeldKey, NodeIdentity, Store};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::status::SharedStatus;

/// How often it looks whether something has changed. So often a host writes at most.
const LOOK: Duration = Duration::from_secs(5);
/// How often it renews the key if nothing has.
const RENEW: Duration = Duration::from_secs(15);
/// How long the key outlives this agent.
const TTL: Duration = Duration::from_secs(45);

/// Keeps the summary of this host in the store until the process ends.
pub(super) async fn publish(store: Store, node: NodeIdentity, status: SharedStatus) {
    if node.key().is_empty() {
        return; // no other host could tell whose it is
    }
    let mut key = HeldKey::new(&store, store.summaries(), node.key(), TTL);
    let (mut told, mut due, mut has_failed) = (Vec::new(), Instant::now(), false);
    loop {
        let host = node.host.as_deref().unwrap_or_default();
        let summary = HostSummary::of(&status.read(), host, env!("CARGO_PKG_VERSION"));
        let json = serde_json::to_vec(&summary).unwrap_or_default();
        if json != told || Instant::now() >= due {
            match key.hold(&json).await {
                Ok(()) => (told, due, has_failed) = (json, Instant::now() + RENEW, false),
                Err(reason) if has_failed => debug!(%reason, "cannot tell the store how this host is"),
                Err(reason) => {
                    warn!(%reason, "cannot tell the store how this host is; flanctl status --all does not show it");
                    has_failed = true;
                }
            }
        }
        sleep(LOOK).await;
    }
}
