//! The networks beside the default one. Each has a config and leases below `<prefix>/<name>/`, as in flannel's
//! multi-network mode.

use std::collections::BTreeMap;

use etcd_client::{Client, Compare, CompareOp, DeleteOptions, GetOptions, TxnOp};

use super::client::{Store, unchanged};
use super::collection::Collection;
use super::error::StoreError;
use super::limits::ANY_SIZE;
use super::network::StoredConfig;
use crate::entry::Entry;
use crate::network_name::NetworkName;

/// A network, and its config in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Its config.
    pub config: StoredConfig,
}

/// All networks beside the default one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    /// Sorted by name.
    pub all: Vec<StoredNetwork>,
    /// Store revision at which a network last came or went by [`Store::create_network`] or [`Store::remove_network`];
    /// 0 for never.
    pub changed: i64,
    /// Whether there may be more: the search ended early.
    pub is_cut: bool,
}

/// Most keys and directories below the prefix that are looked at.
const MOST: usize = 1000;
/// The place of the key that is written with each network that comes or goes: networks are checked against each other, and so the
/// writers have to take turns.
const CHANGES: &str = "networks";
/// Its last part.
const CHANGED: &str = "changed";
/// Where removed networks are recorded.
const REMOVED: &str = "networks/removed";

impl Store {
    /// Returns the store of a network: the same connection, with keys below `<prefix>/<name>`.
    #[must_use]
    pub fn network(&self, name: &NetworkName) -> Self {
        let mut store = self.clone();
        store.prefix = format!("{}/{name}", self.prefix()).into();
        store
    }

    /// Returns all networks beside the default one. Reads two keys for each, and none of the leases.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn networks(&self) -> Result<Networks, StoreError> {
        let changed = self.first_key(self.changes_key().into(), b"").await?;
        let changed = changed.map_or(0, |(_, revision)| revision);
        let prefix = format!("{}/", self.prefix()).into_bytes();
        // '0' comes after '/': what begins with the prefix is below this.
        let end = format!("{}0", self.prefix());
        let (mut from, mut all, mut is_cut) = (prefix.clone(), Vec::new(), false);
        for looked in 0.. {
            let Some((key, _)) = self.first_key(from, end.as_bytes()).await? else { break };
            let below = key.strip_prefix(prefix.as_slice()).unwrap_or_default();
            if looked >= MOST {
                is_cut = true;
                break;
            }
            let Some(length) = below.iter().position(|byte| *byte == b'/') else {
                from = [key.as_slice(), b"\0"].concat();
                continue;
            };
            let directory = &below[..length];
            from = [prefix.as_slice(), directory, b"0"].concat();
            let name = std::str::from_utf8(directory).ok().and_then(|name| name.parse::<NetworkName>().ok());
            let Some(name) = name else { continue };
            if let Some(config) = self.network(&name).config().await? {
                all.push(StoredNetwork { name, config });
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Networks { all, changed, is_cut })
    }

    /// Writes the config of a new network, if no network came or went since `seen`, and it has no config. Returns whether
    /// it was written.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn create_network(
        &self,
        name: &NetworkName,
        json: &[u8],
        seen: &Networks,
    ) -> Result<bool, StoreError> {
        let (changes, config) = (self.changes_key(), self.network(name).config_key());
        let provided = vec![unchanged(&changes, seen.changed), unchanged(&config, 0)];
        let operations = vec![TxnOp::put(config, json, None), TxnOp::put(changes, name.as_str(), None)];
        self.commit(provided, operations).await.map(|revision| revision.is_some())
    }

    /// Returns the networks that somebody removed, each with the revision at which its config had been created. It may have
    /// been created again since. What an emptied or restored store no longer has is not among them.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn removed_networks(&self) -> Result<BTreeMap<NetworkName, i64>, StoreError> {
        let entries = self.removed().list().await?;
        let removed = entries.readable().filter_map(|entry: &Entry| {
            let created = std::str::from_utf8(&entry.value).ok()?.parse().ok()?;
            Some((entry.key.parse().ok()?, created))
        });
        Ok(removed.collect())
    }

    /// Deletes a network with its reservations, if its config is still the one that was seen and no host has a lease.
    /// Returns whether it was deleted.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn remove_network(&self, network: &StoredNetwork) -> Result<bool, StoreError> {
        let store = self.network(&network.name);
        let config = store.config_key();
        let no_lease =
            Compare::version(format!("{}/subnets/", store.prefix()), CompareOp::Equal, 0).with_prefix();
        let provided = vec![unchanged(&config, network.config.mod_revision), no_lease];
        let reservations = format!("{}/reservations/", store.prefix());
        let endpoints = format!("{}/endpoints/", store.prefix());
        let operations = vec![
            TxnOp::delete(config, None),
            TxnOp::delete(reservations, Some(DeleteOptions::new().with_prefix())),
            TxnOp::delete(endpoints, Some(DeleteOptions::new().with_prefix())),
            TxnOp::put(self.changes_key(), network.name.as_str(), None),
            TxnOp::put(
                self.removed().path(network.name.as_str()),
                network.config.create_revision.to_string(),
                None,
            ),
        ];
        self.commit(provided, operations).await.map(|revision| revision.is_some())
    }

    /// Returns a collection that changes with each network that comes or goes.
    pub fn network_changes(&self) -> Collection<Entry> {
        Collection::below(self, CHANGES)
    }

    /// Returns the collection of networks that were removed, keyed by name.
    fn removed(&self) -> Collection<Entry> {
        Collection::below(self, REMOVED)
    }

    fn changes_key(&self) -> String {
        format!("{}/{CHANGES}/{CHANGED}", self.prefix())
    }

    /// Returns the first key of a range, and the revision of its last write. With an empty end, the range is one key.
    async fn first_key(&self, from: Vec<u8>, end: &[u8]) -> Result<Option<(Vec<u8>, i64)>, StoreError> {
        let response = self
            .call(|client: Client| {
                let mut options = GetOptions::new().with_limit(1).with_keys_only();
                if !end.is_empty() {
                    options = options.with_range(end);
                }
                let from = from.clone();
                let mut client = client.kv_client().max_decoding_message_size(ANY_SIZE);
                async move { client.get(from, Some(options)).await }
            })
            .await?;
        let first = response.kvs().first();
        Ok(first.map(|kv| (kv.key().to_vec(), kv.mod_revision())))
    }
}
