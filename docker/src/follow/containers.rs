//! Tells the store which containers this host has in which network, stopped ones too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flan_subnet_lease::{Collection, Container, NetworkName, StoreError};
use tokio::time::Instant;
use tracing::debug;

use crate::driver::{Driver, STORE_LIMIT, within};
use crate::engine::{Member, ShownNetwork};

/// A network, and the last part of a container's key in it.
type Key = (NetworkName, String);

/// Interval between readings of what the store says of this host.
const REREAD: Duration = Duration::from_secs(60);

/// What the store says of this host's containers, as JSON.
#[derive(Default)]
pub(super) struct Published {
    known: BTreeMap<Key, Vec<u8>>,
    read: Option<Instant>,
}

impl Published {
    /// Brings the store in line with what Docker shows.
    pub(super) async fn tell(&mut self, driver: &Driver, shown: &[ShownNetwork], members: &[Member]) {
        let wanted = wanted(driver, shown, members);
        if self.read.is_none_or(|read| read.elapsed() >= REREAD) {
            match read(driver).await {
                Ok(known) => (self.known, self.read) = (known, Some(Instant::now())),
                Err(reason) => return debug!(%reason, "cannot read this host's containers in the store"),
            }
        }
        let keys: BTreeSet<Key> = self.known.keys().chain(wanted.keys()).cloned().collect();
        for key in keys {
            let after = wanted.get(&key);
            if self.known.get(&key) == after {
                continue;
            }
            let containers = driver.store.network(&key.0).containers();
            match within(STORE_LIMIT, write(&containers, &key.1, after)).await {
                Ok(()) => match after {
                    Some(json) => drop(self.known.insert(key, json.clone())),
                    None => drop(self.known.remove(&key)),
                },
                Err(reason) => {
                    self.read = None;
                    return debug!(%reason, "cannot tell the store of this host's containers");
                }
            }
        }
    }
}

fn wanted(driver: &Driver, shown: &[ShownNetwork], members: &[Member]) -> BTreeMap<Key, Vec<u8>> {
    let records = driver.records();
    let node = &driver.settings.node;
    let one = |member: &Member| {
        // One that was never started names its network.
        let id = shown.iter().find(|network| network.name == member.network).map(|network| &network.id);
        let network = records.networks.get(id.unwrap_or(&member.network))?.name.clone()?;
        let endpoint = member.endpoint.clone().unwrap_or_else(|| member.id.clone());
        let container = Container {
            endpoint: endpoint.clone(),
            name: member.name.clone(),
            host: node.host.as_deref().map(str::to_owned),
            node_id: node.id.as_deref().map(str::to_owned),
            addresses: member.addresses.clone(),
        };
        Some(((network, endpoint), serde_json::to_vec(&container).ok()?))
    };
    members.iter().filter_map(one).collect()
}

/// Returns what the store says.
async fn read(driver: &Driver) -> Result<BTreeMap<Key, Vec<u8>>, String> {
    let names: BTreeSet<NetworkName> =
        driver.records().networks.into_values().filter_map(|network| network.name).collect();
    let mut known = BTreeMap::new();
    for network in names {
        let containers = driver.store.network(&network).containers();
        let listing = within(STORE_LIMIT, containers.list()).await?;
        for container in listing.readable().filter(|container| container.is_of(&driver.settings.node)) {
            if let Ok(json) = serde_json::to_vec(container) {
                known.insert((network.clone(), container.endpoint.clone()), json);
            }
        }
    }
    Ok(known)
}

/// Writes or deletes one container in the store.
async fn write(
    containers: &Collection<Container>,
    endpoint: &str,
    json: Option<&Vec<u8>>,
) -> Result<(), String> {
    let text = |reason: StoreError| reason.to_string();
    let seen = containers.get(endpoint).await.map_err(text)?.map_or(0, |entry| entry.mod_revision);
    let is_written = match json {
        Some(json) => containers.put(endpoint, json, None, seen).await.map_err(text)?.is_some(),
        None => seen == 0 || containers.delete(endpoint, seen).await.map_err(text)?,
    };
    if is_written { Ok(()) } else { Err("another program wrote it at the same moment".to_owned()) }
}
