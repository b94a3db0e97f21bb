//! Keeps the kernel in line with what is wanted. All changes of the kernel pass through here.
//!
//! Leases, kernel notifications and complete readings of the kernel all change one [`Ledger`], from which the
//! operations follow. So a change of one peer costs as much as one peer, even while everything is being read. The
//! caller carries out operations and readings, and reports the results.

mod deferred;
mod repairs;

use std::collections::BTreeSet;
use std::ops::BitOrAssign;
use std::time::Duration;

use flan_agent_api::{Code, Repairs};
use flan_kernel::{
    Change, Fact, FailedOperation, GivingUp, KernelError, Ledger, LinkName, Object, Operation, Ownership,
    State,
};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::deferred::Deferred;
use self::repairs::RepairLog;

/// Derives operations from the difference between what is wanted and what the kernel holds.
#[derive(Debug, Default)]
pub struct Reconciler {
    ownership: Ownership,
    underlay: Option<LinkName>,
    ledger: Ledger,
    is_reading: bool,
    /// Whether to read everything once more afterwards.
    read_again: bool,
    /// Whether all our objects were ever read. Before that, nothing counts as missing or superfluous.
    known: bool,
    /// Whether more counts as ours since the last reading began.
    is_partial: bool,
    unread: Option<KernelError>,
    /// When to retry a failed reading.
    read_at: Option<Instant>,
    /// Number of operations being carried out.
    under_way: usize,
    /// Result of this round's operations so far.
    outcome: Outcome,
    deferred: Deferred,
    /// Objects that another program changed and that are not repaired yet.
    disturbed: BTreeSet<Object>,
    repairs: RepairLog,
    /// Whether our packet filter rules were in place at the last check.
    rules_stood: bool,
}

/// What to do because of changes in the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consequences {
    /// One of our objects is not as wanted.
    pub work: bool,
    /// More may have changed than was reported: everything must be read.
    pub read: bool,
    /// The external interface may have changed.
    pub underlay: bool,
    /// This host gained or lost an address.
    pub networks: bool,
    /// Any device or address of this host has changed.
    pub host: bool,
}

impl BitOrAssign for Consequences {
    fn bitor_assign(&mut self, more: Self) {
        // Destructuring makes the compiler report a forgotten field.
        let Self { work, read, underlay, networks, host } = more;
        self.work |= work;
        self.read |= read;
        self.underlay |= underlay;
        self.networks |= networks;
        self.host |= host;
    }
}

/// Result of one round's operations.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that were carried out.
    pub applied: usize,
    /// Operations that the kernel refused. They are retried while wanted.
    pub failed: usize,
    /// Devices that were created.
    pub new_devices: BTreeSet<LinkName>,
    /// Whether a device was changed. Only a reading shows what was lost with it.
    pub touched_devices: bool,
    /// Refusals worth a log line.
    refusals: usize,
}

/// Delay before a reading is retried after a failure, or because the tables kept changing.
const READ_AGAIN: Duration = Duration::from_secs(3);
/// The same before the first reading, without which nothing can be done.
const READ_FIRST: Duration = Duration::from_millis(100);
/// Refused operations that are logged individually.
const SHOWN: usize = 5;

impl Reconciler {
    /// Adds to what counts as ours, from the next reading on. What was ours before is repaired meanwhile.
    pub fn own(&mut self, ownership: &Ownership) {
        self.is_partial |= self.ownership.add(ownership);
    }

    /// Returns which kernel objects are ours.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Sets the external interface.
    pub fn set_underlay(&mut self, underlay: LinkName) {
        self.underlay = Some(underlay);
    }

    /// Returns a plan that wants what is added to it. An object that is wanted several times must be given up as often.
    pub fn wanting(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Returns a plan that gives up what is added to it.
    pub fn giving_up(&mut self) -> GivingUp<'_> {
        self.ledger.giving_up()
    }

    /// Drops all wishes.
    pub fn give_up_all(&mut self) {
        self.ledger.give_up_all();
    }

    /// Returns whether all that is ours was read.
    pub fn is_known(&self) -> bool {
        self.known && !self.is_partial
    }

    /// Returns our devices as the kernel holds them.
    pub fn devices(&self) -> State {
        self.ledger.devices(self.ownership.links.iter().copied())
    }

    /// Returns whether the devices and addresses of this plan are as wanted.
    pub fn has_devices_of(&self, plan: &State) -> bool {
        let links = plan.links.keys().copied().map(Object::Link);
        let addresses = plan.addresses.keys().copied().map(Object::Address);
        self.known && links.chain(addresses).all(|object| self.ledger.is_in_line(&object))
    }

    /// Releases unused memory, for after large changes.
    pub fn compact(&mut self) {
        self.ledger.compact();
    }

    /// Requests a reading of everything, and returns whether to start it now. If one is in progress, another follows
    /// it, because the first may miss recent changes.
    #[must_use]
    pub fn read(&mut self) -> bool {
        self.read_again = self.is_reading;
        if self.is_reading {
            return false;
        }
        self.read_anew();
        true
    }

    /// Starts a reading even if one is in progress, because names have changed since that began.
    pub fn read_anew(&mut self) {
        (self.is_reading, self.read_again, self.read_at) = (true, false, None);
    }

    /// The reading begins: notifications from now on may be newer than its result.
    pub fn reading_begins(&mut self) {
        self.ledger.begin_reading();
    }

    /// Handles the result of a reading. Start another if [`must_read_again`](Self::must_read_again) says so. With `hurry`,
    /// an interrupted one is retried at once.
    pub fn take_in_all(
        &mut self,
        read: Result<State, KernelError>,
        hurry: bool,
        now: Instant,
    ) -> Consequences {
        self.is_reading = false;
        let actual = match read {
            Ok(actual) => actual,
            // Retry later. Changes of our objects were reported individually meanwhile.
            Err(KernelError::Interrupted) => {
                debug!("the kernel's tables change too fast to be read; trying again later");
                self.read_at = Some(now + if self.known && !hurry { READ_AGAIN } else { READ_FIRST });
                return Consequences::default();
            }
            Err(reason) => {
                warn!(code = %Code::Kernel, %reason, "cannot read the kernel's state; leaving it as it is");
                self.unread = Some(reason);
                self.read_at = Some(now + READ_AGAIN);
                return Consequences { work: true, ..Consequences::default() };
            }
        };
        self.unread = None;
        for object in self.ledger.reset(actual) {
            // What is read for the first time was not changed by anybody.
            if self.is_known() && self.ledger.is_disturbed(&object) {
                self.disturbed.insert(object);
            }
        }
        (self.known, self.is_partial) = (true, false);
        Consequences { work: true, ..Consequences::default() }
    }

    /// Returns whether another reading is due: requested during the last one, or because that failed.
    pub fn must_read_again(&self, now: Instant) -> bool {
        !self.is_reading && (self.read_again || self.read_at.is_some_and(|at| at <= now))
    }

    /// Handles notifications from the kernel, in order.
    pub fn take_in(&mut self, changes: Vec<Change>) -> Consequences {
        let mut follows = Consequences::default();
        for change in changes {
            match change {
                Change::Fact(fact) => self.take_in_fact(&fact, &mut follows),
                Change::Link(name) => {
                    let ours = self.ownership.links.contains(&name);
                    let underlay = self.underlay == Some(name);
                    follows.underlay |= underlay;
                    follows.host = true;
                    follows.read |= ours || underlay;
                    // This device may have blocked one of ours.
                    follows.work |= self.deferred.release_links();
                }
                Change::HostAddress(name) => {
                    follows.host = true;
                    follows.networks = true;
                    follows.underlay |= self.underlay == Some(name);
                }
                Change::DefaultRoute => follows.underlay = true,
                Change::SendersGone => {
                    let gone = self.ledger.nftables_gone().into_iter();
                    self.disturbed.extend(gone.filter(|object| !self.ledger.is_in_line(object)));
                    (follows.work, follows.read) = (true, true);
                }
                Change::Unknown => {
                    let told = Consequences::default();
                    follows |=
                        Consequences { read: true, underlay: true, networks: true, host: true, ..told };
                }
            }
        }
        follows
    }

    fn take_in_fact(&mut self, fact: &Fact, follows: &mut Consequences) {
        let object = fact.object();
        follows.work |= self.deferred.release(&object);
        if self.ledger.observe(fact).is_some() && self.known && !self.ledger.is_in_line(&object) {
            if self.ledger.is_disturbed(&object) {
                self.disturbed.insert(object);
            }
            follows.work = true;
            follows.read |= fact.takes_others_along();
        }
    }

    /// Returns the operations to carry out now. Without `may_delete`, deletes only what was wanted before. Report the
    /// result with [`carried_out`](Self::carried_out).
    pub fn begin(&mut self, may_delete: bool, now: Instant) -> Vec<Operation> {
        if !self.known {
            return Vec::new();
        }
        let mut operations = self.due(now);
        let was_wanted = |operation: &Operation| self.ledger.is_given_up(&operation.object());
        operations.retain(|operation| may_delete || !operation.is_deletion() || was_wanted(operation));
        self.under_way = operations.len();
        operations
    }

    /// Returns whether operations are being carried out.
    pub fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// Handles the result of operations from [`begin`](Self::begin). `operations` includes the refused ones.
    pub fn carried_out(
        &mut self,
        operations: &[Operation],
        refused: &[FailedOperation],
        now: Instant,
    ) -> Consequences {
        self.under_way = self.under_way.saturating_sub(operations.len());
        self.outcome.failed += refused.len();
        self.note_success(operations, refused, now);
        let mut follows = Consequences::default();
        for refusal in refused {
            if self.is_to_be_told(refusal) {
                if self.outcome.refusals < SHOWN {
                    warn!(code = %Code::Kernel, operation = %refusal.operation, reason = %refusal.reason, "the kernel refused an operation");
                }
                self.outcome.refusals += 1;
            }
            if !self.is_for_want_of_a_device(refusal) {
                self.deferred.failed(refusal, now);
                // Unless another program holds what we need, our view may be out of date.
                follows.read |=
                    !matches!(refusal.reason, KernelError::Taken(_) | KernelError::PortTaken { .. });
            }
        }
        follows
    }

    /// Returns the result of this round's operations, and resets it.
    pub fn end_round(&mut self) -> Outcome {
        let outcome = std::mem::take(&mut self.outcome);
        if outcome.refusals > SHOWN {
            warn!(more = outcome.refusals - SHOWN, "the kernel refused more operations");
        }
        outcome
    }

    /// Records whether a check of the packet filter rules, whose changes nobody reports, had to put them in place.
    pub fn rules_stand(&mut self, changed: bool) {
        if changed {
            info!("packet filter rules put in place");
            self.repairs.count_rules(self.rules_stood);
        } else {
            self.repairs.rules_stand();
        }
        self.rules_stood = true;
    }

    /// Returns when something is due even without an event.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        [self.deferred.next(now), self.repairs.tell_at(), self.read_at].into_iter().flatten().min()
    }

    /// Logs repairs once none has happened for a while.
    pub fn tell(&mut self, now: Instant) {
        self.repairs.tell(now);
    }

    /// Returns how often we repaired a change by another program.
    pub fn repairs(&self) -> Repairs {
        self.repairs.total()
    }

    /// Returns the current problem, in one line.
    pub fn problem(&self) -> Option<String> {
        let unread = self.unread.as_ref().map(|reason| format!("cannot read the kernel's state: {reason}"));
        unread.or_else(|| self.deferred.problem())
    }

    /// Returns who holds the UDP port that one of our devices needs, and what to do.
    pub fn port_taken(&self) -> Option<String> {
        self.deferred.port_taken()
    }

    fn due(&mut self, now: Instant) -> Vec<Operation> {
        self.disturbed.retain(|object| !self.ledger.is_in_line(object));
        self.deferred.retain(|object| !self.ledger.is_in_line(object));
        let mut operations = self.ledger.operations();
        for operation in &operations {
            let object = operation.object();
            if self.disturbed.contains(&object)
                && !self.deferred.knows(&object)
                && let Some(wait) = self.repairs.must_wait(operation, now)
            {
                self.deferred.dispute(operation, wait, now);
            }
        }
        let made: BTreeSet<LinkName> = operations
            .iter()
            .filter(|operation| !self.deferred.holds(&operation.object(), now))
            .filter_map(|operation| operation.object().as_device())
            .collect();
        let needs_nothing = |operation: &Operation| {
            operation.device().is_none_or(|link| {
                !self.ownership.links.contains(&link) || made.contains(&link) || self.ledger.stands(link)
            })
        };
        operations
            .retain(|operation| needs_nothing(operation) && !self.deferred.holds(&operation.object(), now));
        operations
    }

    fn note_success(&mut self, operations: &[Operation], refused: &[FailedOperation], now: Instant) {
        let failed: BTreeSet<Object> = refused.iter().map(|refusal| refusal.operation.object()).collect();
        for operation in operations {
            let object = operation.object();
            self.outcome.touched_devices |= object.as_device().is_some();
            if failed.contains(&object) {
                continue;
            }
            let makes_device = operation.makes_device();
            if makes_device && operation.upheaval().is_some() {
                info!(%operation, "created the device again");
            } else {
                debug!(%operation, "applied");
            }
            self.ledger.carried_out(operation);
            self.deferred.succeeded(&object);
            self.outcome.applied += 1;
            self.outcome.new_devices.extend(object.as_device().filter(|_| makes_device));
            if self.disturbed.remove(&object) {
                self.repairs.count(operation, now);
            }
        }
    }

    /// Such an operation waits until the device exists and is up, without a time limit.
    fn is_for_want_of_a_device(&self, refusal: &FailedOperation) -> bool {
        let needed = match &refusal.reason {
            KernelError::NoSuchLink(name) => Some(*name),
            reason if reason.is_device_down() => refusal.operation.device(),
            _ => None,
        };
        needed.is_some_and(|name| {
            self.ownership.links.contains(&name) && refusal.operation.object().as_device() != Some(name)
        })
    }

    /// Skips consequences of another refusal, and taken ports, which have their own problem code.
    fn is_to_be_told(&self, refusal: &FailedOperation) -> bool {
        !self.is_for_want_of_a_device(refusal) && !matches!(refusal.reason, KernelError::PortTaken { .. })
    }
}

#[cfg(test)]
mod tests;
