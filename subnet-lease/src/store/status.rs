//! What a store says of itself, and what it lets us do: asked without changing any key.

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};

use super::client::Store;
use super::error::{StoreError, Unanswered};
use super::failure::refused_watch;
use super::limits::REQUEST_LIMIT;
use super::stream::{Watch, WatchMessage};
use crate::stored::Stored;

/// What one member of the store says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its version, such as `3.5.9`.
    pub version: String,
    /// Its id in the cluster.
    pub member_id: u64,
    /// Which cluster it belongs to.
    pub cluster_id: u64,
    /// The member that leads; `None` while none does.
    pub leader: Option<u64>,
    /// Whether it only learns: it has no vote yet and answers no reads.
    pub learner: bool,
    /// Bytes that its database takes on the disk.
    pub database_bytes: u64,
    /// What it says is wrong, in its words; the cluster's alarms are among them, such as
    /// `memberID:9372538179322589801 alarm:NOSPACE`.
    pub errors: Vec<String>,
}

/// Keys that the probe of the right to write names. No subnet has them, and nothing is written to them.
const PROBES: [&str; 2] = ["flanctl-probe-of-put", "flanctl-probe-of-delete"];

impl Store {
    /// What a member says of itself: the one that answers, so a caller who wants to know which gives one endpoint.
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

    /// Whether we may watch the leases: opens a watch on all of them and waits for a sign of life of it, as the agent
    /// does.
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

    /// Whether we may write and delete leases: a transaction like those of the agent, under a condition that never
    /// holds. etcd looks at the rights to all that a transaction might do before it looks at the condition.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn may_write(&self) -> Result<(), StoreError> {
        // Two keys, as a transaction may not do two things to one.
        let [written, deleted] = PROBES.map(|key| self.leases().path(key));
        let operations = [TxnOp::put(written.as_str(), "", None), TxnOp::delete(deleted, None)];
        self.never(&written, &operations).await
    }

    /// Whether we may write the network config, found in the same way.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn may_write_config(&self) -> Result<(), StoreError> {
        let key = self.config_key();
        self.never(&key, &[TxnOp::put(key.as_str(), "", None)]).await
    }

    /// A transaction that does nothing, as no key was ever written at a negative revision.
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

/// Waits for the word that the watch is open, and then for the answer to a question.
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
