//! A network in the store: its config and its leases.

use std::convert::Infallible;

use etcd_client::{Client, GetOptions, TxnOp};

use super::client::{Store, unchanged};
use super::collection::Collection;
use super::error::StoreError;
use super::limits::ANY_SIZE;
use crate::container::Container;
use crate::entry::Entry;
use crate::lease::Lease;
use crate::living_host::LivingHost;
use crate::stored::{Listing, Stored};

/// The network config in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredConfig {
    /// The JSON.
    pub json: Vec<u8>,
    /// Store revision at which it was created: another one means that the network was removed and created again.
    pub create_revision: i64,
    /// Store revision of the last write.
    pub mod_revision: i64,
}

/// A write of the network config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigWritten;

impl Stored for ConfigWritten {
    const PLURAL: &'static str = "changes of the network config";
    type Invalid = Infallible;

    fn read(_: &Entry) -> Result<Self, Infallible> {
        Ok(Self)
    }
}

/// Everything that the store holds about a network, at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The network config; `None` if nobody has written one.
    pub config: Option<StoredConfig>,
    /// Every lease, unparsed.
    pub leases: Listing<Entry>,
}

const LEASES: &str = "subnets";
const ENDPOINTS: &str = "endpoints";
const HOSTS: &str = "hosts";
const STATUS: &str = "status";

impl Store {
    /// Returns the collection of leases, keyed by their subnets.
    pub fn leases(&self) -> Collection<Lease> {
        Collection::below(self, LEASES)
    }

    /// Returns the collection of containers, keyed by Docker's ids of their endpoints.
    pub fn containers(&self) -> Collection<Container> {
        Collection::below(self, ENDPOINTS)
    }

    /// Returns the collection of hosts that are alive. The default network's store has it.
    pub fn living_hosts(&self) -> Collection<LivingHost> {
        Collection::below(self, HOSTS)
    }

    /// Returns the collection of what agents say about themselves, each under its node id or, without one, its host's name.
    /// The default network's store has it. Nobody watches it, so that it costs little.
    pub fn summaries(&self) -> Collection<Entry> {
        Collection::below(self, STATUS)
    }

    /// Returns the network config and every lease, at one revision.
    ///
    /// # Errors
    /// Any [`StoreError`], including a compaction between two requests.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let leases = Collection::below(self, LEASES).list().await?;
        let config = self.config_at(leases.revision).await?;
        Ok(Snapshot { config, leases })
    }

    /// Returns the network config; `None` if nobody has written one.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn config(&self) -> Result<Option<StoredConfig>, StoreError> {
        self.config_at(0).await
    }

    /// Returns a collection that changes when the network config is written. [`Store::config`] reads it.
    pub fn config_changes(&self) -> Collection<ConfigWritten> {
        Collection::of_key(self, self.config_key())
    }

    /// Writes the network config if it is still the one that the caller saw. Returns whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn put_config(&self, json: &[u8], seen: Option<&StoredConfig>) -> Result<bool, StoreError> {
        let key = self.config_key();
        let seen = unchanged(&key, seen.map_or(0, |seen| seen.mod_revision));
        let put = TxnOp::put(key.as_str(), json, None);
        self.commit(vec![seen], vec![put]).await.map(|revision| revision.is_some())
    }

    /// Returns the network config at a revision, 0 for the current one.
    pub(super) async fn config_at(&self, revision: i64) -> Result<Option<StoredConfig>, StoreError> {
        let key = self.config_key();
        let response = self
            .call(|client: Client| {
                let (key, options) = (key.clone(), GetOptions::new().with_revision(revision));
                let mut client = client.kv_client().max_decoding_message_size(ANY_SIZE);
                async move { client.get(key, Some(options)).await }
            })
            .await?;
        Ok(response.kvs().first().map(|kv| StoredConfig {
            json: kv.value().to_vec(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
        }))
    }

    pub(super) fn config_key(&self) -> String {
        format!("{}/config", self.prefix())
    }
}
