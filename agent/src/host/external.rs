//! The external interface as it changes: another address, MTU or name, gone and back again.

use std::time::Duration;

use flan_agent_api::Code;
use flan_kernel::{KernelError, LinkName, State};
use tokio::time::Instant;
use tracing::{info, warn};

use super::Host;
use crate::agent::Effect;
use crate::args::Args;
use crate::due::Due;
use crate::interface::{AGAIN, External, Held, Overlays, Selection, Survey, Verdict, other_choice};
use crate::refused::refused;

/// Changes of the external interface within this time are taken together: an address is replaced in two steps.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// The same of other interfaces: containers come and go all the time.
const OTHERS_DEBOUNCE: Duration = Duration::from_secs(2);

/// What is known of the external interface.
#[derive(Debug, Default)]
pub(crate) struct ExternalWatch {
    /// As it was when the backends were chosen; `None` until it was found.
    pub(crate) external: Option<External>,
    /// What earlier looks found.
    held: Held,
    /// Whether a start would choose another.
    is_second_choice: bool,
    /// When to look at it.
    pub(super) due: Due,
    /// Whether it is being looked at.
    pub(super) is_being_looked_at: bool,
    /// The same interface under another name, until the kernel was read under that name.
    renamed: Option<External>,
    /// What is to be moved to at once.
    pub(super) adopted: Option<External>,
    /// Why it cannot be used as it is now.
    problem: Option<String>,
}

impl ExternalWatch {
    /// The device. No backend is there before it is known.
    pub(crate) fn link(&self) -> Option<LinkName> {
        self.external.as_ref().map(|external| external.underlay.link)
    }

    /// Looks at it in a moment, in which more may change.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.due.at(now + DEBOUNCE);
    }

    /// Why it cannot be used as it is now.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone()
    }

    /// Whether everything stands already under a name that is not known yet: until it is, nothing of ours that names the
    /// interface can be repaired.
    pub(super) fn is_being_renamed(&self) -> bool {
        self.renamed.is_some()
    }

    /// Interfaces have changed, perhaps other ones than the external one, which is called `name` now.
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
        // Of a default route that goes with its interface, the kernel does not tell.
        let may_matter = self.held.is_gone() || self.is_second_choice;
        if may_matter || (Selection { args, overlays }).looks_at_all_interfaces() {
            self.due.at(now + OTHERS_DEBOUNCE);
        }
    }

    /// The kernel was read, or could not be.
    pub(super) fn was_read(&mut self, read: &Result<State, KernelError>, now: Instant) {
        match read {
            Err(KernelError::Interrupted) => {} // it is read again at once
            Err(reason) if self.renamed.take().is_some() => {
                self.is_in_trouble(&format!("cannot read the kernel's state: {reason}"), now);
            }
            _ => self.adopted = self.renamed.take().or(self.adopted.take()),
        }
    }

    /// Goes on with what it was, and looks again.
    pub(super) fn is_in_trouble(&mut self, reason: &str, now: Instant) {
        if self.problem.as_deref() != Some(reason) {
            warn!(reason, "cannot follow the external interface; trying again");
        }
        self.problem = Some(reason.to_owned());
        self.due.at(now + AGAIN);
    }
}

impl Host {
    /// Takes in what there is to choose from: finds the external interface, or sees whether it has changed.
    pub(crate) fn surveyed(&mut self, survey: Result<Survey, KernelError>, now: Instant) -> Vec<Effect> {
        let external = &mut self.external;
        external.is_being_looked_at = false;
        let survey = match survey {
            Ok(survey) => survey,
            // Other programs change interfaces so fast that all of them cannot be read between. Nothing is wrong with ours.
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
        let selection = Selection { args: &self.args, overlays: &self.overlays };
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
                    info!(interface = %known.underlay.link, "the external interface is as it was again");
                }
                self.status.report(Code::DoubtfulAddress, selection.doubt(known, &survey));
                let other = other_choice(known, &chosen);
                external.is_second_choice = other.is_some();
                self.status.report(Code::OtherInterface, other);
            }
            // Of an interface that was renamed, everything stands already under the new name. Once that is known, the plan
            // with the new name, which follows, changes nothing.
            Verdict::Adopt(now) if now.index == known.index && now.underlay.link != known.underlay.link => {
                let is_known = renamed.as_ref() == Some(&now);
                external.renamed = Some(now);
                // What is being read under that name already is not read anew.
                return if is_known { Vec::new() } else { vec![self.read_anew()] };
            }
            Verdict::Adopt(now) => external.adopted = Some(now),
            Verdict::Wait { until, reason } => {
                external.is_in_trouble(&reason, now);
                external.due.at(until);
            }
        }
        Vec::new()
    }

    fn found(&mut self, found: External, survey: &Survey, now: Instant) -> Vec<Effect> {
        info!(
            interface = %found.underlay.link, mtu = found.underlay.mtu,
            addresses = ?found.underlay.addresses.values().collect::<Vec<_>>(), "external interface",
        );
        let selection = Selection { args: &self.args, overlays: &self.overlays };
        self.status.report(Code::DoubtfulAddress, selection.doubt(&found, survey));
        self.reconciler.set_underlay(found.underlay.link);
        self.external.external = Some(found);
        // What there is at the start is what later looks compare with.
        self.external.due.at(now);
        Vec::new()
    }

    /// The external interface that the networks must move to, if it has changed.
    pub(crate) fn take_adopted(&mut self) -> Option<External> {
        self.external.adopted.take()
    }

    /// Moves to it; the networks, for which nothing is wanted any more, must follow.
    pub(crate) fn move_to(&mut self, external: External, now: Instant) -> Option<Effect> {
        info!(
            interface = %external.underlay.link, mtu = external.underlay.mtu,
            addresses = ?external.underlay.addresses.values().collect::<Vec<_>>(), "the external interface has changed",
        );
        self.reconciler.set_underlay(external.underlay.link);
        self.reconciler.give_up_all();
        self.schedule(now);
        let watch = &mut self.external;
        // What there is now is what later looks compare with.
        watch.held.adopted();
        watch.problem = None;
        watch.due.at(now + DEBOUNCE);
        let before = watch.external.replace(external);
        let addresses = |external: &External| external.underlay.addresses;
        (before.as_ref().map(addresses) != watch.external.as_ref().map(addresses))
            .then_some(Effect::Reconnect)
    }

    /// A network cannot move to it.
    pub(crate) fn cannot_move(&mut self, reason: &str, now: Instant) {
        self.external.is_in_trouble(reason, now);
    }
}
