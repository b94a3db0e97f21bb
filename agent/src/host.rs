//! State of this host that all networks share: our objects in the kernel, the external interface, the packet filter,
//! and when to check each.
//!
//! Nothing here waits or does I/O: methods receive events with the time and return [`Effect`]s.

mod external;
pub mod reconcile;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flan_agent_api::Code;
use flan_backends::{Abilities, HostNetworks};
use flan_kernel::{Change, FailedOperation, KernelError, LinkName, Operation, Ownership, State};
use flan_subnet_lease::overlap;
use tokio::time::Instant;
use tracing::{debug, info};

use self::external::ExternalWatch;
use self::reconcile::{Consequences, Outcome, Reconciler};
use crate::agent::{DEFAULT_NETWORK, Effect, NetworkId};
use crate::args::Args;
use crate::due::Due;
use crate::status::SharedStatus;
use flan_host::interface::{External, Overlays};

/// This host.
pub struct Host {
    pub(crate) args: Arc<Args>,
    /// Features that the kernel has and the flags allow.
    pub(crate) abilities: Abilities,
    pub(crate) nftables: bool,
    pub(crate) status: SharedStatus,
    pub(crate) reconciler: Reconciler,
    pub(crate) external: ExternalWatch,
    /// The overlay networks. Only host networks that overlap them matter.
    overlays: Overlays,
    /// What each network needs of this host.
    needs: BTreeMap<NetworkId, Needs>,
    /// The host's networks, once read.
    networks: Option<HostNetworks>,
    are_networks_being_read: bool,
    due: Times,
    /// Whether the packet filter rules must be set, and whether a periodic check is due.
    rules_due: bool,
    rules_tick: bool,
    /// Why the rules are not in place.
    rules_problem: Option<String>,
    /// Consecutive attempts in which something other than the kernel's objects failed, and when the next one is due.
    failures: u32,
    retry_at: Option<Instant>,
    /// Whether no round has ended yet.
    is_starting: bool,
    /// When the present round began.
    round_began: Option<Instant>,
}

/// What a network needs of this host.
#[derive(Debug, Clone)]
pub(crate) struct Needs {
    /// What is its alone.
    pub(crate) ownership: Ownership,
    /// Its addresses, with the family of the underlay that carries them.
    pub(crate) overlays: Overlays,
    /// Whether it checks what datagrams carry; `None` if it checks no senders. The rules of all networks are in one place.
    pub(crate) strict: Option<bool>,
}

/// When each task is due.
#[derive(Debug, Default)]
struct Times {
    round: Due,
    /// Read the kernel.
    read: Due,
    /// Read the host's networks.
    networks: Due,
    /// Return unused memory.
    tidy: Due,
    /// Check the packet filter rules.
    rules: Due,
    /// Check everything, in case a notification was missed.
    resync: Due,
    /// Tell the probes who the peers are.
    probes: Due,
}

/// Interval between checks of the packet filter rules.
const RULES_INTERVAL: Duration = Duration::from_secs(3);
/// Changes by other programs within this time are repaired together.
const REPAIR_DEBOUNCE: Duration = Duration::from_millis(30);
/// Device changes within this time lead to one reading.
const READ_DEBOUNCE: Duration = Duration::from_millis(100);
/// Address changes within this time lead to one reading of the host's networks.
const NETWORKS_DEBOUNCE: Duration = Duration::from_secs(1);
/// Interval between readings of the host's networks while a network waits for a lease.
const NETWORKS_INTERVAL: Duration = Duration::from_secs(5);
/// Changes of peers within this time are told to the probes together.
const PROBES_DEBOUNCE: Duration = Duration::from_secs(1);
/// Delay before memory is returned after much work, so that work that follows at once can reuse it.
const TIDY_DELAY: Duration = Duration::from_secs(1);
/// Operations in a round from which the log mentions it, and peers from which it pays to return memory.
const MANY: usize = 100;

impl Host {
    /// Creates a host without networks.
    pub fn new(args: Arc<Args>, abilities: Abilities, nftables: bool, status: SharedStatus) -> Self {
        Self {
            args,
            abilities,
            nftables,
            status,
            reconciler: Reconciler::default(),
            external: ExternalWatch::default(),
            overlays: Vec::new(),
            needs: BTreeMap::new(),
            networks: None,
            are_networks_being_read: false,
            due: Times::default(),
            rules_due: false,
            rules_tick: false,
            rules_problem: None,
            failures: 0,
            retry_at: None,
            is_starting: true,
            round_began: None,
        }
    }

    /// Starts to read what a network requires, when it joins or goes over to another config.
    ///
    /// # Errors
    /// If this host does not have what it needs, or another network has it.
    pub(crate) fn prepare(
        &mut self,
        network: NetworkId,
        needs: Needs,
        now: Instant,
    ) -> Result<Vec<Effect>, String> {
        // The default network joins first.
        if network != DEFAULT_NETWORK || self.needs.contains_key(&network) {
            self.check(network, &needs)?;
        }
        self.reconciler.own(&needs.ownership);
        self.needs_are(network, needs);
        self.due.resync.at(now + self.args.resync_interval);
        self.due.rules.at(now + RULES_INTERVAL);
        (self.networks, self.are_networks_being_read) = (None, true);
        Ok(vec![self.survey(), self.read_anew(), self.reading_of_networks()])
    }

    /// Notes what a network needs, which is known to be there.
    pub(crate) fn needs_are(&mut self, network: NetworkId, needs: Needs) {
        self.needs.insert(network, needs);
        self.overlays = self.needs.values().flat_map(|needs| needs.overlays.iter().copied()).collect();
    }

    /// Forgets what a network needed. What it gave up in the kernel stays ours until it is gone.
    pub(crate) fn release(&mut self, network: NetworkId, now: Instant) {
        self.needs.remove(&network);
        self.overlays = self.needs.values().flat_map(|needs| needs.overlays.iter().copied()).collect();
        self.rules_have_changed(now);
    }

    /// A network that joins later must not move those that work.
    fn check(&self, network: NetworkId, needs: &Needs) -> Result<(), String> {
        for (_, other) in self.needs.iter().filter(|(id, _)| **id != network) {
            if let Some(link) = needs.ownership.links.intersection(&other.ownership.links).max() {
                return Err(format!(
                    "another network of this host has the device {link}: give this one another VNI or name"
                ));
            }
            for (_, ours) in &needs.overlays {
                if let Some((_, theirs)) = other.overlays.iter().find(|(_, theirs)| overlap(ours, theirs)) {
                    return Err(format!("{ours} overlaps {theirs}, which another network of this host has"));
                }
            }
            if needs.strict.is_some_and(|strict| other.strict.is_some_and(|other| other != strict)) {
                return Err("Backend.StrictSource must be the same in all networks of a host".to_owned());
            }
        }
        // The default network chooses the external interface, and with it the addresses.
        if network == DEFAULT_NETWORK {
            return Ok(());
        }
        let Some(external) = &self.external.external else { return Ok(()) };
        for (family, overlay) in &needs.overlays {
            let Some(address) = external.underlay.addresses.get(*family) else {
                let link = external.underlay.link;
                return Err(format!(
                    "the default network uses no {family} address of {link}, and this one needs it"
                ));
            };
            let inside =
                external.own_addresses().into_iter().chain([*address]).find(|ip| overlay.contains(*ip));
            if let Some(inside) = inside {
                return Err(format!("{overlay} contains {inside}, an address of this host's underlay"));
            }
        }
        Ok(())
    }

    /// Returns the external interface and the host's networks, once both and our objects in the kernel are known.
    pub(crate) fn known(&self) -> Option<(&External, &HostNetworks)> {
        self.external.external.as_ref().zip(self.networks.as_ref()).filter(|_| self.reconciler.is_known())
    }

    /// Returns the host's networks as last read.
    pub(crate) fn networks(&self) -> Option<&HostNetworks> {
        self.networks.as_ref()
    }

    /// Returns when [`time_passed`](Self::time_passed) has something to do.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let Times { round, read, networks, tidy, rules, resync, probes } = &self.due;
        let dues = [read, networks, tidy, rules, resync, probes, &self.external.due].map(Due::time);
        let round = round.time().filter(|_| !self.is_busy());
        dues.into_iter().chain([round, self.reconciler.due_at(now)]).flatten().min()
    }

    /// Schedules a round for this time at the latest.
    pub(crate) fn schedule(&mut self, at: Instant) {
        self.due.round.at(at);
    }

    /// Schedules a round now that checks the packet filter rules.
    pub(crate) fn rules_have_changed(&mut self, now: Instant) {
        self.rules_due = true;
        // What failed before says nothing of what is wanted now.
        (self.failures, self.retry_at) = (0, None);
        self.schedule(now);
    }

    /// Schedules that the probes are told of the peers of the default network.
    pub(crate) fn peers_have_changed(&mut self, now: Instant) {
        self.due.probes.at(now + PROBES_DEBOUNCE);
    }

    /// The same at once: this host has just become ready, and its peers may wait for answers.
    pub(crate) fn probe_now(&mut self, now: Instant) {
        self.due.probes.at(now);
    }

    /// Schedules the return of unused memory.
    pub(crate) fn tidy(&mut self, now: Instant) {
        self.due.tidy.at(now + TIDY_DELAY);
    }

    /// Handles notifications from the kernel.
    pub(crate) fn kernel_told(&mut self, changes: Vec<Change>, now: Instant) -> Vec<Effect> {
        let follows = self.reconciler.take_in(changes);
        self.follow(follows, now)
    }

    /// Handles a complete reading of the kernel.
    pub(crate) fn was_read(
        &mut self,
        read: Result<State, KernelError>,
        peers: usize,
        now: Instant,
    ) -> Vec<Effect> {
        if read.is_ok() && peers >= MANY {
            self.tidy(now);
        }
        self.external.was_read(&read, now);
        let follows = self.reconciler.take_in_all(read, self.external.is_being_renamed(), now);
        self.show_first_problem();
        let mut effects = self.follow(follows, now);
        if self.reconciler.must_read_again(now) {
            effects.extend(self.read());
        }
        effects
    }

    fn follow(&mut self, follows: Consequences, now: Instant) -> Vec<Effect> {
        if self.overlays.is_empty() {
            return Vec::new(); // no network has begun
        }
        if follows.work {
            self.schedule(now + REPAIR_DEBOUNCE);
        }
        if follows.read {
            self.due.read.at(now + READ_DEBOUNCE);
        }
        if follows.underlay {
            self.external.look_soon(now);
        }
        if follows.networks {
            self.due.networks.at(now + NETWORKS_DEBOUNCE);
        }
        let mut effects = Vec::new();
        if follows.host {
            effects.push(Effect::HostChanged);
            effects.extend(self.external.external.as_ref().map(|external| Effect::AskName(external.index)));
        }
        effects
    }

    /// Handles the current name of the external interface; `None` if its index no longer exists.
    pub(crate) fn is_called(&mut self, name: Option<LinkName>, now: Instant) {
        self.external.others_changed(name, &self.args, &self.overlays, now);
    }

    /// Handles a reading of this host's networks.
    pub(crate) fn networks_were_read(&mut self, read: Result<HostNetworks, KernelError>) {
        self.are_networks_being_read = false;
        match read {
            Ok(networks) => self.networks = Some(networks),
            // The reconciler reports a kernel that does not answer.
            Err(reason) => {
                debug!(%reason, "cannot read this host's networks; keeping the previous list");
                self.networks.get_or_insert_default();
            }
        }
    }

    /// Handles the result of operations.
    pub(crate) fn carried_out(
        &mut self,
        operations: &[Operation],
        refused: &[FailedOperation],
        now: Instant,
    ) -> Vec<Effect> {
        let follows = self.reconciler.carried_out(operations, refused, now);
        self.follow(follows, now)
    }

    /// Handles the result of setting packet filter rules and forwarding.
    pub(crate) fn rules_were_kept(&mut self, kept: Result<bool, String>, forwards: Result<(), String>) {
        if let Ok(changed) = kept {
            self.reconciler.rules_stand(changed);
        }
        self.rules_problem = forwards.err().or(kept.err());
        (self.rules_due, self.rules_tick) = (self.rules_problem.is_some(), false);
    }

    /// Starts what is due. `is_ready` says whether any network is ready, `waits` whether any waits for a lease. The
    /// returned flag says whether this is a full resync.
    pub(crate) fn time_passed(&mut self, is_ready: bool, waits: bool, now: Instant) -> (Vec<Effect>, bool) {
        let mut effects = Vec::new();
        let is_resync = self.due.resync.is_over(now);
        if is_resync {
            self.due.resync.at(now + self.args.resync_interval);
            self.due.networks.at(now);
        }
        if self.due.read.is_over(now) | is_resync | self.reconciler.must_read_again(now) {
            effects.extend(self.read());
        }
        if self.external.due.is_over(now) {
            effects.push(self.survey());
        }
        if self.due.networks.is_over(now) {
            effects.extend(self.read_networks(now));
        }
        if waits {
            self.due.networks.at(now + NETWORKS_INTERVAL);
        }
        if self.due.tidy.is_over(now) {
            self.reconciler.compact();
            effects.push(Effect::GiveBackMemory);
        }
        if self.due.rules.is_over(now) {
            self.rules_tick |= is_ready;
            self.due.rules.at(now + RULES_INTERVAL);
        }
        if self.due.probes.is_over(now) {
            effects.push(Effect::Probe);
        }
        self.reconciler.tell(now);
        (effects, is_resync)
    }

    /// Returns whether no round can begin: operations are running, the external interface is being checked, or it was
    /// renamed and our objects on it have not been read under the new name.
    pub(crate) fn is_busy(&self) -> bool {
        self.reconciler.is_under_way() || self.external.is_being_looked_at || self.external.is_being_renamed()
    }

    pub(crate) fn round_begins(&mut self, now: Instant) {
        self.due.round.clear();
        self.round_began = Some(now);
    }

    /// Returns the result of the round's operations, and the reading that they require.
    pub(crate) fn end_operations(&mut self, now: Instant) -> (Outcome, Vec<Effect>) {
        let outcome = self.reconciler.end_round();
        if let (Some(began), Some(figures)) = (self.round_began.take(), self.status.figures())
            && outcome.applied + outcome.failed > 0
        {
            figures.reconcile_seconds.observe((now - began).as_secs_f64());
        }
        let reading = if outcome.touched_devices { self.read() } else { None };
        (outcome, reading.into_iter().collect())
    }

    /// Ends a round. `problem` is a failure outside the kernel's objects, which is retried; `taken` names the holder of
    /// a port that a data path needs. Returns the problem to report.
    pub(crate) fn end_round(
        &mut self,
        outcome: &Outcome,
        problem: Option<String>,
        taken: Option<String>,
        now: Instant,
    ) -> Option<String> {
        let problem = self.rules_problem.clone().or(problem);
        if problem.is_none() {
            (self.failures, self.retry_at) = (0, None);
        } else if self.may_try(now) {
            self.failures += 1;
            self.fail_until(now + retry_after(self.failures));
        } else if let Some(at) = self.retry_at {
            self.schedule(at); // this round has cleared it
        }
        self.is_starting = false;
        if outcome.applied >= MANY {
            self.tidy(now);
            info!(operations = outcome.applied, failed = outcome.failed, "brought the kernel in line");
        } else if outcome.applied > 0 {
            debug!(operations = outcome.applied, failed = outcome.failed, "brought the kernel in line");
        }
        // Most refusals follow from a missing external interface, so report that first.
        let problem = problem.or_else(|| self.external.problem()).or_else(|| self.reconciler.problem());
        let repairs = self.reconciler.repairs();
        self.status.update(|status| status.repairs = repairs);
        self.status.report(Code::Kernel, problem.clone());
        self.status.report(Code::PortTaken, self.reconciler.port_taken().or(taken));
        problem
    }

    /// Returns whether a retry of what failed, other than the kernel's objects, is due.
    pub(crate) fn may_try(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }

    fn fail_until(&mut self, at: Instant) {
        self.retry_at = Some(at);
        self.schedule(at);
    }

    /// Schedules a retry of something that failed outside a round.
    pub(crate) fn has_failed(&mut self, problem: String, now: Instant) {
        self.failures += 1;
        self.fail_until(now + retry_after(self.failures));
        self.status.report(Code::Kernel, Some(problem));
    }

    /// Shows what delays the first round. Later, each round shows its problems.
    pub(crate) fn show_first_problem(&self) {
        if self.is_starting {
            let problem = self.external.problem().or_else(|| self.reconciler.problem());
            self.status.report(Code::Kernel, problem);
        }
    }

    /// Returns whether this round must check the packet filter rules.
    pub(crate) fn are_rules_due(&self, now: Instant) -> bool {
        self.rules_tick || (self.rules_due && self.may_try(now))
    }

    /// Reads the kernel now, or again after the reading in progress.
    pub(crate) fn read(&mut self) -> Option<Effect> {
        self.reconciler.read().then(|| self.reading())
    }

    /// Reads the kernel from now on.
    fn read_anew(&mut self) -> Effect {
        self.reconciler.read_anew();
        self.reading()
    }

    fn reading(&self) -> Effect {
        Effect::Read(self.reconciler.ownership().clone())
    }

    /// Starts to read the host's networks. If a reading is in progress, schedules another, because the first may miss
    /// recent changes.
    fn read_networks(&mut self, now: Instant) -> Option<Effect> {
        if self.are_networks_being_read {
            self.due.networks.at(now + NETWORKS_DEBOUNCE);
            return None;
        }
        self.are_networks_being_read = true;
        Some(self.reading_of_networks())
    }

    fn reading_of_networks(&self) -> Effect {
        Effect::ReadNetworks(self.overlays.iter().map(|(_, network)| *network).collect())
    }

    fn survey(&mut self) -> Effect {
        self.external.is_being_looked_at = true;
        Effect::Survey(self.overlays.clone())
    }
}

/// Returns the delay before a retry: 1 s, doubled each time, up to 30 s.
pub(crate) fn retry_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(30))
}
