//! The tasks that deal with the store. Each works at its own pace and reports to the event loop.

use flan_agent_api::{Code, StoreArgs};
use flan_subnet_lease::{Keeper, Lease, Listing, Store, WatchEvent, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::debug;

use super::{Reports, reservation};
use crate::network::{CONFIG_CHECK, LeaseClaim, NetworkEvent};
use crate::status::SharedStatus;

/// Events that may wait for the event loop; a watch pauses when there are more.
const EVENTS: usize = 64;

/// The tasks, which end with this.
pub(super) struct StoreTasks {
    store: Store,
    flags: StoreArgs,
    status: SharedStatus,
    events: mpsc::Sender<NetworkEvent>,
    /// `None` once the leases are watched.
    leases: Option<mpsc::Sender<WatchEvent<Lease>>>,
    /// A list of the leases that the claim will need.
    listing: Option<JoinHandle<Option<Listing<Lease>>>>,
    keeper: JoinSet<()>,
}

impl StoreTasks {
    /// No task yet but the one that sees whether the store has any use for our user.
    pub(super) fn start(store: Store, flags: StoreArgs, status: SharedStatus) -> (Self, Reports) {
        tokio::spawn(watch_user(store.clone(), status.clone()));
        let (events, events_receiver) = mpsc::channel(EVENTS);
        let (leases, leases_receiver) = mpsc::channel(EVENTS);
        let (listing, keeper) = (None, JoinSet::new());
        let tasks = Self { store, flags, status, events, leases: Some(leases), listing, keeper };
        (tasks, Reports { events: events_receiver, leases: leases_receiver })
    }

    /// Reads the network config and reports it.
    pub(super) fn read_config(&self) {
        let (store, events) = (self.store.clone(), self.events.clone());
        tokio::spawn(async move {
            let read = store.config().await.map_err(|reason| reason.to_string());
            let json = read.map(|stored| stored.map(|stored| stored.json));
            // Nobody listens when the agent ends.
            let _ = events.send(NetworkEvent::Config(json)).await;
        });
    }

    /// Lists the leases, if the store gives them at the first time of asking; who needs them asks again.
    pub(super) fn list_leases(&mut self) {
        let leases = self.store.leases();
        self.listing = Some(tokio::spawn(async move {
            let listing = leases.list().await;
            listing.inspect_err(|reason| debug!(%reason, "cannot list the leases yet")).ok()
        }));
    }

    /// Takes a lease, keeps it and reports it; then watches all leases, and sees whether ours is still a reservation.
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
                // The next reason comes soon enough where there is no room for this one.
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

    /// Connects to the store again.
    pub(super) fn reconnect(&self) {
        self.store.reconnect();
    }

    /// Waits until the keeper of our lease has ended, which it does not by itself.
    pub(super) async fn failed(&mut self) {
        if self.keeper.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reports what we hold as it changes.
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

/// Reports while the store has no use for our user. Ends with the process.
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
