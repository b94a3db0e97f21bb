//! This host, whatever the networks that it takes part in: what the kernel holds, the external interface, the packet
//! filter, and when each is looked at.
//!
//! It neither waits nor asks: it is told what happens and when, and says which [`Effect`]s follow.

mod external;
pub mod reconcile;

use std::sync::Arc;
use std::time::Duration;

use flan_agent_api::Code;
use flan_backends::{Abilities, HostNetworks};
use flan_kernel::{Change, FailedOperation, KernelError, LinkName, Operation, Ownership, State};
use tokio::time::Instant;
use tracing::{debug, info};

use self::external::ExternalWatch;
use self::reconcile::{Consequences, Outcome, Reconciler};
use crate::agent::Effect;
use crate::args::Args;
use crate::due::Due;
use crate::interface::{External, Overlays};
use crate::status::SharedStatus;

/// This host.
pub struct Host {
    pub(crate) args: Arc<Args>,
    /// What this host's kernel has and the flags allow.
    pub(crate) abilities: Abilities,
    /// Whether the kernel has nftables.
    pub(crate) nftables: bool,
    pub(crate) status: SharedStatus,
    pub(crate) reconciler: Reconciler,
    pub(crate) external: ExternalWatch,
    /// The overlay networks: only what overlaps them is of interest.
    overlays: Overlays,
    /// What this host has to do with other networks; `None` until that was read.
    networks: Option<HostNetworks>,
    are_networks_being_read: bool,
    /// When each thing is to be done.
    due: Times,
    /// Whether the packet filter rules must be put in place, and whether it is time to look at them.
    rules_due: bool,
    rules_tick: bool,
    /// Why they do not stand.
    rules_problem: Option<String>,
    /// Attempts in a row in which something beside the kernel's objects failed, and when the next one is due.
    failures: u32,
    retry_at: Option<Instant>,
    /// Whether no round has ended yet.
    is_starting: bool,
}

/// When each thing is to be done.
#[derive(Debug, Default)]
struct Times {
    round: Due,
    /// The kernel is read.
    read: Due,
    /// The host's networks are read.
    networks: Due,
    /// Memory that was needed for a moment is given back.
    tidy: Due,
    /// The packet filter rules are looked at.
    rules: Due,
    /// Everything is looked at of which nobody may have told.
    resync: Due,
}

/// How often the packet filter rules are looked at.
const RULES_INTERVAL: Duration = Duration::from_secs(3);
/// What another program changes within this time is put right together.
const REPAIR_DEBOUNCE: Duration = Duration::from_millis(30);
/// Changes of devices within this time lead to one reading.
const READ_DEBOUNCE: Duration = Duration::from_millis(100);
/// Changes of addresses within this time lead to one reading of the host's networks.
const NETWORKS_DEBOUNCE: Duration = Duration::from_secs(1);
/// How often the host's networks are read while a network waits for a lease.
const NETWORKS_INTERVAL: Duration = Duration::from_secs(5);
/// Memory is given back so long after much was done or read, when no more of the kind is likely to follow at once.
const TIDY_DELAY: Duration = Duration::from_secs(1);
/// Operations in one round that are worth a line in the log, and peers whose objects take memory worth the trouble.
const MANY: usize = 100;

impl Host {
    /// A host that takes part in no network.
    pub fn new(args: Arc<Args>, abilities: Abilities, nftables: bool, status: SharedStatus) -> Self {
        Self {
            args,
            abilities,
            nftables,
            status,
            reconciler: Reconciler::default(),
            external: ExternalWatch::default(),
            overlays: Vec::new(),
            networks: None,
            are_networks_being_read: false,
            due: Times::default(),
            rules_due: false,
            rules_tick: false,
            rules_problem: None,
            failures: 0,
            retry_at: None,
            is_starting: true,
        }
    }

    /// Looks at everything that one more network needs to know.
    pub(crate) fn prepare(&mut self, overlays: Overlays, ownership: Ownership, now: Instant) -> Vec<Effect> {
        self.overlays.extend(overlays);
        self.reconciler.own(ownership);
        self.due.resync.at(now + self.args.resync_interval);
        self.due.rules.at(now + RULES_INTERVAL);
        (self.networks, self.are_networks_being_read) = (None, true);
        vec![self.survey(), self.read_anew(), self.reading_of_networks()]
    }

    /// The external interface and the host's networks, once they and what the kernel holds of ours are known.
    pub(crate) fn known(&self) -> Option<(&External, &HostNetworks)> {
        self.external.external.as_ref().zip(self.networks.as_ref()).filter(|_| self.reconciler.is_known())
    }

    /// The host's networks, when they were last read.
    pub(crate) fn networks(&self) -> Option<&HostNetworks> {
        self.networks.as_ref()
    }

    /// When there is something to do although nothing happens.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let Times { round, read, networks, tidy, rules, resync } = &self.due;
        let dues = [read, networks, tidy, rules, resync, &self.external.due].map(Due::time);
        let round = round.time().filter(|_| !self.is_busy());
        dues.into_iter().chain([round, self.reconciler.due_at(now)]).flatten().min()
    }

    /// Works on the kernel's state after a while, in which more may change.
    pub(crate) fn schedule(&mut self, at: Instant) {
        self.due.round.at(at);
    }

    /// Looks at the packet filter rules in the next round, which is now.
    pub(crate) fn rules_have_changed(&mut self, now: Instant) {
        self.rules_due = true;
        self.schedule(now);
    }

    /// Gives memory back in a while.
    pub(crate) fn tidy(&mut self, now: Instant) {
        self.due.tidy.at(now + TIDY_DELAY);
    }

    /// Takes in what the kernel told.
    pub(crate) fn kernel_told(&mut self, changes: Vec<Change>, now: Instant) -> Vec<Effect> {
        let follows = self.reconciler.take_in(changes);
        self.follow(follows, now)
    }

    /// Takes in what a reading of the kernel found.
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
            return Vec::new(); // nothing was read before, and nothing is ours
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

    /// Takes in how the external interface is called, if there is any under its number.
    pub(crate) fn is_called(&mut self, name: Option<LinkName>, now: Instant) {
        self.external.others_changed(name, &self.args, &self.overlays, now);
    }

    /// Takes in that this host's networks were read.
    pub(crate) fn networks_were_read(&mut self, read: Result<HostNetworks, KernelError>) {
        self.are_networks_being_read = false;
        match read {
            Ok(networks) => self.networks = Some(networks),
            // The reconciler tells of a kernel that does not answer.
            Err(reason) => {
                debug!(%reason, "cannot read this host's networks; taking them for what they were");
                self.networks.get_or_insert_default();
            }
        }
    }

    /// Takes in what came of some operations.
    pub(crate) fn carried_out(
        &mut self,
        operations: &[Operation],
        refused: &[FailedOperation],
        now: Instant,
    ) -> Vec<Effect> {
        let follows = self.reconciler.carried_out(operations, refused, now);
        self.follow(follows, now)
    }

    /// Takes in whether the packet filter rules had to be put in place, and whether this host forwards.
    pub(crate) fn rules_were_kept(&mut self, kept: Result<bool, String>, forwards: Result<(), String>) {
        if let Ok(changed) = kept {
            self.reconciler.rules_stand(changed);
        }
        self.rules_problem = forwards.err().or(kept.err());
        (self.rules_due, self.rules_tick) = (self.rules_problem.is_some(), false);
    }

    /// Does what is due; `is_ready` says whether any network is ready, `waits` whether any waits for a lease. Whether all is
    /// looked at of which nobody may have told comes back with the effects.
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
        self.reconciler.tell(now);
        (effects, is_resync)
    }

    /// Whether a round cannot begin: operations are being carried out, the external interface is being looked at, or it has
    /// another name, and nothing of ours that names it can be repaired until it is read.
    pub(crate) fn is_busy(&self) -> bool {
        self.reconciler.is_under_way() || self.external.is_being_looked_at || self.external.is_being_renamed()
    }

    /// A round begins: none is due any more.
    pub(crate) fn round_begins(&mut self) {
        self.due.round.clear();
    }

    /// What came of the operations of this round, and what must be read because of that.
    pub(crate) fn end_operations(&mut self) -> (Outcome, Vec<Effect>) {
        let outcome = self.reconciler.end_round();
        let reading = if outcome.touched_devices { self.read() } else { None };
        (outcome, reading.into_iter().collect())
    }

    /// Ends a round, when the kernel's objects, the packet filter and the networks are done. `problem` is what failed beside
    /// the kernel's objects, and is tried again; `taken` says who has a port that a data path needs. Answers what is wrong.
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
        }
        self.is_starting = false;
        if outcome.applied >= MANY {
            self.tidy(now);
            info!(operations = outcome.applied, failed = outcome.failed, "brought the kernel in line");
        } else if outcome.applied > 0 {
            debug!(operations = outcome.applied, failed = outcome.failed, "brought the kernel in line");
        }
        // Without the external interface much is refused, and only because of that.
        let problem = problem.or_else(|| self.external.problem()).or_else(|| self.reconciler.problem());
        let (told, repairs) = (problem.clone(), self.reconciler.repairs());
        self.status.update(|status| (status.kernel_problem, status.repairs) = (told, repairs));
        self.status.report(Code::PortTaken, self.reconciler.port_taken().or(taken));
        problem
    }

    /// Whether what failed beside the kernel's objects may be tried again.
    pub(crate) fn may_try(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }

    fn fail_until(&mut self, at: Instant) {
        self.retry_at = Some(at);
        self.schedule(at);
    }

    /// Something failed after a round was over: a later one tries it again.
    pub(crate) fn has_failed(&mut self, problem: String, now: Instant) {
        self.failures += 1;
        self.fail_until(now + retry_after(self.failures));
        self.status.update(|status| status.kernel_problem = Some(problem));
    }

    /// Shows what keeps the first round from coming, which shows problems later.
    pub(crate) fn show_first_problem(&self) {
        if self.is_starting {
            let problem = self.external.problem().or_else(|| self.reconciler.problem());
            self.status.update(|status| status.kernel_problem = problem);
        }
    }

    /// Whether the packet filter rules must be looked at in this round.
    pub(crate) fn are_rules_due(&self, now: Instant) -> bool {
        self.rules_tick || (self.rules_due && self.may_try(now))
    }

    /// Reads the kernel, now or after the reading that is being done.
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

    /// Begins to read the host's networks. While that is being done, they are read once more in a moment: the reading that
    /// began before may miss what has changed since.
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

/// How long to wait before what failed is tried again: 1 s, doubled each time, up to 30 s.
pub(crate) fn retry_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(30))
}
