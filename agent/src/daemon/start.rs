//! Starts the agent from its command line.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flan_agent_api::{EmbeddedStore, OnlyAgent, SubnetEnv, Urls, urls};
use flan_backends::{Abilities, Gateways, Holdings};
use flan_kernel::{Kernel, Ownership, firewall, netlink};
use flan_subnet_lease::{Store, Subnets};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use super::store::StoreTasks;
use super::{Daemon, NETWORK};
use crate::agent::Agent;
use crate::args::Args;
use crate::embedded::{self, Embedded};
use crate::host::Host;
use crate::lookout::Lookout;
use crate::network::{Network, Settings, UdpRunner, WireguardRunner};
use crate::refused::refused;
use crate::status::{self, SharedStatus};
use crate::{notify, rights, wireguard};

/// Runs the agent, and before it the embedded store, if configured. Waits indefinitely for the store, the network
/// config and a free subnet, and logs what it waits for.
///
/// # Errors
/// [`RefusedSetting`](crate::refused::RefusedSetting), or the failure that ended the agent.
pub async fn run(mut args: Args) -> anyhow::Result<()> {
    let renew_margin = args.renew_margin().map_err(refused)?;
    args.store.config().map_err(refused)?;
    let settings = args.embedded.settings(&args.store).map_err(refused)?;
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
    let Some(settings) = settings else { return join(args, renew_margin, status).await };
    let mut embedded = Embedded::start(settings).await?;
    let local = urls::local_url(embedded.urls().iter().map(String::as_str));
    args.store.etcd_endpoints.extend(local.map(Urls::from));
    status.update(|status| {
        let (data_dir, listen) = (embedded.data_dir().to_owned(), embedded.urls().to_vec());
        status.embedded_store = Some(EmbeddedStore { data_dir, listen });
    });
    // Other hosts need the store, so systemd must not time out this start whatever the agent waits for.
    notify::ready();
    tokio::select! {
        outcome = join(args, renew_margin, status) => outcome,
        reason = embedded.failed() => Err(reason),
    }
}

/// Joins this host to the network. Returns only on failure.
async fn join(args: Args, renew_margin: Option<Duration>, status: SharedStatus) -> anyhow::Result<()> {
    let store = Store::new(args.store.config().map_err(refused)?).map_err(refused)?;
    let mut kernel = netlink::Linux::new().context("cannot reach the kernel over netlink")?;
    let nftables = netlink::has_nftables();
    let abilities = Abilities {
        gateways: match netlink::has_next_hops().await.context("cannot reach the kernel over netlink")? {
            true => Gateways::Objects,
            false => Gateways::Inline,
        },
        checks_senders: args.source_check && nftables,
    };
    let (ask, asked) = mpsc::channel(1);
    if let Err(reason) = status::socket::serve(&args.socket.path, status.clone(), ask) {
        warn!(socket = %args.socket.path.display(), %reason, "flanctl cannot ask this agent");
    }
    let previous = previous(&args);
    let settings = Settings {
        place: format!("{}/config in the store at {}", store.prefix(), store.endpoints()),
        flags: args.store.as_typed(),
        previous,
        node: args.identity(),
        renew_margin,
        datapath: UdpRunner::boxed,
        wireguard_datapath: WireguardRunner::boxed,
        kernel_path: netlink::check_fou,
        kernel_wireguard: wireguard::check_kernel,
        wireguard_key: wireguard::key,
    };
    let args = Arc::new(args);
    let (tasks, reports) = StoreTasks::start(store, args.store.clone(), status.clone());
    let network = Network::new(NETWORK, args.clone(), status.clone(), settings, Instant::now());
    let mut host = Host::new(args.clone(), abilities, nftables, status.clone());
    host.reconciler.own(&held_before(&mut kernel, previous.as_ref()).await);
    let daemon = Daemon {
        agent: Agent::new(host, vec![network]),
        args,
        kernel,
        firewall: firewall::Linux::new(),
        store: tasks,
        lookout: Lookout::start(status),
        asked,
        reading: None.into(),
        reading_networks: None.into(),
    };
    daemon.run(reports).await
}

/// Returns what this host holds of ours, by whatever config: what the network does not want goes once its leases are known.
async fn held_before(kernel: &mut impl Kernel, previous: Option<&Subnets>) -> Ownership {
    match Holdings::read(kernel, previous).await {
        Ok(holdings) => holdings.ownership(),
        Err(reason) => {
            warn!(%reason, "cannot look for devices that another network config left");
            Ownership::default()
        }
    }
}

/// Returns the subnets in the subnet file.
fn previous(args: &Args) -> Option<Subnets> {
    let file = args.subnet_file.path.display();
    match SubnetEnv::load(&args.subnet_file.path) {
        Ok(env) => env?.subnets(),
        Err(reason) => {
            warn!(%file, %reason, "cannot read this host's previous subnet from the subnet file");
            None
        }
    }
}
