//! The decisions of the agent, for this host and its networks.
//!
//! [`Agent::handle`] receives an event and the time, and returns what to do. Nothing here waits or reads a clock, and
//! only [data paths](crate::network::Datapath) do I/O, when they start and stop. Once, udp asks what the kernel can do. The
//! event loop in [`daemon`](crate::daemon) waits for events and carries out effects.

#[cfg(test)]
mod stories;

use std::collections::BTreeMap;
use std::path::PathBuf;

use flan_agent_api::Peer;
use flan_backends::HostNetworks;
use flan_kernel::{Change, FailedOperation, KernelError, LinkName, Operation, Ownership, Ruleset, State};
use flan_probes::{Target, Way};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use crate::host::Host;
use crate::lookout::Ours;
use crate::network::{Joined, Network, NetworkEffect, NetworkEvent};
use flan_host::interface::{Overlays, Survey};

/// Number of one of the agent's networks, given once.
pub type NetworkId = usize;

/// The network of docker0.
pub const DEFAULT_NETWORK: NetworkId = 0;

/// An event.
#[derive(Debug)]
pub enum Event {
    /// The kernel reported changes, in this order.
    Kernel(Vec<Change>),
    /// A reading of the kernel begins. Notifications from now on may be newer than its result.
    ReadingBegins,
    /// A reading of the kernel is complete.
    Read(Result<State, KernelError>),
    /// Part of an [`Effect::Apply`] is done.
    CarriedOut {
        /// The attempted operations, in order.
        operations: Vec<Operation>,
        /// The operations that the kernel refused.
        refused: Vec<FailedOperation>,
    },
    /// Packet filter and forwarding are set.
    Rules {
        /// Whether the packet filter had to be changed, or what failed.
        kept: Result<bool, String>,
        /// Whether this host forwards.
        forwards: Result<(), String>,
    },
    /// The interfaces and routes of this host.
    Surveyed(Result<Survey, KernelError>),
    /// The name of the interface in [`Effect::AskName`], if it exists.
    Named(Option<LinkName>),
    /// The networks of this host.
    Networks(Result<HostNetworks, KernelError>),
    /// This host is to join a network.
    Joins(Box<Network>),
    /// This host is to leave a network.
    Leaves(NetworkId),
    /// An event of one network.
    Network(NetworkId, NetworkEvent),
    /// Something may be due.
    Time,
}

/// An action for the event loop.
#[derive(Debug)]
pub enum Effect {
    /// Read our objects from the kernel, and abandon an unfinished reading. Answered by [`Event::ReadingBegins`] at once,
    /// then by [`Event::Read`].
    Read(Ownership),
    /// Carry out operations, in one or more parts. Each part is answered by [`Event::CarriedOut`].
    Apply(Vec<Operation>),
    /// Set packet filter rules and forwarding. Answered by [`Event::Rules`].
    KeepRules {
        /// All our rules.
        rules: Ruleset,
        /// Whether to forward IPv4 and IPv6.
        forwarding: (bool, bool),
    },
    /// List interfaces and routes, to choose the external interface. Answered by [`Event::Surveyed`].
    Survey(Overlays),
    /// Look up the name of the interface with this index. Answered by [`Event::Named`].
    AskName(u32),
    /// Read the networks of this host that overlap these. Answered by [`Event::Networks`].
    ReadNetworks(Vec<IpNetwork>),
    /// Reconnect to the store: the source address of the connections is gone.
    Reconnect,
    /// Look for programs that drop these packets or contradict `subnet.env`.
    LookFor(Ours),
    /// Check the bridges again: devices or addresses have changed.
    HostChanged,
    /// Tell the probes who the peers are: `Agent::probed` returns them.
    Probe,
    /// Return freed memory to the kernel.
    GiveBackMemory,
    /// Put away the subnet file of a network that this host has left: nothing of it is in the kernel any more.
    PutAway(PathBuf),
    /// Tell systemd that this host is ready.
    Ready,
    /// Tell systemd what the agent is doing or waiting for.
    Status(String),
    /// An action for one network.
    Network(NetworkId, NetworkEffect),
    /// Exit with this error: a setting cannot work.
    End(anyhow::Error),
}

/// This host and its networks.
pub struct Agent {
    host: Host,
    networks: BTreeMap<NetworkId, Network>,
    /// The subnet files of networks that this host has left, and that may still have objects in the kernel.
    left: Vec<PathBuf>,
    /// The last status sent to systemd.
    told: String,
}

impl Agent {
    /// Creates an agent that has not started. Its first event must be [`Event::Time`].
    pub fn new(host: Host, networks: Vec<Network>) -> Self {
        let networks = networks.into_iter().map(|network| (network.id(), network)).collect();
        Self { host, networks, left: Vec::new(), told: String::new() }
    }

    /// Returns when [`Event::Time`] is due.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let networks = self.networks.range(..=self.last_begun()).filter_map(|(_, network)| network.due());
        self.host.due(now).into_iter().chain(networks).min()
    }

    /// Returns all peers in the default network, for people.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let default = self.networks.get(&DEFAULT_NETWORK).and_then(Network::joined);
        default.into_iter().flat_map(Joined::shown_peers).collect()
    }

    /// Returns what to probe: how packets leave this host, and the peers in the default network. Packets of other networks
    /// go between the same hosts.
    pub(crate) fn probed(&self) -> Option<(Way, Vec<Target>)> {
        self.networks.get(&DEFAULT_NETWORK).and_then(Network::joined)?.probed()
    }

    /// Handles an event and returns what to do.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = match event {
            Event::Kernel(changes) => self.host.kernel_told(changes, now),
            Event::ReadingBegins => {
                self.host.reconciler.reading_begins();
                Vec::new()
            }
            Event::Read(read) => {
                let peers = self.joined().map(|joined| joined.leases.peer_count()).sum();
                self.host.was_read(read, peers, now)
            }
            Event::CarriedOut { operations, refused } => {
                let mut effects = self.host.carried_out(&operations, &refused, now);
                if !self.host.reconciler.is_under_way() {
                    effects.extend(self.kernel_is_done(now));
                }
                effects
            }
            Event::Rules { kept, forwards } => {
                self.host.rules_were_kept(kept, forwards);
                self.finish_round(now)
            }
            Event::Surveyed(survey) => self.host.surveyed(survey, now),
            Event::Named(name) => {
                self.host.is_called(name, now);
                Vec::new()
            }
            Event::Networks(read) => {
                self.host.networks_were_read(read);
                self.networks.values_mut().for_each(|network| network.look_at_overlaps(&self.host));
                Vec::new()
            }
            Event::Joins(network) => {
                self.networks.insert(network.id(), *network);
                self.time_passed(now)
            }
            Event::Leaves(id) => {
                if let Some(network) = self.networks.remove(&id) {
                    self.left.push(network.leave(&mut self.host, now));
                }
                Vec::new()
            }
            Event::Network(id, event) => match self.networks.get_mut(&id) {
                Some(network) => network.handle(event, &mut self.host, now),
                None => Vec::new(),
            },
            Event::Time => self.time_passed(now),
        };
        effects.extend(self.follow_external_interface(now));
        for network in self.networks.values_mut() {
            effects.extend(network.claim_lease(&mut self.host, now));
            effects.extend(network.change_over(&mut self.host, now));
        }
        effects
    }

    fn time_passed(&mut self, now: Instant) -> Vec<Effect> {
        let is_ready = self.joined().any(|joined| joined.is_ready);
        let waits = self.networks.values().any(Network::waits_for_lease);
        let (mut effects, is_resync) = self.host.time_passed(is_ready, waits, now);
        let last = self.last_begun();
        for (_, network) in self.networks.range_mut(..=last) {
            effects.extend(network.time_passed(&mut self.host, now));
        }
        for joined in self.networks.values_mut().filter_map(Network::joined_mut) {
            joined.time_passed(&mut self.host, now);
            if is_resync {
                joined.look_for_clones(now);
            }
        }
        effects.extend(self.begin_round(now));
        effects
    }

    /// Returns the last of the networks that may begin. The default network goes first: it chooses the external interface,
    /// and none of the others may have what it needs.
    fn last_begun(&self) -> NetworkId {
        match self.networks.get(&DEFAULT_NETWORK) {
            Some(default) if !default.has_begun() => DEFAULT_NETWORK,
            _ => NetworkId::MAX,
        }
    }

    fn joined(&self) -> impl Iterator<Item = &Joined> {
        self.networks.values().filter_map(Network::joined)
    }

    /// Starts to apply the wanted state to the kernel.
    fn begin_round(&mut self, now: Instant) -> Vec<Effect> {
        if self.host.is_busy() {
            self.host.schedule(now); // once it no longer is
            return Vec::new();
        }
        self.host.round_begins(now);
        // Before the first complete list, which starts a round, a missing lease means nothing.
        if !self.joined().any(|joined| joined.leases.is_complete()) {
            return Vec::new();
        }
        let may_delete = self.networks.values().all(Network::is_known);
        for joined in self.networks.values_mut().filter_map(Network::joined_mut) {
            joined.plan_changes(&mut self.host, now);
        }
        let operations = self.host.reconciler.begin(may_delete, now);
        if operations.is_empty() { self.kernel_is_done(now) } else { vec![Effect::Apply(operations)] }
    }

    /// Continues the round with the packet filter, if due.
    fn kernel_is_done(&mut self, now: Instant) -> Vec<Effect> {
        if !self.host.are_rules_due(now) {
            return self.finish_round(now);
        }
        let (mut rules, mut forwarding) = (Ruleset::default(), (false, false));
        for joined in self.joined() {
            joined.add_rules(&self.host, &mut rules, &mut forwarding);
        }
        for network in self.networks.values() {
            network.add_previous_rules(&self.host, &mut rules);
        }
        vec![Effect::KeepRules { rules, forwarding }]
    }

    fn finish_round(&mut self, now: Instant) -> Vec<Effect> {
        let (outcome, mut effects) = self.host.end_operations(now);
        let reconciler = &self.host.reconciler;
        if outcome.failed == 0 && reconciler.is_known() && reconciler.problem().is_none() {
            effects.extend(self.left.drain(..).map(Effect::PutAway));
        }
        let mut problem = None;
        for joined in self.networks.values_mut().filter_map(Network::joined_mut) {
            effects.extend(joined.carry_on(&self.host, &outcome.new_devices, now));
            problem = problem.or(joined.problem.clone());
        }
        let taken = self.joined().find_map(Joined::port_taken);
        let problem = self.host.end_round(&outcome, problem, taken, now);
        let works: Vec<String> = self.joined().filter_map(Joined::what_works).collect();
        if !works.is_empty() {
            let status = works.into_iter().chain(problem).collect::<Vec<_>>().join("; ");
            if self.told != status {
                self.told.clone_from(&status);
                effects.push(Effect::Status(status));
            }
        }
        effects
    }

    /// Moves all networks to the changed external interface, or none.
    fn follow_external_interface(&mut self, now: Instant) -> Vec<Effect> {
        let Some(external) = self.host.take_adopted() else { return Vec::new() };
        let chosen: Result<Vec<_>, _> =
            self.networks.values().map(|network| network.choose(&external, &self.host)).collect();
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => {
                self.host.cannot_move(&reason.to_string(), now);
                return Vec::new();
            }
        };
        let reconnect = self.host.move_to(external, now);
        for (network, chosen) in self.networks.values_mut().zip(chosen) {
            if let Some(chosen) = chosen {
                network.move_to(chosen, &mut self.host, now);
            }
        }
        reconnect.into_iter().collect()
    }
}
