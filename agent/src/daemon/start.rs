//! From the command line to the event loop: config, interface, backend, lease.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flan_backends::{Backend, Underlay, Vxlan};
use flan_kernel::{firewall, netlink};
use flan_subnet_lease::{
    Admission, BackendConfig, Claim, Family, Holding, Keeper, LeaseAttributes, LeaseSet, LeaseWatch,
    NetworkConfig, NodeIdentity, OwnLease, Store, Subnets, VxlanConfig,
};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{error, info, warn};

use super::peers::PeerLog;
use super::{Daemon, Options, notify};
use crate::args::Args;
use crate::interface::{self, External, InterfaceError};
use crate::node;
use crate::reconcile::{Reconciler, retry_after};
use crate::status::{self, SharedStatus};
use crate::subnet_env::SubnetEnv;

/// A setting that cannot work: the agent does not start with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RefusedSetting(String);

/// Lease events that may wait for the event loop; the watch pauses when there are more.
const EVENTS: usize = 64;

/// Starts the agent and runs it. Waits without end for the store, the network config and a free subnet, and says so.
///
/// # Errors
/// [`RefusedSetting`], or what made it impossible to go on.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let renew_margin = args.renew_margin().map_err(refused)?;
    let status = SharedStatus::default();
    if args.healthz_port != 0 {
        let address = SocketAddr::new(args.healthz_ip, args.healthz_port);
        status::serve(address, status.clone()).await.map_err(|reason| {
            refused(format!("cannot listen on {address} (--healthz-ip, --healthz-port): {reason}"))
        })?;
    }
    let store = Store::new(args.store.config()).map_err(refused)?;
    let (config, vxlan) = network_config(&store, &status).await;
    let families: Vec<Family> = config.networks().map(|(family, _)| family).collect();
    let external = interface::find(&args, &config).await.map_err(|error| match error {
        InterfaceError::Kernel(_) => anyhow::Error::new(error),
        error => refused(error),
    })?;
    info!(
        interface = %external.underlay.link, mtu = external.underlay.mtu,
        addresses = ?external.underlay.addresses.values().collect::<Vec<_>>(), "external interface",
    );

    let kernel = netlink::Linux::new().context("cannot speak to the kernel")?;
    let mut reconciler = Reconciler::new(kernel, firewall::Linux::new(), Vxlan::ownership_of(&vxlan));
    let node = node::identity(&args);
    let backend = backend(vxlan, &families, &external.underlay, &node, &mut reconciler).await?;

    let claim = claim(&args, &config, &external, node, &backend, renew_margin);
    waiting(&status, "a lease");
    let keeper = Keeper::acquire(store.clone(), claim).await;
    let held = keeper.held().clone();
    let addresses =
        external.public_ips.values().chain(external.underlay.addresses.values()).copied().collect();
    let own = OwnLease { subnets: held.subnets, addresses, macs: backend.macs() };
    status.update(|status| {
        status.backend = backend.name();
        status.mtu = backend.mtu();
        status.public_ips = external.public_ips.values().map(ToString::to_string).collect();
    });

    waiting(&status, "the list of leases");
    let suspicion = Arc::new(Notify::new());
    let (holding_sender, holding) = watch::channel(Holding { lease: held.clone(), problem: None });
    let (event_sender, event_receiver) = mpsc::channel(EVENTS);
    let noticed = suspicion.clone();
    tokio::spawn(async move { keeper.hold(&noticed, &holding_sender).await });
    tokio::spawn(LeaseWatch::new(store).run(event_sender));

    let daemon = Daemon {
        options: Options {
            subnet_file: args.subnet_file,
            underlay: external.underlay.link,
            ip_masq: args.ip_masq,
            forward_rules: args.iptables_forward_rules,
            blackhole_route: args.ip_blackhole_route,
            resync_interval: args.resync_interval,
        },
        backend,
        reconciler,
        leases: LeaseSet::default(),
        admission: Admission { config, own: Some(own) },
        suspicion,
        own_revision: held.mod_revision,
        peer_log: PeerLog::default(),
        status,
        due: None,
        failures: 0,
        ready: false,
    };
    daemon.run(event_receiver, holding).await
}

/// The network config, as soon as there is one that this agent can work with.
async fn network_config(store: &Store, status: &SharedStatus) -> (NetworkConfig, VxlanConfig) {
    let place = format!("{}/config in etcd at {}", store.prefix(), store.endpoints());
    waiting(status, &format!("the network config at {place}"));
    for failures in 1.. {
        match store.config().await {
            Ok(Some(stored)) => match usable(&stored.json) {
                Ok(usable) => return usable,
                Err(reason) => error!(reason, "cannot work with the network config at {place}"),
            },
            Ok(None) => {
                warn!("there is no network config at {place}; write one with: flanctl config set FILE");
            }
            Err(reason) => warn!(%reason, "cannot read the network config"),
        }
        tokio::time::sleep(retry_after(failures).min(Duration::from_secs(10))).await;
    }
    unreachable!("the loop above has no end")
}

fn usable(json: &[u8]) -> Result<(NetworkConfig, VxlanConfig), String> {
    let config = NetworkConfig::parse(json).map_err(|error| error.to_string())?;
    for field in &config.unknown_fields {
        warn!(field, "the network config has a field that nobody knows; it is ignored");
    }
    let BackendConfig::Vxlan(vxlan) = config.backend.clone() else {
        return Err(format!(
            "Backend.Type {:?} is not one that this fland has; \"vxlan\" is",
            config.backend.name()
        ));
    };
    if vxlan.direct_routing {
        warn!("Backend.DirectRouting is not supported yet: packets to every peer are encapsulated");
    }
    Ok((config, vxlan))
}

async fn backend<K: flan_kernel::Kernel, F: flan_kernel::Firewall>(
    config: VxlanConfig,
    families: &[Family],
    underlay: &Underlay,
    node: &NodeIdentity,
    reconciler: &mut Reconciler<K, F>,
) -> anyhow::Result<Vxlan> {
    let actual = reconciler.actual().await.context("cannot read the kernel's state")?;
    let seed = node.id.as_deref().or(node.host.as_deref()).unwrap_or_default();
    Vxlan::new(config, families.iter().copied(), underlay, seed, &actual).map_err(refused)
}

fn claim(
    args: &Args,
    config: &NetworkConfig,
    external: &External,
    node: NodeIdentity,
    backend: &Vxlan,
    renew_margin: Option<Duration>,
) -> Claim {
    Claim {
        config: config.clone(),
        attributes: LeaseAttributes {
            public_ips: external.public_ips,
            backend: Some(backend.name().to_owned()),
            data: backend.lease_data(),
            node,
            ..LeaseAttributes::default()
        },
        previous: previous(args),
        ttl: args.subnet_lease_ttl,
        renew_margin,
    }
}

/// The subnets that the subnet file names.
fn previous(args: &Args) -> Option<Subnets> {
    let file = args.subnet_file.display();
    match SubnetEnv::load(&args.subnet_file) {
        Ok(env) => env?.subnets(),
        Err(reason) => {
            warn!(%file, %reason, "cannot use the subnet file to find out what this host held before");
            None
        }
    }
}

fn waiting(status: &SharedStatus, what: &str) {
    status.update(|status| status.waiting_for = Some(what.to_owned()));
    notify::waiting(&format!("waiting for {what}"));
}

fn refused(reason: impl Into<Box<dyn std::error::Error>>) -> anyhow::Error {
    RefusedSetting(reason.into().to_string()).into()
}
