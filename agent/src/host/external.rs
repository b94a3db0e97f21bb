//! Changes of the external interface: another address, MTU or name, or its removal and return.

use std::time::Duration;

use flan_agent_api::Code;
use flan_kernel::{KernelError, LinkName, State};
use tokio::time::Instant;
use tracing::{info, warn};

use super::Host;
use crate::agent::Effect;
use crate::args::Args;
use crate::due::Due;
use crate::refused::refused;
use flan_host::interface::{AGAIN, External, Held, Overlays, Selection, Survey, Verdict, other_choice};

/// Changes of the external interface within this time are handled together: replacing an address takes two steps.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// The same for other interfaces, where containers come and go all the time.
const OTHERS_DEBOUNCE: Duration = Duration::from_secs(2);

/// State of the external interface.
#[derive(Debug, Default)]
pub(crate) struct ExternalWatch {
    /// As it was when the backends were chosen; `None` until it is found.
    pub(crate) external: Option<External>,
    held: Held,
    /// Whether a restarted agent would choose another.
    is_second_choice: bool,
    /// When to check it.
    pub(super) due: Due,
    /// Whether a check is in progress.
    pub(super) is_being_looked_at: bool,
    /// The interface under its new name, until the kernel is read under that name.
    renamed: Option<External>,
    /// The interface to move to.
    pub(super) adopted: Option<External>,
    /// Why it cannot be used at present.
    problem: Option<String>,
}

impl ExternalWatch {
    /// Returns the device; `None` before it is found.
    pub(crate) fn link(&self) -> Option<LinkName> {
        self.external.as_ref().map(|external| external.underlay.link)
    }

    /// Schedules a check shortly, to collect further changes.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.due.at(now + DEBOUNCE);
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone()
    }

    /// Returns whether the interface was renamed and our objects have not been read under the new name. Until then,
    /// none that names the interface can be repaired.
    pub(super) fn is_being_renamed(&self) -> bool {
        self.renamed.is_some()
    }

    /// Handles a change of some interface. `name` is the current name of the external one.
    pub(super) fn others_changed(
        &mut self,
        name: Option<LinkName>,
        args: &Args,
        overlays: &Overlays,
        now: Instant,
    ) {
        let known = self.renamed.as_ref().map(|renamed| renamed.underlay.link).or(self.link());
        if name.is_some() && name != known {
            self.due.at(now);
            return;
        }
        // The kernel does not report the loss of a default route that disappears with its interface.
        let may_matter = self.held.is_gone() || self.is_second_choice;
        if may_matter || (Selection { args: &args.interface, overlays }).looks_at_all_interfaces() {
            self.due.at(now + OTHERS_DEBOUNCE);
        }
    }

    /// Handles the end of a reading of the kernel.
    pub(super) fn was_read(&mut self, read: &Result<State, KernelError>, now: Instant) {
        match read {
            Err(KernelError::Interrupted) => {} // it is retried at once
            Err(reason) if self.renamed.take().is_some() => {
                self.is_in_trouble(&format!("cannot read the kernel's state: {reason}"), now);
            }
            _ => self.adopted = self.renamed.take().or(self.adopted.take()),
        }
    }

    /// Keeps the known interface, and schedules another check.
    pub(super) fn is_in_trouble(&mut self, reason: &str, now: Instant) {
        if self.problem.as_deref() != Some(reason) {
            warn!(code = %Code::Kernel, reason, "cannot follow the external interface; trying again");
        }
        self.problem = Some(reason.to_owned());
        self.due.at(now + AGAIN);
    }
}

impl Host {
    /// Handles a list of interfaces: finds the external one, or checks whether it has changed.
    pub(crate) fn surveyed(&mut self, survey: Result<Survey, KernelError>, now: Instant) -> Vec<Effect> {
        let external = &mut self.external;
        external.is_being_looked_at = false;
        let survey = match survey {
            Ok(survey) => survey,
            // Other programs change interfaces too fast for a consistent list. That says nothing about ours.
            Err(KernelError::Interrupted) => {
                external.due.at(now + if external.external.is_some() { AGAIN } else { DEBOUNCE });
                return Vec::new();
            }
            Err(reason) => {
                external.is_in_trouble(&format!("cannot list network interfaces: {reason}"), now);
                self.show_first_problem();
                return Vec::new();
            }
        };
        let selection = Selection { args: &self.args.interface, overlays: &self.overlays };
        let chosen = selection.choose(&survey);
        let Some(known) = &external.external else {
            return match chosen {
                Ok(found) => self.found(found, &survey, now),
                Err(reason) => vec![Effect::End(refused(reason))],
            };
        };
        let renamed = external.renamed.take();
        match external.held.look(known, selection, &survey, &chosen, now) {
            Verdict::Keep => {
                if external.problem.take().is_some() {
                    info!(interface = %known.underlay.link, "the external interface is usable again");
                }
                self.status.report(Code::DoubtfulAddress, selection.doubt(known, &survey));
                let other = other_choice(known, &chosen);
                external.is_second_choice = other.is_some();
                self.status.report(Code::OtherInterface, other);
            }
            // The kernel has moved all objects of a renamed interface to the new name. Once they are read under it, the
            // plan for the new name changes nothing.
            Verdict::Adopt(now) if now.index == known.index && now.underlay.link != known.underlay.link => {
                let is_known = renamed.as_ref() == Some(&now);
                external.renamed = Some(now);
                // Do not restart a reading under that name.
                return if is_known { Vec::new() } else { vec![self.read_anew()] };
            }
            Verdict::Adopt(now) => external.adopted = Some(now),
            Verdict::Wait { until, reason } => {
                external.is_in_trouble(&reason, now);
                external.due.at(until);
            }
        }
        self.show_first_problem();
        // A reading under a name that the interface no longer has says nothing.
        if renamed.is_some() { vec![self.read_anew()] } else { Vec::new() }
    }

    fn found(&mut self, found: External, survey: &Survey, now: Instant) -> Vec<Effect> {
        info!(
            interface = %found.underlay.link, mtu = found.underlay.mtu,
            addresses = ?found.underlay.addresses.values().collect::<Vec<_>>(), "external interface",
        );
        let selection = Selection { args: &self.args.interface, overlays: &self.overlays };
        self.status.report(Code::DoubtfulAddress, selection.doubt(&found, survey));
        self.reconciler.set_underlay(found.underlay.link);
        self.external.external = Some(found);
        // Record the current state, which later checks compare with.
        self.external.due.at(now);
        Vec::new()
    }

    /// Returns the external interface to move to, if it has changed.
    pub(crate) fn take_adopted(&mut self) -> Option<External> {
        self.external.adopted.take()
    }

    /// Lets all networks plan again, as if they moved to the interface that they are on.
    pub(crate) fn plan_anew(&mut self) {
        let external = &mut self.external;
        external.adopted = external.adopted.take().or_else(|| external.external.clone());
    }

    /// Moves to this interface and drops all wishes. The networks must then plan again.
    pub(crate) fn move_to(&mut self, external: External, now: Instant) -> Option<Effect> {
        if self.external.external.as_ref() != Some(&external) {
            info!(
                interface = %external.underlay.link, mtu = external.underlay.mtu,
                addresses = ?external.underlay.addresses.values().collect::<Vec<_>>(), "the external interface has changed",
            );
        }
        self.reconciler.set_underlay(external.underlay.link);
        self.reconciler.give_up_all();
        self.schedule(now);
        let watch = &mut self.external;
        // Record the current state, which later checks compare with.
        watch.held.adopted();
        watch.problem = None;
        watch.due.at(now + DEBOUNCE);
        let before = watch.external.replace(external);
        let addresses = |external: &External| external.underlay.addresses;
        (before.as_ref().map(addresses) != watch.external.as_ref().map(addresses))
            .then_some(Effect::Reconnect)
    }

    /// Reports that a network cannot use the changed interface.
    pub(crate) fn cannot_move(&mut self, reason: &str, now: Instant) {
        self.external.is_in_trouble(reason, now);
    }
}
