//! The life of the agent: start, then one event loop that owns all state.
//!
//! Three things trigger a round of reconciliation: the leases changed, the kernel changed, time passed. All three go
//! the same way: plan from what is known, compare with the kernel, apply the difference.

mod notify;
mod peers;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flan_backends::{Backend, Vxlan};
use flan_kernel::{Firewall, Kernel, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Ruleset, State, sysctl};
use flan_subnet_lease::{Admission, Change, HeldLease, LeaseSet, PerFamily, WatchEvent};
use ipnetwork::IpNetwork;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::reconcile::{Desired, Outcome, Reconciler, retry_after};
use crate::status::SharedStatus;
use crate::subnet_env::SubnetEnv;
use peers::PeerLog;

pub use start::{RefusedSetting, run};

/// Everything that the event loop owns.
struct Daemon<K, F> {
    options: Options,
    backend: Vxlan,
    reconciler: Reconciler<K, F>,
    /// What the store holds.
    leases: LeaseSet,
    /// What the leases are measured by, our own subnets among it.
    admission: Admission,
    /// Makes the keeper look at our key.
    suspicion: Arc<Notify>,
    /// Revision of the last write of our key that we know of.
    own_revision: i64,
    peer_log: PeerLog,
    status: SharedStatus,
    /// When the next round is due.
    due: Option<Instant>,
    /// Rounds in a row that did not succeed.
    failures: u32,
    ready: bool,
}

/// The settings that the event loop needs.
struct Options {
    subnet_file: PathBuf,
    ip_masq: bool,
    forward_rules: bool,
    blackhole_route: bool,
    resync_interval: Duration,
}

/// Lease events within this time are taken together.
const LEASE_DEBOUNCE: Duration = Duration::from_millis(20);
/// Changes of the kernel within this time are taken together. Docker makes many for each container.
const KERNEL_DEBOUNCE: Duration = Duration::from_millis(200);

impl<K: Kernel, F: Firewall> Daemon<K, F> {
    /// Runs until the watch or the keeper is gone, which neither is by itself.
    async fn run(
        mut self,
        mut events: mpsc::Receiver<WatchEvent>,
        mut held: watch::Receiver<HeldLease>,
    ) -> anyhow::Result<()> {
        let mut resync = tokio::time::interval(self.options.resync_interval);
        resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut alive = notify::watchdog();
        loop {
            let due = self.due;
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.heard(&event),
                    None => anyhow::bail!("the watch on the leases ended by itself"),
                },
                changed = held.changed() => match changed {
                    Ok(()) => {
                        let now = held.borrow_and_update().clone();
                        self.holds(&now);
                    }
                    Err(_) => anyhow::bail!("the keeper of our lease ended by itself"),
                },
                () = self.reconciler.changed() => self.schedule(KERNEL_DEBOUNCE),
                _ = resync.tick() => {
                    self.enable_forwarding();
                    self.schedule(Duration::ZERO);
                }
                () = sleep_until(due) => self.round().await,
                _ = alive.tick() => notify::alive(),
            }
        }
    }

    fn heard(&mut self, event: &WatchEvent) {
        match event {
            WatchEvent::Interrupted { reason } => {
                self.status.update(|status| status.store_problem = Some(reason.clone()));
            }
            WatchEvent::Listed(_) | WatchEvent::Changed(_) => {
                self.leases.apply(event);
                if self.is_about_our_key(event) {
                    self.suspicion.notify_one();
                }
                self.status.update(|status| status.store_problem = None);
                self.schedule(LEASE_DEBOUNCE);
            }
        }
    }

    /// Whether the store says something of our key that we did not write.
    fn is_about_our_key(&self, event: &WatchEvent) -> bool {
        let Some(own) = &self.admission.own else { return false };
        let key = own.subnets.key();
        match event {
            WatchEvent::Listed(listing) => !listing
                .entries
                .iter()
                .any(|entry| entry.key == key && entry.mod_revision == self.own_revision),
            WatchEvent::Changed(changes) => changes.iter().any(|change| match change {
                Change::Put(entry) => entry.key == key && entry.mod_revision != self.own_revision,
                Change::Delete { key: deleted } => *deleted == key,
            }),
            WatchEvent::Interrupted { .. } => false,
        }
    }

    fn holds(&mut self, held: &HeldLease) {
        self.own_revision = held.mod_revision;
        let Some(own) = &mut self.admission.own else { return };
        if own.subnets != held.subnets {
            own.subnets = held.subnets;
            self.ready = false; // the subnet file is out of date
            self.schedule(Duration::ZERO);
        }
    }

    fn schedule(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Plan, compare, apply.
    async fn round(&mut self) {
        self.due = None;
        if !self.leases.is_complete() {
            return; // an absent lease means nothing yet
        }
        let desired = self.plan();
        let outcome = self.reconciler.reconcile(&desired).await;
        self.settle(&outcome);
        if !self.ready {
            self.get_ready(&desired.state).await;
        }
    }

    fn plan(&mut self) -> Desired {
        let Some(own) = &self.admission.own else { return Desired::default() };
        let judged = self.leases.judge(&self.admission);
        self.peer_log.tell(&judged);
        self.status.update(|status| {
            status.subnets = own.subnets.iter().map(|(_, subnet)| subnet.to_string()).collect();
            status.peers = judged.peers.len();
            status.quarantined = self.peer_log.quarantined();
        });
        let mut state = self.backend.plan(&own.subnets, &judged.peers);
        let mut rules = Ruleset {
            masquerade: self.options.ip_masq,
            forward: self.options.forward_rules,
            ..Ruleset::default()
        };
        for (family, network) in self.admission.config.networks() {
            let Some(subnet) = own.subnets.get(family) else { continue };
            rules.families.push(flan_kernel::FamilyRules { network, subnet });
            if self.options.blackhole_route {
                // Behind every other route, so that the bridge's own wins as soon as there is one.
                let key = RouteKey { destination: subnet, metric: u32::MAX };
                state.routes.insert(key, Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL });
            }
        }
        Desired { state, rules }
    }

    fn settle(&mut self, outcome: &Outcome) {
        let problem = outcome.problem();
        if problem.is_some() {
            self.failures += 1;
            self.schedule(retry_after(self.failures));
        } else {
            self.failures = 0;
        }
        if outcome.applied > 0 {
            let (applied, peers) = (outcome.applied, self.status.read().peers);
            info!(applied, failed = outcome.failed.len(), peers, "brought the kernel in line");
        }
        self.status.update(|status| status.kernel_problem = problem);
    }

    /// Tells dockerd and systemd, once what was planned for ourselves really stands.
    async fn get_ready(&mut self, desired: &State) {
        let stands = self.reconciler.actual().await.is_ok_and(|actual| {
            desired.links.keys().all(|name| actual.links.contains_key(name))
                && desired.addresses.is_subset(&actual.addresses)
        });
        let Some(own) = self.admission.own.as_ref().filter(|_| stands) else { return };
        let mut networks: PerFamily<IpNetwork> = PerFamily::default();
        for (family, network) in self.admission.config.networks() {
            networks.set(family, network);
        }
        let env = SubnetEnv::new(networks, &own.subnets, self.backend.mtu(), self.options.ip_masq);
        let file = self.options.subnet_file.display();
        if let Err(reason) = env.save(&self.options.subnet_file) {
            error!(%file, %reason, "cannot write the subnet file");
            self.failures += 1;
            self.schedule(retry_after(self.failures));
            return;
        }
        self.ready = true;
        let peers = self.status.read().peers;
        self.status.update(|status| (status.ready, status.waiting_for) = (true, None));
        info!(subnets = %own.subnets, mtu = self.backend.mtu(), peers, %file, "ready");
        notify::ready(&format!("{} with {peers} peers", own.subnets));
    }

    fn enable_forwarding(&self) {
        let uses = |family| self.admission.config.pools.get(family).is_some();
        let (v4, v6) = (uses(flan_subnet_lease::Family::V4), uses(flan_subnet_lease::Family::V6));
        if let Err(reason) = sysctl::forwarding(v4, v6) {
            warn!(%reason, "cannot enable forwarding: containers will not reach other hosts");
        }
    }
}

/// Sleeps until then, or for ever.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
