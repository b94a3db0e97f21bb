//! Tells the store which containers this host has in which network, stopped ones too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flan_subnet_lease::{Collection, Container, NetworkName, Store, StoreError};
use tokio::time::Instant;
use tracing::debug;

use crate::driver::{Driver, STORE_LIMIT, within};
use crate::engine::{Engine, Member, ShownNetwork};

/// A network, `None` for the default one, and the last part of a container's key in it.
type Key = (Option<NetworkName>, String);

/// Interval between readings of what the store says of this host. What the store loses is noticed when it answers again.
const REREAD: Duration = Duration::from_secs(3600);

/// What the store says of this host's containers, as JSON.
#[derive(Default)]
pub(super) struct Published {
    known: BTreeMap<Key, Vec<u8>>,
    /// When to read it again; `None` for at once.
    read_at: Option<Instant>,
    /// The other names of containers, by Docker's id of their ends and their names, of which Docker's aliases are some.
    aliases: BTreeMap<(String, String), Vec<String>>,
}

impl Published {
    /// Reads again what the store says, before it is compared.
    pub(super) fn read_again(&mut self) {
        self.read_at = None;
    }

    /// Brings the store in line with what Docker shows, as far as it goes.
    ///
    /// # Errors
    /// The last of the reasons why it is not.
    pub(super) async fn tell(
        &mut self,
        driver: &Driver,
        engine: &Engine,
        shown: &[ShownNetwork],
        members: &[Member],
    ) -> Result<(), String> {
        let wanted = self.wanted(driver, engine, shown, members).await;
        if self.read_at.is_none_or(|read_at| read_at <= Instant::now()) {
            self.known = read(driver).await?;
            // Not all hosts at once.
            self.read_at = Some(Instant::now() + rand::random_range(REREAD * 3 / 4..REREAD));
        }
        let mut outcome = Ok(());
        let keys: BTreeSet<Key> = self.known.keys().chain(wanted.keys()).cloned().collect();
        for key in keys {
            let after = wanted.get(&key);
            if self.known.get(&key) == after {
                continue;
            }
            let containers = place(driver, key.0.as_ref()).containers();
            match within(STORE_LIMIT, write(&containers, &key.1, after)).await {
                Ok(()) => match after {
                    Some(json) => drop(self.known.insert(key, json.clone())),
                    None => drop(self.known.remove(&key)),
                },
                Err(reason) => {
                    self.read_at = None;
                    outcome = Err(reason);
                }
            }
        }
        outcome
    }

    async fn wanted(
        &mut self,
        driver: &Driver,
        engine: &Engine,
        shown: &[ShownNetwork],
        members: &[Member],
    ) -> BTreeMap<Key, Vec<u8>> {
        let records = driver.records();
        let node = &driver.settings.node;
        let ends: BTreeSet<&String> = members.iter().filter_map(|member| member.endpoint.as_ref()).collect();
        self.aliases.retain(|(end, _), _| ends.contains(end));
        let mut wanted = BTreeMap::new();
        for member in members {
            // One that was never started names its network.
            let network =
                shown.iter().find(|network| network.name == member.network || network.id == member.network);
            let is_default = network.is_some_and(ShownNetwork::is_default);
            let id = network.map_or(&member.network, |network| &network.id);
            let name = records.networks.get(id).and_then(|record| record.name.clone());
            // In the default network, only its names matter.
            let has_names = is_default && driver.settings.names && member.endpoint.is_some();
            if name.is_none() && !has_names {
                continue;
            }
            let mut aliases = match &member.endpoint {
                // Docker has none there.
                Some(end) if !is_default => self.aliases_of(engine, member, end).await,
                _ => Vec::new(),
            };
            aliases.retain(|alias| *alias != member.name);
            aliases.truncate(Container::MOST_ALIASES);
            let endpoint = member.endpoint.clone().unwrap_or_else(|| member.id.clone());
            let container = Container {
                endpoint: endpoint.clone(),
                name: member.name.clone(),
                aliases,
                host: node.host.as_deref().map(str::to_owned),
                node_id: node.id.as_deref().map(str::to_owned),
                addresses: member.addresses.clone(),
            };
            if let Ok(json) = serde_json::to_vec(&container) {
                wanted.insert((name, endpoint), json);
            }
        }
        wanted
    }

    async fn aliases_of(&mut self, engine: &Engine, member: &Member, end: &str) -> Vec<String> {
        let key = (end.to_owned(), member.name.clone());
        if let Some(known) = self.aliases.get(&key) {
            return known.clone();
        }
        match engine.aliases(&member.id, end).await {
            Ok(aliases) => {
                self.aliases.insert(key, aliases.clone());
                aliases
            }
            Err(reason) => {
                debug!(%reason, container = %member.name, "cannot ask Docker for the aliases of a container");
                Vec::new()
            }
        }
    }
}

fn place(driver: &Driver, network: Option<&NetworkName>) -> Store {
    network.map_or_else(|| driver.store.clone(), |network| driver.store.network(network))
}

/// Returns what the store says.
async fn read(driver: &Driver) -> Result<BTreeMap<Key, Vec<u8>>, String> {
    let records = driver.records();
    let named = records.networks.into_values().filter_map(|network| network.name).map(Some);
    let networks: BTreeSet<Option<NetworkName>> =
        named.chain(driver.settings.names.then_some(None)).collect();
    let mut known = BTreeMap::new();
    for network in networks {
        let containers = place(driver, network.as_ref()).containers();
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
