//! From the command line to the event loop: config, interface, backend, lease.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::Context;
use flan_agent_api::{Code, EmbeddedStore, OnlyAgent, StoreArgs, SubnetEnv, Urls, urls};
use flan_backends::{Abilities, Backend, Gateways};
use flan_kernel::{Ruleset, State, firewall, netlink};
use flan_subnet_lease::{
    Admission, Caution, Claim, ConfigError, Keeper, Lease, LeaseAttributes, LeaseSet, Listing, NetworkConfig,
    NodeIdentity, OwnLease, Store, Subnets, Watcher,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::backend::{self, Chosen};
use super::overlaps::NetworkWatch;
use super::peers::{Teller, Unreached};
use super::underlay::UnderlayWatch;
use super::{Daemon, Options, reservation};
use crate::args::Args;
use crate::embedded::{self, Embedded};
use crate::interface::{self, External, Held, InterfaceError};
use crate::lookout::Lookout;
use crate::reconcile::Reconciler;
use crate::refused::refused;
use crate::status::{self, SharedStatus};
use crate::{notify, rights};

/// How often the network config is looked at.
const CONFIG_CHECK: Duration = Duration::from_secs(30);
/// Why anybody can send.
const UNCHECKED: &str = "this kernel has no nftables (CONFIG_NF_TABLES), so packets of the overlay are taken from whoever sends \
                         them: let only the other hosts reach its port, or start fland with --source-check=false";
/// Lease events that may wait for the event loop; the watch pauses when there are more.
const EVENTS: usize = 64;

/// Starts the agent and runs it; before it the store, where this host carries it. Waits without end for the store, the
/// network config and a free subnet, and says so.
///
/// # Errors
/// [`RefusedSetting`](crate::refused::RefusedSetting), or what made it impossible to go on.
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
    // The other hosts need the store whatever this one waits for: systemd shall not end a start that takes long.
    notify::ready();
    tokio::select! {
        outcome = join(args, renew_margin, status) => outcome,
        reason = embedded.failed() => Err(reason),
    }
}

/// Joins this host to the others, and goes on until something makes that impossible.
async fn join(args: Args, renew_margin: Option<Duration>, status: SharedStatus) -> anyhow::Result<()> {
    let store = Store::new(args.store.config().map_err(refused)?).map_err(refused)?;
    tokio::spawn(watch_user(store.clone(), status.clone()));
    let config = network_config(&store, &args.store, &status).await;
    // The store is asked for the leases while the kernel is asked for what it holds.
    let listing = tokio::spawn(list(store.clone()));
    let (external, doubt) = interface::find(&args, &config).await.map_err(|error| match error {
        InterfaceError::Kernel(_) => anyhow::Error::new(error),
        error => refused(error),
    })?;
    info!(
        interface = %external.underlay.link, mtu = external.underlay.mtu,
        addresses = ?external.underlay.addresses.values().collect::<Vec<_>>(), "external interface",
    );
    status.report(Code::DoubtfulAddress, doubt);

    let kernel = netlink::Linux::new().context("cannot speak to the kernel")?;
    let nftables = netlink::has_nftables();
    let abilities = Abilities {
        gateways: match netlink::has_next_hops().await.context("cannot speak to the kernel")? {
            true => Gateways::Objects,
            false => Gateways::Inline,
        },
        checks_senders: args.source_check && nftables,
    };
    if args.source_check && backend::udp_port(&config).is_some() {
        status.report(Code::UncheckedSenders, (!nftables).then(|| UNCHECKED.to_owned()));
    }
    let mut reconciler =
        Reconciler::new(kernel, firewall::Linux::new(), backend::ownership(&config, nftables));
    reconciler.set_underlay(external.underlay.link);
    let actual = reconciler.read_now().await.context("cannot read the kernel's state")?;
    let node = args.identity();
    let seed = node.id.as_deref().or(node.host.as_deref()).unwrap_or_default().to_owned();
    let Chosen { backend, datapath } =
        backend::choose(&config, &args.udp_without, &external.underlay, abilities, &seed, &actual)
            .map_err(refused)?;
    drop(actual);

    let previous = previous(&args);
    let mut networks = NetworkWatch::start(&config, previous, external.underlay.link).await;
    let node_id = node.id.clone();
    let claim = Claim {
        config: config.clone(),
        attributes: attributes(&external, node, &config, &*backend),
        previous,
        addresses: networks.addresses(),
        networks: networks.subscribe(),
        overlap: args.subnet_overlap.into(),
        ttl: args.subnet_lease_ttl,
        renew_margin,
    };
    let (attributes, published) = watch::channel(claim.attributes.clone());
    waiting(&status, "a lease");
    let listing = listing.await.ok().flatten();
    let acquired = Keeper::acquire(store.clone(), claim, listing, |reason| {
        waiting(&status, &format!("a lease: {reason}"));
    });
    let (keeper, listing) = tokio::select! {
        acquired = acquired => acquired,
        never = networks.keep_reading() => match never {},
    };
    let held = keeper.held().clone();
    if let Some(before) = previous.filter(|before| *before != held.subnets) {
        warn!(%before, now = %held.subnets, "this host has another subnet than before: restart Docker, or containers stay cut off");
    }
    let own = OwnLease {
        subnets: held.subnets,
        addresses: external.own_addresses(),
        identities: config.backend.identities(&backend.lease_data()),
        node_id,
    };
    status.update(|status| {
        status.backend = config.backend.name();
        status.mtu = backend.mtu();
        status.public_ips = external.public_ips.values().map(ToString::to_string).collect();
    });

    waiting(&status, "the list of leases");
    let (own_key, seen_key) = watch::channel(Some(held.mod_revision));
    let (holding_sender, holding) = watch::channel(keeper.holding());
    let twin = keeper.holding().twin;
    let (event_sender, event_receiver) = mpsc::channel(EVENTS);
    tokio::spawn(async move { keeper.hold(seen_key, published, &holding_sender).await });
    tokio::spawn(Watcher::behind(store.leases(), listing).run(event_sender));
    tokio::spawn(watch_config(store.clone(), config.clone(), status.clone()));
    tokio::spawn(reservation::watch(
        store.clone(),
        args.store.clone(),
        holding.clone(),
        attributes.subscribe(),
        CONFIG_CHECK,
        status.clone(),
    ));

    let options = Options {
        subnet_file: args.subnet_file.path.clone(),
        ip_masq: args.ip_masq,
        forward_rules: args.iptables_forward_rules,
        blackhole_route: args.ip_blackhole_route,
        resync_interval: args.resync_interval,
    };
    let caution = Caution { percent: args.mass_loss_percent, grace: args.mass_loss_grace };
    let daemon = Daemon {
        options,
        backend,
        datapath,
        underlay: UnderlayWatch {
            args,
            external,
            held: Held::default(),
            is_second_choice: false,
            abilities,
            seed,
            attributes,
            store,
            // What there was at the start is what later looks compare with.
            due: Some(Instant::now()),
            problem: None,
        },
        reconciler,
        host: State::default(),
        leases: LeaseSet::new(Admission { config, own: Some(own) }, caution),
        own_key,
        networks,
        twin,
        unreached: Unreached::default(),
        teller: Teller::default(),
        lookout: Lookout::start(status.clone()),
        status,
        rules: Ruleset::default(),
        rules_due: false,
        due: None,
        read_due: None,
        tidy_due: None,
        failures: 0,
        ready: false,
    };
    daemon.run(event_receiver, holding).await
}

/// All leases, if the store gives them at the first time of asking; who needs them asks again.
async fn list(store: Store) -> Option<Listing<Lease>> {
    store.leases().list().await.inspect_err(|reason| debug!(%reason, "cannot list the leases yet")).ok()
}

/// The network config, as soon as there is one that this agent can work with.
async fn network_config(store: &Store, flags: &StoreArgs, status: &SharedStatus) -> NetworkConfig {
    let place = format!("{}/config in the store at {}", store.prefix(), store.endpoints());
    let what = format!("the network config at {place}");
    waiting(status, &what);
    for failures in 1.. {
        let problem = match store.config().await {
            Ok(Some(stored)) => match usable(&stored.json) {
                Ok(config) => {
                    status.report(Code::DoubtfulConfig, doubts(&config));
                    return config;
                }
                Err(reason) => {
                    error!(%reason, "cannot work with the network config at {place}");
                    reason.to_string()
                }
            },
            Ok(None) => {
                let flags = flags.as_typed();
                warn!(
                    "there is no network config at {place}; write one with: flanctl{flags} config set FILE"
                );
                "there is none".to_owned()
            }
            Err(reason) => {
                warn!(%reason, "cannot read the network config");
                reason.to_string()
            }
        };
        waiting(status, &format!("{what}: {problem}"));
        tokio::time::sleep(super::retry_after(failures).min(Duration::from_secs(10))).await;
    }
    unreachable!("the loop above has no end")
}

/// Tells when the network config is no longer the one that we run with. Ends with the process.
async fn watch_config(store: Store, ours: NetworkConfig, status: SharedStatus) {
    let mut told = None;
    loop {
        tokio::time::sleep(CONFIG_CHECK).await;
        // A store that cannot be reached is told of by the watch on the leases.
        let Ok(now) = store.config().await else { continue };
        let problem = match still_ours(now.as_ref().map(|now| now.json.as_slice()), &ours) {
            // It may be written better than at our start.
            Ok(now) => {
                status.report(Code::DoubtfulConfig, doubts(&now));
                None
            }
            Err(problem) => Some(problem),
        };
        if problem != told {
            match problem {
                Some(problem) => warn!("{problem}"),
                None => info!("the network config is the one that this agent runs with again"),
            }
            told = problem;
            status.update(|status| status.config_problem = problem.map(str::to_owned));
        }
    }
}

/// Tells while the store has no use for our user. Ends with the process.
async fn watch_user(store: Store, status: SharedStatus) {
    let mut ignored = store.user_ignored();
    loop {
        let is_ignored = *ignored.borrow_and_update();
        status.report(Code::AuthenticationOff, is_ignored.then(|| store.user_ignored_text()));
        if ignored.changed().await.is_err() {
            return;
        }
    }
}

/// The stored config, if it says what we run with, however it is written; or how it is another.
fn still_ours(stored: Option<&[u8]>, ours: &NetworkConfig) -> Result<NetworkConfig, &'static str> {
    let stored =
        stored.ok_or("the network config is gone from the store; this agent could not start again")?;
    NetworkConfig::parse(stored)
        .ok()
        .filter(|now| now.agrees_with(ours))
        .ok_or("the network config has changed; this agent runs with the old one until it is restarted")
}

/// The config, if this agent can run it.
fn usable(json: &[u8]) -> Result<NetworkConfig, ConfigError> {
    let config = NetworkConfig::parse(json)?;
    config.supported()?;
    Ok(config)
}

/// All that is doubtful about the config, in one text.
fn doubts(config: &NetworkConfig) -> Option<String> {
    let texts: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    Some(texts.join(". Also, ")).filter(|text| !text.is_empty())
}

/// What peers need to know of us.
fn attributes(
    external: &External,
    node: NodeIdentity,
    config: &NetworkConfig,
    backend: &dyn Backend,
) -> LeaseAttributes {
    LeaseAttributes {
        public_ips: external.public_ips,
        backend: config.backend.lease_type().map(Cow::Borrowed),
        data: backend.lease_data(),
        node,
        other: None,
    }
}

/// The subnets that the subnet file names.
fn previous(args: &Args) -> Option<Subnets> {
    let file = args.subnet_file.path.display();
    match SubnetEnv::load(&args.subnet_file.path) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const TACIT: &[u8] = br#"{"Network":"10.5.0.0/16","SubnetLenn":24}"#;

    #[test]
    fn a_config_that_this_agent_does_not_run_is_refused_as_flanctl_refuses_it() {
        let both = br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48",
            "Backend":{"Type":"udp"}}"#;
        let wireguard = br#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#;
        for json in [both.as_slice(), wireguard] {
            let judged = NetworkConfig::parse(json).unwrap().supported().unwrap_err();
            assert_eq!(usable(json).unwrap_err().to_string(), judged.to_string());
        }
        assert_eq!(usable(TACIT).unwrap().backend.name(), "udp");
    }

    #[test]
    fn all_doubts_are_one_problem_and_none_is_none() {
        let doubts = doubts(&usable(TACIT).unwrap()).unwrap();
        assert!(doubts.starts_with("the network config names no Backend: flannel takes udp"), "{doubts}");
        assert!(doubts.contains(". Also, the network config has the field SubnetLenn"), "{doubts}");
        let plain = br#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
        assert_eq!(super::doubts(&usable(plain).unwrap()), None);
    }

    #[test]
    fn a_config_that_is_written_better_has_not_changed() {
        let ours = usable(TACIT).unwrap();
        let better = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}"#;
        assert_eq!(still_ours(Some(better), &ours).unwrap().warnings, []);
        let other = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        assert!(still_ours(Some(other), &ours).unwrap_err().contains("has changed"));
        assert!(still_ours(Some(b"{"), &ours).unwrap_err().contains("has changed"));
        assert!(still_ours(None, &ours).unwrap_err().contains("is gone"));
    }
}
