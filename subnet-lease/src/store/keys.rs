//! Single keys: the network config and the leases. A write is a transaction that compares what the caller saw.

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, TxnOp};

use super::client::Store;
use super::error::StoreError;
use super::limits::ANY_SIZE;
use super::raw::entry;
use crate::entry::Entry;

/// The network config as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredConfig {
    /// The JSON.
    pub json: Vec<u8>,
    /// Store revision of the last write.
    pub mod_revision: i64,
}

impl Store {
    /// The network config; `None` when nobody has written one.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn config(&self) -> Result<Option<StoredConfig>, StoreError> {
        self.config_at(0).await
    }

    /// Writes the network config if it still is what the caller saw. Answers whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn put_config(&self, json: &[u8], seen: Option<&StoredConfig>) -> Result<bool, StoreError> {
        let key = self.config_key();
        let put = TxnOp::put(key.as_str(), json, None);
        self.commit(&key, seen.map_or(0, |seen| seen.mod_revision), put)
            .await
            .map(|revision| revision.is_some())
    }

    /// One lease; `None` when there is no such key.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let path = self.subnet_key(key);
        let mut response = self
            .call(|client: Client| {
                let (path, mut client) =
                    (path.clone(), client.kv_client().max_decoding_message_size(ANY_SIZE));
                async move { client.get(path, None).await }
            })
            .await?;
        Ok(response.take_kvs().into_iter().next().and_then(|kv| entry(&self.subnets_prefix(), kv)))
    }

    /// Writes one lease if its last write still is the one at `seen`; 0 stands for "there is no such key".
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
        let path = self.subnet_key(key);
        let options = etcd_lease.map(|lease| PutOptions::new().with_lease(lease));
        let put = TxnOp::put(path.as_str(), value, options);
        self.commit(&path, seen, put).await
    }

    /// Deletes one lease if its last write still is the one at `seen`. Answers whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn delete(&self, key: &str, seen: i64) -> Result<bool, StoreError> {
        let path = self.subnet_key(key);
        self.commit(&path, seen, TxnOp::delete(path.as_str(), None)).await.map(|revision| revision.is_some())
    }

    /// The network config as it was at a revision, 0 for the present.
    pub(super) async fn config_at(&self, revision: i64) -> Result<Option<StoredConfig>, StoreError> {
        let key = self.config_key();
        let response = self
            .call(|client: Client| {
                let (key, options) = (key.clone(), GetOptions::new().with_revision(revision));
                let mut client = client.kv_client().max_decoding_message_size(ANY_SIZE);
                async move { client.get(key, Some(options)).await }
            })
            .await?;
        Ok(response
            .kvs()
            .first()
            .map(|kv| StoredConfig { json: kv.value().to_vec(), mod_revision: kv.mod_revision() }))
    }

    pub(super) fn config_key(&self) -> String {
        format!("{}/config", self.config.prefix)
    }

    pub(super) fn subnets_prefix(&self) -> String {
        format!("{}/subnets/", self.config.prefix)
    }

    pub(super) fn subnet_key(&self, key: &str) -> String {
        format!("{}{key}", self.subnets_prefix())
    }

    async fn commit(&self, key: &str, seen: i64, operation: TxnOp) -> Result<Option<i64>, StoreError> {
        self.commit_all(vec![unchanged(key, seen)], vec![operation]).await
    }
}

/// Whether the last write of a key still is the one at `seen`; 0 stands for "there is no such key".
pub(super) fn unchanged(key: &str, seen: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, seen)
}
