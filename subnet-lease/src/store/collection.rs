//! Values of one kind below one prefix: read, listed, watched, and written by transactions that compare with what was
//! read.

use std::marker::PhantomData;
use std::time::Duration;

use etcd_client::{Client, KeyValue, PutOptions, TxnOp};

use super::client::{Store, unchanged};
use super::error::StoreError;
use super::limits::ANY_SIZE;
use crate::entry::{Entry, bounded, name};
use crate::stored::Stored;

/// The keys below `<prefix>/<place>/`, or one key, each with a `T`. Clones share the store's connection.
#[derive(Clone)]
pub struct Collection<T> {
    pub(super) store: Store,
    /// What all its keys begin with.
    pub(super) prefix: String,
    /// What comes after all of them.
    pub(super) end: Vec<u8>,
    holds: PhantomData<fn() -> T>,
}

impl<T> Collection<T> {
    /// Creates the collection below `<prefix>/<place>/`.
    pub(super) fn below(store: &Store, place: &str) -> Self {
        let prefix = format!("{}/{place}/", store.prefix());
        // '0' comes after '/'.
        let end = format!("{}/{place}0", store.prefix()).into_bytes();
        Self { store: store.clone(), prefix, end, holds: PhantomData }
    }

    /// Creates the collection of one key, whose name in it is empty.
    pub(super) fn of_key(store: &Store, key: String) -> Self {
        let end = [key.as_bytes(), &[0]].concat();
        Self { store: store.clone(), prefix: key, end, holds: PhantomData }
    }

    /// Counts that a watch of it broke.
    pub(crate) fn watch_broke(&self)
    where
        T: Stored,
    {
        self.store.figures().watch_restarts.get_or_create(&[("of", T::PLURAL)]).inc();
    }

    /// Returns one entry; `None` if the key does not exist.
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

    /// Writes one value if its last write is still the one at `seen`; 0 means that the key does not exist. Returns the
    /// revision of the write, or `None` if somebody else wrote first.
    ///
    /// # Errors
    /// Any [`StoreError`]. After [`StoreError::Unreachable`] the write may have happened anyway.
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

    /// Deletes one key if its last write is still the one at `seen`. Returns whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn delete(&self, key: &str, seen: i64) -> Result<bool, StoreError> {
        let path = self.path(key);
        let delete = TxnOp::delete(path.as_str(), None);
        self.store.commit(vec![unchanged(&path, seen)], vec![delete]).await.map(|revision| revision.is_some())
    }

    /// Returns how long to wait for the store, given its last answer.
    pub(crate) fn patience(&self) -> Duration {
        self.store.patience()
    }

    pub(super) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// Returns what is kept of a key and its value; `None` for a key outside of the prefix.
pub(super) fn entry(prefix: &str, kv: KeyValue) -> Option<Entry> {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let etcd_lease = Some(kv.lease()).filter(|lease| *lease != 0);
    let (key, value) = kv.into_key_value();
    let (key, value) = (name(key.strip_prefix(prefix.as_bytes())?), bounded(value));
    Some(Entry { key, value, create_revision, mod_revision, etcd_lease })
}
