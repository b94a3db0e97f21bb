//! Follows the store, and serves the names of each network on its bridge.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flan_subnet_lease::{Container, KeyChange, Store, WatchEvent, Watcher};
use ipnetwork::IpNetwork;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::directory::{Directory, Names, Network, Place};
use crate::handler::Shared;
use crate::living::Living;
use crate::sockets::{Server, listen};
use crate::upstream::{Upstream, forwarder};

/// Settings that stay the same.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The key of this host among the living ones.
    pub host: String,
    /// Who answers what is not ours.
    pub upstream: Upstream,
    /// An address of this host on which to serve all networks.
    pub address: IpAddr,
}

/// What changes on this host.
pub enum Order {
    /// This host is in a network, or has other addresses there.
    Network {
        /// The network.
        network: Network,
        /// Its part of the store.
        store: Store,
        /// Where its addresses are.
        place: Place,
        /// The addresses of its bridge, on which to serve.
        bridge: Vec<IpAddr>,
    },
    /// This host has left a network.
    Left(Network),
    /// Containers of this host have these addresses in networks that are not ours.
    Others(Vec<IpNetwork>),
}

/// Interval between looks at what may have changed without being told.
const TICK: Duration = Duration::from_secs(2);
/// Every how many ticks the site's servers are looked at.
const SERVERS: u32 = 10;
/// Events that wait. When the queue is full, a watch pauses.
const EVENTS: usize = 64;

/// One network.
struct Served {
    bridge: Vec<IpAddr>,
    place: Place,
    servers: BTreeMap<IpAddr, Server>,
    /// Follows the containers.
    _watch: JoinSet<()>,
}

struct Serving<R> {
    settings: Settings,
    shared: Arc<Shared>,
    networks: BTreeMap<Network, Served>,
    /// Serves on the address for all networks.
    server: Option<Server>,
    living: Living,
    /// The servers that answer what is not ours.
    upstream: Vec<IpAddr>,
    report: R,
    told: Option<String>,
}

type Told = (Network, WatchEvent<Container>);

/// Serves names until nobody can give an order any more. `report` is told what is wrong at present, if anything.
pub async fn serve(
    settings: Settings,
    store: Store,
    mut orders: mpsc::UnboundedReceiver<Order>,
    report: impl Fn(Option<String>) + Send,
) {
    let shared = Shared::new(Directory::new(settings.host.clone()));
    let mut serving = Serving {
        settings,
        shared,
        networks: BTreeMap::new(),
        server: None,
        living: Living::default(),
        upstream: Vec::new(),
        report,
        told: None,
    };
    serving.others_are(Vec::new());
    let (sender, mut hosts) = mpsc::channel(EVENTS);
    let mut watch_of_hosts = JoinSet::new();
    watch_of_hosts.spawn(Watcher::new(store.living_hosts()).run(sender));
    let (sender, mut events) = mpsc::channel(EVENTS);
    let (mut tick, mut ticks) = (tokio::time::interval(TICK), 0u32);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => serving.obey(order, &sender),
                None => return,
            },
            Some((network, event)) = events.recv() => serving.containers_changed(&network, event),
            Some(event) = hosts.recv() => {
                // Also a list of none says who is alive.
                let is_list = matches!(event, WatchEvent::Listed(_));
                if serving.living.apply(event, Instant::now()) || is_list {
                    serving.living_changed();
                }
            }
            _ = tick.tick() => {
                if serving.living.time_passed(Instant::now()) {
                    serving.living_changed();
                }
                serving.listen();
                if ticks.is_multiple_of(SERVERS) {
                    serving.look_at_upstream();
                }
                ticks = ticks.wrapping_add(1);
            }
        }
    }
}

impl<R: Fn(Option<String>)> Serving<R> {
    fn obey(&mut self, order: Order, events: &mpsc::Sender<Told>) {
        match order {
            Order::Network { network, store, place, bridge } => {
                self.shared.change(|directory| directory.network_is(network.clone(), place.clone()));
                match self.networks.get_mut(&network) {
                    // What was outside of the network was not kept.
                    Some(served) if served.place.whole == place.whole => {
                        served.servers.retain(|address, _| bridge.contains(address));
                        (served.bridge, served.place) = (bridge, place);
                    }
                    before => {
                        let mut servers =
                            before.map(|served| std::mem::take(&mut served.servers)).unwrap_or_default();
                        servers.retain(|address, _| bridge.contains(address));
                        let watch = follow(network.clone(), &store, events.clone());
                        self.networks.insert(network, Served { bridge, place, servers, _watch: watch });
                    }
                }
                self.listen();
                self.look_at_upstream();
            }
            Order::Left(network) => {
                self.networks.remove(&network);
                self.shared.change(|directory| directory.network_is_left(&network));
                self.listen();
            }
            Order::Others(others) => self.others_are(others),
        }
    }

    fn containers_changed(&self, network: &Network, event: WatchEvent<Container>) {
        match event {
            WatchEvent::Listed(listing) => {
                let Some(served) = self.networks.get(network) else { return };
                // Questions wait for the exchange alone.
                let names = Names::of(served.place.clone(), listing.items.into_iter().flatten());
                drop(self.shared.change(|directory| directory.names_are(network, names)));
            }
            WatchEvent::Changed(changes) => self.shared.change(|directory| {
                for change in changes {
                    match change {
                        KeyChange::Put(Ok(container)) => directory.container_is(network, container),
                        KeyChange::Put(Err(bad)) => directory.container_is_gone(network, &bad.entry.key),
                        KeyChange::Delete { key } => directory.container_is_gone(network, &key),
                    }
                }
            }),
            // What was known stays true for all we know.
            WatchEvent::Interrupted { .. } => {}
        }
    }

    /// Containers in the host's own network namespace ask from the address itself. They are in no network of ours.
    fn others_are(&self, mut others: Vec<IpNetwork>) {
        others.push(self.settings.address.into());
        self.shared.change(|directory| directory.others_are(others));
    }

    fn living_changed(&self) {
        let living = self.living.keys();
        self.shared.change(|directory| directory.living_are(living));
    }

    /// Serves on each bridge's address where that is not done yet.
    fn listen(&mut self) {
        let mut problem = None;
        self.server.take_if(|server| server.is_finished());
        if self.server.is_none() {
            match listen(self.settings.address, &self.shared) {
                Ok(server) => self.server = Some(server),
                Err(reason) => problem = Some(cannot_listen(self.settings.address, &reason)),
            }
        }
        for served in self.networks.values_mut() {
            served.servers.retain(|_, server| !server.is_finished());
            for address in &served.bridge {
                if served.servers.contains_key(address) {
                    continue;
                }
                match listen(*address, &self.shared) {
                    Ok(server) => {
                        info!(%address, "serving names");
                        served.servers.insert(*address, server);
                    }
                    Err(reason) => problem = problem.or(Some(cannot_listen(*address, &reason))),
                }
            }
        }
        if problem != self.told {
            (self.report)(problem.clone());
            self.told = problem;
        }
    }

    /// Uses the site's servers as they are now.
    fn look_at_upstream(&mut self) {
        let bridges = self.networks.values().flat_map(|served| served.bridge.iter().copied());
        let ours: Vec<IpAddr> = bridges.chain([self.settings.address]).collect();
        let servers = self.settings.upstream.servers(&ours);
        if servers == self.upstream {
            return;
        }
        match forwarder(&servers) {
            Ok(forwarder) => {
                info!(?servers, "these servers answer names that are not ours");
                self.shared.upstream_is(forwarder);
            }
            Err(reason) => warn!(%reason, ?servers, "cannot ask these servers for names that are not ours"),
        }
        self.upstream = servers;
    }
}

fn cannot_listen(address: IpAddr, reason: &std::io::Error) -> String {
    let advice = match reason.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; another DNS server has port 53 on all addresses: let it listen on its own alone (dnsmasq: bind-interfaces \
             and except-interface), or start fland with --names=false"
        }
        _ => "",
    };
    format!("cannot serve names on {address} port 53: {reason}{advice}")
}

/// Starts to follow the containers of a network.
fn follow(network: Network, store: &Store, events: mpsc::Sender<Told>) -> JoinSet<()> {
    let (sender, mut changes) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(Watcher::new(store.containers()).run(sender));
    tasks.spawn(async move {
        while let Some(change) = changes.recv().await {
            if events.send((network.clone(), change)).await.is_err() {
                return;
            }
        }
    });
    tasks
}
