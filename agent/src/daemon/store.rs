//! Tasks that use the store. Each works at its own pace and reports to the event loop.

use std::pin::pin;
use std::time::Duration;

use flan_agent_api::Code;
use flan_subnet_lease::{Keeper, Lease, Listing, Store, WatchEvent, Watcher, release};
use futures::StreamExt;
use futures::stream::{self, BoxStream, SelectAll};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{Instrument, Span, debug};

use super::reservation;
use crate::agent::NetworkId;
use crate::network::{LeaseClaim, NetworkEvent};
use crate::status::{SharedNetwork, SharedStatus};

/// How long a claim that is under way may take when this host leaves the network.
const LAST_TRY: Duration = Duration::from_secs(10);
/// Interval between checks whether our lease is still a reservation.
const RESERVATION_CHECK: Duration = Duration::from_secs(30);
/// Interval between attempts to read a config that the watch says is there.
const CONFIG_RETRY: Duration = Duration::from_secs(5);
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
    /// Follows the config.
    config: JoinSet<()>,
    /// Dropped when this host leaves the network.
    stays: Option<oneshot::Sender<()>>,
    /// Closed once the lease is released.
    ends: Option<oneshot::Receiver<()>>,
    /// Closed once an earlier membership has released its lease.
    after: Option<oneshot::Receiver<()>>,
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
        let (listing, events) = (None, reports.sender.clone());
        let (keeper, config) = (JoinSet::new(), JoinSet::new());
        Self {
            id,
            store,
            flags,
            status,
            events,
            leases: Some(leases),
            listing,
            keeper,
            config,
            stays: None,
            ends: None,
            after: None,
            span,
        }
    }

    /// Reads the config, now and whenever it changes.
    pub(super) fn follow_config(&mut self) {
        let (id, store, events) = (self.id, self.store.clone(), self.events.clone());
        let (sender, mut changes) = mpsc::channel(1);
        self.config.spawn(Watcher::new(store.config_changes()).run(sender).instrument(self.span.clone()));
        self.config.spawn(async move {
            // The first reading does not wait for the watch.
            let mut change = None;
            loop {
                let read = match change {
                    Some(WatchEvent::Interrupted { reason }) => Err(reason),
                    _ => store.config().await.map_err(|reason| reason.to_string()),
                };
                let is_read = read.is_ok();
                let json = read.map(|stored| stored.map(|stored| stored.json));
                if events.send((id, NetworkEvent::Config(json))).await.is_err() {
                    return;
                }
                change = tokio::select! {
                    next = changes.recv() => if next.is_some() { next } else { return },
                    () = tokio::time::sleep(CONFIG_RETRY), if !is_read => None,
                };
            }
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
        let (stays, mut leaves) = oneshot::channel::<()>();
        self.stays = Some(stays);
        let (after, (ended, ends)) = (self.after.take(), oneshot::channel());
        self.ends = Some(ends);
        let work = async move {
            let LeaseClaim { claim, mut terms, own_key } = claim;
            let listing = match listing {
                Some(listing) => listing.await.ok().flatten(),
                None => None,
            };
            let waits = |reason: &str| {
                // If the queue is full, a later reason will do.
                let _ = events.try_send((id, NetworkEvent::NoLease(reason.to_owned())));
            };
            if let Some(earlier) = after {
                // This host has just left the network. Its lease must be gone before the next is taken.
                let _ = earlier.await;
            }
            let (keeper, listing) = {
                let mut acquiring = pin!(Keeper::acquire(store.clone(), claim, &mut terms, listing, waits));
                tokio::select! {
                    acquired = &mut acquiring => acquired,
                    // What the store is doing at this moment has an outcome.
                    _ = &mut leaves => match timeout(LAST_TRY, acquiring).await {
                        Ok((keeper, _)) => return release(&store, keeper.held()).await,
                        Err(_) => return,
                    },
                }
            };
            let (sender, holding) = watch::channel(keeper.holding());
            if events.send((id, NetworkEvent::Leased(keeper.holding()))).await.is_err() {
                return;
            }
            // They end with this task.
            let mut others = JoinSet::new();
            others.spawn(Watcher::behind(store.leases(), listing).run(leases).in_current_span());
            let (held, ours) = (holding.clone(), terms.clone());
            let reserved = reservation::watch(store.clone(), flags, held, ours, RESERVATION_CHECK, status);
            others.spawn(reserved.in_current_span());
            let last = holding.clone();
            tokio::select! {
                () = keeper.hold(own_key, terms, &sender) => {}
                () = report(id, holding, events) => {}
                _ = leaves => {
                    drop(others);
                    let lease = last.borrow().lease.clone();
                    release(&store, &lease).await;
                }
            }
        };
        let work = async move {
            work.await;
            drop(ended);
        };
        self.keeper.spawn(work.instrument(span));
    }

    /// Ends all tasks, and releases the lease. The returned channel is closed once that is done.
    pub(super) fn leave(mut self) -> Option<oneshot::Receiver<()>> {
        self.stays = None;
        self.keeper.detach_all();
        self.ends.or(self.after)
    }

    /// Takes no lease before this channel is closed.
    pub(super) fn wait_for(&mut self, earlier: oneshot::Receiver<()>) {
        self.after = Some(earlier);
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
