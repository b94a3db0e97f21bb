//! A network in which this host has a lease: plans the kernel state for this host and for each peer.

use std::collections::BTreeSet;

use flan_agent_api::{Code, Peer, SubnetEnv, WireguardPeer};
use flan_backends::{Backend, bridge};
use flan_kernel::firewall::others::{FamilyTraffic, Outer, Traffic, Way};
use flan_kernel::{
    FamilyRules, LinkName, Plan, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Ruleset, State,
};
use flan_subnet_lease::{
    Admission, Caution, Family, Holding, Lease, LeaseSet, NetworkConfig, OwnLease, PerFamily, Sighting,
    Subnets, WatchEvent, shown,
};
use ipnetwork::IpNetwork;
use tokio::time::Instant;
use tracing::{error, info};

use super::backend::Chosen;
use super::peers::{self, Teller, Unreached};
use super::{Means, NetworkEffect};
use crate::agent::{DEFAULT_NETWORK, Effect};
use crate::host::Host;
use crate::host::reconcile::Reconciler;
use crate::lookout::Ours;
use flan_host::interface::External;

/// A network in which this host has a lease.
pub(crate) struct Joined {
    pub(super) means: Means,
    /// All leases, checked against our own.
    pub(crate) leases: LeaseSet,
    pub(super) twin: Option<Sighting>,
    /// What is wanted for this host, independent of peers.
    pub(super) planned: State,
    /// The device with the address of the DNS server, if there is one. Packets flow without it.
    resolver: State,
    /// The bridge for containers, if they need one.
    bridge: Option<LinkName>,
    pub(super) unreached: Unreached,
    teller: Teller,
    /// Packets can reach the peers, and the subnet file is written.
    pub(crate) is_ready: bool,
    /// A failure of the data path or, after that, of the subnet file.
    pub(crate) problem: Option<String>,
    unsaved: Option<String>,
}

impl Joined {
    pub(super) fn new(
        means: Means,
        bridge: Option<LinkName>,
        holding: Holding,
        host: &mut Host,
        now: Instant,
    ) -> Self {
        let Holding { lease, twin, .. } = holding;
        means.own_key.send_replace(Some(lease.mod_revision));
        means.show();
        let caution = Caution { percent: means.args.mass_loss_percent, grace: means.args.mass_loss_grace };
        let admission = Admission { config: means.config.clone(), own: Some(means.own(lease.subnets)) };
        let mut joined = Self {
            means,
            leases: LeaseSet::new(admission, caution),
            twin,
            planned: State::default(),
            resolver: State::default(),
            bridge,
            unreached: Unreached::default(),
            teller: Teller::default(),
            is_ready: false,
            problem: None,
            unsaved: None,
        };
        joined.plan_host(host, now);
        joined.look_for_clones(now);
        joined
    }

    pub(super) fn config(&self) -> &NetworkConfig {
        &self.means.config
    }

    /// Handles a report of the store.
    pub(super) fn leases_changed(&mut self, event: WatchEvent<Lease>, host: &mut Host, now: Instant) {
        if let WatchEvent::Interrupted { reason } = event {
            self.means.status.report(Code::Store, Some(reason));
            return;
        }
        self.leases.apply(event, now);
        if let Some(own_key) = self.leases.take_own_key() {
            self.means.own_key.send_replace(own_key);
        }
        self.means.status.report(Code::Store, None);
        host.schedule(now);
    }

    /// Handles a change of our lease.
    pub(super) fn holds(&mut self, holding: Holding, host: &mut Host, now: Instant) {
        let Holding { lease, problem, twin } = holding;
        if twin.is_some() && twin != self.twin {
            self.twin = twin;
            self.look_for_clones(now);
        }
        self.means.status.report(Code::Lease, problem);
        let Some(own) = self.leases.admission().own.clone() else { return };
        if own.subnets != lease.subnets {
            self.leases.set_own(Some(OwnLease { subnets: lease.subnets, ..own }));
            self.plan_host(host, now);
            host.schedule(now);
        }
    }

    /// Makes a bridge for containers, or no longer wants one.
    pub(super) fn bridge_is(&mut self, bridge: Option<LinkName>, host: &mut Host, now: Instant) {
        if self.bridge != bridge {
            self.bridge = bridge;
            self.plan_host(host, now);
            host.schedule(now);
        }
    }

    /// Gives up all that is wanted.
    pub(super) fn leave(&mut self, host: &mut Host, now: Instant) {
        // Only what was planned can be given up.
        self.plan_changes(host, now);
        for planned in [&self.planned, &self.resolver] {
            planned.entries().for_each(|entry| host.reconciler.giving_up().want(entry));
        }
        let backend = &*self.means.chosen.backend;
        for peer in self.leases.peers() {
            // Nothing was wanted for an unreachable peer.
            let _ = backend.plan_peer(peer, &mut host.reconciler.giving_up());
        }
    }

    /// Replaces what is wanted for this host by what the backend plans now.
    fn plan_host(&mut self, host: &mut Host, now: Instant) {
        let Some(own) = &self.leases.admission().own else { return };
        let mut planned = State::default();
        self.means.chosen.backend.plan_host(&own.subnets, &mut planned);
        if let Some(bridge) = self.bridge {
            let env = self.subnet_env(&own.subnets);
            bridge::plan(bridge, &env.bridges, env.mtu, &mut planned);
        }
        if self.means.args.ip_blackhole_route {
            for (_, subnet) in own.subnets.iter() {
                // Lowest priority, so that the bridge's route wins when it appears.
                let key = RouteKey { destination: subnet, metric: u32::MAX };
                planned
                    .routes
                    .insert(key, Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL });
            }
        }
        self.means.status.update(|status| {
            status.subnets = own.subnets.iter().map(|(_, subnet)| subnet.to_string()).collect();
            // The subnet file and dockerd are out of date.
            status.ready = false;
        });
        self.is_ready = false;
        host.peers_have_changed(now);
        let mut resolver = State::default();
        if self.means.has_resolver {
            bridge::plan_resolver(&mut resolver);
        }
        for (before, now) in [(&mut self.planned, planned), (&mut self.resolver, resolver)] {
            before.entries().for_each(|entry| host.reconciler.giving_up().want(entry));
            now.entries().for_each(|entry| host.reconciler.wanting().want(entry));
            *before = now;
        }
        host.rules_have_changed(now);
    }

    /// Plans every peer that has changed.
    pub(crate) fn plan_changes(&mut self, host: &mut Host, now: Instant) {
        let _marked = self.means.span.clone().entered();
        let changes = self.leases.take_changes();
        if changes.is_empty() {
            return;
        }
        self.teller.tell(&changes, now);
        if !changes.quarantine.is_empty() {
            // A bad lease may hold large values.
            host.tidy(now);
        }
        if changes.peers.is_empty() {
            self.show_lists();
            return;
        }
        let backend = &*self.means.chosen.backend;
        for change in &changes.peers {
            if let Some(before) = &change.before {
                self.unreached.forget(before);
                // Nothing was wanted for an unreachable peer.
                let _ = backend.plan_peer(before, &mut host.reconciler.giving_up());
            }
            if let Some(after) = &change.after {
                want_peer(backend, &mut host.reconciler, &mut self.unreached, after, now);
            }
        }
        if let Some(datapath) = &mut self.means.chosen.datapath {
            datapath.change(&changes.peers);
        }
        self.peers_are_planned(host, now);
    }

    /// Plans every peer, after all wishes were dropped.
    fn plan_all_peers(&mut self, host: &mut Host, now: Instant) {
        self.unreached.clear();
        self.teller.tell(&self.leases.take_changes(), now);
        for peer in self.leases.peers() {
            want_peer(&*self.means.chosen.backend, &mut host.reconciler, &mut self.unreached, peer, now);
        }
        if let Some(datapath) = &mut self.means.chosen.datapath {
            datapath.replace(&mut self.leases.peers());
        }
        self.peers_are_planned(host, now);
    }

    fn peers_are_planned(&mut self, host: &mut Host, now: Instant) {
        self.show_lists();
        host.peers_have_changed(now);
        self.look_at_overlaps(host);
    }

    /// Copies the lists of peers and bad leases to the status.
    fn show_lists(&self) {
        self.means.status.update(|status| {
            status.peers = self.leases.peer_count() - self.unreached.count();
            (status.unreachable, status.unreachable_count) = (self.unreached.some(), self.unreached.count());
            status.quarantined = peers::some_quarantined(&self.leases);
            status.quarantined_count = self.leases.quarantined_count();
        });
    }

    /// Moves to this external interface. All earlier wishes must have been dropped.
    pub(super) fn move_to(&mut self, external: External, chosen: Chosen, host: &mut Host, now: Instant) {
        self.means.move_to(external, chosen, host);
        if let Some(own) = &self.leases.admission().own {
            let own = self.means.own(own.subnets);
            self.leases.set_own(Some(own));
        }
        (self.planned, self.resolver) = Default::default();
        self.plan_host(host, now);
        self.plan_all_peers(host, now);
    }

    /// Goes over to another config, and what was chosen for it.
    pub(super) fn change_to(&mut self, config: NetworkConfig, chosen: Chosen, host: &mut Host, now: Instant) {
        self.leave(host, now);
        self.means.change_to(config, chosen, host);
        let own = self.leases.admission().own.as_ref().map(|own| self.means.own(own.subnets));
        self.leases.set_admission(Admission { config: self.means.config.clone(), own });
        (self.planned, self.resolver) = Default::default();
        self.plan_host(host, now);
        self.plan_all_peers(host, now);
    }

    /// Adds this network's packet filter rules, and which families to forward.
    pub(crate) fn add_rules(&self, host: &Host, rules: &mut Ruleset, forwarding: &mut (bool, bool)) {
        let Some(own) = &self.leases.admission().own else { return };
        rules.masquerade |= self.means.args.ip_masq;
        if self.means.args.iptables_forward_rules {
            for (_, network) in self.config().networks() {
                let devices = self.planned.links.keys().copied().chain(host.external.link());
                rules.forward.extend(devices.map(|device| (network, device)));
            }
        }
        for (family, network) in self.config().networks() {
            match family {
                Family::V4 => forwarding.0 = true,
                Family::V6 => forwarding.1 = true,
            }
            if let Some(subnet) = own.subnets.get(family) {
                rules.families.push(FamilyRules { network, subnet });
            }
        }
    }

    /// Starts the data path if needed, then requests the subnet file. Call it once the kernel is in line.
    pub(crate) fn carry_on(
        &mut self,
        host: &Host,
        new_devices: &BTreeSet<LinkName>,
        now: Instant,
    ) -> Option<Effect> {
        let _marked = self.means.span.clone().entered();
        let device_is_new = self.planned.links.keys().any(|name| new_devices.contains(name));
        if self.problem.is_some() && !device_is_new && !host.may_try(now) {
            return None;
        }
        self.problem = self.unsaved.clone();
        let own = self.leases.admission().own.as_ref()?;
        if !self.leases.is_complete() || !host.reconciler.has_devices_of(&self.planned) {
            // The reconciler reports and retries what is missing.
            return None;
        }
        if let Some(datapath) = &mut self.means.chosen.datapath {
            self.problem = datapath.keep_running(&own.subnets, device_is_new).err().or(self.problem.take());
            self.means.status.gauge(datapath.gauge());
            if !datapath.is_running() {
                return None;
            }
        } else {
            self.means.status.gauge(None);
        }
        let save =
            || NetworkEffect::Save { file: self.means.file.clone(), env: self.subnet_env(&own.subnets) };
        (!self.is_ready).then(|| Effect::Network(self.means.id, save()))
    }

    fn subnet_env(&self, own: &Subnets) -> SubnetEnv {
        let mut networks: PerFamily<IpNetwork> = PerFamily::default();
        for (family, network) in self.config().networks() {
            networks.set(family, network);
        }
        SubnetEnv::new(networks, own, self.means.chosen.backend.mtu(), self.means.args.ip_masq)
    }

    /// Handles the result of writing the subnet file. Once it is written, this host is ready.
    pub(super) fn saved(&mut self, saved: Result<(), String>, host: &mut Host, now: Instant) -> Vec<Effect> {
        let Some(own) = &self.leases.admission().own else { return Vec::new() };
        let file = self.means.file.display();
        if let Err(reason) = saved {
            error!(%file, %reason, "cannot write the subnet file");
            let problem = format!("cannot write {file}: {reason}");
            self.problem = Some(problem.clone());
            if self.unsaved.replace(problem.clone()).is_none() {
                host.has_failed(problem, now);
            }
            return Vec::new();
        }
        (self.is_ready, self.unsaved, self.problem) = (true, None, None);
        let (mtu, peers) = (self.means.chosen.backend.mtu(), self.leases.peer_count());
        self.means.status.update(|status| (status.ready, status.waiting_for, status.mtu) = (true, None, mtu));
        info!(subnets = %own.subnets, mtu, peers, %file, "ready");
        host.schedule(now); // the round that follows shows it
        host.probe_now(now);
        if self.means.id != DEFAULT_NETWORK {
            return Vec::new(); // dockerd and systemd wait for the default network
        }
        vec![
            Effect::LookFor(Ours {
                traffic: self.traffic(),
                env: self.subnet_env(&own.subnets),
                tunnel: self
                    .planned
                    .links
                    .iter()
                    .find(|(_, link)| link.fou_port().is_some())
                    .map(|(name, _)| *name),
            }),
            Effect::Ready,
        ]
    }

    /// Returns the traffic that this host's packet filter must let pass.
    fn traffic(&self) -> Traffic {
        let config = self.config();
        let external = self.means.underlay();
        let underlay = Way { link: external.link, ours: false };
        let of_family = |(family, network)| {
            let subnet = self.leases.admission().own.as_ref()?.subnets.get(family)?;
            let addresses = self.planned.addresses.keys();
            let own = addresses.filter(|address| Family::of(address.address.ip()) == family);
            let mut devices: Vec<Way> = own.map(|address| Way { link: address.link, ours: true }).collect();
            if devices.is_empty() || flan_backends::routes_directly(config) {
                devices.push(underlay);
            }
            Some(FamilyTraffic { network, subnet, devices })
        };
        Traffic {
            families: config.networks().filter_map(of_family).collect(),
            outer: flan_backends::udp_port(config).map(|port| Outer {
                port,
                link: underlay.link,
                addresses: external.addresses.values().copied().collect(),
            }),
            ..Traffic::default()
        }
    }

    /// Returns when something is due even without an event.
    pub(super) fn due(&self) -> Option<Instant> {
        let dues = [self.leases.missing_until(), self.teller.due(), self.unreached.due()];
        dues.into_iter().flatten().min()
    }

    /// Gives up missing leases and logs a summary of what got no line of its own, if due.
    pub(crate) fn time_passed(&mut self, host: &mut Host, now: Instant) {
        let _marked = self.means.span.clone().entered();
        if self.leases.missing_until().is_some_and(|until| until <= now) {
            self.leases.expire(now);
            host.schedule(now);
        }
        self.teller.sum_up(&self.leases, now);
        self.unreached.sum_up(now);
    }

    /// Returns the peers, for people. What WireGuard and the probes know of them is to be filled in.
    pub(crate) fn shown_peers(&self) -> impl Iterator<Item = Peer> {
        self.leases.peers().map(|lease| {
            let attributes = &lease.attributes;
            let key =
                attributes.data.values().find_map(|data| Some(data.wireguard()?.public_key.to_string()));
            Peer {
                subnets: lease.subnets.iter().map(|(_, subnet)| subnet.to_string()).collect(),
                public_ips: attributes.public_ips.values().map(ToString::to_string).collect(),
                host: attributes.node.host.as_ref().map(|host| shown(host).into_owned()),
                unreachable: self.unreached.reason(lease),
                wireguard: key.map(|public_key| WireguardPeer { public_key, ..WireguardPeer::default() }),
                health: None,
            }
        })
    }

    /// Returns who holds a port that the data path needs, and what to do.
    pub(crate) fn port_taken(&self) -> Option<String> {
        self.means.chosen.datapath.as_ref().and_then(|datapath| datapath.taken())
    }

    /// Returns a one-line status, if ready.
    pub(crate) fn what_works(&self) -> Option<String> {
        let own = self.leases.admission().own.as_ref().filter(|_| self.is_ready)?;
        Some(format!("{} with {} peers", own.subnets, self.leases.peer_count()))
    }
}

/// Plans a peer, or records why the backend cannot reach it.
fn want_peer(
    backend: &dyn Backend,
    reconciler: &mut Reconciler,
    unreached: &mut Unreached,
    peer: &Lease,
    now: Instant,
) {
    if let Err(reason) = backend.plan_peer(peer, reconciler.wanting()) {
        unreached.note(peer, &reason, now);
    }
}
