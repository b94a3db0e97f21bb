//! The one way into the kernel: what is wanted, what the kernel is known to hold, and the operations between the two.
//!
//! A lease, a notification of the kernel and a complete reading of it all change the same [`Ledger`]; [`Reconciler::work`]
//! carries out what it then says. So a change of one peer costs what one peer costs, and a reading of everything runs
//! beside it without being waited for.

mod burst;
mod waiting;

use std::collections::BTreeSet;
use std::ops::BitOrAssign;
use std::time::Duration;

use flan_agent_api::Repairs;
use flan_kernel::{
    Change, Fact, FailedOperation, Firewall, FirewallError, GivingUp, Kernel, KernelError, Ledger, LinkName,
    Object, Operation, Ownership, Ruleset, State,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::burst::Burst;
use self::waiting::Waiting;

/// Brings the kernel in line.
pub struct Reconciler<K, F> {
    kernel: K,
    firewall: F,
    ownership: Ownership,
    /// The external interface.
    underlay: Option<LinkName>,
    ledger: Ledger,
    /// Reads everything, while that lasts.
    reading: Option<BoxFuture<'static, Result<State, KernelError>>>,
    /// Whether everything must be read once more after that.
    read_again: bool,
    /// Whether the kernel was ever read. Before that, nothing is known to be missing or superfluous.
    known: bool,
    /// Why the last reading failed.
    unread: Option<KernelError>,
    /// When the next reading is due, after one that failed.
    read_at: Option<Instant>,
    /// What was heard of while nobody was there to hear it.
    noted: Heard,
    /// What must not be tried before a certain time.
    waiting: Waiting,
    /// What another program has changed, until it is put right.
    disturbed: BTreeSet<Object>,
    burst: Burst,
    /// Whether our rules stood when we last looked.
    rules_stood: bool,
}

/// What the kernel had to tell, for those who plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
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
    /// Everything has been read.
    pub has_read: bool,
}

impl BitOrAssign for Heard {
    fn bitor_assign(&mut self, more: Self) {
        // Field by field, so that the compiler names one that is forgotten.
        let Self { work, read, underlay, networks, host, has_read } = more;
        self.work |= work;
        self.read |= read;
        self.underlay |= underlay;
        self.networks |= networks;
        self.host |= host;
        self.has_read |= has_read;
    }
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that were carried out.
    pub applied: usize,
    /// Operations that the kernel refused. They come up again later, as long as they are wanted.
    pub failed: usize,
    /// Whether a device was made, or made anew.
    pub device_is_new: bool,
}

/// Operations between two looks at what the kernel has to tell: it must not pile up.
const STRIDE: usize = 2048;
/// Pause before another reading when one failed.
const READ_AGAIN: Duration = Duration::from_secs(3);
/// Refused operations that are logged one by one.
const SHOWN: usize = 5;

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// A reconciler for what `ownership` says is ours, which wants nothing yet.
    pub fn new(kernel: K, firewall: F, ownership: Ownership) -> Self {
        Self {
            kernel,
            firewall,
            ownership,
            underlay: None,
            ledger: Ledger::default(),
            reading: None,
            read_again: false,
            known: false,
            unread: None,
            read_at: None,
            noted: Heard::default(),
            waiting: Waiting::default(),
            disturbed: BTreeSet::new(),
            burst: Burst::default(),
            rules_stood: false,
        }
    }

    /// Reads everything and waits for it, and returns what the kernel holds of ours: for the first time, or because what
    /// was read before has other names now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read_now(&mut self) -> Result<State, KernelError> {
        // One that is being done began before.
        self.reading = None;
        let actual = loop {
            self.listen();
            self.ledger.begin_reading();
            match self.kernel.snapshot(&self.ownership).await {
                // Other programs change their objects so fast that ours cannot be read between.
                Err(KernelError::Interrupted) => tokio::time::sleep(Duration::from_millis(100)).await,
                read => break read?,
            }
        };
        self.listen();
        self.ledger.reset(actual.clone());
        self.known = true;
        Ok(actual)
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

    /// Whether our devices and their addresses stand as they are wanted.
    pub fn has_devices(&self) -> bool {
        self.known && self.ledger.has_devices()
    }

    /// Takes as little memory as it can, as after very much has changed.
    pub fn compact(&mut self) {
        self.ledger.compact();
    }

    /// Begins to read everything; if that is being done, it is done once more afterwards.
    pub fn read(&mut self) {
        // What happened since that one began it may not show.
        self.read_again = self.reading.is_some();
        if self.reading.is_none() {
            self.read_at = None;
            self.listen();
            self.ledger.begin_reading();
            self.reading = Some(self.kernel.snapshot(&self.ownership));
        }
    }

    /// Waits until the kernel has something to tell or a reading is done, and takes it in. Cancel-safe.
    pub async fn hear(&mut self) -> Heard {
        if self.noted != Heard::default() {
            return std::mem::take(&mut self.noted);
        }
        let reading = async {
            match &mut self.reading {
                Some(reading) => reading.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changes = self.kernel.changes() => self.take_in(changes),
            read = reading => {
                self.reading = None;
                let heard = self.take_in_all(read);
                if self.read_again {
                    self.read();
                }
                heard
            }
        }
    }

    /// Carries out what can be done now. A failure stops nothing else.
    pub async fn work(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if self.read_at.is_some_and(|at| at <= now) {
            self.read();
        }
        if !self.known {
            return outcome;
        }
        let operations = self.due(now);
        let mut shown = 0;
        for stride in operations.chunks(STRIDE) {
            let refused = self.kernel.apply(stride).await;
            outcome.failed += refused.len();
            self.settle(stride, &refused, &mut outcome, now);
            for refusal in refused.iter().filter(|refusal| self.is_to_be_told(refusal)) {
                if shown < SHOWN {
                    warn!(operation = %refusal.operation, reason = %refusal.reason, "the kernel refused an operation");
                }
                shown += 1;
            }
            self.listen();
        }
        if shown > SHOWN {
            warn!(more = shown - SHOWN, "the kernel refused more operations");
        }
        // Only a reading shows what went with a device.
        if operations.iter().any(|operation| operation.object().as_device().is_some()) {
            self.read();
        }
        outcome
    }

    /// Puts the packet filter rules in place, where they are not. Nobody tells us when they are changed.
    ///
    /// # Errors
    /// When they can be neither read nor written.
    pub async fn keep_rules(&mut self, rules: &Ruleset) -> Result<(), FirewallError> {
        match self.firewall.apply(rules).await {
            Ok(changed) => {
                if changed {
                    info!("packet filter rules put in place");
                    self.burst.count_rules(self.rules_stood);
                } else {
                    self.burst.rules_stand();
                }
                self.rules_stood = true;
                Ok(())
            }
            Err(reason) => {
                warn!(%reason, "cannot put the packet filter rules in place");
                Err(reason)
            }
        }
    }

    /// When there is something to do although nothing happens.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        [self.waiting.next(now), self.burst.tell_at(), self.read_at].into_iter().flatten().min()
    }

    /// Tells of repairs, once it is quiet again.
    pub fn tell(&mut self, now: Instant) {
        self.burst.tell(now);
    }

    /// How often something of ours was put right that another program had changed.
    pub fn repairs(&self) -> Repairs {
        self.burst.repairs()
    }

    /// What is not as it should be, in one line.
    pub fn problem(&self) -> Option<String> {
        let unread = self.unread.as_ref().map(|reason| format!("cannot read the kernel's state: {reason}"));
        unread.or_else(|| self.waiting.problem())
    }

    /// Who has the UDP port that a device of ours needs, and what to do, while that lasts.
    pub fn port_taken(&self) -> Option<String> {
        self.waiting.port_taken()
    }

    /// Takes in what the kernel has told already, without waiting. What it means is seen when it is next heard.
    fn listen(&mut self) {
        while let Some(changes) = self.kernel.changes().now_or_never() {
            let heard = self.take_in(changes);
            self.noted |= heard;
        }
    }

    fn take_in(&mut self, changes: Vec<Change>) -> Heard {
        let mut heard = Heard::default();
        for change in changes {
            match change {
                Change::Fact(fact) => self.take_in_fact(&fact, &mut heard),
                Change::Link(name) => {
                    let ours = self.ownership.links.contains(&name);
                    let underlay = self.underlay == Some(name);
                    heard.underlay |= underlay;
                    heard.host = true;
                    heard.read |= ours || underlay;
                    // It may have been in the way of one of ours.
                    heard.work |= self.waiting.release_links();
                }
                Change::HostAddress(name) => {
                    heard.host = true;
                    heard.networks = true;
                    heard.underlay |= self.underlay == Some(name);
                }
                Change::DefaultRoute => heard.underlay = true,
                Change::SendersGone => {
                    let gone = self.ledger.nftables_gone().into_iter();
                    self.disturbed.extend(gone.filter(|object| !self.ledger.is_in_line(object)));
                    (heard.work, heard.read) = (true, true);
                }
                Change::Unknown => {
                    heard |=
                        Heard { read: true, underlay: true, networks: true, host: true, ..Heard::default() }
                }
            }
        }
        heard
    }

    fn take_in_fact(&mut self, fact: &Fact, heard: &mut Heard) {
        let object = fact.object();
        heard.work |= self.waiting.release(&object);
        if self.ledger.observe(fact).is_some() && self.known && !self.ledger.is_in_line(&object) {
            self.disturbed.insert(object);
            heard.work = true;
            heard.read |= fact.takes_others_along();
        }
    }

    fn take_in_all(&mut self, read: Result<State, KernelError>) -> Heard {
        let actual = match read {
            Ok(actual) => actual,
            // What changes all the time is read another time; what of it is ours was told one by one.
            Err(KernelError::Interrupted) => {
                debug!("the kernel's tables change too fast to be read; they are read again later");
                self.read_at = Some(Instant::now() + READ_AGAIN);
                return Heard::default();
            }
            Err(reason) => {
                warn!(%reason, "cannot read the kernel's state; leaving it as it is");
                self.unread = Some(reason);
                self.read_at = Some(Instant::now() + READ_AGAIN);
                return Heard { work: true, ..Heard::default() };
            }
        };
        self.unread = None;
        for object in self.ledger.reset(actual) {
            if self.known && !self.ledger.is_in_line(&object) {
                self.disturbed.insert(object);
            }
        }
        self.known = true;
        Heard { work: true, has_read: true, ..Heard::default() }
    }

    /// What is to be done and need not wait.
    fn due(&mut self, now: Instant) -> Vec<Operation> {
        self.disturbed.retain(|object| !self.ledger.is_in_line(object));
        self.waiting.retain(|object| !self.ledger.is_in_line(object));
        let mut operations = self.ledger.operations();
        for operation in &operations {
            let object = operation.object();
            if self.disturbed.contains(&object)
                && !self.waiting.knows(&object)
                && let Some(wait) = self.burst.must_wait(operation, now)
            {
                self.waiting.dispute(operation, wait, now);
            }
        }
        let made: BTreeSet<LinkName> = operations
            .iter()
            .filter(|operation| !self.waiting.holds(&operation.object(), now))
            .filter_map(|operation| operation.object().as_device())
            .collect();
        let needs_nothing = |operation: &Operation| {
            operation.device().is_none_or(|link| {
                !self.ownership.links.contains(&link) || made.contains(&link) || self.ledger.stands(link)
            })
        };
        operations
            .retain(|operation| needs_nothing(operation) && !self.waiting.holds(&operation.object(), now));
        operations
    }

    /// Notes what became of operations.
    fn settle(
        &mut self,
        operations: &[Operation],
        refused: &[FailedOperation],
        outcome: &mut Outcome,
        now: Instant,
    ) {
        let failed: BTreeSet<Object> = refused.iter().map(|refusal| refusal.operation.object()).collect();
        for operation in operations {
            let object = operation.object();
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
            self.waiting.succeeded(&object);
            outcome.applied += 1;
            outcome.device_is_new |= makes_device;
            if self.disturbed.remove(&object) {
                self.burst.count(operation, now);
            }
        }
        for refusal in refused {
            if !self.is_for_want_of_a_device(refusal) {
                self.waiting.failed(refusal, now);
                // Unless another program is in the way, our view may be out of date.
                self.noted.read |=
                    !matches!(refusal.reason, KernelError::Taken(_) | KernelError::PortTaken { .. });
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
