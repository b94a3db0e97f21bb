//! Tasks that use the store. Each works at its own pace and reports to the event loop.

use flan_agent_api::{Code, StoreArgs};
use flan_subnet_lease::{Keeper, Lease, Listing, Store, WatchEvent, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::debug;

use super::{Reports, reservation};
use crate::network::{CONFIG_CHECK, LeaseClaim, NetworkEvent};
use crate::status::SharedStatus;

/// Events queued for the event loop. When the queue is full, a watch pauses.
const EVENTS: usize = 64;

/// The tasks. Dropping this stops the keeper of the lease.
pub(super) struct StoreTasks {
    store: Store,
    flags: StoreArgs,
    status: SharedStatus,
    events: mpsc::Sender<NetworkEvent>,
    /// `None` once the leases are watched.
    leases: Option<mpsc::Sender<WatchEvent<Lease>>>,
    /// The list of leases for the claim.
    listing: Option<JoinHandle<Option<Listing<Lease>>>>,
    keeper: JoinSet<()>,
}

impl StoreTasks {
    /// Starts only the task that reports whether the store ignores our user.
    pub(super) fn start(store: Store, flags: StoreArgs, status: SharedStatus) -> (Self, Reports) {
        tokio::spawn(watch_user(store.clone(), status.clone()));
        let (events, events_receiver) = mpsc::channel(EVENTS);
        let (leases, leases_receiver) = mpsc::channel(EVENTS);
        let (listing, keeper) = (None, JoinSet::new());
        let tasks = Self { store, flags, status, events, leases: Some(leases), listing, keeper };
        (tasks, Reports { events: events_receiver, leases: leases_receiver })
    }

    pub(super) fn read_config(&self) {
        let (store, events) = (self.store.clone(), self.events.clone());
        tokio::spawn(async move {
            let read = store.config().await.map_err(|reason| reason.to_string());
            let json = read.map(|stored| stored.map(|stored| stored.json));
            // Fails only when the agent exits.
            let _ = events.send(NetworkEvent::Config(json)).await;
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
        let (store, events) = (self.store.clone(), self.events.clone());
        let (flags, status) = (self.flags.clone(), self.status.clone());
        self.keeper.spawn(async move {
            let LeaseClaim { claim, attributes, own_key } = claim;
            let listing = match listing {
                Some(listing) => listing.await.ok().flatten(),
                None => None,
            };
            let waits = |reason: &str| {
                // If the queue is full, a later reason will do.
                let _ = events.try_send(NetworkEvent::NoLease(reason.to_owned()));
            };
            let (keeper, listing) = Keeper::acquire(store.clone(), claim, listing, waits).await;
            let (sender, holding) = watch::channel(keeper.holding());
            if events.send(NetworkEvent::Leased(keeper.holding())).await.is_err() {
                return;
            }
            tokio::spawn(Watcher::behind(store.leases(), listing).run(leases));
            let (held, ours) = (holding.clone(), attributes.clone());
            tokio::spawn(reservation::watch(store, flags, held, ours, CONFIG_CHECK, status));
            tokio::select! {
                () = keeper.hold(own_key, attributes, &sender) => {}
                () = report(holding, events) => {}
            }
        });
    }

    pub(super) fn reconnect(&self) {
        self.store.reconnect();
    }

    /// Waits until the keeper of the lease ends, which it should not.
    pub(super) async fn failed(&mut self) {
        if self.keeper.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reports changes of our lease.
async fn report(
    mut holding: watch::Receiver<flan_subnet_lease::Holding>,
    events: mpsc::Sender<NetworkEvent>,
) {
    while holding.changed().await.is_ok() {
        let now = holding.borrow_and_update().clone();
        if events.send(NetworkEvent::Holding(now)).await.is_err() {
            return;
        }
    }
}

/// Reports whether the store ignores our user. Ends with the process.
async fn watch_user(store: Store, status: SharedStatus) {
    let mut ignored = store.user_ignored();
    loop {
        let is_ignored = *ignored.borrow_and_update();
        status.report(Code::AuthenticationOff, is_ignored.then(|| store.user_ignored_text()));
        if ignored.changed().await.is_err() {
            return;
        }
    }
}
