//! Values of one kind below one prefix: read, listed, watched, and written by transactions that compare what the caller
//! saw.

use std::marker::PhantomData;
use std::time::Duration;

use etcd_client::{Client, KeyValue, PutOptions, TxnOp};

use super::client::{Store, unchanged};
use super::error::StoreError;
use super::limits::ANY_SIZE;
use crate::entry::{Entry, bounded, name};

/// The keys below `<prefix>/<place>/`, each with a `T`. Clones share the store's connection.
#[derive(Clone)]
pub struct Collection<T> {
    pub(super) store: Store,
    /// What all its keys begin with; it ends with `/`.
    pub(super) prefix: String,
    holds: PhantomData<fn() -> T>,
}

impl<T> Collection<T> {
    /// What stands below `<prefix>/<place>/` in a store.
    pub(super) fn below(store: &Store, place: &str) -> Self {
        let prefix = format!("{}/{place}/", store.prefix());
        Self { store: store.clone(), prefix, holds: PhantomData }
    }

    /// One entry as it stands; `None` when there is no such key.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let path = self.path(key);
        let mut response = self
            .store
            .call(|client: Client| {
                let (path, mut client) =
                    (path.clone(), client.kv_client().max_decoding_message_size(ANY_SIZE));
                async move { client.get(path, None).await }
            })
            .await?;
        Ok(response.take_kvs().into_iter().next().and_then(|kv| entry(&self.prefix, kv)))
    }

    /// Writes one value if its last write still is the one at `seen`; 0 stands for "there is no such key".
    /// Answers the revision of the write, or `None` when another came first.
    ///
    /// # Errors
    /// Any [`StoreError`]. After [`StoreError::Unreachable`] the write may have happened all the same.
    pub async fn put(
        &self,
        key: &str,
        value: &[u8],
        etcd_lease: Option<i64>,
        seen: i64,
    ) -> Result<Option<i64>, StoreError> {
        let path = self.path(key);
        let options = etcd_lease.map(|lease| PutOptions::new().with_lease(lease));
        let put = TxnOp::put(path.as_str(), value, options);
        self.store.commit(vec![unchanged(&path, seen)], vec![put]).await
    }

    /// Deletes one key if its last write still is the one at `seen`. Answers whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn delete(&self, key: &str, seen: i64) -> Result<bool, StoreError> {
        let path = self.path(key);
        let delete = TxnOp::delete(path.as_str(), None);
        self.store.commit(vec![unchanged(&path, seen)], vec![delete]).await.map(|revision| revision.is_some())
    }

    /// How long to wait for something that the store is asked for, as its last answer took.
    pub(crate) fn patience(&self) -> Duration {
        self.store.patience()
    }

    /// The whole key.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// What is kept of a key and its value; `None` for a key that does not begin with the prefix.
pub(super) fn entry(prefix: &str, kv: KeyValue) -> Option<Entry> {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let etcd_lease = Some(kv.lease()).filter(|lease| *lease != 0);
    let (key, value) = kv.into_key_value();
    let (key, value) = (name(key.strip_prefix(prefix.as_bytes())?), bounded(value));
    Some(Entry { key, value, create_revision, mod_revision, etcd_lease })
}
