//! The life of our own lease: acquire, hold, lose, take back.
//!
//! Only the keeper writes our key, and each write compares what it last saw. Whatever seems to happen to the key,
//! the keeper reads it again before it acts, so a late or doubled notice does no harm.

mod contest;
mod finding;
mod holders;
mod own;
mod rounds;
mod take;
#[cfg(test)]
mod testing;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::allocate::{NoSubnet, OverlapPolicy};
use crate::backoff::Backoff;
use crate::config::NetworkConfig;
use crate::host_network::HostNetwork;
use crate::key::Subnets;
use crate::lease::LeaseAttributes;
use crate::shown::shown_bytes;
use crate::store::{Entry, Listing, Store, StoreError};
use crate::twin::Twin;
use contest::Contest;
use finding::{Finding, Published, judge};
use rounds::{Looked, Rounds, Task, keepalive_interval};
use take::{Taken, adopt, take};

/// What this host wants to hold.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The network.
    pub config: NetworkConfig,
    /// What peers need to know of us.
    pub attributes: LeaseAttributes,
    /// What we held before, as subnet.env says; taken again if nobody else has it.
    pub previous: Option<Subnets>,
    /// All addresses of this host, on whatever interface: a lease that bears one of them and our node id is no clone's.
    pub addresses: BTreeSet<IpAddr>,
    /// This host's own networks at each moment; subnets that overlap none of them are preferred.
    pub networks: watch::Receiver<Vec<HostNetwork>>,
    /// What to do where no other subnet is free.
    pub overlap: OverlapPolicy,
    /// How long the lease outlives us, in whole seconds.
    pub ttl: Duration,
    /// A keepalive is sent at the latest this long before the end; shorter than `ttl`. It is sent after a third of
    /// `ttl` anyway.
    pub renew_margin: Option<Duration>,
}

/// The lease as we hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// Our subnets.
    pub subnets: Subnets,
    /// The etcd lease behind the key; `None` for a reservation, which needs no keepalive.
    pub etcd_lease: Option<i64>,
    /// Store revision of the last write of the key.
    pub mod_revision: i64,
}

/// The lease as we hold it, and what is wrong with that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub lease: HeldLease,
    /// Why it could not be renewed or taken back, while that lasts.
    pub problem: Option<String>,
    /// The other machine with our node id that was last heard of, because it claimed our lease or objected to our claim.
    pub twin: Option<Sighting>,
}

/// When another machine with our node id was last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The machine.
    pub twin: Twin,
    /// When.
    pub at: Instant,
}

impl Sighting {
    fn now(twin: Twin) -> Self {
        Self { twin, at: Instant::now() }
    }
}

impl Holding {
    /// A lease with which nothing is wrong.
    pub fn new(lease: HeldLease) -> Self {
        Self { lease, problem: None, twin: None }
    }
}

/// Why a lease could not be taken at this moment.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No subnet is free.
    #[error("{exhausted}; held by: {holders}")]
    Exhausted {
        /// The network.
        #[source]
        exhausted: NoSubnet,
        /// Who holds how many.
        holders: String,
    },
    /// Subnets are free, but only such as overlap this host's own networks.
    #[error(
        "{overlap}: {by}; release a lease that is no longer used, give the overlay more addresses, take that network off \
         this host, or have such a subnet taken with --subnet-overlap warn"
    )]
    Overlap {
        /// The network, and how many are free.
        #[source]
        overlap: NoSubnet,
        /// The host's networks, and where they are.
        by: String,
    },
    /// Another host was faster.
    #[error("another host took {0} at the same moment")]
    LostRace(Subnets),
}

/// Holds our lease.
pub struct Keeper {
    store: Store,
    claim: Claim,
    held: HeldLease,
    published: Published,
    /// Another machine with our node id.
    twin: Option<Sighting>,
}

impl Keeper {
    /// Takes a lease: the one with our public address, else the previous subnet, else a random free one. Tries
    /// without end, and tells `waits` why while it must wait. Where the previous subnet is leased to another address with
    /// our node id, its holder gets half a minute to object.
    ///
    /// `listing` is a list of the leases that is there already, if there is one; should it turn out to be out of date,
    /// another is made. The one that decided comes back, without what was written by this: [`LeaseWatch::behind`] goes
    /// on from there.
    ///
    /// [`LeaseWatch::behind`]: crate::LeaseWatch::behind
    pub async fn acquire(
        store: Store,
        claim: Claim,
        mut listing: Option<Listing>,
        waits: impl Fn(&str),
    ) -> (Self, Listing) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut contest = Contest::default();
        loop {
            match take(&store, &claim, listing.take(), Some(&mut contest), &waits).await {
                Ok(Taken { held, listing, twin }) => {
                    let published = Published::new(&claim.attributes);
                    let twin = twin.or(contest.twin()).map(Sighting::now);
                    return (Self { store, claim, held, published, twin }, listing);
                }
                Err(KeeperError::LostRace(subnets)) => {
                    debug!(%subnets, "another host was faster; choosing again");
                    tokio::time::sleep(backoff.next().min(RACE_WAIT)).await;
                }
                Err(reason) => {
                    let wait = backoff.next();
                    warn!(%reason, retry_in = ?wait, "cannot take a lease yet");
                    waits(&reason.to_string());
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// The lease as we hold it now.
    pub fn held(&self) -> &HeldLease {
        &self.held
    }

    /// The lease as we hold it now, and what is wrong with that.
    pub fn holding(&self) -> Holding {
        Holding { twin: self.twin.clone(), ..Holding::new(self.held.clone()) }
    }

    /// Keeps the lease until nobody listens to `holding` any more. `suspicion` makes the keeper look at its key at
    /// once. Other `attributes` than those claimed are written at once, with the subnet and the etcd lease as they are.
    /// Every change of the lease, also a new subnet after a loss, and every problem goes to `holding`.
    pub async fn hold(
        mut self,
        suspicion: &Notify,
        mut attributes: watch::Receiver<LeaseAttributes>,
        holding: &watch::Sender<Holding>,
    ) {
        let mut rounds =
            Rounds::new(keepalive_interval(self.claim.ttl, self.claim.renew_margin), Instant::now());
        attributes.mark_changed(); // they may have changed since the claim was made
        loop {
            let task = tokio::select! {
                () = holding.closed() => return,
                () = changed(&mut attributes) => {
                    let wanted = attributes.borrow_and_update().clone();
                    if self.claims(wanted) {
                        rounds.publish(Instant::now());
                    }
                    continue;
                }
                () = suspicion.notified() => {
                    rounds.suspect(Instant::now());
                    continue;
                }
                () = tokio::time::sleep_until(rounds.due()) => rounds.task(),
            };
            let outcome = match task {
                Task::Look => self.look().await,
                Task::KeepAlive => self.keep_alive().await,
            };
            let wait = rounds.done(task, outcome.as_ref().ok(), Instant::now());
            let problem = outcome.err().map(|reason| {
                let left = self.claim.ttl.saturating_sub(rounds.since_success(Instant::now()));
                warn!(%reason, retry_in = ?wait, expires_in_seconds = left.as_secs(), "cannot renew the lease");
                reason.to_string()
            });
            let now = Holding { problem, ..self.holding() };
            holding.send_if_modified(|seen| std::mem::replace(seen, now.clone()) != now);
        }
    }

    /// What peers need to know of us from now on. Answers whether that is anything new.
    fn claims(&mut self, wanted: LeaseAttributes) -> bool {
        if wanted == self.claim.attributes {
            return false;
        }
        self.claim.attributes = wanted;
        self.published.wants(&self.claim.attributes);
        true
    }

    /// Sets the etcd lease back to its full time; when it has expired, takes the subnet back.
    async fn keep_alive(&mut self) -> Result<Looked, KeeperError> {
        let Some(etcd_lease) = self.held.etcd_lease else { return self.look().await };
        match self.store.keep_alive(etcd_lease).await {
            Ok(()) => {
                debug!(subnets = %self.held.subnets, "kept the lease alive");
                Ok(Looked::Fine)
            }
            Err(StoreError::LeaseGone(_)) => self.look().await,
            Err(error) => Err(error.into()),
        }
    }

    /// Reads our key and puts right what is wrong with it.
    async fn look(&mut self) -> Result<Looked, KeeperError> {
        let looked = self.find_and_mend().await?;
        self.published = Published::new(&self.claim.attributes);
        Ok(looked)
    }

    async fn find_and_mend(&mut self) -> Result<Looked, KeeperError> {
        let subnets = self.held.subnets;
        let found = self.store.get(&subnets.key()).await?;
        match judge(&self.held, &self.claim, &self.published, found) {
            Finding::Unchanged => return Ok(Looked::Fine),
            Finding::Touched { etcd_lease, mod_revision } => {
                let reservation = etcd_lease.is_none();
                info!(%subnets, reservation, "somebody else wrote our lease, and it still says the same");
                self.held = HeldLease { subnets, etcd_lease, mod_revision };
                return Ok(Looked::Fine);
            }
            Finding::Outdated(entry) => {
                info!(%subnets, holder = %self.claim.attributes.holder(), "our lease is to say something else; writing it");
                self.held = adopt(&self.store, &self.claim, subnets, &entry).await?;
                return Ok(Looked::Published);
            }
            Finding::Claimed(twin, entry) => {
                self.held = adopt(&self.store, &self.claim, subnets, &entry).await?;
                self.twin = Some(Sighting::now(twin));
                return Ok(Looked::Objected);
            }
            Finding::Altered(entry) => {
                let value = shown_bytes(&entry.value);
                warn!(%subnets, %value, "somebody altered our lease; writing it again");
                // A write without an etcd lease makes a reservation only where it leaves our words as they are.
                let entry = Entry { etcd_lease: entry.etcd_lease.or(self.held.etcd_lease), ..entry };
                self.held = adopt(&self.store, &self.claim, subnets, &entry).await?;
            }
            Finding::Gone => {
                warn!(%subnets, "our lease is gone from the store; taking it back");
                self.take_back().await?;
            }
            Finding::Foreign(holder) => {
                error!(%subnets, %holder, "our lease was lost to another host; if that is a clone of this machine, give each its own --node-id");
                self.take_back().await?;
            }
        }
        Ok(Looked::Mended)
    }

    /// Takes our subnet again or, where somebody else has it by now, another one.
    async fn take_back(&mut self) -> Result<(), KeeperError> {
        let lost = self.held.subnets;
        let claim = Claim { previous: Some(lost), ..self.claim.clone() };
        self.held = take(&self.store, &claim, None, None, &|_| {}).await?.held;
        if self.held.subnets != lost {
            error!(
                %lost, now = %self.held.subnets,
                "this host has another subnet now; containers keep the lost one until Docker is restarted",
            );
        }
        Ok(())
    }
}

/// The first and the longest wait after a failure, before jitter.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Many hosts that start at once collide often, and each collision leaves one fewer.
const RACE_WAIT: Duration = Duration::from_millis(300);

/// The next change; never, when nobody can make one any more.
async fn changed(attributes: &mut watch::Receiver<LeaseAttributes>) {
    if attributes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
