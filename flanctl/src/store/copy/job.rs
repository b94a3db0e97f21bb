//! Carries out the plan of a copy.
//!
//! Writes the config last: an agent that waits for it in the target then finds all leases, and takes no subnet of
//! another. Each write compares the revision seen, so it overwrites no concurrent write.
//!
//! Grants an etcd lease for its remaining time in the source, so the lease of a host that is gone ends when it would
//! have. An agent that is alive takes its subnet with a full lease when it starts with the new store.

use std::cell::Cell;
use std::time::Duration;

use flan_subnet_lease::{Store, StoreError, StoredConfig};
use futures::{StreamExt, TryStreamExt};

use super::plan::{Config, EtcdLease, Group, Key, Plan};
use super::report::{Fate, Item, Outcome};

/// Number of etcd leases copied concurrently.
const AT_ONCE: usize = 64;

/// A copy in progress.
pub(crate) struct Job<'a> {
    pub(crate) from: &'a Store,
    pub(crate) to: &'a Store,
    /// The target's config as the plan saw it.
    pub(crate) seen: Option<StoredConfig>,
    /// Whether nothing is written.
    pub(crate) dry_run: bool,
    /// Number of leases done.
    pub(crate) done: Cell<usize>,
}

impl Job<'_> {
    /// Copies the leases, then the config.
    pub(crate) async fn carry(&self, plan: Plan) -> Result<Outcome, StoreError> {
        let skipped = plan.skipped.into_iter().map(|(key, reason)| Item::skipped(key, reason));
        let mut items: Vec<Item> = skipped.collect();
        let groups = futures::stream::iter(plan.groups).map(|group| self.group(group));
        let mut groups = groups.buffer_unordered(AT_ONCE);
        while let Some(done) = groups.try_next().await? {
            self.done.set(self.done.get() + done.len());
            items.extend(done);
        }
        let config = match &plan.config {
            Some(config) => Some(self.config(config).await?),
            None => None,
        };
        Ok(Outcome { config, items, left_alone: plan.left_alone })
    }

    async fn config(&self, config: &Config) -> Result<Fate, StoreError> {
        if config.stands {
            return Ok(Fate::Unchanged);
        }
        let fate = if self.seen.is_some() { Fate::Overwritten } else { Fate::Copied };
        if self.dry_run || self.to.put_config(&config.json, self.seen.as_ref()).await? {
            return Ok(fate);
        }
        // If the answer to a write was lost, a retry finds its own value.
        let found = self.to.config().await?;
        let is_ours = found.is_some_and(|found| found.json == config.json);
        Ok(if is_ours { fate } else { Fate::ChangedMeanwhile })
    }

    /// Copies the keys that share an etcd lease, or one reservation.
    async fn group(&self, group: Group) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::new();
        let Some(lease) = group.etcd_lease else {
            self.keys(&group.keys, None, None, &mut items).await?;
            return Ok(items);
        };
        let left = match self.from.time_to_live(lease.id).await {
            // The store rounds down to seconds.
            Ok((left, _)) => left + Duration::from_secs(1),
            Err(StoreError::LeaseGone(_)) => {
                let expired = |key: Key| Item::skipped(key.key, "its lease in the store has expired");
                return Ok(group.keys.into_iter().map(expired).collect());
            }
            Err(error) => return Err(error),
        };
        let (etcd_lease, is_new) =
            if self.dry_run { (lease.id, false) } else { self.etcd_lease(lease, left).await? };
        let outcome = self.keys(&group.keys, Some(etcd_lease), Some(left), &mut items).await;
        // Without an answer, the write may have happened.
        let unanswered = matches!(outcome, Err(StoreError::Unreachable(_)));
        let unused = !unanswered && items.iter().all(|item| item.outcome == Fate::ChangedMeanwhile);
        if is_new
            && unused
            && let Err(reason) = self.to.revoke(etcd_lease).await
        {
            eprintln!("flanctl: warning: an unused lease stays in the store until it expires: {reason}");
        }
        outcome.map(|()| items)
    }

    /// Returns the etcd lease in the target, and whether it is new. It has the id that the holder knows, if that is
    /// free or was copied before.
    async fn etcd_lease(&self, lease: EtcdLease, left: Duration) -> Result<(i64, bool), StoreError> {
        if lease.stands {
            match self.to.keep_alive(lease.id).await {
                Ok(()) => return Ok((lease.id, false)),
                Err(StoreError::LeaseGone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if self.to.grant_as(lease.id, left).await? {
            return Ok((lease.id, true));
        }
        Ok((self.to.grant(left).await?, true))
    }

    async fn keys(
        &self,
        keys: &[Key],
        etcd_lease: Option<i64>,
        left: Option<Duration>,
        items: &mut Vec<Item>,
    ) -> Result<(), StoreError> {
        for key in keys {
            let outcome = self.key(key, etcd_lease).await?;
            items.push(Item::written(&key.key, outcome, left));
        }
        Ok(())
    }

    async fn key(&self, key: &Key, etcd_lease: Option<i64>) -> Result<Fate, StoreError> {
        if key.stands {
            return Ok(Fate::Unchanged);
        }
        let fate = if key.seen == 0 { Fate::Copied } else { Fate::Overwritten };
        if self.dry_run || self.to.leases().put(&key.key, &key.value, etcd_lease, key.seen).await?.is_some() {
            return Ok(fate);
        }
        // If the answer to a write was lost, a retry finds its own value.
        let found = self.to.leases().get(&key.key).await?;
        let is_ours = found.is_some_and(|found| found.value == key.value && found.etcd_lease == etcd_lease);
        Ok(if is_ours { fate } else { Fate::ChangedMeanwhile })
    }
}
