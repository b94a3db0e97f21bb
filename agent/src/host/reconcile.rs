//! The one way into the kernel: what is wanted, what the kernel is known to hold, and the operations between the two.
//!
//! A lease, a notification of the kernel and a complete reading of it all change the same [`Ledger`], and the reconciler
//! says which operations follow. So a change of one peer costs what one peer costs, and a reading of everything runs
//! beside it. Whoever carries out the operations and reads the kernel reports back what came of it.

mod deferred;
mod repairs;

use std::collections::BTreeSet;
use std::ops::BitOrAssign;
use std::time::Duration;

use flan_agent_api::Repairs;
use flan_kernel::{
    Change, Fact, FailedOperation, GivingUp, KernelError, Ledger, LinkName, Object, Operation, Ownership,
    State,
};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::deferred::Deferred;
use self::repairs::RepairLog;

/// Brings the kernel in line.
#[derive(Debug, Default)]
pub struct Reconciler {
    ownership: Ownership,
    /// The external interface.
    underlay: Option<LinkName>,
    ledger: Ledger,
    /// Whether everything is being read.
    is_reading: bool,
    /// Whether everything must be read once more after that.
    read_again: bool,
    /// Whether all that is ours was ever read. Before that, nothing is known to be missing or superfluous.
    known: bool,
    /// Why the last reading failed.
    unread: Option<KernelError>,
    /// When the next reading is due, after one that failed.
    read_at: Option<Instant>,
    /// Operations that are being carried out.
    under_way: usize,
    /// What came of those of this round so far.
    outcome: Outcome,
    /// What must not be tried before a certain time.
    deferred: Deferred,
    /// What another program has changed, until it is put right.
    disturbed: BTreeSet<Object>,
    repairs: RepairLog,
    /// Whether our packet filter rules stood when they were last looked at.
    rules_stood: bool,
}

/// What follows from what the kernel told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consequences {
    /// Something of ours is not as it is wanted.
    pub work: bool,
    /// More may have changed than was told: everything must be read.
    pub read: bool,
    /// The external interface may have changed.
    pub underlay: bool,
    /// An address came to this host, or left it.
    pub networks: bool,
    /// Devices or addresses of this host have changed, of whatever kind.
    pub host: bool,
}

impl BitOrAssign for Consequences {
    fn bitor_assign(&mut self, more: Self) {
        // Field by field, so that the compiler names one that is forgotten.
        let Self { work, read, underlay, networks, host } = more;
        self.work |= work;
        self.read |= read;
        self.underlay |= underlay;
        self.networks |= networks;
        self.host |= host;
    }
}

/// What came of the operations of one round.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that were carried out.
    pub applied: usize,
    /// Operations that the kernel refused. They come up again later, as long as they are wanted.
    pub failed: usize,
    /// Devices that were created.
    pub new_devices: BTreeSet<LinkName>,
    /// Whether anything was done to a device: only a reading shows what went with it.
    pub touched_devices: bool,
    /// Refusals that are worth a line in the log.
    refusals: usize,
}

/// Pause before another reading when one failed, and when the tables changed all the while.
const READ_AGAIN: Duration = Duration::from_secs(3);
/// The same before the first one: nothing can be done without it.
const READ_FIRST: Duration = Duration::from_millis(100);
/// Refused operations that are logged one by one.
const SHOWN: usize = 5;

impl Reconciler {
    /// Counts what `ownership` says among ours, from the next reading on.
    pub fn own(&mut self, ownership: Ownership) {
        self.ownership.links.extend(ownership.links);
        self.ownership.senders |= ownership.senders;
        self.known = false;
    }

    /// What in the kernel is ours.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Names the external interface.
    pub fn set_underlay(&mut self, underlay: LinkName) {
        self.underlay = Some(underlay);
    }

    /// Takes what is planned: it is wanted from now on. What is wanted several times must be given up as often.
    pub fn wanting(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Takes what was planned: it is given up.
    pub fn giving_up(&mut self) -> GivingUp<'_> {
        self.ledger.giving_up()
    }

    /// Wants nothing any more.
    pub fn give_up_all(&mut self) {
        self.ledger.give_up_all();
    }

    /// Whether the kernel was read.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Our devices as the kernel holds them.
    pub fn devices(&self) -> State {
        self.ledger.devices(self.ownership.links.iter().copied())
    }

    /// Whether the devices and addresses of this plan stand as they are wanted.
    pub fn has_devices_of(&self, plan: &State) -> bool {
        let links = plan.links.keys().copied().map(Object::Link);
        let addresses = plan.addresses.keys().copied().map(Object::Address);
        self.known && links.chain(addresses).all(|object| self.ledger.is_in_line(&object))
    }

    /// Takes as little memory as it can, as after very much has changed.
    pub fn compact(&mut self) {
        self.ledger.compact();
    }

    /// Says whether everything must be read from now on. If it is being read, it is read once more afterwards: what
    /// happened since that reading began it may not show.
    #[must_use]
    pub fn read(&mut self) -> bool {
        self.read_again = self.is_reading;
        if self.is_reading {
            return false;
        }
        self.read_anew();
        true
    }

    /// Everything must be read from now on, whether it is being read or not: what was read before has other names now.
    pub fn read_anew(&mut self) {
        (self.is_reading, self.read_again, self.read_at) = (true, false, None);
    }

    /// The reading begins: what the kernel reports from now on may be newer.
    pub fn reading_begins(&mut self) {
        self.ledger.begin_reading();
    }

    /// Takes in what a reading found. It must be followed by [`read`](Self::read) where that is [due](Self::must_read_again).
    /// `hurry`: nothing can be done without it.
    pub fn take_in_all(
        &mut self,
        read: Result<State, KernelError>,
        hurry: bool,
        now: Instant,
    ) -> Consequences {
        self.is_reading = false;
        let actual = match read {
            Ok(actual) => actual,
            // What changes all the time is read another time; what of it is ours was told one by one.
            Err(KernelError::Interrupted) => {
                debug!("the kernel's tables change too fast to be read; they are read again later");
                self.read_at = Some(now + if self.known && !hurry { READ_AGAIN } else { READ_FIRST });
                return Consequences::default();
            }
            Err(reason) => {
                warn!(%reason, "cannot read the kernel's state; leaving it as it is");
                self.unread = Some(reason);
                self.read_at = Some(now + READ_AGAIN);
                return Consequences { work: true, ..Consequences::default() };
            }
        };
        self.unread = None;
        for object in self.ledger.reset(actual) {
            if self.known && !self.ledger.is_in_line(&object) {
                self.disturbed.insert(object);
            }
        }
        self.known = true;
        Consequences { work: true, ..Consequences::default() }
    }

    /// Whether everything must be read once more, because of what happened during the last reading or because that failed.
    pub fn must_read_again(&self, now: Instant) -> bool {
        !self.is_reading && (self.read_again || self.read_at.is_some_and(|at| at <= now))
    }

    /// Takes in what the kernel told, in its order.
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
                    // It may have been in the way of one of ours.
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
            self.disturbed.insert(object);
            follows.work = true;
            follows.read |= fact.takes_others_along();
        }
    }

    /// What is to be done now and need not wait; deletions only where `may_delete` says so. What came of it must be reported
    /// by [`carried_out`](Self::carried_out).
    pub fn begin(&mut self, may_delete: bool, now: Instant) -> Vec<Operation> {
        if !self.known {
            return Vec::new();
        }
        let mut operations = self.due(now);
        operations.retain(|operation| may_delete || !operation.is_deletion());
        self.under_way = operations.len();
        operations
    }

    /// Whether operations are being carried out.
    pub fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// Takes in what came of operations that [`begin`](Self::begin) gave, those that were refused among them.
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
                    warn!(operation = %refusal.operation, reason = %refusal.reason, "the kernel refused an operation");
                }
                self.outcome.refusals += 1;
            }
            if !self.is_for_want_of_a_device(refusal) {
                self.deferred.failed(refusal, now);
                // Unless another program is in the way, our view may be out of date.
                follows.read |=
                    !matches!(refusal.reason, KernelError::Taken(_) | KernelError::PortTaken { .. });
            }
        }
        follows
    }

    /// What came of the operations of this round; the next one begins with nothing.
    pub fn end_round(&mut self) -> Outcome {
        let outcome = std::mem::take(&mut self.outcome);
        if outcome.refusals > SHOWN {
            warn!(more = outcome.refusals - SHOWN, "the kernel refused more operations");
        }
        outcome
    }

    /// Takes in whether the packet filter rules had to be put in place. Nobody tells us when they are changed.
    pub fn rules_stand(&mut self, changed: bool) {
        if changed {
            info!("packet filter rules put in place");
            self.repairs.count_rules(self.rules_stood);
        } else {
            self.repairs.rules_stand();
        }
        self.rules_stood = true;
    }

    /// When there is something to do although nothing happens.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        [self.deferred.next(now), self.repairs.tell_at(), self.read_at].into_iter().flatten().min()
    }

    /// Tells of repairs, once it is quiet again.
    pub fn tell(&mut self, now: Instant) {
        self.repairs.tell(now);
    }

    /// How often something of ours was put right that another program had changed.
    pub fn repairs(&self) -> Repairs {
        self.repairs.total()
    }

    /// What is not as it should be, in one line.
    pub fn problem(&self) -> Option<String> {
        let unread = self.unread.as_ref().map(|reason| format!("cannot read the kernel's state: {reason}"));
        unread.or_else(|| self.deferred.problem())
    }

    /// Who has the UDP port that a device of ours needs, and what to do, while that lasts.
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
                info!(%operation, "made the device anew");
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

    /// Such an operation waits for the device to be there and up, and not for a time.
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

    /// What only follows from another refusal is not, and a port that is taken is a problem with a code of its own.
    fn is_to_be_told(&self, refusal: &FailedOperation) -> bool {
        !self.is_for_want_of_a_device(refusal) && !matches!(refusal.reason, KernelError::PortTaken { .. })
    }
}

#[cfg(test)]
mod tests;
