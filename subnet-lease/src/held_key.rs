//! A key that ends soon after whoever holds it.

use std::time::Duration;

use crate::store::{Collection, Store, StoreError};

/// One key of a collection, tied to an etcd lease that somebody must renew.
pub struct HeldKey<T> {
    store: Store,
    keys: Collection<T>,
    key: String,
    ttl: Duration,
    etcd_lease: Option<i64>,
}

impl<T> HeldKey<T> {
    /// Creates the handle of a key, which ends `ttl` after it was last held. Nothing is written yet.
    pub fn new(store: &Store, keys: Collection<T>, key: &str, ttl: Duration) -> Self {
        Self { store: store.clone(), keys, key: key.to_owned(), ttl, etcd_lease: None }
    }

    /// Renews the etcd lease, and writes the key unless it is there with that lease and this value.
    ///
    /// # Errors
    /// Any [`StoreError`]; then the key may end.
    pub async fn hold(&mut self, value: &[u8]) -> Result<(), StoreError> {
        let etcd_lease = match self.etcd_lease {
            Some(held) => match self.store.keep_alive(held).await {
                Ok(()) => held,
                Err(StoreError::LeaseGone(_)) => self.store.grant(self.ttl).await?,
                Err(reason) => return Err(reason),
            },
            None => self.store.grant(self.ttl).await?,
        };
        self.etcd_lease = Some(etcd_lease);
        let found = self.keys.get(&self.key).await?;
        let is_there =
            |found: &crate::entry::Entry| found.etcd_lease == Some(etcd_lease) && *found.value == *value;
        if !found.as_ref().is_some_and(is_there) {
            // Somebody who writes at the same moment is seen at the next look.
            self.keys
                .put(&self.key, value, Some(etcd_lease), found.map_or(0, |found| found.mod_revision))
                .await?;
        }
        Ok(())
    }
}
