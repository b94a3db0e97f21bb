//! Networks and endpoints, as dockerd asks for them.

mod resolver;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use flan_agent_api::SubnetEnv;
use flan_kernel::LinkName;
use flan_kernel::netlink::{Port, plug, unplug};
use flan_subnet_lease::{
    NetworkConfig, NetworkName, NodeIdentity, Store, StoreError, StoredConfig, StoredNetwork, shown,
};
use ipnetwork::{IpNetwork, Ipv4Network};
use macaddr::MacAddr6;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::options::Asked;
use crate::protocol::{ById, CreateNetwork, Created, InterfaceName, IpamData, Joined, StaticRoute};
use crate::records::{EndpointRecord, NetworkRecord, Records, RecordsError};
use crate::{Attachment, Demand};

/// The address space of networks whose addresses this driver gives.
pub(crate) const ADDRESS_SPACE: &str = "flan";
/// How long a call may wait for the store.
pub(crate) const STORE_LIMIT: Duration = Duration::from_secs(8);
/// How long a call may wait until this host has joined a network.
const ATTACH_LIMIT: Duration = Duration::from_secs(15);
/// How long this host stays in a network that no container needs.
const LINGER: Duration = Duration::from_secs(1);
/// Interval between looks for such networks.
const LOOK_FOR_UNUSED: Duration = Duration::from_secs(20);
/// How long hosts that no longer use a network may take to leave it.
const LEAVE_LIMIT: Duration = Duration::from_secs(6);
/// Interval between looks at a network that hosts leave.
const LEAVE_LOOK: Duration = Duration::from_millis(200);

/// Hosts that use a network, each with its containers in it.
type Users = BTreeMap<String, BTreeSet<String>>;

/// What the driver needs besides the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where records are kept over restarts.
    pub records: PathBuf,
    /// From where networks without `--subnet` get their IPv4 addresses.
    pub address_pool: Ipv4Network,
    /// The API socket of Docker.
    pub api: PathBuf,
    /// This host, as it is called in the store.
    pub node: NodeIdentity,
    /// Whether containers of the default network are in the store, for their names.
    pub names: bool,
}

/// The driver.
pub struct Driver {
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    known: Mutex<Known>,
    demands: mpsc::UnboundedSender<Demand>,
    /// Wakes who compares Docker with the store.
    pub(crate) changed: Notify,
    /// Wakes who leaves networks.
    pub(crate) released: Notify,
    /// The address of this host's DNS server for names.
    resolver: OnceLock<Ipv4Addr>,
    /// Whether Docker answers and the store knows its containers.
    pub(crate) answers: watch::Sender<bool>,
    /// The addresses of containers in networks of other drivers.
    pub(crate) others: watch::Sender<Vec<IpNetwork>>,
}

/// Most names in a list for people.
const TOLD: usize = 5;

/// What the driver knows.
#[derive(Default)]
struct Known {
    records: Records,
    /// Containers that wait for an address in a network.
    waiting: BTreeMap<NetworkName, usize>,
    /// The network of the store that Docker is being asked to create, with its addresses.
    creating: Option<(NetworkName, Vec<IpNetwork>)>,
}

impl Driver {
    /// Creates the driver with the records of an earlier agent. `standing` are the networks that this host seems to be in:
    /// without records, containers may need them until Docker has been asked.
    ///
    /// # Errors
    /// [`RecordsError`] if the records cannot be read.
    pub fn new(
        store: Store,
        settings: Settings,
        standing: BTreeSet<NetworkName>,
        demands: mpsc::UnboundedSender<Demand>,
    ) -> Result<Self, RecordsError> {
        let lost = || Records { attached: standing, ..Records::default() };
        let records = Records::load_or_set_aside(&settings.records)?.unwrap_or_else(lost);
        let known = Known { records, ..Known::default() };
        Ok(Self {
            store,
            settings,
            known: Mutex::new(known),
            demands,
            changed: Notify::new(),
            released: Notify::new(),
            resolver: OnceLock::new(),
            answers: watch::Sender::default(),
            others: watch::Sender::default(),
        })
    }

    /// Returns the networks that this host is to join for its containers.
    pub fn needed(&self) -> BTreeSet<NetworkName> {
        self.records().attached
    }

    /// Returns a copy of the records.
    pub(crate) fn records(&self) -> Records {
        self.known().records.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Another call may hold it while the disk is slow.
        block_in_place(|| self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the records and saves them; if either fails, they stay as they are.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Records) -> Result<T, String>,
    ) -> Result<T, String> {
        // The disk may be slow.
        block_in_place(|| {
            let known = &mut *self.known();
            let mut next = known.records.clone();
            let result = change(&mut next)?;
            if next != known.records {
                next.save(&self.settings.records).map_err(|reason| reason.to_string())?;
                known.records = next;
            }
            Ok(result)
        })
    }

    /// Takes a new network of Docker. Its name is not known before Docker has it.
    pub(crate) async fn create_network(&self, call: CreateNetwork) -> Result<(), String> {
        let subnets = subnets(call.ipv4.as_deref(), call.ipv6.as_deref())?;
        let options = call.options.unwrap_or_default();
        let asked = match self.creating_with(&subnets) {
            // Its options say how it was made, by whatever version.
            Some(name) => Asked::of_stored(name, &options),
            None => Asked::read(&options)?,
        };
        let (name, created) = match &asked.network {
            Some(name) => {
                let stored = self.stored(name).await?;
                let (stored, config) =
                    stored.ok_or_else(|| format!("there is no network {name} in the store"))?;
                if !is_same(&config, &subnets) {
                    let theirs = listed(config.networks().map(|(_, network)| network));
                    return Err(format!(
                        "network {name} has the addresses {theirs}; give these with --subnet"
                    ));
                }
                (Some(name.clone()), stored.create_revision)
            }
            None => {
                self.check_new(&asked, &subnets).await?;
                (None, 0)
            }
        };
        let record = NetworkRecord { name, subnets, asked, created, shown: false, is_alias: false };
        self.change(|records| {
            records.networks.insert(call.network_id, record);
            Ok(())
        })?;
        self.changed.notify_one();
        Ok(())
    }

    /// Notes which network of the store Docker is being asked to create, and its addresses, while it is: Docker's call names
    /// none.
    pub(crate) fn creates(&self, network: Option<(NetworkName, Vec<IpNetwork>)>) {
        self.known().creating = network;
    }

    /// Returns the network that Docker is being asked to create, if it has these addresses, once.
    fn creating_with(&self, subnets: &[IpNetwork]) -> Option<NetworkName> {
        let mut known = self.known();
        known.creating.take_if(|(_, wanted)| wanted == subnets).map(|(name, _)| name)
    }

    /// Checks whether a new network could stand beside those in the store.
    async fn check_new(&self, asked: &Asked, subnets: &[IpNetwork]) -> Result<(), String> {
        let known = within(STORE_LIMIT, self.store.known()).await?.1;
        asked
            .new_network(subnets, BTreeMap::new())
            .config(&known.all)
            .map(|_| ())
            .map_err(|reason| reason.to_string())
    }

    /// Removes a network of Docker, and from the store if Docker showed it, it is still there and no host uses it. dockerd
    /// logs an error and removes its network in any case (`deleteNetwork` in moby's `libnetwork/network.go`). If it stays
    /// in the store, it soon comes back.
    pub(crate) async fn delete_network(&self, call: &ById) -> Result<(), String> {
        let removed = match self.forget(&call.network_id)? {
            Some(NetworkRecord { name: Some(name), created, shown: true, is_alias: false, .. }) => {
                self.remove_stored(&name, created).await
            }
            _ => Ok(()),
        };
        self.changed.notify_one();
        removed
    }

    /// Records that Docker shows a network.
    pub(crate) fn is_shown(&self, network_id: &str) -> Result<(), String> {
        self.change(|records| {
            if let Some(network) = records.networks.get_mut(network_id) {
                network.shown = true;
            }
            Ok(())
        })
    }

    /// Returns whether this is a network of Docker that nobody has removed.
    pub(crate) fn knows(&self, network_id: &str) -> bool {
        self.known().records.networks.contains_key(network_id)
    }

    /// Forgets a network of Docker.
    pub(crate) fn forget(&self, network_id: &str) -> Result<Option<NetworkRecord>, String> {
        self.change(|records| {
            let gone = records.networks.remove(network_id);
            records.endpoints.retain(|_, endpoint| endpoint.network != network_id);
            for subnet in gone.iter().flat_map(|network| network.subnets.iter().copied()) {
                // Docker may have the same network of the store under another id by now.
                if records.network_of_pool(&subnet).is_none() {
                    records.addresses.remove(&subnet);
                }
            }
            Ok(gone)
        })
    }

    pub(crate) async fn remove_stored(&self, name: &NetworkName, created: i64) -> Result<(), String> {
        let until = Instant::now() + LEAVE_LIMIT;
        loop {
            let stored = within(STORE_LIMIT, self.store.network(name).config()).await?;
            // Another network may have the name by now.
            let Some(config) = stored.filter(|stored| stored.create_revision == created) else {
                return Ok(());
            };
            let users = within(STORE_LIMIT, self.users(name)).await?;
            let network = StoredNetwork { name: name.clone(), config };
            let has_containers = users.values().any(|containers| !containers.is_empty());
            if !has_containers && within(STORE_LIMIT, self.store.remove_network(&network)).await? {
                info!(network = %name, "removed the network that Docker removed");
                return Ok(());
            }
            if has_containers || Instant::now() >= until {
                let users = match told(&users) {
                    users if users.is_empty() => {
                        "this host, by --networks or flanctl network join".to_owned()
                    }
                    users => users,
                };
                return Err(format!("network {name} is in use by {users}; it stays"));
            }
            sleep(LEAVE_LOOK).await;
        }
    }

    /// Returns the other hosts that use a network, each with its containers, stopped ones too.
    async fn users(&self, name: &NetworkName) -> Result<Users, StoreError> {
        let store = self.store.network(name);
        let (leases, containers) = (store.leases().list().await?, store.containers().list().await?);
        // A host without a lease in the default network is gone, with its containers.
        let alive = self.store.leases().list().await?;
        let is_other = |node: &NodeIdentity| node.id.is_none() || node.id != self.settings.node.id;
        let mut users = Users::new();
        for lease in leases.readable().filter(|lease| is_other(&lease.attributes.node)) {
            users.entry(shown(&lease.attributes.holder()).into_owned()).or_default();
        }
        for container in containers.readable() {
            let host = alive.readable().find(|lease| container.is_of(&lease.attributes.node));
            if let Some(host) = host.filter(|lease| is_other(&lease.attributes.node)) {
                let host = shown(&host.attributes.holder()).into_owned();
                users.entry(host).or_default().insert(shown(&container.name).into_owned());
            }
        }
        Ok(users)
    }

    /// Returns a network in the store, and what it means.
    async fn stored(&self, name: &NetworkName) -> Result<Option<(StoredConfig, NetworkConfig)>, String> {
        let stored = within(STORE_LIMIT, self.store.network(name).config()).await?;
        stored
            .map(|stored| {
                let config = NetworkConfig::parse(&stored.json);
                config.map(|config| (stored, config)).map_err(|reason| format!("network {name}: {reason}"))
            })
            .transpose()
    }

    /// Joins a network of the store, and waits until packets flow.
    async fn attach(&self, network: &NetworkName) -> Result<(LinkName, SubnetEnv), String> {
        // Before anything is made, it is on disk that this host joins.
        self.change(|records| {
            records.attached.insert(network.clone());
            Ok(())
        })?;
        let ended = || "fland is stopping".to_owned();
        let (answer, answered) = oneshot::channel();
        let demand = Demand::Attach { network: network.clone(), answer };
        self.demands.send(demand).map_err(|_| ended())?;
        let deadline = Instant::now() + ATTACH_LIMIT;
        let answered = timeout_at(deadline, answered).await.map_err(|_| "fland is busy".to_owned())?;
        let Attachment { bridge, mut ready, waits_for } = answered.map_err(|_| ended())?;
        let env = match timeout_at(deadline, ready.wait_for(Option::is_some)).await {
            Ok(Ok(env)) => env.clone(),
            Ok(Err(_)) => None,
            Err(_) => {
                let waits = waits_for().unwrap_or_else(|| {
                    "its default network or the kernel; the log of fland says more".to_owned()
                });
                return Err(format!("this host has not joined network {network} yet: it waits for {waits}"));
            }
        };
        env.map(|env| (bridge, env)).ok_or_else(|| format!("this host has left network {network}"))
    }

    /// Joins a network for a container that is to get an address, which `give` gives.
    pub(crate) async fn attach_for<T>(
        &self,
        network: &NetworkName,
        give: impl FnOnce(&SubnetEnv) -> Result<T, String>,
    ) -> Result<T, String> {
        let _waiting = Waiting::new(self, network);
        self.attach(network).await.and_then(|(_, env)| give(&env))
    }

    /// Leaves networks in which no container of this host has an address any more. Ends with the agent.
    pub async fn leave_unused(&self) {
        let mut since = BTreeMap::new();
        loop {
            let wait = if since.is_empty() { LOOK_FOR_UNUSED } else { LINGER };
            let _ = timeout(wait, self.released.notified()).await;
            if let Err(reason) = self.detach_unused(&mut since, Instant::now()) {
                warn!(%reason, "cannot leave networks that no container needs");
            }
        }
    }

    /// `since` says since when each network is no longer needed. A container that is restarted releases its address and
    /// soon asks for one again.
    fn detach_unused(&self, since: &mut BTreeMap<NetworkName, Instant>, now: Instant) -> Result<(), String> {
        block_in_place(|| {
            // The demands go out while the records are locked: who wants a network from now on tells that later.
            let known = &mut *self.known();
            let needed = known.records.needed();
            let is_unused =
                |network: &&NetworkName| !known.waiting.contains_key(*network) && !needed.contains(*network);
            let unused: BTreeSet<NetworkName> =
                known.records.attached.iter().filter(is_unused).cloned().collect();
            since.retain(|network, _| unused.contains(network));
            let mut next = known.records.clone();
            for network in unused {
                if now - *since.entry(network.clone()).or_insert(now) >= LINGER {
                    next.attached.remove(&network);
                }
            }
            if next.attached == known.records.attached {
                return Ok(());
            }
            next.save(&self.settings.records).map_err(|reason| reason.to_string())?;
            for network in known.records.attached.difference(&next.attached) {
                since.remove(network);
                let _ = self.demands.send(Demand::Detach { network: network.clone() });
            }
            known.records = next;
            Ok(())
        })
    }

    /// Takes a container's end. Returns the MAC if dockerd gave none.
    pub(crate) fn create_endpoint(&self, call: ById) -> Result<Created, String> {
        let interface = call.interface.unwrap_or_default();
        let texts = [&interface.address, &interface.address_ipv6];
        let mut addresses = Vec::new();
        for text in texts.into_iter().filter(|text| !text.is_empty()) {
            let address: IpNetwork = text.parse().map_err(|why| format!("endpoint address {text}: {why}"))?;
            addresses.push(address.ip());
        }
        let first = addresses.first().ok_or("an endpoint without an address cannot be in a flan network")?;
        let (mac, given) = match interface.mac_address.as_str() {
            "" => (mac_of(*first).to_string(), true),
            mac => (mac.to_owned(), false),
        };
        let network = call.network_id;
        let record =
            EndpointRecord { network: network.clone(), addresses, mac: Some(mac.clone()), resolver_of: None };
        self.change(|records| {
            if !records.networks.contains_key(&network) {
                return Err(format!("fland knows no network {network}: remove and create it again"));
            }
            records.endpoints.insert(call.endpoint_id, record);
            Ok(())
        })?;
        let interface = if given { [("MacAddress", mac)].into() } else { BTreeMap::new() };
        Ok(Created { interface })
    }

    /// Makes the devices between the container and the network's bridge.
    pub(crate) async fn join(&self, call: &ById) -> Result<Joined, String> {
        let records = self.records();
        let endpoint = records.endpoints.get(&call.endpoint_id);
        let endpoint = endpoint.ok_or_else(|| format!("fland knows no endpoint {}", call.endpoint_id))?;
        let network = records.networks.get(&call.network_id);
        let network = network.ok_or_else(|| format!("fland knows no network {}", call.network_id))?;
        let name = network.name.as_ref().ok_or("the network is not in the store yet")?;
        let (bridge, env) = self.attach(name).await?;
        let is_ours = |address: &IpAddr| env.bridges.values().any(|bridge| bridge.contains(*address));
        if let Some(foreign) = endpoint.addresses.iter().find(|address| !is_ours(address)) {
            let ours = listed(env.bridges.values().copied());
            return Err(format!(
                "this host gives the addresses of {ours} in network {name} now, not {foreign}"
            ));
        }
        let (host_end, container_end) = ends(&call.endpoint_id)?;
        let mac: Option<MacAddr6> = endpoint.mac.as_ref().and_then(|mac| mac.parse().ok());
        let port = Port { bridge, host_end, container_end, mac, mtu: env.mtu };
        in_kernel(move || plug(&port)).await?;
        let routes = env.bridges.iter().filter_map(|(family, bridge)| {
            let is_in = endpoint.addresses.iter().any(|address| address.is_ipv4() == bridge.is_ipv4());
            let destination = env.networks.get(family).filter(|_| is_in)?.to_string();
            Some(StaticRoute { destination, route_type: 0, next_hop: bridge.ip().to_string() })
        });
        let mut static_routes: Vec<StaticRoute> = routes.collect();
        static_routes.extend(self.resolver_routes(call, &env));
        self.changed.notify_one();
        Ok(Joined {
            interface_name: InterfaceName { src_name: container_end.to_string(), dst_prefix: "eth" },
            static_routes,
            disable_gateway_service: network.asked.internal,
        })
    }

    /// Returns whether Docker answers and the store knows its containers, as it changes.
    pub fn answers(&self) -> watch::Receiver<bool> {
        self.answers.subscribe()
    }

    /// Returns the addresses of containers in networks of other drivers, as they change.
    pub fn others(&self) -> watch::Receiver<Vec<IpNetwork>> {
        self.others.subscribe()
    }

    /// Deletes a container's end.
    pub(crate) async fn delete_endpoint(&self, endpoint_id: &str) -> Result<(), String> {
        let (host_end, _) = ends(endpoint_id)?;
        in_kernel(move || unplug(host_end).map(|_| ())).await?;
        self.change(|records| {
            records.endpoints.remove(endpoint_id);
            Ok(())
        })?;
        self.changed.notify_one();
        Ok(())
    }
}

/// A container that waits for an address, until this is dropped.
struct Waiting<'a> {
    driver: &'a Driver,
    network: &'a NetworkName,
}

impl<'a> Waiting<'a> {
    fn new(driver: &'a Driver, network: &'a NetworkName) -> Self {
        *driver.known().waiting.entry(network.clone()).or_default() += 1;
        Self { driver, network }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waiting = &mut self.driver.known().waiting;
        match waiting.get_mut(self.network) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(waiting.remove(self.network)),
        }
    }
}

/// Waits for the store, but not longer than this.
pub(crate) async fn within<T, E: std::fmt::Display>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|reason| reason.to_string()),
        Err(_) => Err(format!("the store has not answered within {} s", limit.as_secs())),
    }
}

/// Runs what waits for the kernel.
async fn in_kernel(
    work: impl FnOnce() -> Result<(), flan_kernel::KernelError> + Send + 'static,
) -> Result<(), String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|reason| reason.to_string())?;
    done.map_err(|reason| {
        warn!(%reason, "cannot connect a container");
        reason.to_string()
    })
}

/// Returns the names of a container's devices: on the host, and until dockerd moves it.
pub(crate) fn ends(endpoint_id: &str) -> Result<(LinkName, LinkName), String> {
    let hash = Sha256::digest(endpoint_id);
    let hash: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let name = |prefix: &str| -> Result<LinkName, String> {
        format!("{prefix}{hash}").parse().map_err(|why: flan_kernel::InvalidLinkName| why.to_string())
    };
    Ok((name("flnh")?, name("flnc")?))
}

/// Returns a MAC that depends on the address alone, as Docker's are: who has the address again has the MAC again.
fn mac_of(address: IpAddr) -> MacAddr6 {
    let last = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let hash = Sha256::digest(address.octets());
            [hash[0], hash[1], hash[2], hash[3]]
        }
    };
    MacAddr6::new(0x02, 0x42, last[0], last[1], last[2], last[3])
}

/// Returns a network's addresses, which this driver must have given.
fn subnets(ipv4: Option<&[IpamData]>, ipv6: Option<&[IpamData]>) -> Result<Vec<IpNetwork>, String> {
    let mut subnets = Vec::new();
    for data in [ipv4, ipv6].into_iter().flatten().flatten() {
        if data.address_space != ADDRESS_SPACE {
            return Err("a flan network gives each host its own addresses: add --ipam-driver flan".to_owned());
        }
        let pool: IpNetwork = data.pool.parse().map_err(|why| format!("addresses {}: {why}", data.pool))?;
        subnets.push(pool);
    }
    if subnets.is_empty() {
        return Err("a flan network needs addresses: add --ipam-driver flan".to_owned());
    }
    Ok(subnets)
}

/// Returns whether a network in the store has these addresses.
pub(crate) fn is_same(config: &NetworkConfig, subnets: &[IpNetwork]) -> bool {
    let stored: BTreeSet<IpNetwork> = config.networks().map(|(_, network)| network).collect();
    stored == subnets.iter().copied().collect()
}

fn listed(networks: impl Iterator<Item = IpNetwork>) -> String {
    networks.map(|network| network.to_string()).collect::<Vec<_>>().join(" and ")
}

/// Names hosts with their containers: `container web on h2, h3`.
fn told(users: &Users) -> String {
    let one = |(host, containers): (&String, &BTreeSet<String>)| match some(containers.iter().cloned()) {
        names if names.is_empty() => host.clone(),
        names => format!("container {names} on {host}"),
    };
    some(users.iter().map(one))
}

/// Lists a few, and how many more there are.
fn some(texts: impl ExactSizeIterator<Item = String>) -> String {
    let more = texts.len().saturating_sub(TOLD);
    let mut told = texts.take(TOLD).collect::<Vec<_>>().join(", ");
    if more > 0 {
        told += &format!(" and {more} more");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_of_an_endpoint_have_names_that_fit() {
        let (one, other) = (ends("one").unwrap(), ends("other").unwrap());
        assert!(one.0.as_str().len() <= 15 && one.0 != one.1 && one.0 != other.0);
        assert_eq!(one, ends("one").unwrap());
    }

    #[test]
    fn hosts_are_named_with_their_containers() {
        let users = Users::from([
            ("h2".to_owned(), ["web".to_owned(), "db".to_owned()].into()),
            ("h3".to_owned(), BTreeSet::new()),
        ]);
        assert_eq!(told(&users), "container db, web on h2, h3");
        let many = (1..=7).map(|number| (format!("h{number}"), BTreeSet::new())).collect();
        assert_eq!(told(&many), "h1, h2, h3, h4, h5 and 2 more");
    }

    #[test]
    fn addresses_of_another_driver_are_refused_with_what_would_work() {
        let data =
            |space: &str, pool: &str| IpamData { address_space: space.to_owned(), pool: pool.to_owned() };
        let error = subnets(Some(&[data("LocalDefault", "172.18.0.0/16")]), None).unwrap_err();
        assert!(error.contains("--ipam-driver flan"), "{error}");
        let both = subnets(Some(&[data("flan", "10.7.0.0/16")]), Some(&[data("flan", "fd00:7::/48")]));
        assert_eq!(listed(both.unwrap().into_iter()), "10.7.0.0/16 and fd00:7::/48");
        assert!(subnets(None, None).is_err());
    }
}
