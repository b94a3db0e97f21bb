//! Tells the store how this host is, for people who look at all hosts at once.

use std::time::Duration;

use flan_agent_api::HostSummary;
use flan_subnet_lease::{HeldKey, NodeIdentity, Store};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::status::SharedStatus;

/// How often it looks whether something has changed. So often a host writes at most.
const LOOK: Duration = Duration::from_secs(5);
/// How often it writes what changes all the time, such as the number of peers: each write stays in the history of the store,
/// and when one host comes or goes, all of them have something new to say.
const DETAILS: Duration = Duration::from_secs(60);
/// How often it renews the key if nothing has changed.
const RENEW: Duration = Duration::from_secs(15);
/// How long the key outlives this agent.
const TTL: Duration = Duration::from_secs(45);

/// Keeps the summary of this host in the store until the process ends; one that says little if `is_told` is false.
pub(super) async fn publish(store: Store, node: NodeIdentity, status: SharedStatus, is_told: bool) {
    if node.key().is_empty() {
        return; // no other host could tell whose it is
    }
    let (host, version) = (node.host.as_deref().unwrap_or_default(), env!("CARGO_PKG_VERSION"));
    let mut key = HeldKey::new(&store, store.summaries(), node.key(), TTL);
    let mut told: Option<(HostSummary, Instant)> = None;
    let (mut renewed, mut has_failed) = (None, false);
    loop {
        let now = Instant::now();
        let next = match is_told {
            true => HostSummary::of(&status.read(), host, version),
            false => HostSummary::withheld(host, version),
        };
        let keeps = |(told, at): &(HostSummary, Instant)| {
            told.is_like(&next) && (*told == next || now < *at + DETAILS)
        };
        let (summary, written) = told.take().filter(keeps).unwrap_or((next, now));
        let is_due = written == now || renewed.is_none_or(|renewed| now >= renewed + RENEW);
        let outcome = match is_due {
            true => key
                .hold(&serde_json::to_vec(&summary).unwrap_or_default())
                .await
                .map(|()| renewed = Some(now)),
            false => Ok(()),
        };
        match outcome {
            Ok(()) => (told, has_failed) = (Some((summary, written)), false),
            Err(reason) if has_failed => debug!(%reason, "cannot tell the store how this host is"),
            Err(reason) => {
                warn!(%reason, "cannot tell the store how this host is; flanctl status --all does not show it");
                has_failed = true;
            }
        }
        sleep(LOOK).await;
    }
}
