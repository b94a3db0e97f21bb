//! Tasks that use the store. Each works at its own pace and reports to the event loop.

use flan_agent_api::Code;
use flan_subnet_lease::{Collection, HeldLease, Keeper, Lease, Listing, Store, WatchEvent, Watcher};
use futures::StreamExt;
use futures::stream::{self, BoxStream, SelectAll};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{Instrument, Span, debug, info, warn};

use super::reservation;
use crate::agent::NetworkId;
use crate::network::{CONFIG_CHECK, LeaseClaim, NetworkEvent};
use crate::status::{SharedNetwork, SharedStatus};

/// Events queued for the event loop. When the queue is full, a watch pauses.
const EVENTS: usize = 64;

/// The tasks of one network. Dropping this stops the keeper of its lease.
pub(super) struct StoreTasks {
    id: NetworkId,
    store: Store,
    /// Flags with which `flanctl` reaches the network, as typed.
    flags: String,
    status: SharedNetwork,
    events: mpsc::Sender<(NetworkId, NetworkEvent)>,
    /// `None` once the leases are watched.
    leases: Option<mpsc::Sender<WatchEvent<Lease>>>,
    /// The list of leases for the claim.
    listing: Option<JoinHandle<Option<Listing<Lease>>>>,
    keeper: JoinSet<()>,
    /// Dropped when this host leaves the network.
    stays: Option<oneshot::Sender<()>>,
    /// Marks log lines of a network beside the default one.
    span: Span,
}

/// What the tasks of all networks report.
pub(super) struct Reports {
    /// Events, each with its network.
    pub(super) events: mpsc::Receiver<(NetworkId, NetworkEvent)>,
    /// What the watches of leases say; `None` when one ends, which it should not.
    pub(super) leases: SelectAll<BoxStream<'static, (NetworkId, Option<WatchEvent<Lease>>)>>,
    sender: mpsc::Sender<(NetworkId, NetworkEvent)>,
}

impl Reports {
    /// Creates what no task reports to yet.
    pub(super) fn new() -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        Self { events, leases: SelectAll::new(), sender }
    }
}

impl StoreTasks {
    /// Creates the tasks of a network, which report there.
    pub(super) fn new(
        id: NetworkId,
        store: Store,
        flags: String,
        status: SharedNetwork,
        span: Span,
        reports: &mut Reports,
    ) -> Self {
        let (leases, mut receiver) = mpsc::channel(EVENTS);
        let events = stream::poll_fn(move |context| receiver.poll_recv(context)).map(Some);
        let all = events.chain(stream::once(std::future::ready(None)));
        reports.leases.push(all.map(move |event| (id, event)).boxed());
        let (listing, keeper, stays, events) = (None, JoinSet::new(), None, reports.sender.clone());
        Self { id, store, flags, status, events, leases: Some(leases), listing, keeper, stays, span }
    }

    pub(super) fn read_config(&self) {
        let (id, store, events) = (self.id, self.store.clone(), self.events.clone());
        tokio::spawn(async move {
            let read = store.config().await.map_err(|reason| reason.to_string());
            let json = read.map(|stored| stored.map(|stored| stored.json));
            // Fails only when the agent exits.
            let _ = events.send((id, NetworkEvent::Config(json))).await;
        });
    }

    /// Lists the leases, without a retry: the claim lists them again if this fails.
    pub(super) fn list_leases(&mut self) {
        let leases = self.store.leases();
        self.listing = Some(tokio::spawn(async move {
            let listing = leases.list().await;
            listing.inspect_err(|reason| debug!(%reason, "cannot list the leases yet")).ok()
        }));
    }

    /// Takes and keeps a lease. Then watches all leases, and checks whether ours is still a reservation.
    pub(super) fn claim(&mut self, claim: LeaseClaim) {
        let (Some(leases), listing) = (self.leases.take(), self.listing.take()) else { return };
        let (id, store, events) = (self.id, self.store.clone(), self.events.clone());
        let (flags, status) = (self.flags.clone(), self.status.clone());
        let span = self.span.clone();
        let (stays, leaves) = oneshot::channel::<()>();
        self.stays = Some(stays);
        let held_in = self.store.leases();
        let work = async move {
            let LeaseClaim { claim, attributes, own_key } = claim;
            let listing = match listing {
                Some(listing) => listing.await.ok().flatten(),
                None => None,
            };
            let waits = |reason: &str| {
                // If the queue is full, a later reason will do.
                let _ = events.try_send((id, NetworkEvent::NoLease(reason.to_owned())));
            };
            let (keeper, listing) = Keeper::acquire(store.clone(), claim, listing, waits).await;
            let (sender, holding) = watch::channel(keeper.holding());
            if events.send((id, NetworkEvent::Leased(keeper.holding()))).await.is_err() {
                return;
            }
            tokio::spawn(Watcher::behind(store.leases(), listing).run(leases).in_current_span());
            let (held, ours) = (holding.clone(), attributes.clone());
            let reserved = reservation::watch(store, flags, held, ours, CONFIG_CHECK, status);
            tokio::spawn(reserved.in_current_span());
            let last = holding.clone();
            tokio::select! {
                () = keeper.hold(own_key, attributes, &sender) => {}
                () = report(id, holding, events) => {}
                _ = leaves => {
                    let lease = last.borrow().lease.clone();
                    release(&held_in, &lease).await;
                }
            }
        };
        self.keeper.spawn(work.instrument(span));
    }

    /// Ends all tasks, and releases the lease.
    pub(super) fn leave(mut self) {
        self.stays = None;
        self.keeper.detach_all();
    }

    /// Waits until the keeper of the lease ends, which it should not.
    pub(super) async fn failed(&mut self) {
        if self.keeper.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Releases a lease that no host needs any more. What another program keeps there, and a reservation, stays.
async fn release(leases: &Collection<Lease>, lease: &HeldLease) {
    if lease.etcd_lease.is_none() {
        return;
    }
    let key = lease.subnets.key();
    for wait in [1, 5, 0] {
        match leases.delete(&key, lease.mod_revision).await {
            Ok(true) => return info!(subnets = %lease.subnets, "released the lease"),
            Ok(false) => {
                return warn!(subnets = %lease.subnets, "another program wrote our lease; leaving it");
            }
            Err(reason) => warn!(%reason, "cannot release the lease of a network that this host has left"),
        }
        tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
    }
}

/// Reports changes of our lease.
async fn report(
    id: NetworkId,
    mut holding: watch::Receiver<flan_subnet_lease::Holding>,
    events: mpsc::Sender<(NetworkId, NetworkEvent)>,
) {
    while holding.changed().await.is_ok() {
        let now = holding.borrow_and_update().clone();
        if events.send((id, NetworkEvent::Holding(now))).await.is_err() {
            return;
        }
    }
}

/// Reports whether the store ignores our user. Ends with the process.
pub(super) async fn watch_user(store: Store, status: SharedStatus) {
    let mut ignored = store.user_ignored();
    loop {
        let is_ignored = *ignored.borrow_and_update();
        status.report(Code::AuthenticationOff, is_ignored.then(|| store.user_ignored_text()));
        if ignored.changed().await.is_err() {
            return;
        }
    }
}
