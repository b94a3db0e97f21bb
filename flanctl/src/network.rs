//! `flanctl network`: the networks beside the default one, and which hosts have joined them.

pub(crate) mod known;

use std::collections::BTreeMap;
use std::path::Path;

use flan_agent_api::API_VERSION;
use flan_subnet_lease::{
    NetworkConfig, NetworkName, NewNetwork, NotCreated, Store, StoredNetwork, shown, vni_of,
};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use self::known::{DEFAULT, find, warn_of};
use crate::agent;
use crate::args::{CreateArgs, Form, ReportForm};
use crate::config;
use crate::failure::{Failure, Kind};
use crate::output;
use crate::table;

/// Number of concurrent requests for the hosts of networks.
const AT_ONCE: usize = 16;

/// Creates a network.
pub(crate) async fn create(store: &Store, args: &CreateArgs) -> Result<(), Failure> {
    let asked = NewNetwork {
        subnets: args.subnet.clone(),
        backend: args.backend.clone(),
        subnet_len: args.subnet_len,
        ipv6_subnet_len: args.ipv6_subnet_len,
        vni: args.vni,
        labels: args.label.iter().cloned().collect(),
    };
    let meant = store.create(&args.name, &asked, warn_of).await.map_err(refused)?;
    let vni = vni_of(&meant).map(|vni| format!(", VNI {vni}")).unwrap_or_default();
    output::print(&format!("created network {}: {}{vni}", args.name, config::describe(&meant)))
}

pub(crate) fn refused(reason: NotCreated) -> Failure {
    match reason {
        NotCreated::Store(reason) => reason.into(),
        reason => Failure::new(Kind::Refused, reason),
    }
}

/// Joins this host to a network that is in the store.
pub(crate) async fn join(whole: &Store, name: &NetworkName, socket: &Path) -> Result<(), Failure> {
    find(&whole.network(name), name).await?;
    agent::post(socket, &format!("/networks/{name}/join")).await?;
    output::print(&format!("this host joins network {name}"))
}

/// Takes this host out of a network.
pub(crate) async fn leave(name: &NetworkName, socket: &Path) -> Result<(), Failure> {
    agent::post(socket, &format!("/networks/{name}/leave")).await?;
    output::print(&format!("this host leaves network {name}, unless its containers are in it"))
}

/// Removes a network.
pub(crate) async fn remove(whole: &Store, name: &NetworkName) -> Result<(), Failure> {
    let store = whole.network(name);
    let config = find(&store, name).await?;
    if whole.remove_network(&StoredNetwork { name: name.clone(), config }).await? {
        return output::print(&format!("removed network {name}"));
    }
    let holders = holders(&store).await?;
    let message = match holders.is_empty() {
        true => {
            format!(
                "somebody else wrote the config of network {name}; nothing was removed, look and try again"
            )
        }
        false => format!(
            "network {name} has {}: {}; nothing was removed. A host leaves when its last \
             container does, by flanctl network leave, or when its fland runs without {name} among its --networks",
            output::count(holders.len(), "lease"),
            output::some(&holders)
        ),
    };
    Err(Failure::new(Kind::Refused, message))
}

/// Prints all networks.
pub(crate) async fn list(store: &Store, form: Form) -> Result<(), Failure> {
    let seen = store.networks().await?;
    let default = store.config().await?.map(|stored| (DEFAULT.to_owned(), store.clone(), stored));
    let named = seen
        .all
        .into_iter()
        .map(|network| (network.name.to_string(), store.network(&network.name), network.config));
    let items: Vec<Item> = futures::stream::iter(default.into_iter().chain(named))
        .map(|(name, store, stored)| async move {
            let hosts = store.leases().count().await?;
            Ok::<_, Failure>(Item::new(name, &stored.json, hosts))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let list = List { api_version: API_VERSION, kind: "NetworkList", items };
    match form {
        Form::Json => output::print_json(&list),
        Form::Yaml => output::print_yaml(&list),
        Form::Table | Form::Wide if list.items.is_empty() => {
            output::print(&format!("no network below {}", store.prefix()))
        }
        Form::Table | Form::Wide => output::print(&list.table(form == Form::Wide)),
    }
}

/// Prints one network.
pub(crate) async fn inspect(whole: &Store, name: &NetworkName, form: ReportForm) -> Result<(), Failure> {
    let store = whole.network(name);
    let config = find(&store, name).await?;
    let holders = holders(&store).await?;
    let item = Item::new(name.to_string(), &config.json, holders.len() as u64);
    let containers = store.containers().list().await?;
    let containers = containers.readable().map(|container| ContainerItem {
        name: shown(&container.name).into_owned(),
        host: container.host.as_deref().map(|host| shown(host).into_owned()),
        addresses: container.addresses.iter().map(ToString::to_string).collect(),
    });
    let containers = containers.collect();
    let shown = Inspected { api_version: API_VERSION, kind: "Network", item, joined: holders, containers };
    match form {
        ReportForm::Json => output::print_json(&shown),
        ReportForm::Yaml => output::print_yaml(&shown),
        ReportForm::Text => output::print(&shown.text()),
    }
}

/// Returns who has joined a network: a name or an address for each lease, or the key of one that cannot be read.
async fn holders(store: &Store) -> Result<Vec<String>, Failure> {
    let leases = store.leases().list().await?;
    let who = leases.items.iter().map(|read| match read {
        Ok(lease) => shown(&lease.attributes.holder()).into_owned(),
        Err(bad) => format!("{} (unreadable)", shown(&bad.entry.key)),
    });
    Ok(who.collect())
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    api_version: &'static str,
    kind: &'static str,
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspected {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    item: Item,
    /// The hosts that have joined it.
    joined: Vec<String>,
    /// The containers that Docker attached to it.
    containers: Vec<ContainerItem>,
}

#[derive(Debug, Serialize)]
struct ContainerItem {
    name: String,
    host: Option<String>,
    addresses: Vec<String>,
}

/// A network, for people and programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    name: String,
    /// Its addresses, one for each family; empty if its config cannot be used.
    subnets: Vec<String>,
    backend: Option<&'static str>,
    vni: Option<u32>,
    labels: BTreeMap<String, String>,
    /// Number of leases.
    hosts: u64,
    /// Why its config cannot be used.
    problem: Option<String>,
}

impl Item {
    fn new(name: String, json: &[u8], hosts: u64) -> Self {
        match NetworkConfig::parse(json) {
            Ok(config) => Self {
                name,
                subnets: config.networks().map(|(_, network)| network.to_string()).collect(),
                backend: Some(config.backend.name()),
                vni: vni_of(&config),
                labels: config.labels,
                hosts,
                problem: None,
            },
            Err(error) => {
                let (subnets, labels) = Default::default();
                let problem = Some(error.to_string());
                Self { name, subnets, backend: None, vni: None, labels, hosts, problem }
            }
        }
    }

    fn labels(&self) -> String {
        self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }

    fn row(&self) -> [String; 5] {
        let vni = self.vni.map(|vni| vni.to_string());
        [
            self.name.clone(),
            table::or_dash(Some(self.subnets.join(",").as_str())),
            table::or_dash(self.problem.as_deref().or(self.backend)),
            table::or_dash(vni.as_deref()),
            self.hosts.to_string(),
        ]
    }
}

impl List {
    fn table(&self, wide: bool) -> String {
        let mut header = vec!["NAME", "SUBNETS", "BACKEND", "VNI", "HOSTS"];
        if wide {
            header.push("LABELS");
        }
        let rows = self.items.iter().map(|item| {
            let labels = wide.then(|| table::or_dash(Some(item.labels().as_str())));
            item.row().into_iter().chain(labels).collect()
        });
        table::plain(&header, rows)
    }
}

impl Inspected {
    fn text(&self) -> String {
        let [name, subnets, backend, vni, _] = self.item.row();
        let labels = table::or_dash(Some(self.item.labels().as_str()));
        let mut lines = vec![
            format!("name        {name}"),
            format!("subnets     {subnets}"),
            format!("backend     {backend}"),
            format!("vni         {vni}"),
            format!("labels      {labels}"),
            format!("hosts       {}", self.joined.len()),
        ];
        lines.extend(self.joined.iter().map(|host| format!("            {host}")));
        lines.push(format!("containers  {}", self.containers.len()));
        lines.extend(self.containers.iter().map(|container| {
            let host = table::or_dash(container.host.as_deref());
            format!("            {} on {host}: {}", container.name, container.addresses.join(", "))
        }));
        lines.join("\n")
    }
}
