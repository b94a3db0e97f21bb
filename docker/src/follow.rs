//! Keeps Docker's networks and those in the store alike, clears what no container has any more, and tells the store which
//! containers this host has.

mod containers;
mod unknown;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flan_subnet_lease::{Entry, NetworkConfig, NetworkName, NotCreated, WatchEvent, Watcher};
use futures::{FutureExt, StreamExt};
use ipnetwork::IpNetwork;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use self::containers::Published;
use self::unknown::Unknown;
use crate::driver::{Driver, STORE_LIMIT, within};
use crate::engine::{self, Engine, ShownNetwork};
use crate::mirror::{InStore, Step, Usable, steps};
use crate::options::Asked;
use crate::records::{NetworkRecord, Records};

/// Interval between comparisons without a reason.
const EVERY: Duration = Duration::from_secs(20);
/// Events within this time lead to one comparison.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long Docker may be away before that is a problem.
const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// Delay before Docker is asked again after it did not answer.
const AGAIN: Duration = Duration::from_secs(2);

/// Follows Docker and the store until the process ends. `report` is told what is wrong at present, if anything.
pub async fn follow(driver: Arc<Driver>, report: impl Fn(Option<String>) + Send) {
    let (sender, mut store_changes) = mpsc::channel(16);
    tokio::spawn(Watcher::<Entry>::new(driver.store.network_changes()).run(sender));
    let mut follower = Follower {
        driver,
        report,
        told: BTreeSet::new(),
        unknown: Unknown::default(),
        published: Published::default(),
        is_told: false,
    };
    let mut away = None;
    loop {
        let Err(reason) = follower.with_docker(&mut store_changes, &mut away).await;
        // Who knows whether its containers run.
        follower.driver.answers.send_replace(false);
        // At boot, Docker comes after the agent.
        let since = *away.get_or_insert_with(Instant::now);
        if since.elapsed() >= AWAY_LIMIT {
            follower.tell([format!("cannot ask Docker for its networks: {reason}")].into());
        }
        sleep(AGAIN).await;
    }
}

struct Follower<R> {
    driver: Arc<Driver>,
    report: R,
    /// What was told last.
    told: BTreeSet<String>,
    unknown: Unknown,
    published: Published,
    /// Whether the store knows all containers of this host.
    is_told: bool,
}

/// What never happens.
enum Never {}

impl<R: Fn(Option<String>)> Follower<R> {
    /// Works until Docker no longer answers.
    async fn with_docker(
        &mut self,
        store_changes: &mut mpsc::Receiver<WatchEvent<Entry>>,
        away: &mut Option<Instant>,
    ) -> Result<Never, String> {
        let engine = Engine::connect(&self.driver.settings.api).await?;
        let mut events = std::pin::pin!(engine.events());
        // What happens from now on is told.
        if let Some(event) = events.next().now_or_never() {
            event.unwrap_or_else(|| Err("Docker has stopped".to_owned()))?;
        }
        if away.take().is_some() {
            info!("Docker answers");
        }
        let mut stored = None;
        loop {
            self.compare(&engine, &mut stored).await?;
            tokio::select! {
                // The store is as it was.
                event = events.next() => event.unwrap_or_else(|| Err("Docker has stopped".to_owned()))?,
                change = store_changes.recv() => {
                    stored = None;
                    change.iter().for_each(|change| self.store_changed(change));
                }
                () = self.driver.changed.notified() => stored = None,
                () = sleep(if self.is_told { EVERY } else { AGAIN }) => stored = None,
            }
            sleep(DEBOUNCE).await;
            while let Ok(change) = store_changes.try_recv() {
                stored = None;
                self.store_changed(&change);
            }
            while let Some(Some(event)) = events.next().now_or_never() {
                event?;
            }
        }
    }

    /// A new list follows when the store was away, and it may have lost something.
    fn store_changed(&mut self, change: &WatchEvent<Entry>) {
        if matches!(change, WatchEvent::Listed(_)) {
            self.published.read_again();
        }
    }

    /// Compares with what the store had, or reads that.
    async fn compare(&mut self, engine: &Engine, stored: &mut Option<InStore>) -> Result<(), String> {
        // In this order: what Docker creates or removes meanwhile is taken for neither.
        if stored.is_none() {
            match self.in_store().await {
                Ok(read) => *stored = Some(read),
                Err(reason) => self.tell([format!("cannot compare with the store: {reason}")].into()),
            }
        }
        let records = self.driver.records();
        let shown = engine.networks().await?;
        if let Some(stored) = stored {
            let mut telling = BTreeSet::new();
            for step in steps(stored, &shown, &records) {
                telling.extend(self.take(&step, stored, &records, engine).await);
            }
            self.tell(telling);
        }
        let members = engine.members().await?;
        self.unknown.clear(&self.driver, &shown, &members);
        // Those of others, such as of macvlan, may be on the site's network.
        let others = shown.iter().filter(|network| network.driver == "bridge" && !network.is_default());
        let others: Vec<IpNetwork> = others.flat_map(|network| network.subnets.iter().copied()).collect();
        self.driver.others.send_if_modified(|known| std::mem::replace(known, others.clone()) != others);
        let told = self.published.tell(&self.driver, engine, &shown, &members).await;
        self.driver
            .answers
            .send_if_modified(|known| std::mem::replace(known, *known | told.is_ok()) != *known);
        if let Err(reason) = &told {
            debug!(%reason, "cannot tell the store of all containers of this host; trying again");
        }
        self.is_told = told.is_ok();
        Ok(())
    }

    async fn in_store(&self) -> Result<InStore, String> {
        let networks = within(STORE_LIMIT, self.driver.store.networks()).await?;
        if networks.is_cut {
            return Err("there are too many keys to look at all networks".to_owned());
        }
        let removed = within(STORE_LIMIT, self.driver.store.removed_networks()).await?;
        let mut stored = InStore { removed, ..InStore::default() };
        for network in networks.all {
            match NetworkConfig::parse(&network.config.json) {
                Ok(config) if config.supported_beside().is_ok() => {
                    let created = network.config.create_revision;
                    stored.usable.insert(network.name, Usable { config, created });
                }
                _ => {
                    stored.unusable.insert(network.name);
                }
            }
        }
        Ok(stored)
    }

    /// Takes a step, and returns what is wrong.
    async fn take(
        &self,
        step: &Step,
        stored: &InStore,
        records: &Records,
        engine: &Engine,
    ) -> Option<String> {
        let (network, done) = match step {
            Step::Create(name) => {
                let config = &stored.usable.get(name)?.config;
                let subnets = config.networks().map(|(_, network)| network).collect();
                self.driver.creates(Some((name.clone(), subnets)));
                let created = engine.create(name, config).await;
                self.driver.creates(None);
                let done = created.and_then(|id| {
                    info!(network = %name, "created the network in Docker");
                    self.driver.is_shown(&id)
                });
                (name.to_string(), done)
            }
            Step::Publish(network, name) => {
                let record = records.networks.get(&network.id);
                (name.to_string(), self.publish(network, name, record, engine).await)
            }
            Step::Bind(network, ..) if self.is_gone(&network.id, records) => return None,
            Step::Bind(network, name, created) => (name.to_string(), self.bind(network, name, *created)),
            Step::Remove(network, why) => {
                let done = engine.remove(&network.id).await;
                let told = |()| info!(network = %network.name, why, "removed the network from Docker");
                (network.name.clone(), done.map(told).map_err(|reason| format!("{why}, but {reason}")))
            }
            Step::Tell(network, why) => (network.clone(), Err((*why).to_owned())),
        };
        done.err().map(|reason| format!("network {network}: {reason}"))
    }

    /// Creates in the store what somebody created in Docker. What cannot be there is removed from Docker.
    async fn publish(
        &self,
        network: &ShownNetwork,
        name: &NetworkName,
        record: Option<&NetworkRecord>,
        engine: &Engine,
    ) -> Result<(), String> {
        let (subnets, asked) = match record {
            Some(record) => (record.subnets.clone(), record.asked.clone()),
            None => (network.subnets.clone(), Asked::of_options(&network.options, network.internal)),
        };
        let new = asked.new_network(&subnets, engine::labels(network));
        let warn_of = |name: Option<&NetworkName>, reason: &_| {
            let network = name.map_or("(default)", NetworkName::as_str);
            warn!(network, %reason, "this network's config cannot be used; new networks are not compared with it");
        };
        let store = &self.driver.store;
        match timeout(STORE_LIMIT, store.create(name, &new, warn_of)).await {
            Ok(Ok(config)) => {
                let subnets = config.networks().map(|(_, network)| network.to_string());
                let subnets = subnets.collect::<Vec<_>>().join(" ");
                info!(network = %name, %subnets, "created the network that Docker made");
                match within(STORE_LIMIT, store.network(name).config()).await? {
                    // Somebody removed it from Docker meanwhile.
                    Some(stored) if record.is_some() && !self.driver.knows(&network.id) => {
                        self.driver.remove_stored(name, stored.create_revision).await
                    }
                    Some(stored) => self.bind(network, name, stored.create_revision),
                    None => Ok(()),
                }
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

    /// Returns whether somebody has removed the network from Docker since these records were read.
    fn is_gone(&self, network_id: &str, records: &Records) -> bool {
        records.networks.contains_key(network_id) && !self.driver.knows(network_id)
    }

    fn bind(&self, network: &ShownNetwork, name: &NetworkName, created: i64) -> Result<(), String> {
        self.driver.change(|records| {
            let record = records.networks.entry(network.id.clone()).or_insert_with(|| NetworkRecord {
                name: None,
                subnets: network.subnets.clone(),
                asked: Asked { internal: network.internal, ..Asked::default() },
                created,
                shown: true,
                is_alias: false,
            });
            (record.name, record.created, record.shown) = (Some(name.clone()), created, true);
            record.is_alias = network.name != name.as_str();
            Ok(())
        })
    }

    /// Logs what was not told last, and reports all.
    fn tell(&mut self, telling: BTreeSet<String>) {
        for wrong in telling.difference(&self.told) {
            warn!("{wrong}");
        }
        if telling != self.told {
            let all = telling.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
            (self.report)(Some(all).filter(|all| !all.is_empty()));
            self.told = telling;
        }
    }
}
