//! Everything that decides: this host, and the networks that it takes part in.
//!
//! It neither waits nor reads a clock, and asks nobody: [`Agent::handle`] is told what happened and when, and answers
//! what must be done. The event loop in [`daemon`](crate::daemon) waits for events and carries out effects.

#[cfg(test)]
mod stories;

use flan_backends::HostNetworks;
use flan_kernel::{Change, FailedOperation, KernelError, LinkName, Operation, Ownership, Ruleset, State};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use crate::host::Host;
use crate::interface::{Overlays, Survey};
use crate::lookout::Ours;
use crate::network::{Joined, Network, NetworkEffect, NetworkEvent};

/// One of the agent's networks: its place among them.
pub type NetworkId = usize;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The kernel reported changes, in their order.
    Kernel(Vec<Change>),
    /// A reading of the kernel begins: what the kernel reports from now on may be newer.
    ReadingBegins,
    /// A reading of the kernel is done.
    Read(Result<State, KernelError>),
    /// Operations of an [`Effect::Apply`] were carried out, except for those that were refused.
    CarriedOut {
        /// All of them, in their order.
        operations: Vec<Operation>,
        /// Those that the kernel refused.
        refused: Vec<FailedOperation>,
    },
    /// The packet filter and forwarding were looked at.
    Rules {
        /// Whether the packet filter had to be changed, or what failed.
        kept: Result<bool, String>,
        /// Whether this host forwards.
        forwards: Result<(), String>,
    },
    /// The interfaces and routes of this host.
    Surveyed(Result<Survey, KernelError>),
    /// The name of the interface that an [`Effect::AskName`] named by its number, if it exists.
    Named(Option<LinkName>),
    /// The networks of this host.
    Networks(Result<HostNetworks, KernelError>),
    /// Something happened to one network.
    Network(NetworkId, NetworkEvent),
    /// Time passed: something may be due.
    Time,
}

/// What must be done.
#[derive(Debug)]
pub enum Effect {
    /// Read what the kernel holds of ours. It replaces a reading that has not finished.
    /// [`Event::ReadingBegins`] follows at once, then [`Event::Read`].
    Read(Ownership),
    /// Carry out operations, in one or several parts. [`Event::CarriedOut`] follows each part.
    Apply(Vec<Operation>),
    /// Make the packet filter and forwarding as they should be. [`Event::Rules`] follows.
    KeepRules {
        /// All rules of ours.
        rules: Ruleset,
        /// Whether packets of IPv4, and of IPv6, must be forwarded.
        forwarding: (bool, bool),
    },
    /// List the interfaces and routes among which the external interface is chosen. [`Event::Surveyed`] follows.
    Survey(Overlays),
    /// Ask for the name of the interface with this number. [`Event::Named`] follows.
    AskName(u32),
    /// Read those networks of this host that overlap these. [`Event::Networks`] follows.
    ReadNetworks(Vec<IpNetwork>),
    /// Connect to the store again: the address that the connections came from is gone.
    Reconnect,
    /// Look for other programs that drop these packets, or contradict `subnet.env`.
    LookFor(Ours),
    /// Look at the bridges again: devices or addresses have changed.
    HostChanged,
    /// Give freed memory back to the kernel.
    GiveBackMemory,
    /// Tell systemd that this host is ready.
    Ready,
    /// Tell systemd what the agent does or waits for.
    Status(String),
    /// Do something for one network.
    Network(NetworkId, NetworkEffect),
    /// End with this error: a setting cannot work.
    End(anyhow::Error),
}

/// This host and its networks.
pub struct Agent {
    host: Host,
    networks: Vec<Network>,
    /// What systemd was told last.
    told: String,
}

impl Agent {
    /// An agent that has not started; its first event is [`Event::Time`].
    pub fn new(host: Host, networks: Vec<Network>) -> Self {
        Self { host, networks, told: String::new() }
    }

    /// When there is something to do although nothing happens.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let networks = self.networks.iter().filter_map(Network::due);
        self.host.due(now).into_iter().chain(networks).min()
    }

    /// Takes in what happened at this moment, and answers what must be done.
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
                self.networks.iter_mut().for_each(|network| network.look_at_overlaps(&self.host));
                Vec::new()
            }
            Event::Network(id, event) => match self.networks.get_mut(id) {
                Some(network) => network.handle(event, &mut self.host, now),
                None => Vec::new(),
            },
            Event::Time => self.time_passed(now),
        };
        effects.extend(self.follow_external_interface(now));
        for network in &mut self.networks {
            effects.extend(network.claim_lease(&self.host));
        }
        effects
    }

    fn time_passed(&mut self, now: Instant) -> Vec<Effect> {
        let is_ready = self.joined().any(|joined| joined.is_ready);
        let waits = self.networks.iter().any(Network::waits_for_lease);
        let (mut effects, is_resync) = self.host.time_passed(is_ready, waits, now);
        for network in &mut self.networks {
            effects.extend(network.time_passed(now));
        }
        for joined in self.networks.iter_mut().filter_map(Network::joined_mut) {
            joined.time_passed(&mut self.host, now);
            if is_resync {
                joined.look_for_clones(now);
            }
        }
        effects.extend(self.begin_round(now));
        effects
    }

    fn joined(&self) -> impl Iterator<Item = &Joined> {
        self.networks.iter().filter_map(Network::joined)
    }

    /// Brings the kernel in line with what is wanted now.
    fn begin_round(&mut self, now: Instant) -> Vec<Effect> {
        if self.host.is_busy() {
            return Vec::new(); // the round is due all the same, and follows
        }
        self.host.round_begins();
        // An absent lease means nothing before the first complete list, which leads to a round.
        let complete = self.joined().filter(|joined| joined.leases.is_complete()).count();
        if complete == 0 {
            return Vec::new();
        }
        for joined in self.networks.iter_mut().filter_map(Network::joined_mut) {
            joined.plan_changes(&mut self.host, now);
        }
        let operations = self.host.reconciler.begin(complete == self.networks.len(), now);
        if operations.is_empty() { self.kernel_is_done(now) } else { vec![Effect::Apply(operations)] }
    }

    /// Goes on with the packet filter, where that is due.
    fn kernel_is_done(&mut self, now: Instant) -> Vec<Effect> {
        if !self.host.are_rules_due(now) {
            return self.finish_round(now);
        }
        let (mut rules, mut forwarding) = (Ruleset::default(), (false, false));
        for joined in self.joined() {
            joined.add_rules(&self.host, &mut rules, &mut forwarding);
        }
        vec![Effect::KeepRules { rules, forwarding }]
    }

    fn finish_round(&mut self, now: Instant) -> Vec<Effect> {
        let (outcome, mut effects) = self.host.end_operations();
        let mut problem = None;
        for joined in self.networks.iter_mut().filter_map(Network::joined_mut) {
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

    /// Moves all networks to the external interface as it is now, or none.
    fn follow_external_interface(&mut self, now: Instant) -> Vec<Effect> {
        let Some(external) = self.host.take_adopted() else { return Vec::new() };
        let chosen: Result<Vec<_>, _> =
            self.networks.iter().map(|network| network.choose(&external, &self.host)).collect();
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => {
                self.host.cannot_move(&reason.to_string(), now);
                return Vec::new();
            }
        };
        let reconnect = self.host.move_to(external, now);
        for (network, chosen) in self.networks.iter_mut().zip(chosen) {
            if let Some(chosen) = chosen {
                network.move_to(chosen, &mut self.host, now);
            }
        }
        reconnect.into_iter().collect()
    }
}
