//! The collections of a network.

use super::client::Store;
use super::collection::Collection;
use super::error::StoreError;
use super::network_config::StoredConfig;
use crate::entry::Entry;
use crate::lease::Lease;
use crate::stored::Listing;

/// All that the store holds of a network, at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The network config; `None` when nobody has written one.
    pub config: Option<StoredConfig>,
    /// Every lease, as it stands.
    pub leases: Listing<Entry>,
}

/// Where the leases are.
const LEASES: &str = "subnets";

impl Store {
    /// The leases, each under the key that its subnets make.
    pub fn leases(&self) -> Collection<Lease> {
        Collection::below(self, LEASES)
    }

    /// The network config and every lease, at one revision.
    ///
    /// # Errors
    /// Any [`StoreError`], among them a compaction between two requests.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let leases = Collection::below(self, LEASES).list().await?;
        let config = self.config_at(leases.revision).await?;
        Ok(Snapshot { config, leases })
    }
}
