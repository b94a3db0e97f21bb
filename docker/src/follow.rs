//! Keeps Docker's networks and those in the store alike, and clears what no container has any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flan_subnet_lease::{Collection, Container, Entry, NetworkConfig, NetworkName, NotCreated, Watcher};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::driver::{Driver, STORE_LIMIT, within};
use crate::engine::{self, Attached, Engine, ShownNetwork};
use crate::mirror::{InStore, Step, steps};
use crate::options::Asked;
use crate::records::{EndpointRecord, NetworkRecord};

/// Interval between comparisons without a reason.
const EVERY: Duration = Duration::from_secs(20);
/// Events within this time lead to one comparison.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Delay before Docker is asked again after it did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// How long an endpoint may be unknown to Docker: it tells of one only when its container has started.
const UNKNOWN_LIMIT: Duration = Duration::from_secs(45);

/// Follows Docker and the store until the process ends.
pub async fn follow(driver: Arc<Driver>) {
    let (sender, mut store_changes) = mpsc::channel(16);
    tokio::spawn(Watcher::<Entry>::new(driver.store.network_changes()).run(sender));
    let mut follower = Follower { driver, unknown: BTreeMap::new(), told: BTreeSet::new(), published: None };
    let mut problem = None;
    loop {
        match follower.with_docker(&mut store_changes, &mut problem).await {
            Ok(()) => return,
            Err(reason) => {
                if problem.as_ref() != Some(&reason) {
                    warn!(%reason, "cannot ask Docker for its networks; trying again");
                    problem = Some(reason);
                }
                sleep(AGAIN).await;
            }
        }
    }
}

struct Follower {
    driver: Arc<Driver>,
    /// Endpoints and addresses that Docker does not tell of, and since when.
    unknown: BTreeMap<String, Instant>,
    /// What was told already.
    told: BTreeSet<String>,
    /// What the store says of this host's containers, by network and endpoint; `None` if that is not known.
    published: Option<BTreeMap<(NetworkName, String), Vec<u8>>>,
}

impl Follower {
    /// Works until Docker no longer answers, or until the agent ends.
    async fn with_docker(
        &mut self,
        store_changes: &mut mpsc::Receiver<flan_subnet_lease::WatchEvent<Entry>>,
        problem: &mut Option<String>,
    ) -> Result<(), String> {
        let engine = Engine::connect(&self.driver.settings.api).await?;
        let mut events = std::pin::pin!(engine.events());
        if problem.take().is_some() {
            info!("Docker answers again");
        }
        loop {
            self.compare(&engine).await?;
            tokio::select! {
                event = events.next() => event.unwrap_or_else(|| Err("Docker has stopped".to_owned()))?,
                change = store_changes.recv() => if change.is_none() { return Ok(()) },
                () = self.driver.changed.notified() => {}
                () = sleep(EVERY) => {}
            }
            sleep(DEBOUNCE).await;
            while store_changes.try_recv().is_ok() {}
            while let Ok(Some(event)) = timeout(Duration::ZERO, events.next()).await {
                event?;
            }
        }
    }

    async fn compare(&mut self, engine: &Engine) -> Result<(), String> {
        let stored = match self.in_store().await {
            Ok(stored) => stored,
            Err(reason) => {
                debug!(%reason, "cannot compare Docker's networks with the store");
                return Ok(());
            }
        };
        // Read after the store: what Docker creates meanwhile is not taken for something that was removed.
        let shown = engine.networks().await?;
        let steps = steps(&stored, &shown, &self.driver.records());
        for step in steps {
            if let Err(reason) = self.take(&step, &stored, engine).await {
                self.tell(
                    format!("{step:?}"),
                    || warn!(?step, %reason, "cannot bring Docker's networks in line"),
                );
            }
        }
        self.clear(engine, &shown).await
    }

    async fn in_store(&self) -> Result<InStore, String> {
        let networks = within(STORE_LIMIT, self.driver.store.networks()).await?;
        if networks.is_cut {
            return Err("there are too many keys to look at all networks".to_owned());
        }
        let mut stored = InStore { changed: networks.changed, ..InStore::default() };
        for network in networks.all {
            match NetworkConfig::parse(&network.config.json) {
                Ok(config) if config.supported_beside().is_ok() => {
                    stored.usable.insert(network.name, config);
                }
                _ => {
                    stored.unusable.insert(network.name);
                }
            }
        }
        Ok(stored)
    }

    async fn take(&mut self, step: &Step, stored: &InStore, engine: &Engine) -> Result<(), String> {
        match step {
            Step::Create(name) => {
                let Some(config) = stored.usable.get(name) else { return Ok(()) };
                engine.create(name, config).await?;
                info!(network = %name, "created the network in Docker");
            }
            Step::Publish(network, name) => self.publish(network, name, engine).await?,
            Step::Bind(network, name) => self.bind(network, name, stored.changed)?,
            Step::Remove(network, why) => {
                engine.remove(&network.id).await?;
                info!(network = %network.name, why, "removed the network from Docker");
            }
            Step::Tell(network, why) => {
                self.tell(format!("{network}: {why}"), || {
                    warn!(%network, why, "Docker does not show this network");
                });
            }
        }
        Ok(())
    }

    /// Creates in the store what somebody created in Docker. What cannot be there is removed from Docker.
    async fn publish(
        &mut self,
        network: &ShownNetwork,
        name: &NetworkName,
        engine: &Engine,
    ) -> Result<(), String> {
        let record = self.driver.records().networks.remove(&network.id);
        let (subnets, asked) = match record {
            Some(record) => (record.subnets, record.asked),
            None => (network.subnets.clone(), Asked::default()),
        };
        let new = asked.new_network(&subnets, engine::labels(network));
        let warn_of = |name: Option<&NetworkName>, reason: &_| {
            let network = name.map_or("(default)", NetworkName::as_str);
            warn!(network, %reason, "this network's config cannot be used; new networks are not compared with it");
        };
        let created = timeout(STORE_LIMIT, self.driver.store.create(name, &new, warn_of)).await;
        match created {
            Ok(Ok(config)) => {
                let subnets = config.networks().map(|(_, network)| network.to_string());
                let subnets = subnets.collect::<Vec<_>>().join(" ");
                info!(network = %name, %subnets, "created the network that Docker made");
                let changed = within(STORE_LIMIT, self.driver.store.networks()).await?.changed;
                self.bind(network, name, changed)
            }
            Ok(Err(reason @ (NotCreated::Refused(_) | NotCreated::TooMany(_)))) => {
                error!(network = %name, %reason, "removing a network from Docker that cannot be on all hosts");
                engine.remove(&network.id).await
            }
            // The next comparison finds the other one.
            Ok(Err(NotCreated::Exists(_))) => {
                self.driver.changed.notify_one();
                Ok(())
            }
            Ok(Err(reason)) => Err(reason.to_string()),
            Err(_) => Err("the store does not answer".to_owned()),
        }
    }

    fn bind(&self, network: &ShownNetwork, name: &NetworkName, changed: i64) -> Result<(), String> {
        self.driver.change(|records| {
            let record = records.networks.entry(network.id.clone()).or_insert_with(|| NetworkRecord {
                name: None,
                subnets: network.subnets.clone(),
                asked: Asked { internal: network.internal, ..Asked::default() },
                seen: 0,
            });
            (record.name, record.seen) = (Some(name.clone()), changed);
            Ok(())
        })
    }

    /// Forgets networks that Docker does not have, clears ends that no container has, and tells the store of the others.
    async fn clear(&mut self, engine: &Engine, shown: &[ShownNetwork]) -> Result<(), String> {
        let mut records = self.driver.records();
        let (mut unknown, mut containers) = (BTreeSet::new(), BTreeMap::new());
        for (id, network) in &records.networks {
            if !shown.iter().any(|shown| shown.id == *id) {
                unknown.insert(format!("network {id}"));
                continue;
            }
            for Attached { endpoint, name } in engine.attached(id).await? {
                if let Some(network) = &network.name {
                    containers.insert(endpoint, (network.clone(), name));
                }
            }
        }
        unknown.extend(
            records
                .endpoints
                .keys()
                .filter(|id| !containers.contains_key(*id))
                .map(|id| format!("endpoint {id}")),
        );
        let held: BTreeSet<_> =
            records.endpoints.values().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        for (pool, given) in &records.addresses {
            let lost = given.taken.iter().filter(|address| !held.contains(address));
            unknown.extend(lost.map(|address| format!("address {pool} {address}")));
        }
        self.unknown.retain(|what, _| unknown.contains(what));
        let now = Instant::now();
        for what in unknown {
            let since = *self.unknown.entry(what.clone()).or_insert(now);
            if now - since >= UNKNOWN_LIMIT {
                info!(%what, "Docker no longer has this; clearing it");
                self.clear_one(&what).await?;
            }
        }
        records = self.driver.records();
        self.tell_store(&records.endpoints, &containers).await;
        Ok(())
    }

    async fn clear_one(&self, what: &str) -> Result<(), String> {
        match what.split(' ').collect::<Vec<_>>().as_slice() {
            ["network", id] => self.driver.forget(id),
            ["endpoint", id] => {
                let endpoint = self.driver.records().endpoints.remove(*id);
                self.driver.delete_endpoint(id).await?;
                for address in endpoint.into_iter().flat_map(|endpoint| endpoint.addresses) {
                    let records = self.driver.records();
                    let pool = records.addresses.iter().find(|(_, given)| given.taken.contains(&address));
                    if let Some((pool, _)) = pool {
                        self.driver.take_back(*pool, address)?;
                    }
                }
                Ok(())
            }
            ["address", pool, address] => match (pool.parse(), address.parse()) {
                (Ok(pool), Ok(address)) => self.driver.take_back(pool, address),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Tells the store which containers this host has in which network.
    async fn tell_store(
        &mut self,
        endpoints: &BTreeMap<String, EndpointRecord>,
        containers: &BTreeMap<String, (NetworkName, String)>,
    ) {
        let node = &self.driver.settings.node;
        let wanted: BTreeMap<(NetworkName, String), Vec<u8>> = containers
            .iter()
            .filter_map(|(id, (network, name))| {
                let container = Container {
                    endpoint: id.clone(),
                    name: name.clone(),
                    host: node.host.as_deref().map(str::to_owned),
                    node_id: node.id.as_deref().map(str::to_owned),
                    addresses: endpoints.get(id)?.addresses.clone(),
                };
                Some(((network.clone(), id.clone()), serde_json::to_vec(&container).ok()?))
            })
            .collect();
        let published = match self.published.take() {
            Some(published) => published,
            None => match self.read_published().await {
                Ok(published) => published,
                Err(reason) => return debug!(%reason, "cannot read this host's containers in the store"),
            },
        };
        let mut now = published.clone();
        let keys: BTreeSet<_> = published.keys().chain(wanted.keys()).cloned().collect();
        for key in keys {
            let (before, after) = (published.get(&key), wanted.get(&key));
            if before == after {
                continue;
            }
            let collection = self.driver.store.network(&key.0).containers();
            match within(STORE_LIMIT, write(&collection, &key.1, after)).await {
                Ok(()) => match after {
                    Some(json) => drop(now.insert(key, json.clone())),
                    None => drop(now.remove(&key)),
                },
                Err(reason) => {
                    return debug!(%reason, "cannot tell the store of this host's containers");
                }
            }
        }
        self.published = Some(now);
    }

    /// Returns what an earlier agent told the store of this host's containers.
    async fn read_published(&self) -> Result<BTreeMap<(NetworkName, String), Vec<u8>>, String> {
        let node = &self.driver.settings.node;
        let mut published = BTreeMap::new();
        let records = self.driver.records();
        for network in records.networks.values().filter_map(|network| network.name.clone()) {
            let containers = self.driver.store.network(&network).containers();
            let listing = within(STORE_LIMIT, containers.list()).await?;
            for container in listing.readable() {
                if container.is_of(node)
                    && let Ok(json) = serde_json::to_vec(container)
                {
                    published.insert((network.clone(), container.endpoint.clone()), json);
                }
            }
        }
        Ok(published)
    }

    /// Logs something once.
    fn tell(&mut self, what: String, log: impl FnOnce()) {
        if self.told.insert(what) {
            log();
        }
    }
}

/// Writes or deletes one container in the store.
async fn write(
    containers: &Collection<Container>,
    endpoint: &str,
    json: Option<&Vec<u8>>,
) -> Result<(), flan_subnet_lease::StoreError> {
    let seen = containers.get(endpoint).await?.map_or(0, |entry| entry.mod_revision);
    match json {
        Some(json) => containers.put(endpoint, json, None, seen).await.map(|_| ()),
        None if seen == 0 => Ok(()),
        None => containers.delete(endpoint, seen).await.map(|_| ()),
    }
}
