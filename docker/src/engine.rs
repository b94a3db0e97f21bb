//! Docker's API.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;

use bollard::errors::Error;
use bollard::models::{ContainerSummary, EndpointSettings, Ipam, IpamConfig, Network, NetworkCreateRequest};
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use flan_subnet_lease::{NetworkConfig, NetworkName};
use futures::{Stream, StreamExt};
use ipnetwork::IpNetwork;

use crate::options::NETWORK;

/// The name of the driver.
pub(crate) const DRIVER: &str = "flan";
/// Label of a network that Docker is not to show, with the value `false`.
pub(crate) const SHOWN_LABEL: &str = "flan.docker";
/// Label of a network whose containers have no way out, with the value `true`.
pub(crate) const INTERNAL_LABEL: &str = "flan.internal";
/// Labels with this prefix, followed by the name of an option: what somebody gave by `-o` where the network was created.
const OPTION_LABEL: &str = "flan.option.";
/// Labels with this prefix are not Docker's.
const OWN_LABELS: &str = "flan.";
/// Seconds that Docker may take to answer.
const PATIENCE: u64 = 20;
/// The events after which something may have to be done.
const EVENTS: [&str; 8] = ["create", "connect", "disconnect", "destroy", "remove", "rename", "start", "die"];
/// Versions that crash on networks of other drivers than their own (moby #51554).
const UNUSABLE: [&str; 3] = ["29.0.0", "29.0.1", "29.0.2"];

/// A Docker that answers.
pub(crate) struct Engine(Docker);

/// A network as Docker shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ShownNetwork {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) driver: String,
    /// The network in the store that somebody tied it to by `-o flan.network`, as flan itself once did.
    pub(crate) tied: Option<NetworkName>,
    pub(crate) subnets: Vec<IpNetwork>,
    pub(crate) labels: BTreeMap<String, String>,
    /// What somebody gave by `-o`.
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) internal: bool,
}

impl ShownNetwork {
    /// Returns whether it is the one of docker0, to which Docker attaches containers that name no network.
    pub(crate) fn is_default(&self) -> bool {
        self.driver == "bridge" && self.name == "bridge"
    }
}

/// A container that is in a network, or will be when it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Docker's id of the network, or its name if the container was never started.
    pub(crate) network: String,
    /// Docker's id of its endpoint, while it runs.
    pub(crate) endpoint: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Engine {
    /// Connects, and learns which version of the API that Docker speaks.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, String> {
        let path = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, PATIENCE, API_DEFAULT_VERSION).map_err(text)?;
        let docker = docker.negotiate_version().await.map_err(text)?;
        let version = docker.version().await.map_err(text)?.version.unwrap_or_default();
        match UNUSABLE.contains(&version.as_str()) {
            true => Err(format!(
                "Docker {version} crashes on networks of other drivers than its own; upgrade to 29.0.3 or later"
            )),
            false => Ok(Self(docker)),
        }
    }

    /// Returns the changes of networks and containers, each without its content, from the first time that it is polled.
    pub(crate) fn events(&self) -> impl Stream<Item = Result<(), String>> + use<> {
        let filters = HashMap::from([("type", vec!["network", "container"]), ("event", EVENTS.into())]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        self.0.events(Some(options)).map(|event| event.map(|_| ()).map_err(text))
    }

    pub(crate) async fn networks(&self) -> Result<Vec<ShownNetwork>, String> {
        let networks = self.0.list_networks(None::<ListNetworksOptions>).await.map_err(text)?;
        Ok(networks.into_iter().map(shown).collect())
    }

    /// Returns all containers, each once for each of its networks.
    pub(crate) async fn members(&self) -> Result<Vec<Member>, String> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let containers = self.0.list_containers(Some(options)).await.map_err(text)?;
        Ok(containers.into_iter().flat_map(memberships).collect())
    }

    /// Returns the other names of a container in one of its networks, by Docker's id of its end there.
    pub(crate) async fn aliases(&self, id: &str, endpoint: &str) -> Result<Vec<String>, String> {
        let found = self.0.inspect_container(id, None::<InspectContainerOptions>).await.map_err(text)?;
        let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let end = networks.into_values().find(|end| end.endpoint_id.as_deref() == Some(endpoint));
        let names = end.map(|end| [end.aliases, end.dns_names].into_iter().flatten().flatten());
        Ok(names.into_iter().flatten().collect::<BTreeSet<String>>().into_iter().collect())
    }

    /// Creates a network that is in the store, and returns Docker's id of it.
    pub(crate) async fn create(&self, name: &NetworkName, config: &NetworkConfig) -> Result<String, String> {
        let subnets = config
            .networks()
            .map(|(_, network)| IpamConfig { subnet: Some(network.to_string()), ..IpamConfig::default() });
        let has = |v4: bool| config.networks().any(|(_, network)| network.is_ipv4() == v4);
        let labels = config.labels.iter().filter(|(key, _)| !key.starts_with(OWN_LABELS));
        // As where it was created: Docker Compose refuses a network with other options than its file has.
        let options = config.labels.iter().filter_map(|(key, value)| {
            let option = key.strip_prefix(OPTION_LABEL)?;
            (option.starts_with(OWN_LABELS) && option != NETWORK).then(|| (option.to_owned(), value.clone()))
        });
        let request = NetworkCreateRequest {
            name: name.to_string(),
            driver: Some(DRIVER.to_owned()),
            internal: Some(is_internal(config)),
            enable_ipv4: (!has(true)).then_some(false),
            enable_ipv6: Some(has(false)),
            ipam: Some(Ipam {
                driver: Some(DRIVER.to_owned()),
                config: Some(subnets.collect()),
                options: None,
            }),
            options: Some(options.collect()),
            labels: Some(labels.map(|(key, value)| (key.clone(), value.clone())).collect()),
            ..NetworkCreateRequest::default()
        };
        self.0.create_network(request).await.map(|created| created.id).map_err(text)
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), String> {
        self.0.remove_network(id).await.map_err(text)
    }
}

/// Returns whether the network's containers have no way out.
pub(crate) fn is_internal(config: &NetworkConfig) -> bool {
    config.labels.get(INTERNAL_LABEL).is_some_and(|value| value == "true")
}

/// Returns the labels of a network in the store that Docker made.
pub(crate) fn labels(network: &ShownNetwork) -> BTreeMap<String, String> {
    let mut labels = network.labels.clone();
    labels.retain(|key, _| !key.starts_with(OWN_LABELS));
    let options = network.options.iter().filter(|(key, _)| *key != NETWORK);
    labels.extend(options.map(|(key, value)| (format!("{OPTION_LABEL}{key}"), value.clone())));
    if network.internal {
        labels.insert(INTERNAL_LABEL.to_owned(), "true".to_owned());
    }
    labels
}

fn shown(network: Network) -> ShownNetwork {
    let subnets: BTreeSet<IpNetwork> = network
        .ipam
        .and_then(|ipam| ipam.config)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|config| config.subnet?.parse().ok())
        .collect();
    let options: BTreeMap<String, String> = network.options.unwrap_or_default().into_iter().collect();
    ShownNetwork {
        id: network.id.unwrap_or_default(),
        name: network.name.unwrap_or_default(),
        driver: network.driver.unwrap_or_default(),
        tied: options.get(NETWORK).and_then(|name| name.parse().ok()),
        subnets: subnets.into_iter().collect(),
        labels: network.labels.unwrap_or_default().into_iter().collect(),
        options,
        internal: network.internal.unwrap_or_default(),
    }
}

fn memberships(container: ContainerSummary) -> Vec<Member> {
    let id = container.id.unwrap_or_default();
    let name = container.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let member = |(network, settings): (String, EndpointSettings)| {
        let addresses = [settings.ip_address, settings.global_ipv6_address];
        Member {
            id: id.clone(),
            name: name.trim_start_matches('/').to_owned(),
            network: settings.network_id.filter(|id| !id.is_empty()).unwrap_or(network),
            endpoint: settings.endpoint_id.filter(|id| !id.is_empty()),
            addresses: addresses.into_iter().flatten().filter_map(|address| address.parse().ok()).collect(),
        }
    };
    networks.into_iter().map(member).collect()
}

fn text(reason: Error) -> String {
    match reason {
        Error::DockerResponseServerError { message, .. } => message,
        reason => reason.to_string(),
    }
}
