//! Starts the agent from its command line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flan_agent_api::{EmbeddedStore, OnlyAgent, SubnetEnv, Urls, urls};
use flan_backends::{Abilities, Gateways, Holdings};
use flan_kernel::{Kernel, Ownership, firewall, netlink};
use flan_probes::Settings;
use flan_subnet_lease::{HeldLease, Lease, NetworkName, NodeIdentity, Store, Subnets, release};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Daemon;
use super::docker::Docker;
use super::joined_file::JoinedFile;
use super::membership::{Membership, Reason};
use super::names::Names;
use super::store::{Reports, watch_user};
use crate::agent::Agent;
use crate::args::Args;
use crate::embedded::{self, Embedded};
use crate::host::Host;
use crate::lookout::Lookout;
use crate::network::Network;
use crate::refused::refused;
use crate::status::metrics::Figures;
use crate::status::{self, SharedStatus};
use crate::{notify, probing, rights};

/// Runs the agent, and before it the embedded store, if configured. Waits indefinitely for the store, the network
/// config and a free subnet, and logs what it waits for.
///
/// # Errors
/// [`RefusedSetting`](crate::refused::RefusedSetting), or the failure that ended the agent.
pub async fn run(mut args: Args) -> anyhow::Result<()> {
    let renew_margin = args.renew_margin().map_err(refused)?;
    args.store.config().map_err(refused)?;
    let settings = args.embedded.settings(&args.store).map_err(refused)?;
    if let Some((_, twice)) =
        args.networks.iter().enumerate().find(|(at, name)| args.networks[..*at].contains(name))
    {
        return Err(refused(format!("--networks names {twice} twice")));
    }
    rights::check()?;
    if let Some(settings) = &settings {
        embedded::ensure_reachable(settings, &args.store).map_err(refused)?;
    }
    let _only = OnlyAgent::claim()?
        .ok_or_else(|| refused("another fland runs on this host already; stop it first"))?;
    let status = SharedStatus::default();
    if args.healthz_port != 0 {
        let address = std::net::SocketAddr::new(args.healthz_ip, args.healthz_port);
        status::serve(address, status.clone()).await.map_err(|reason| {
            refused(format!("cannot listen on {address} (--healthz-ip, --healthz-port): {reason}"))
        })?;
    }
    let Some(settings) = settings else { return join(args, renew_margin, status, None).await };
    let mut embedded = Embedded::start(settings).await?;
    let local = urls::local_url(embedded.urls().iter().map(String::as_str));
    args.store.etcd_endpoints.extend(local.map(Urls::from));
    status.update(|status| {
        let (data_dir, listen) = (embedded.data_dir().to_owned(), embedded.urls().to_vec());
        status.embedded_store = Some(EmbeddedStore { data_dir, listen });
    });
    let figures = embedded.figures().clone();
    // Other hosts need the store, so systemd must not time out this start whatever the agent waits for.
    notify::ready();
    tokio::select! {
        outcome = join(args, renew_margin, status, Some(figures)) => outcome,
        reason = embedded.failed() => Err(reason),
    }
}

/// Joins this host to the network. Returns only on failure.
async fn join(
    args: Args,
    renew_margin: Option<Duration>,
    status: SharedStatus,
    embedded: Option<flan_embedded_store::Figures>,
) -> anyhow::Result<()> {
    let store = Store::new(args.store.config().map_err(refused)?).map_err(refused)?;
    status.set_figures(Figures::new(store.figures().clone(), embedded));
    let mut kernel = netlink::Linux::new().context("cannot reach the kernel over netlink")?;
    let nftables = netlink::has_nftables();
    let abilities = Abilities {
        gateways: match netlink::has_next_hops().await.context("cannot reach the kernel over netlink")? {
            true => Gateways::Objects,
            false => Gateways::Inline,
        },
        checks_senders: args.source_check && nftables,
    };
    let ((ask, asked), (tell, told)) = (mpsc::channel(1), mpsc::channel(1));
    if let Err(reason) = status::socket::serve(&args.socket.path, status.clone(), ask, tell) {
        warn!(socket = %args.socket.path.display(), %reason, "flanctl cannot ask this agent");
    }
    let args = Arc::new(args);
    tokio::spawn(watch_user(store.clone(), status.clone()));
    let (mut networks, mut tasks, mut reports) = (Vec::new(), BTreeMap::new(), Reports::new());
    let path = args.state_dir.join("networks");
    let joined =
        JoinedFile::load(path.clone()).map_err(|reason| refused(format!("{}: {reason}", path.display())))?;
    let (demand, demands) = mpsc::unbounded_channel();
    let docker = Docker::prepare(&args, &store, demand)?;
    let serves_names = docker.is_some() && args.names.names;
    let mut membership =
        Membership::new(args.clone(), store.clone(), status.clone(), renew_margin, joined, serves_names);
    let needed = docker.as_ref().map(|docker| docker.driver.needed()).unwrap_or_default();
    let reasons = [
        (Reason::Flag, args.networks.clone()),
        (Reason::Operator, membership.joined.networks.iter().cloned().collect()),
        (Reason::Docker, needed.into_iter().collect()),
    ];
    let mut named: Vec<(NetworkName, BTreeSet<Reason>)> = Vec::new();
    for (reason, networks) in reasons {
        for network in networks {
            match named.iter_mut().find(|(name, _)| *name == network) {
                Some((_, reasons)) => {
                    reasons.insert(reason);
                }
                None => named.push((network, [reason].into())),
            }
        }
    }
    let wanted: BTreeSet<NetworkName> = named.iter().map(|(name, _)| name.clone()).collect();
    let named = named.into_iter().map(|(name, reasons)| (Some(name), reasons));
    for (name, reasons) in std::iter::once((None, BTreeSet::new())).chain(named) {
        let (network, of_network) = membership.begin(name.as_ref(), reasons, &mut reports);
        tasks.insert(network.id(), of_network);
        networks.push(network);
    }
    let mut host = Host::new(args.clone(), abilities, nftables, status.clone());
    let previous = networks.iter().filter_map(Network::previous);
    host.reconciler.own(&held_before(&mut kernel, previous.collect(), &args, &store, &wanted).await);
    let names = docker.as_ref().filter(|_| serves_names);
    let names = names.map(|docker| Names::start(&args, &store, &docker.driver, status.clone()));
    let probes = Settings { rate: args.probes.probe_rate, port: args.probes.probe_port };
    let prober = probing::start(probes, status.default_network().clone());
    status.set_prober(prober.view());
    let summary =
        super::summary::publish(store.clone(), args.identity(), status.clone(), args.publish_status);
    tokio::spawn(summary);
    let daemon = Daemon {
        agent: Agent::new(host, networks),
        args,
        kernel,
        firewall: firewall::Linux::new(),
        store,
        tasks,
        membership,
        demands,
        names,
        told,
        lookout: Lookout::start(status.clone()),
        prober,
        asked,
        reading: None.into(),
        reading_networks: None.into(),
    };
    if let Some(docker) = docker {
        docker.start(status);
    }
    daemon.run(reports).await
}

/// Returns what this host holds of ours, by whatever config: what no network wants goes once their leases are known.
async fn held_before(
    kernel: &mut impl Kernel,
    mut subnets: Vec<Subnets>,
    args: &Args,
    store: &Store,
    wanted: &BTreeSet<NetworkName>,
) -> Ownership {
    let left = left_networks(args, wanted);
    subnets.extend(left.iter().map(|(_, _, subnets)| subnets));
    let holdings = match Holdings::read(kernel, &subnets).await {
        Ok(holdings) => holdings,
        Err(reason) => {
            warn!(%reason, "cannot look for devices that another network config left");
            return Ownership::default();
        }
    };
    for (name, file, subnets) in left {
        tokio::spawn(release_left(store.network(&name), subnets, args.identity()));
        // The next start looks again whether all is gone.
        if holdings.has_device_of(&subnets) {
            info!(network = %name, "this host leaves this network: nothing needs it any more");
        } else if let Err(reason) = std::fs::remove_file(&file) {
            warn!(file = %file.display(), %reason, "cannot delete the subnet file of a network that this host has left");
        }
    }
    holdings.ownership()
}

/// Releases this host's lease in a network that it is to be in no longer, unless it is a reservation.
async fn release_left(store: Store, subnets: Subnets, node: NodeIdentity) {
    let leases = match store.leases().list().await {
        Ok(leases) => leases,
        Err(reason) => {
            return warn!(%reason, %subnets, "cannot release the lease of a network that this host has left");
        }
    };
    let is_ours =
        |lease: &&Lease| lease.subnets == subnets && node.id.is_some() && lease.attributes.node.id == node.id;
    for lease in leases.readable().filter(is_ours) {
        let Lease { subnets, etcd_lease, mod_revision, .. } = *lease;
        release(&store, &HeldLease { subnets, etcd_lease, mod_revision }).await;
    }
}

/// Returns the networks that this host was in and is to be in no longer, with their subnet files.
fn left_networks(args: &Args, wanted: &BTreeSet<NetworkName>) -> Vec<(NetworkName, PathBuf, Subnets)> {
    let files = args.subnet_dir.files().unwrap_or_else(|reason| {
        warn!(directory = %args.subnet_dir.path.display(), %reason, "cannot read the subnet files of networks");
        Vec::new()
    });
    let is_left =
        |(name, file): &(NetworkName, PathBuf)| !wanted.contains(name) && *file != args.subnet_file.path;
    let with_subnets = |(name, file): (NetworkName, PathBuf)| {
        let subnets = previous(&file).and_then(|env| env.subnets())?;
        Some((name, file, subnets))
    };
    files.into_iter().filter(is_left).filter_map(with_subnets).collect()
}

/// Returns the content of a subnet file.
pub(super) fn previous(file: &Path) -> Option<SubnetEnv> {
    SubnetEnv::load(file).unwrap_or_else(|reason| {
        let file = file.display();
        warn!(%file, %reason, "cannot read this host's previous subnet from the subnet file");
        None
    })
}
