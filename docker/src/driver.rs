//! Networks and endpoints, as dockerd asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flan_agent_api::SubnetEnv;
use flan_kernel::LinkName;
use flan_kernel::netlink::{Port, plug, unplug};
use flan_subnet_lease::{
    NetworkConfig, NetworkName, NodeIdentity, Store, StoredConfig, StoredNetwork, shown,
};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::options::Asked;
use crate::protocol::{CreateNetwork, Created, InterfaceName, IpamData, Joined, OfEndpoint, StaticRoute};
use crate::records::{EndpointRecord, NetworkRecord, Records, RecordsError};
use crate::{Attachment, Demand};

/// The address space of networks whose addresses this driver gives.
pub(crate) const ADDRESS_SPACE: &str = "flan";
/// How long a call may wait for the store.
pub(crate) const STORE_LIMIT: Duration = Duration::from_secs(8);
/// How long a call may wait until this host has joined a network.
const ATTACH_LIMIT: Duration = Duration::from_secs(15);
/// How long hosts that no longer use a network may take to leave it.
const LEAVE_LIMIT: Duration = Duration::from_secs(4);
/// Interval between looks at a network that hosts leave.
const LEAVE_LOOK: Duration = Duration::from_millis(200);

/// What the driver needs besides the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where records are kept over restarts.
    pub records: PathBuf,
    /// From where networks without `--subnet` get their addresses.
    pub address_pool: IpNetwork,
    /// The API socket of Docker.
    pub api: PathBuf,
    /// This host, as it is called in the store.
    pub node: NodeIdentity,
}

/// The driver.
pub struct Driver {
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    known: Mutex<Known>,
    demands: mpsc::UnboundedSender<Demand>,
    /// Wakes who compares Docker with the store.
    pub(crate) changed: Notify,
}

/// What the driver knows.
#[derive(Default)]
struct Known {
    records: Records,
    /// Containers that wait for an address in a network.
    waiting: BTreeMap<NetworkName, usize>,
}

impl Driver {
    /// Creates the driver with the records of an earlier agent.
    ///
    /// # Errors
    /// [`RecordsError`] if they cannot be read.
    pub fn new(
        store: Store,
        settings: Settings,
        demands: mpsc::UnboundedSender<Demand>,
    ) -> Result<Self, RecordsError> {
        let known = Known { records: Records::load(&settings.records)?, ..Known::default() };
        Ok(Self { store, settings, known: Mutex::new(known), demands, changed: Notify::new() })
    }

    /// Returns the networks in which containers of this host have addresses.
    pub fn needed(&self) -> BTreeSet<NetworkName> {
        self.records().needed()
    }

    /// Returns a copy of the records.
    pub(crate) fn records(&self) -> Records {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).records.clone()
    }

    /// Changes the records and saves them; if either fails, they stay as they are.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Records) -> Result<T, String>,
    ) -> Result<T, String> {
        let records = &mut self.known.lock().unwrap_or_else(PoisonError::into_inner).records;
        let mut next = records.clone();
        let result = change(&mut next)?;
        if next != *records {
            next.save(&self.settings.records).map_err(|reason| reason.to_string())?;
            *records = next;
        }
        Ok(result)
    }

    /// Takes a new network of Docker. Its name is not known before Docker has it.
    pub(crate) async fn create_network(&self, call: CreateNetwork) -> Result<(), String> {
        let asked = Asked::read(&call.options.unwrap_or_default())?;
        let subnets = subnets(call.ipv4.as_deref(), call.ipv6.as_deref())?;
        let (name, seen) = match &asked.network {
            Some(name) => {
                let config = self.stored(name).await?.map(|(_, config)| config);
                let config = config.ok_or_else(|| format!("there is no network {name} in the store"))?;
                if !is_same(&config, &subnets) {
                    let theirs = listed(config.networks().map(|(_, network)| network));
                    return Err(format!(
                        "network {name} has the addresses {theirs}; give these with --subnet"
                    ));
                }
                (Some(name.clone()), self.changed_at().await?)
            }
            None => {
                self.check_new(&asked, &subnets).await?;
                (None, 0)
            }
        };
        let record = NetworkRecord { name, subnets, asked, seen };
        self.change(|records| {
            records.networks.insert(call.network_id, record);
            Ok(())
        })?;
        self.changed.notify_one();
        Ok(())
    }

    /// Checks whether a new network could stand beside those in the store.
    async fn check_new(&self, asked: &Asked, subnets: &[IpNetwork]) -> Result<(), String> {
        let known = async {
            let seen = self.store.networks().await?;
            self.store.known_networks(&seen).await
        };
        let known = within(STORE_LIMIT, known).await?;
        asked
            .new_network(subnets, BTreeMap::new())
            .config(&known.all)
            .map(|_| ())
            .map_err(|reason| reason.to_string())
    }

    /// Removes a network of Docker, and from the store if it is still there and no host uses it. dockerd logs an error and
    /// removes its network in any case (`deleteNetwork` in moby's `libnetwork/network.go`). If it stays in the store, it
    /// soon comes back.
    pub(crate) async fn delete_network(&self, call: &OfEndpoint) -> Result<(), String> {
        let record = self.records().networks.remove(&call.network_id);
        self.forget(&call.network_id)?;
        let removed = match record {
            Some(NetworkRecord { name: Some(name), subnets, .. }) => {
                self.remove_stored(&name, &subnets).await
            }
            _ => Ok(()),
        };
        self.changed.notify_one();
        removed
    }

    /// Forgets a network of Docker.
    pub(crate) fn forget(&self, network_id: &str) -> Result<(), String> {
        self.change(|records| {
            let gone = records.networks.remove(network_id);
            records.endpoints.retain(|_, endpoint| endpoint.network != network_id);
            for subnet in gone.into_iter().flat_map(|network| network.subnets) {
                // Docker may have the same network of the store under another id by now.
                if records.network_of_pool(&subnet).is_none() {
                    records.addresses.remove(&subnet);
                }
            }
            Ok(())
        })
    }

    async fn remove_stored(&self, name: &NetworkName, subnets: &[IpNetwork]) -> Result<(), String> {
        let until = Instant::now() + LEAVE_LIMIT;
        loop {
            let Some((stored, config)) = self.stored(name).await? else { return Ok(()) };
            if !is_same(&config, subnets) {
                return Ok(()); // another network by now
            }
            let network = StoredNetwork { name: name.clone(), config: stored };
            if within(STORE_LIMIT, self.store.remove_network(&network)).await? {
                info!(network = %name, "Docker removed the network");
                return Ok(());
            }
            let users = within(STORE_LIMIT, self.users(name)).await?;
            if Instant::now() >= until || users.iter().any(|(_, containers)| !containers.is_empty()) {
                return Err(format!("network {name} is in use by {}; it stays", told(&users)));
            }
            sleep(LEAVE_LOOK).await;
        }
    }

    /// Returns the hosts that have joined a network, each with its containers.
    async fn users(
        &self,
        name: &NetworkName,
    ) -> Result<Vec<(String, BTreeSet<String>)>, flan_subnet_lease::StoreError> {
        let store = self.store.network(name);
        let (leases, containers) = (store.leases().list().await?, store.containers().list().await?);
        let holders = leases.readable().map(|lease| {
            let theirs = containers.readable().filter(|container| container.is_of(&lease.attributes.node));
            let names = theirs.map(|container| shown(&container.name).into_owned()).collect();
            (shown(&lease.attributes.holder()).into_owned(), names)
        });
        Ok(holders.collect())
    }

    /// Returns a network in the store, and what it means.
    pub(crate) async fn stored(
        &self,
        name: &NetworkName,
    ) -> Result<Option<(StoredConfig, NetworkConfig)>, String> {
        let stored = within(STORE_LIMIT, self.store.network(name).config()).await?;
        stored
            .map(|stored| {
                let config = NetworkConfig::parse(&stored.json);
                config.map(|config| (stored, config)).map_err(|reason| format!("network {name}: {reason}"))
            })
            .transpose()
    }

    async fn changed_at(&self) -> Result<i64, String> {
        within(STORE_LIMIT, self.store.networks()).await.map(|networks| networks.changed)
    }

    /// Joins a network of the store, and waits until packets flow.
    pub(crate) async fn attach(&self, network: &NetworkName) -> Result<(LinkName, SubnetEnv), String> {
        let (answer, answered) = oneshot::channel();
        let ended = |_| "fland is stopping".to_owned();
        let demand = Demand::Attach { network: network.clone(), answer };
        self.demands.send(demand).map_err(|_| "fland is stopping".to_owned())?;
        let Attachment { bridge, mut ready, waits_for } = answered.await.map_err(ended)?;
        let env = match timeout(ATTACH_LIMIT, ready.wait_for(Option::is_some)).await {
            Ok(Ok(env)) => env.clone(),
            Ok(Err(_)) => return Err(format!("this host has left network {network}")),
            Err(_) => {
                let waits = waits_for().unwrap_or_else(|| "the kernel; see the log of fland".to_owned());
                return Err(format!("this host has not joined network {network} yet: it waits for {waits}"));
            }
        };
        env.map(|env| (bridge, env)).ok_or_else(|| format!("this host has left network {network}"))
    }

    /// Leaves a network if no container of this host has an address in it, and none waits for one.
    pub(crate) fn detach_unused(&self, network: &NetworkName) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Told while the records are locked: who wants the network from now on tells that later.
        if !known.waiting.contains_key(network) && !known.records.needed().contains(network) {
            let _ = self.demands.send(Demand::Detach { network: network.clone() });
        }
    }

    /// Joins a network for a container that is to get an address, which `give` gives.
    pub(crate) async fn attach_for<T>(
        &self,
        network: &NetworkName,
        give: impl FnOnce(&SubnetEnv) -> Result<T, String>,
    ) -> Result<T, String> {
        *self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting
            .entry(network.clone())
            .or_default() += 1;
        let given = self.attach(network).await.and_then(|(_, env)| give(&env));
        {
            let waiting = &mut self.known.lock().unwrap_or_else(PoisonError::into_inner).waiting;
            let left = waiting.get(network).map_or(0, |count| count - 1);
            match left {
                0 => drop(waiting.remove(network)),
                left => drop(waiting.insert(network.clone(), left)),
            }
        }
        if given.is_err() {
            self.detach_unused(network);
        }
        given
    }

    /// Takes a container's end. Returns the MAC if dockerd gave none.
    pub(crate) fn create_endpoint(&self, call: OfEndpoint) -> Result<Created, String> {
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
        let record = EndpointRecord { network: network.clone(), addresses, mac: Some(mac.clone()) };
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
    pub(crate) async fn join(&self, call: &OfEndpoint) -> Result<Joined, String> {
        let records = self.records();
        let endpoint = records.endpoints.get(&call.endpoint_id);
        let endpoint = endpoint.ok_or_else(|| format!("fland knows no endpoint {}", call.endpoint_id))?;
        let network = records.networks.get(&call.network_id);
        let network = network.ok_or_else(|| format!("fland knows no network {}", call.network_id))?;
        let name = network.name.as_ref().ok_or("the network is not in the store yet")?;
        let (bridge, env) = self.attach(name).await?;
        let (host_end, container_end) = ends(&call.endpoint_id)?;
        let mac: Option<MacAddr6> = endpoint.mac.as_ref().and_then(|mac| mac.parse().ok());
        let port = Port { bridge, host_end, container_end, mac, mtu: env.mtu };
        in_kernel(move || plug(&port)).await?;
        let routes = env.bridges.iter().filter_map(|(family, bridge)| {
            let is_in = endpoint.addresses.iter().any(|address| address.is_ipv4() == bridge.is_ipv4());
            let destination = env.networks.get(family).filter(|_| is_in)?.to_string();
            Some(StaticRoute { destination, route_type: 0, next_hop: bridge.ip().to_string() })
        });
        self.changed.notify_one();
        Ok(Joined {
            interface_name: InterfaceName { src_name: container_end.to_string(), dst_prefix: "eth" },
            static_routes: routes.collect(),
            disable_gateway_service: network.asked.internal,
        })
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
fn ends(endpoint_id: &str) -> Result<(LinkName, LinkName), String> {
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
fn told(users: &[(String, BTreeSet<String>)]) -> String {
    let one = |(host, containers): &(String, BTreeSet<String>)| {
        let names = containers.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        if names.is_empty() { host.clone() } else { format!("container {names} on {host}") }
    };
    users.iter().map(one).collect::<Vec<_>>().join(", ")
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
        let users = [
            ("h2".to_owned(), ["web".to_owned(), "db".to_owned()].into()),
            ("h3".to_owned(), BTreeSet::new()),
        ];
        assert_eq!(told(&users), "container db, web on h2, h3");
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
