//! Asks the store for its state and our permissions, without changing any key.

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};

use super::client::Store;
use super::error::{StoreError, Unanswered};
use super::failure::refused_watch;
use super::limits::REQUEST_LIMIT;
use super::stream::{Watch, WatchMessage};
use crate::stored::Stored;

/// The state of one member of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its version, such as `3.5.9`.
    pub version: String,
    /// Its id in the cluster.
    pub member_id: u64,
    /// The id of its cluster.
    pub cluster_id: u64,
    /// The current leader; `None` if there is none.
    pub leader: Option<u64>,
    /// Whether it is a learner: it has no vote yet and answers no reads.
    pub learner: bool,
    /// Size of its database on disk in bytes.
    pub database_bytes: u64,
    /// Its errors in its own words, including the cluster's alarms, such as `memberID:9372538179322589801
    /// alarm:NOSPACE`.
    pub errors: Vec<String>,
}

/// Keys that the probe of write permission names. No subnet has them, and nothing is written to them.
const PROBES: [&str; 2] = ["flanctl-probe-of-put", "flanctl-probe-of-delete"];

impl Store {
    /// Returns the state of the member that answers; to ask a certain one, configure only its endpoint.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn status(&self) -> Result<MemberStatus, StoreError> {
        let response = self.call(|mut client: Client| async move { client.status().await }).await?;
        let header = response.header();
        Ok(MemberStatus {
            version: response.version().to_owned(),
            member_id: header.map(etcd_client::ResponseHeader::member_id).unwrap_or_default(),
            cluster_id: header.map(etcd_client::ResponseHeader::cluster_id).unwrap_or_default(),
            leader: Some(response.leader()).filter(|leader| *leader != 0),
            learner: response.is_learner(),
            database_bytes: u64::try_from(response.db_size()).unwrap_or_default(),
            errors: response.errors().to_vec(),
        })
    }

    /// Checks that we may watch the leases: opens a watch on them and waits for a sign of life, as the agent does.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn may_watch(&self) -> Result<(), StoreError> {
        let mut watch = self.leases().watch(0).await?;
        match tokio::time::timeout(REQUEST_LIMIT, signs_of_life(&mut watch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(refused_watch(self.endpoints(), &reason)),
            Err(_) => {
                let limit = REQUEST_LIMIT.as_secs();
                let reason = format!("the watch gave no sign of life within {limit} s");
                Err(StoreError::Unreachable(vec![Unanswered::silent(&self.endpoints(), reason)]))
            }
        }
    }

    /// Checks that we may write and delete leases: sends a transaction like the agent's with a condition that never
    /// holds. etcd checks the permissions for everything in a transaction before the condition.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn may_write(&self) -> Result<(), StoreError> {
        // Two keys, because a transaction may change a key only once.
        let [written, deleted] = PROBES.map(|key| self.leases().path(key));
        let operations = [TxnOp::put(written.as_str(), "", None), TxnOp::delete(deleted, None)];
        self.never(&written, &operations).await
    }

    /// Checks that we may write the network config, in the same way.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn may_write_config(&self) -> Result<(), StoreError> {
        let key = self.config_key();
        self.never(&key, &[TxnOp::put(key.as_str(), "", None)]).await
    }

    /// Runs a transaction that does nothing, because no key has a negative revision.
    async fn never(&self, key: &str, operations: &[TxnOp]) -> Result<(), StoreError> {
        let never = Compare::mod_revision(key, CompareOp::Equal, -1);
        let transaction = Txn::new().when([never]).and_then(operations);
        let response = self
            .call(|mut client: Client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await?;
        if response.succeeded() {
            let reason = format!("it says that {key} was last written at revision -1");
            return Err(StoreError::Refused { endpoint: self.endpoints(), reason });
        }
        Ok(())
    }
}

/// Waits until the watch is open, and then for a progress notification.
async fn signs_of_life<T: Stored>(watch: &mut Watch<T>) -> Result<(), String> {
    if let WatchMessage::Ended(reason) = watch.message().await {
        return Err(reason);
    }
    watch.probe().await;
    match watch.message().await {
        WatchMessage::Changes(_) => Ok(()),
        WatchMessage::Ended(reason) => Err(reason),
    }
}
