//! One network: reads its config, claims a lease, and then follows the leases of the peers.
//!
//! Methods receive events with the time and return [`Effect`]s. Nothing here waits. Only [`Datapath`] does I/O, and
//! `Settings::kernel_path`, which is asked once.

mod backend;
mod change;
mod clones;
mod config;
mod datapath;
mod event;
mod joined;
mod overlaps;
mod peers;
mod probed;
#[cfg(test)]
pub(crate) mod samples;
mod wireguard_runner;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flan_agent_api::{Code, PathInForce, WireguardKeyFile};
use flan_backends::{BackendError, Udp, Underlay, Wireguard, bridge};
use flan_kernel::netlink::FouLack;
use flan_kernel::{FamilyRules, LinkName, Ruleset, State};
use flan_subnet_lease::{
    BackendConfig, Claim, Holding, LeaseAttributes, NetworkConfig, NetworkName, NodeIdentity, OwnKey,
    OwnLease, PerFamily, Subnets, Terms, overlap,
};
use flan_wireguard_keys::{KeyFileError, PrivateKey};
use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Span, error, info, info_span, warn};

use self::backend::{Chosen, HostMeans};
use self::overlaps::Overlaps;
use crate::agent::{Effect, NetworkId};
use crate::args::Args;
use crate::due::Due;
use crate::host::Host;
use crate::refused::refused;
use crate::status::SharedNetwork;
use flan_host::interface::External;

pub use self::datapath::{Datapath, UdpRunner};
pub use self::event::{LeaseClaim, NetworkEffect, NetworkEvent};
pub(crate) use self::joined::Joined;
pub use self::wireguard_runner::WireguardRunner;

/// Interval between looks at the file of the WireGuard key.
const KEY_CHECK: Duration = Duration::from_secs(2);
/// Longest interval between attempts to begin with a config.
const CONFIG_WAIT: Duration = Duration::from_secs(10);
const UNCHECKED: &str = "this kernel has no nftables (CONFIG_NF_TABLES), so packets of the overlay are taken from whoever sends \
                         them: let only the other hosts reach its port, or start fland with --source-check=false";

/// Settings that stay the same while the agent runs.
#[derive(Debug)]
pub struct Settings {
    /// Its name; `None` for the default network.
    pub name: Option<NetworkName>,
    /// Its subnet file.
    pub file: PathBuf,
    /// Location of the config, for messages.
    pub place: String,
    /// Flags with which `flanctl` reaches the store, as typed: ` --etcd-endpoints http://...`.
    pub flags: String,
    /// The subnets in the subnet file.
    pub previous: Option<Subnets>,
    /// The networks in it.
    pub previous_networks: PerFamily<IpNetwork>,
    /// The subnets that this host had when it last left the network; it takes them again if they are free.
    pub preferred: Option<Subnets>,
    /// Whether containers are attached to a bridge that we make, from the start.
    pub has_bridge: bool,
    /// Whether containers of this host ask it for names, at an address of its own.
    pub has_resolver: bool,
    /// The identity of this host.
    pub node: NodeIdentity,
    /// Send a keepalive at least this long before the lease ends.
    pub renew_margin: Option<Duration>,
    /// Creates the data path of udp's user path.
    pub datapath: fn(Udp) -> Box<dyn Datapath>,
    /// Creates the data path of wireguard's user path.
    pub wireguard_datapath: fn(Wireguard) -> Box<dyn Datapath>,
    /// Whether the kernel can carry the udp backend's packets through a device of this name.
    pub kernel_path: fn(LinkName) -> Result<(), FouLack>,
    /// Whether the kernel has WireGuard, or what it lacks.
    pub kernel_wireguard: fn() -> Result<(), String>,
    /// Returns this host's WireGuard key, made if there is none.
    pub wireguard_key: fn(&WireguardKeyFile) -> Result<PrivateKey, KeyFileError>,
}

/// One network.
pub struct Network {
    id: NetworkId,
    args: Arc<Args>,
    status: SharedNetwork,
    settings: Settings,
    /// Whether the kernel can carry udp's packets, or what it lacks, once asked: a running host keeps its path.
    kernel_udp: OnceLock<Result<(), String>>,
    /// The same for wireguard.
    kernel_wireguard: OnceLock<Result<(), String>>,
    /// This host's WireGuard key, once it is needed.
    wireguard_key: Option<PrivateKey>,
    /// When to look whether it has changed.
    key_due: Due,
    phase: Phase,
    /// The config in the store, once read; `None` in it if there is none.
    stored: Option<Option<Vec<u8>>>,
    /// When to read it for the first time, or to try again what this host could not do with it.
    config_due: Due,
    /// Consecutive attempts that failed.
    failures: u32,
    /// The changed config to go over to, once the state of this host that it requires is known.
    next: Option<Box<NetworkConfig>>,
    /// Whether the store has no config.
    has_no_config: bool,
    /// Whether containers are to be attached to a bridge that we make.
    has_bridge: bool,
    /// Marks log lines of a network beside the default one.
    span: Span,
}

/// Progress of a network.
enum Phase {
    /// There is no usable config yet.
    Config,
    /// The state of this host is not known yet.
    Host(Box<NetworkConfig>),
    /// There is no lease yet.
    Lease(Box<Means>),
    /// This host takes part.
    Joined(Box<Joined>),
}

/// The network's parts on this host, and the channels to the keeper of the lease.
struct Means {
    id: NetworkId,
    args: Arc<Args>,
    status: SharedNetwork,
    /// The subnet file.
    file: PathBuf,
    /// Whether there is an address for the DNS server.
    has_resolver: bool,
    /// Marks log lines of a network beside the default one.
    span: Span,
    config: NetworkConfig,
    chosen: Chosen,
    node: NodeIdentity,
    external: External,
    terms: watch::Sender<Terms>,
    /// What the watch sees under our key.
    own_key: watch::Sender<OwnKey>,
    overlaps: Overlaps,
}

impl Network {
    /// Creates a network that has not started.
    pub fn new(
        id: NetworkId,
        args: Arc<Args>,
        status: SharedNetwork,
        settings: Settings,
        now: Instant,
    ) -> Self {
        let mut config_due = Due::default();
        config_due.at(now);
        let span = span(settings.name.as_ref());
        let has_bridge = settings.has_bridge;
        Self {
            id,
            args,
            status,
            settings,
            kernel_udp: OnceLock::new(),
            kernel_wireguard: OnceLock::new(),
            wireguard_key: None,
            key_due: Due::default(),
            phase: Phase::Config,
            config_due,
            stored: None,
            failures: 0,
            next: None,
            has_no_config: false,
            has_bridge,
            span,
        }
    }

    /// Returns the subnets that its subnet file named at the start.
    pub(crate) fn previous(&self) -> Option<Subnets> {
        self.settings.previous
    }

    /// Returns its number.
    pub(crate) fn id(&self) -> NetworkId {
        self.id
    }

    /// Gives up all that the network wants in the kernel, and returns its subnet file.
    pub(crate) fn leave(mut self, host: &mut Host, now: Instant) -> PathBuf {
        let _marked = self.span.clone().entered();
        if let Some(joined) = self.joined_mut() {
            joined.leave(host, now);
        }
        host.release(self.id, now);
        info!("this host leaves the network");
        self.settings.file
    }

    /// Handles an event and returns what to do.
    pub(crate) fn handle(&mut self, event: NetworkEvent, host: &mut Host, now: Instant) -> Vec<Effect> {
        let _marked = self.span.clone().entered();
        match event {
            NetworkEvent::Config(read) => self.config_was_read(read, host, now),
            NetworkEvent::NoLease(reason) => {
                self.waits_for(&format!("a lease: {reason}")).into_iter().collect()
            }
            NetworkEvent::Leased(holding) => self.join(holding, host, now),
            NetworkEvent::Holding(holding) => {
                if let Some(joined) = self.joined_mut() {
                    joined.holds(holding, host, now);
                }
                Vec::new()
            }
            NetworkEvent::Leases(event) => {
                if let Some(joined) = self.joined_mut() {
                    joined.leases_changed(event, host, now);
                }
                Vec::new()
            }
            NetworkEvent::Key(read) => {
                self.key_was_read(read, host, now);
                Vec::new()
            }
            NetworkEvent::Saved(saved) => {
                self.joined_mut().map_or_else(Vec::new, |joined| joined.saved(saved, host, now))
            }
            NetworkEvent::Bridge(wanted) => {
                self.has_bridge = wanted;
                let bridge = self.wanted_bridge();
                if let Some(joined) = self.joined_mut() {
                    joined.bridge_is(bridge, host, now);
                }
                Vec::new()
            }
        }
    }

    /// Starts what is due.
    pub(crate) fn time_passed(&mut self, host: &mut Host, now: Instant) -> Vec<Effect> {
        let _marked = self.span.clone().entered();
        let mut effects = Vec::new();
        if self.config_due.is_over(now) {
            match self.stored.clone() {
                Some(stored) => effects.extend(self.consider(stored.as_deref(), host, now)),
                None => {
                    effects.extend(self.waits_for(&self.config_place()));
                    effects.push(self.effect(NetworkEffect::FollowConfig));
                }
            }
        }
        if self.key_due.is_over(now) {
            effects.push(self.effect(NetworkEffect::ReadKey));
        }
        effects
    }

    /// Returns whether the network has what it needs of this host.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(self.phase, Phase::Lease(_) | Phase::Joined(_))
    }

    /// Returns whether it is known what of this network belongs into the kernel.
    pub(crate) fn is_known(&self) -> bool {
        match &self.phase {
            Phase::Joined(joined) => joined.leases.is_complete(),
            // Where it was before, its config may come back.
            Phase::Config => self.has_no_config && self.settings.previous.is_none(),
            Phase::Host(_) | Phase::Lease(_) => false,
        }
    }

    /// Adds the packet filter rules that the network had when the agent ended, while it has none of its own yet.
    pub(crate) fn add_previous_rules(&self, host: &Host, rules: &mut Ruleset) {
        let Some(previous) = self.settings.previous.filter(|_| self.joined().is_none()) else { return };
        for (family, subnet) in previous.iter() {
            let Some(&network) = self.settings.previous_networks.get(family) else { continue };
            // Another network may have these addresses by now.
            if rules.families.iter().any(|known| overlap(&known.network, &network)) {
                continue;
            }
            rules.families.push(FamilyRules { network, subnet });
            if self.args.iptables_forward_rules {
                // Its devices are among these.
                let held = host.reconciler.devices().links.into_keys().chain(host.external.link());
                rules.forward.extend(held.map(|device| (network, device)));
            }
        }
    }

    /// Returns when something is due even without an event.
    pub(crate) fn due(&self) -> Option<Instant> {
        let dues = [self.config_due.time(), self.key_due.time(), self.joined().and_then(Joined::due)];
        dues.into_iter().flatten().min()
    }

    /// Claims a lease, once the state of this host is known.
    pub(crate) fn claim_lease(&mut self, host: &mut Host, now: Instant) -> Vec<Effect> {
        let Phase::Host(config) = &self.phase else { return Vec::new() };
        let _marked = self.span.clone().entered();
        let Some((external, networks)) = host.known() else { return Vec::new() };
        let (config, external, networks) = ((**config).clone(), external.clone(), networks.clone());
        if let Err(reason) = self.read_key_for(&config) {
            return vec![Effect::End(refused(reason))];
        }
        let chosen = match self.choose_for(&config, &external, host, &host.reconciler.devices()) {
            Ok(chosen) => chosen,
            // The others work, and this one may later or when its config changes.
            Err(reason) if self.settings.name.is_some() => {
                error!(%reason, "cannot join the network");
                return self.tries_again(&reason.to_string(), host, now);
            }
            Err(reason) => return vec![Effect::End(refused(reason))],
        };
        self.has_chosen(&config, &chosen, host, now);
        let Settings { previous, preferred, node, renew_margin, .. } = &self.settings;
        let overlaps = Overlaps::new(*previous, external.underlay.link, &networks);
        let claim = Claim {
            config: config.clone(),
            attributes: LeaseAttributes {
                public_ips: external.public_ips,
                backend: config.backend.lease_type().map(Cow::Borrowed),
                data: chosen.backend.lease_data(),
                node: node.clone(),
                other: None,
            },
            previous: previous.or(*preferred),
            addresses: networks.addresses().clone(),
            networks: overlaps.subscribe(),
            overlap: self.args.subnet_overlap.into(),
            ttl: self.args.subnet_lease_ttl,
            renew_margin: *renew_margin,
        };
        let (terms, own_key) = (watch::Sender::new(claim.terms()), watch::Sender::new(None));
        let claim = LeaseClaim { claim, terms: terms.subscribe(), own_key: own_key.subscribe() };
        self.phase = Phase::Lease(Box::new(Means {
            id: self.id,
            args: self.args.clone(),
            status: self.status.clone(),
            file: self.settings.file.clone(),
            has_resolver: self.settings.has_resolver,
            span: self.span.clone(),
            config,
            chosen,
            node: node.clone(),
            external,
            terms,
            own_key,
            overlaps,
        }));
        let claim = self.effect(NetworkEffect::Claim(Box::new(claim)));
        self.waits_for("a lease").into_iter().chain([claim]).collect()
    }

    /// Reads this host's WireGuard key, if the config's backend needs one.
    fn read_key_for(&mut self, config: &NetworkConfig) -> Result<(), KeyFileError> {
        if matches!(config.backend, BackendConfig::Wireguard(_)) {
            self.wireguard_key = Some((self.settings.wireguard_key)(&self.args.wireguard_key_file)?);
        }
        Ok(())
    }

    /// Reports what was chosen, and what it lacks. From now on, the WireGuard key is looked at if there is one.
    fn has_chosen(&mut self, config: &NetworkConfig, chosen: &Chosen, host: &Host, now: Instant) {
        self.key_due.clear();
        match config.backend {
            BackendConfig::Wireguard(_) => self.key_due.at(now + KEY_CHECK),
            _ => self.status.report(Code::WireguardKey, None),
        }
        let is_unchecked =
            self.args.source_check && flan_backends::relies_on_sender_checks(config) && !host.nftables;
        self.status.report(Code::UncheckedSenders, is_unchecked.then(|| UNCHECKED.to_owned()));
        if let Some(PathInForce { path, reason }) = &chosen.path {
            info!(backend = config.backend.name(), path = &**path, reason, "packets take this path");
        }
        self.status.update(|status| status.path.clone_from(&chosen.path));
    }

    /// Goes over to another WireGuard key: peers learn it from our lease.
    fn key_was_read(&mut self, read: Result<PrivateKey, String>, host: &mut Host, now: Instant) {
        self.key_due.at(now + KEY_CHECK);
        let problem = read.as_ref().err().map(|reason| format!("{reason}; the key in use stays in use"));
        self.status.report(Code::WireguardKey, problem);
        let Ok(key) = read else { return };
        if self.wireguard_key.as_ref() != Some(&key) {
            info!(public_key = %key.public(), "this host has another WireGuard key now");
            self.wireguard_key = Some(key);
            host.plan_anew();
        }
    }

    /// Starts to follow the peers' leases, now that this host has one.
    fn join(&mut self, holding: Holding, host: &mut Host, now: Instant) -> Vec<Effect> {
        let phase = std::mem::replace(&mut self.phase, Phase::Config);
        let Phase::Lease(means) = phase else {
            self.phase = phase;
            return Vec::new();
        };
        let held = holding.lease.subnets;
        if let Some(before) = self.settings.previous.filter(|before| *before != held) {
            warn!(%before, now = %held, "this host has another subnet than before: restart Docker, or containers stay cut off");
        }
        let joined = Joined::new(*means, self.wanted_bridge(), holding, host, now);
        self.phase = Phase::Joined(Box::new(joined));
        self.waits_for("the list of leases").into_iter().collect()
    }

    /// Chooses the backend for this external interface; `None` if no backend is in use yet.
    pub(crate) fn choose(&self, external: &External, host: &Host) -> Result<Option<Chosen>, BackendError> {
        match &self.phase {
            Phase::Config | Phase::Host(_) => Ok(None),
            Phase::Lease(means) => {
                self.choose_for(&means.config, external, host, &host.reconciler.devices()).map(Some)
            }
            // A device that went with its interface keeps its MAC.
            Phase::Joined(joined) => {
                self.choose_for(joined.config(), external, host, &joined.planned).map(Some)
            }
        }
    }

    fn choose_for(
        &self,
        config: &NetworkConfig,
        external: &External,
        host: &Host,
        devices: &State,
    ) -> Result<Chosen, BackendError> {
        let NodeIdentity { host: name, id } = &self.settings.node;
        let seed = id.as_deref().or(name.as_deref()).unwrap_or_default();
        let settings = &self.settings;
        let means = HostMeans {
            args: &self.args,
            kernel_path: &|| {
                let ask_udp = || (settings.kernel_path)(Udp::device_name()).map_err(|lack| lack.to_string());
                match config.backend {
                    BackendConfig::Wireguard(_) => {
                        self.kernel_wireguard.get_or_init(settings.kernel_wireguard)
                    }
                    _ => self.kernel_udp.get_or_init(ask_udp),
                }
                .clone()
            },
            wireguard_key: self.wireguard_key.as_ref(),
            make_datapath: settings.datapath,
            make_wireguard_datapath: settings.wireguard_datapath,
        };
        backend::choose(config, &means, external, host.abilities, seed, devices)
    }

    /// Moves to this external interface. All earlier wishes must have been dropped.
    pub(crate) fn move_to(&mut self, chosen: Chosen, host: &mut Host, now: Instant) {
        let Some(external) = host.external.external.clone() else { return };
        match &mut self.phase {
            Phase::Config | Phase::Host(_) => {}
            Phase::Lease(means) => means.move_to(external, chosen, host),
            Phase::Joined(joined) => joined.move_to(external, chosen, host, now),
        }
    }

    /// Reports subnets that overlap this host's networks.
    pub(crate) fn look_at_overlaps(&mut self, host: &Host) {
        match &mut self.phase {
            Phase::Config | Phase::Host(_) => {}
            Phase::Lease(means) => means.overlaps.sort_out(host.networks()),
            Phase::Joined(joined) => joined.look_at_overlaps(host),
        }
    }

    pub(crate) fn waits_for_lease(&self) -> bool {
        matches!(self.phase, Phase::Lease(_))
    }

    /// Returns this host's subnets, if it has any.
    fn subnets(&self) -> Option<Subnets> {
        Some(self.joined()?.leases.admission().own.as_ref()?.subnets)
    }

    /// Returns the network if this host has joined it.
    pub(crate) fn joined(&self) -> Option<&Joined> {
        match &self.phase {
            Phase::Joined(joined) => Some(joined),
            _ => None,
        }
    }

    /// The same, mutable.
    pub(crate) fn joined_mut(&mut self) -> Option<&mut Joined> {
        match &mut self.phase {
            Phase::Joined(joined) => Some(joined),
            _ => None,
        }
    }

    /// Shows what the network waits for. systemd is told of the default network alone.
    fn waits_for(&self, what: &str) -> Option<Effect> {
        self.status.update(|status| status.waiting_for = Some(what.to_owned()));
        self.settings.name.is_none().then(|| Effect::Status(format!("waiting for {what}")))
    }

    /// Returns the bridge to which containers of a network beside the default one are attached.
    fn bridge(&self) -> Option<LinkName> {
        self.settings.name.as_ref().and_then(bridge::device_of)
    }

    fn wanted_bridge(&self) -> Option<LinkName> {
        self.bridge().filter(|_| self.has_bridge)
    }

    fn effect(&self, effect: NetworkEffect) -> Effect {
        Effect::Network(self.id, effect)
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("id", &self.id)
            .field("name", &self.settings.name)
            .finish_non_exhaustive()
    }
}

/// Returns what marks log lines of a network beside the default one.
pub(crate) fn span(name: Option<&NetworkName>) -> Span {
    name.map_or_else(Span::none, |name| info_span!("network", %name))
}

impl Means {
    fn move_to(&mut self, external: External, chosen: Chosen, host: &Host) {
        let mtus = (self.chosen.backend.mtu(), chosen.backend.mtu());
        if mtus.0 != mtus.1 {
            warn!(
                before = mtus.0,
                now = mtus.1,
                "the MTU for containers has changed: restart Docker, or large packets may be lost"
            );
        }
        self.chosen.replace_by(chosen);
        let (config, data) = (self.config.clone(), self.chosen.backend.lease_data());
        self.terms.send_modify(|Terms { config: known, attributes }| {
            (attributes.public_ips, attributes.data) = (external.public_ips, data);
            attributes.backend = config.backend.lease_type().map(Cow::Borrowed);
            *known = config;
        });
        self.overlaps.external = external.underlay.link;
        self.overlaps.sort_out(host.networks());
        self.external = external;
        self.show();
    }

    fn change_to(&mut self, config: NetworkConfig, chosen: Chosen, host: &Host) {
        self.config = config;
        self.move_to(self.external.clone(), chosen, host);
    }

    /// Copies backend, MTU and addresses to the status.
    fn show(&self) {
        self.status.set_wireguard(self.chosen.wireguard.clone());
        self.status.update(|status| {
            status.backend = self.config.backend.name().into();
            status.mtu = self.chosen.backend.mtu();
            status.public_ips = self.external.public_ips.values().map(ToString::to_string).collect();
        });
    }

    /// Returns what peers' leases are checked against, with these subnets as ours.
    fn own(&self, subnets: Subnets) -> OwnLease {
        OwnLease {
            subnets,
            addresses: self.external.own_addresses(),
            identities: self.config.backend.identities(&self.chosen.backend.lease_data()),
            node_id: self.node.id.clone(),
        }
    }

    fn underlay(&self) -> &Underlay {
        &self.external.underlay
    }
}
