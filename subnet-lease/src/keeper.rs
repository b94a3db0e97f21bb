//! The life of our own lease: acquire, hold, lose, take back.
//!
//! Only the keeper writes our key, and each write compares what it last saw. Whatever seems to happen to the key, the
//! keeper reads it again before it acts, so late or repeated notices do no harm.

mod claim;
mod contest;
mod finding;
mod holders;
mod own;
mod release;
mod schedule;
mod take;
#[cfg(test)]
mod testing;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use self::claim::{FIRST_WAIT, LONGEST_WAIT};
use self::contest::Contest;
use self::finding::{Finding, Published, judge};
use self::schedule::{Looked, Schedule, Task, keepalive_interval};
use self::take::{Taken, adopt, take};
use crate::backoff::Backoff;
use crate::entry::Entry;
use crate::key::Subnets;
use crate::lease::{Lease, LeaseAttributes};
use crate::lease_set::OwnKey;
use crate::shown::shown_bytes;
use crate::store::{Store, StoreError};
use crate::stored::Listing;

pub use self::claim::{Claim, HeldLease, Holding, KeeperError, Sighting, Terms};
pub use self::release::release;

/// Holds our lease.
pub struct Keeper {
    store: Store,
    claim: Claim,
    held: HeldLease,
    published: Published,
    twin: Option<Sighting>,
}

impl Keeper {
    /// Takes a lease: the one with our public address, else the previous subnet, else a random free one. Retries
    /// forever, and reports to `waits` why it must wait. If the previous subnet is leased to another address with our
    /// node id, its holder gets half a minute to object. Other `terms` count from the next attempt on, which follows at
    /// once.
    ///
    /// `listing` is an existing list of the leases, if any; if it proves out of date, a new one is made. Returns the
    /// list that decided, without what this call wrote: [`Watcher::behind`] continues from there.
    ///
    /// [`Watcher::behind`]: crate::Watcher::behind
    pub async fn acquire(
        store: Store,
        mut claim: Claim,
        terms: &mut watch::Receiver<Terms>,
        mut listing: Option<Listing<Lease>>,
        waits: impl Fn(&str),
    ) -> (Self, Listing<Lease>) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut contest = Contest::default();
        loop {
            Terms { config: claim.config, attributes: claim.attributes } = terms.borrow_and_update().clone();
            match take(&store, &claim, listing.take(), Some(&mut contest), &waits).await {
                Ok(Taken { held, .. }) if !terms.borrow().config.admits(&held.subnets) => {
                    info!(subnets = %held.subnets, "the network has other addresses by now; choosing again");
                    release(&store, &held).await;
                }
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
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = changed(terms) => backoff.reset(),
                    }
                }
            }
        }
    }

    /// Returns the lease as we hold it now.
    pub fn held(&self) -> &HeldLease {
        &self.held
    }

    /// Returns the lease as we hold it now, and its problem, if any.
    pub fn holding(&self) -> Holding {
        Holding { twin: self.twin.clone(), ..Holding::new(self.held.clone()) }
    }

    /// Keeps the lease until nobody listens to `holding` any more.
    ///
    /// `own_key` is what the store holds under our key ([`LeaseSet::take_own_key`]): if the keeper did not write that,
    /// it reads the key at once. What changes of `terms` is written at once, with the same subnet and etcd lease. Every
    /// change of the lease, including a new subnet after a loss, and every problem goes to `holding`.
    ///
    /// [`LeaseSet::take_own_key`]: crate::LeaseSet::take_own_key
    pub async fn hold(
        mut self,
        mut own_key: watch::Receiver<OwnKey>,
        mut terms: watch::Receiver<Terms>,
        holding: &watch::Sender<Holding>,
    ) {
        let mut schedule =
            Schedule::new(keepalive_interval(self.claim.ttl, self.claim.renew_margin), Instant::now());
        terms.mark_changed(); // they may have changed since the lease was taken
        loop {
            let task = tokio::select! {
                () = holding.closed() => return,
                () = changed(&mut terms) => {
                    let Terms { config, attributes } = terms.borrow_and_update().clone();
                    self.claim.config = config;
                    let is_lost = !self.claim.config.admits(&self.held.subnets);
                    if self.claims(attributes) || is_lost {
                        schedule.publish(Instant::now());
                    }
                    continue;
                }
                () = changed(&mut own_key) => {
                    if *own_key.borrow_and_update() != Some(self.held.mod_revision) {
                        schedule.suspect(Instant::now());
                    }
                    continue;
                }
                () = tokio::time::sleep_until(schedule.due()) => schedule.task(),
            };
            let outcome = match task {
                Task::Look => self.look().await,
                Task::KeepAlive => self.keep_alive().await,
            };
            let wait = schedule.done(task, outcome.as_ref().ok(), Instant::now());
            let problem = outcome.err().map(|reason| {
                let left = self.claim.ttl.saturating_sub(schedule.since_success(Instant::now()));
                warn!(%reason, retry_in = ?wait, expires_in_seconds = left.as_secs(), "cannot renew the lease");
                reason.to_string()
            });
            let now = Holding { problem, ..self.holding() };
            holding.send_if_modified(|seen| std::mem::replace(seen, now.clone()) != now);
        }
    }

    /// Sets what peers need to know about us from now on. Returns whether that is new.
    fn claims(&mut self, wanted: LeaseAttributes) -> bool {
        if wanted == self.claim.attributes {
            return false;
        }
        self.claim.attributes = wanted;
        self.published.wants(&self.claim.attributes);
        true
    }

    /// Renews the etcd lease; if it has expired, takes the subnet back.
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

    /// Reads our key and repairs it.
    async fn look(&mut self) -> Result<Looked, KeeperError> {
        let looked = self.find_and_mend().await?;
        self.published = Published::new(&self.claim.attributes);
        Ok(looked)
    }

    async fn find_and_mend(&mut self) -> Result<Looked, KeeperError> {
        let subnets = self.held.subnets;
        if !self.claim.config.admits(&subnets) {
            warn!(%subnets, "the changed network does not have our subnet; taking another");
            release(&self.store, &self.held).await;
            self.take_back().await?;
            return Ok(Looked::Mended);
        }
        let found = self.store.leases().get(&subnets.key()).await?;
        match judge(&self.held, &self.claim, &self.published, found) {
            Finding::Unchanged => return Ok(Looked::Fine),
            Finding::Touched { etcd_lease, mod_revision } => {
                let reservation = etcd_lease.is_none();
                info!(%subnets, reservation, "somebody else wrote our lease, with the same values");
                self.held = HeldLease { subnets, etcd_lease, mod_revision };
                return Ok(Looked::Fine);
            }
            Finding::Outdated(entry) => {
                info!(%subnets, holder = %self.claim.attributes.holder(), "our lease has new values; writing it");
                self.held = adopt(&self.store, &self.claim, &as_lease(subnets, &entry)).await?;
                return Ok(Looked::Published);
            }
            Finding::Claimed(twin, entry) => {
                self.held = adopt(&self.store, &self.claim, &as_lease(subnets, &entry)).await?;
                self.twin = Some(Sighting::now(twin));
                return Ok(Looked::Objected);
            }
            Finding::Altered(entry) => {
                let value = shown_bytes(&entry.value);
                warn!(%subnets, %value, "somebody changed our lease; writing it again");
                // A write without an etcd lease makes a reservation only if it leaves our values unchanged.
                let entry = Entry { etcd_lease: entry.etcd_lease.or(self.held.etcd_lease), ..entry };
                self.held = adopt(&self.store, &self.claim, &as_lease(subnets, &entry)).await?;
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

    /// Takes our subnet again or, if somebody else has it by now, another one.
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

/// Hosts that start at once collide often, and each collision leaves one fewer.
const RACE_WAIT: Duration = Duration::from_millis(300);

/// Reads what is under our key. Unreadable values count as empty.
fn as_lease(subnets: Subnets, entry: &Entry) -> Lease {
    Lease::of(subnets, LeaseAttributes::from_json(&entry.value).unwrap_or_default(), entry)
}

/// Waits for the next change; forever, once nobody can make one.
async fn changed<T>(told: &mut watch::Receiver<T>) {
    if told.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
