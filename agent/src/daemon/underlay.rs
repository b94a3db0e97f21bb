//! The external interface as it changes: another address, another MTU, down and up again.

use std::time::Duration;

use flan_backends::Gateways;
use flan_kernel::{Firewall, Kernel, LinkName};
use flan_subnet_lease::{LeaseAttributes, OwnLease, Store};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Daemon;
use super::backend::{self, Chosen};
use crate::args::Args;
use crate::interface::{self, External};

/// How long after a look that led nowhere there is another.
const AGAIN: Duration = Duration::from_secs(5);

/// What is known of the external interface, and what is made from it.
pub(super) struct UnderlayWatch {
    /// How it is to be found.
    pub(super) args: Args,
    /// As it was when the backend was chosen.
    pub(super) external: External,
    /// How routes name their gateways on this kernel.
    pub(super) gateways: Gateways,
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
        let config = self.leases.admission().config.clone();
        let external = match interface::find(&self.underlay.args, &config).await {
            Ok(external) => external,
            Err(reason) => return self.underlay.is_in_trouble(&reason.to_string()),
        };
        if external == self.underlay.external {
            self.underlay.problem = None;
            return;
        }
        // What stands now names the MACs to keep.
        let chosen = backend::choose(
            &config,
            &self.underlay.args.udp_without,
            &external.underlay,
            self.underlay.gateways,
            &self.underlay.seed,
            &self.host,
        );
        match chosen {
            Ok(chosen) => self.move_to(external, chosen),
            Err(reason) => self.underlay.is_in_trouble(&reason.to_string()),
        }
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
        let Chosen { backend, macs, datapath } = chosen;
        (self.backend, self.datapath) = (backend, datapath);
        if let Some(own) = &self.leases.admission().own {
            self.set_own(OwnLease { addresses: external.own_addresses(), macs, ..own.clone() });
        }
        if external.underlay.addresses != self.underlay.external.underlay.addresses {
            self.underlay.store.reconnect();
        }
        let fields = self.backend.lease_fields();
        self.underlay.attributes.send_modify(|attributes| {
            attributes.public_ips = external.public_ips;
            fields.fill(attributes);
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
