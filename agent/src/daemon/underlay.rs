//! The external interface as it changes: another address, MTU or name, gone and back again.

use std::time::Duration;

use flan_agent_api::Code;
use flan_backends::Abilities;
use flan_kernel::{Firewall, Kernel, KernelError, LinkName, netlink};
use flan_subnet_lease::{LeaseAttributes, NetworkConfig, OwnLease, Store};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::backend::{self, Chosen};
use super::{Daemon, UNDERLAY_DEBOUNCE};
use crate::args::Args;
use crate::interface::{AGAIN, External, Held, Selection, Verdict, other_choice};

/// Changes of other interfaces within this time are taken together: containers come and go all the time.
const OTHERS_DEBOUNCE: Duration = Duration::from_secs(2);

/// What is known of the external interface, and what is made from it.
pub(super) struct UnderlayWatch {
    /// How it is to be found.
    pub(super) args: Args,
    /// As it was when the backend was chosen.
    pub(super) external: External,
    /// What earlier looks found.
    pub(super) held: Held,
    /// Whether a start would choose another.
    pub(super) is_second_choice: bool,
    /// What this host's kernel has.
    pub(super) abilities: Abilities,
    /// Who we are, for a device's MAC.
    pub(super) seed: String,
    /// What peers need to know of us; the keeper publishes it.
    pub(super) attributes: watch::Sender<LeaseAttributes>,
    /// Reached from the address that may change.
    pub(super) store: Store,
    pub(super) due: Option<Instant>,
    /// Why it cannot be used as it is now.
    pub(super) problem: Option<String>,
}

impl UnderlayWatch {
    /// The device.
    pub(super) fn link(&self) -> LinkName {
        self.external.underlay.link
    }

    /// Looks at it after a while, in which more may change.
    pub(super) fn look_in(&mut self, after: Duration) {
        super::sooner(&mut self.due, after);
    }

    /// Interfaces have changed, perhaps other ones than the external one as it is called here.
    pub(super) fn others_changed(&mut self, config: &NetworkConfig) {
        let renamed = netlink::name_of(self.external.index).is_some_and(|name| name != self.link());
        if renamed {
            // At once: until we plan with the new name, nothing of ours that names it can be repaired.
            self.look_in(Duration::ZERO);
            return;
        }
        // Of a default route that goes with its interface, the kernel does not tell.
        let may_matter = self.held.is_gone() || self.is_second_choice;
        if may_matter || (Selection { args: &self.args, config }).looks_at_all_interfaces() {
            self.look_in(OTHERS_DEBOUNCE);
        }
    }

    /// When to look at it.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Why it cannot be used as it is now.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone()
    }

    fn is_in_trouble(&mut self, reason: &str) {
        if self.problem.as_deref() != Some(reason) {
            warn!(reason, "cannot follow the external interface; going on with what it was");
        }
        self.problem = Some(reason.to_owned());
        self.look_in(AGAIN);
    }
}

impl<K: Kernel, F: Firewall> Daemon<K, F> {
    /// Looks at the external interface. Where it has changed, everything that is made from it follows: the device, our
    /// lease and, with another MTU, the subnet file.
    pub(super) async fn look_at_underlay(&mut self) {
        self.underlay.due = None;
        let underlay = &mut self.underlay;
        let selection = Selection { args: &underlay.args, config: &self.leases.admission().config };
        let survey = match selection.survey().await {
            Ok(survey) => survey,
            // Other programs change interfaces so fast that all of them cannot be read between. Nothing is wrong with ours.
            Err(KernelError::Interrupted) => return underlay.look_in(AGAIN),
            Err(reason) => {
                return underlay.is_in_trouble(&format!("cannot list network interfaces: {reason}"));
            }
        };
        let chosen = selection.choose(&survey);
        match underlay.held.look(&underlay.external, selection, &survey, &chosen, Instant::now()) {
            Verdict::Keep => {
                if underlay.problem.take().is_some() {
                    info!(interface = %underlay.link(), "the external interface is as it was again");
                }
                let doubt = selection.doubt(&underlay.external, &survey);
                self.status.report(Code::DoubtfulAddress, doubt);
                let other = other_choice(&underlay.external, &chosen);
                underlay.is_second_choice = other.is_some();
                self.status.report(Code::OtherInterface, other);
            }
            Verdict::Adopt(external) => self.adopt(external).await,
            Verdict::Wait { until, reason } => {
                underlay.is_in_trouble(&reason);
                underlay.look_in(until.saturating_duration_since(Instant::now()));
            }
        }
    }

    async fn adopt(&mut self, external: External) {
        // What stands now names the MACs to keep.
        let chosen = backend::choose(
            &self.leases.admission().config,
            &self.underlay.args.udp_without,
            &external.underlay,
            self.underlay.abilities,
            &self.underlay.seed,
            &self.host,
        );
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => return self.underlay.is_in_trouble(&reason.to_string()),
        };
        let before = &self.underlay.external;
        // Of an interface that was renamed, everything stands already under the new name. Once that is known, the plan
        // with the new name, which follows, changes nothing.
        if before.index == external.index
            && before.underlay.link != external.underlay.link
            && let Err(reason) = self.reconciler.read_now().await
        {
            return self.underlay.is_in_trouble(&format!("cannot read the kernel's state: {reason}"));
        }
        self.move_to(external, chosen);
        // What there is now is what later looks compare with.
        self.underlay.held.adopted();
        self.underlay.look_in(UNDERLAY_DEBOUNCE);
    }

    fn move_to(&mut self, external: External, chosen: Chosen) {
        info!(
            interface = %external.underlay.link, mtu = external.underlay.mtu,
            addresses = ?external.underlay.addresses.values().collect::<Vec<_>>(), "the external interface has changed",
        );
        if chosen.backend.mtu() != self.backend.mtu() {
            warn!(
                before = self.backend.mtu(),
                now = chosen.backend.mtu(),
                "containers may send packets of another size than before: restart Docker, or large packets may be lost"
            );
        }
        let Chosen { backend, datapath } = chosen;
        self.backend = backend;
        self.datapath = match (self.datapath.take(), datapath) {
            // It goes on with the packets that it has.
            (Some(before), Some(now)) if before.does_the_same_as(&now) => Some(before),
            (_, now) => now,
        };
        let data = self.backend.lease_data();
        if let Some(own) = self.leases.admission().own.clone() {
            let identities = self.leases.admission().config.backend.identities(&data);
            let addresses = external.own_addresses();
            self.leases.set_own(Some(OwnLease { addresses, identities, ..own }));
        }
        if external.underlay.addresses != self.underlay.external.underlay.addresses {
            self.underlay.store.reconnect();
        }
        self.underlay.attributes.send_modify(|attributes| {
            (attributes.public_ips, attributes.data) = (external.public_ips, data);
        });
        self.reconciler.set_underlay(external.underlay.link);
        self.status.update(|status| {
            status.public_ips = external.public_ips.values().map(ToString::to_string).collect();
        });
        self.underlay.external = external;
        self.underlay.problem = None;

        self.reconciler.give_up_all();
        self.host = flan_kernel::State::default();
        self.plan_host();
        self.plan_all_peers();
        self.schedule(Duration::ZERO);
    }
}
