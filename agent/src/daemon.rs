//! The life of the agent: start, then one event loop that owns all state.
//!
//! Three things trigger a round of reconciliation: the leases changed, the kernel changed, time passed. All three go
//! the same way: plan from what is known, compare with the kernel, apply the difference.

mod backend;
mod notify;
mod peers;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flan_backends::Backend;
use flan_kernel::{
    Firewall, Kernel, LinkName, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Ruleset, State, sysctl,
};
use flan_subnet_lease::{Admission, Change, Family, Holding, LeaseSet, PerFamily, WatchEvent};
use ipnetwork::IpNetwork;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::reconcile::{Desired, Outcome, Reconciler, retry_after};
use crate::status::SharedStatus;
use crate::subnet_env::SubnetEnv;
use backend::UdpRunner;
use peers::PeerLog;

pub use start::{RefusedSetting, run};

/// Everything that the event loop owns.
struct Daemon<K, F> {
    options: Options,
    backend: Box<dyn Backend>,
    datapath: Option<UdpRunner>,
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
    /// The packet filter rules of the last plan.
    rules: Ruleset,
    /// When the next round is due.
    due: Option<Instant>,
    /// Rounds in a row that did not succeed.
    failures: u32,
    ready: bool,
}

/// The settings that the event loop needs.
struct Options {
    subnet_file: PathBuf,
    underlay: LinkName,
    ip_masq: bool,
    forward_rules: bool,
    blackhole_route: bool,
    resync_interval: Duration,
}

/// Lease events within this time are taken together.
const LEASE_DEBOUNCE: Duration = Duration::from_millis(20);
/// How often the packet filter rules are looked at.
const RULES_INTERVAL: Duration = Duration::from_secs(5);
/// Changes of the kernel within this time are taken together. Docker makes many for each container.
const KERNEL_DEBOUNCE: Duration = Duration::from_millis(200);

impl<K: Kernel, F: Firewall> Daemon<K, F> {
    /// Runs until the watch or the keeper is gone, which neither is by itself.
    async fn run(
        mut self,
        mut events: mpsc::Receiver<WatchEvent>,
        mut holding: watch::Receiver<Holding>,
    ) -> anyhow::Result<()> {
        let mut resync = tokio::time::interval(self.options.resync_interval);
        resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut alive = notify::watchdog();
        let mut rules = tokio::time::interval(RULES_INTERVAL);
        rules.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.due;
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.heard(&event),
                    None => anyhow::bail!("the watch on the leases ended by itself"),
                },
                changed = holding.changed() => match changed {
                    Ok(()) => {
                        let now = holding.borrow_and_update().clone();
                        self.holds(now);
                    }
                    Err(_) => anyhow::bail!("the keeper of our lease ended by itself"),
                },
                () = self.reconciler.changed() => self.schedule(KERNEL_DEBOUNCE),
                _ = resync.tick() => self.schedule(Duration::ZERO),
                () = sleep_until(due) => self.round().await,
                _ = rules.tick(), if self.ready => self.check_rules().await,
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
                self.leases.apply(event, Instant::now());
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

    fn holds(&mut self, holding: Holding) {
        let Holding { lease, problem } = holding;
        self.own_revision = lease.mod_revision;
        self.status.update(|status| status.lease_problem = problem);
        let Some(own) = &mut self.admission.own else { return };
        if own.subnets != lease.subnets {
            own.subnets = lease.subnets;
            // The subnet file and dockerd are out of date.
            self.ready = false;
            self.status.update(|status| status.ready = false);
            self.schedule(Duration::ZERO);
        }
    }

    fn schedule(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Looks after what the kernel does not tell of: a firewall that is reloaded, Docker that puts its rules first,
    /// forwarding that is switched off. Whatever is wrong is told by the next round.
    async fn check_rules(&mut self) {
        let forwarding = self.enable_forwarding();
        if self.reconciler.keep_rules(&self.rules).await.is_err() || forwarding.is_err() {
            self.schedule(Duration::ZERO);
        }
    }

    /// Plan, compare, apply.
    async fn round(&mut self) {
        self.due = None;
        if !self.leases.is_complete() {
            return; // an absent lease means nothing yet
        }
        self.leases.expire(Instant::now());
        if let Some(until) = self.leases.missing_until() {
            self.due = Some(until);
        }
        let forwarding = self.enable_forwarding();
        let desired = self.plan();
        let outcome = self.reconciler.reconcile(&desired).await;
        self.rules.clone_from(&desired.rules);
        let mut problem = forwarding.err().or(outcome.problem());
        if let (Some(datapath), Some(own)) = (&mut self.datapath, &self.admission.own) {
            problem = problem.or(datapath.keep_running(&own.subnets, outcome.device_is_new).err());
            let gauge = datapath.gauge();
            self.status.update(|status| status.datapath = gauge);
        }
        if !self.ready && self.datapath.as_ref().is_none_or(UdpRunner::is_running) {
            problem = problem.or(self.get_ready(&desired.state).await.err());
        }
        self.settle(&outcome, problem);
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
        if let Some(datapath) = &self.datapath {
            datapath.feed(&judged.peers);
        }
        let mut state = self.backend.plan(&own.subnets, &judged.peers);
        let mut rules = Ruleset { masquerade: self.options.ip_masq, ..Ruleset::default() };
        if self.options.forward_rules {
            rules.forward = state.links.keys().copied().chain([self.options.underlay]).collect();
        }
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

    fn settle(&mut self, outcome: &Outcome, problem: Option<String>) {
        if problem.is_some() {
            self.failures += 1;
            self.schedule(retry_after(self.failures));
        } else {
            self.failures = 0;
        }
        let peers = self.status.read().peers;
        if outcome.applied > 0 {
            info!(
                applied = outcome.applied,
                failed = outcome.failed.len(),
                peers,
                "brought the kernel in line"
            );
        }
        if let Some(own) = self.admission.own.as_ref().filter(|_| self.ready) {
            let problem = problem.as_deref().map(|problem| format!("; {problem}")).unwrap_or_default();
            notify::working(&format!("{} with {peers} peers{problem}", own.subnets));
        }
        self.status.update(|status| status.kernel_problem = problem);
    }

    /// Tells dockerd and systemd, once what was planned for ourselves really stands.
    async fn get_ready(&mut self, desired: &State) -> Result<(), String> {
        let Some(own) = &self.admission.own else { return Ok(()) };
        let actual = self.reconciler.actual().await.map_err(|reason| reason.to_string())?;
        let missing = desired.links.iter().find(|(name, link)| actual.links.get(name) != Some(link));
        if let Some((name, _)) = missing {
            return Err(format!("device {name} is not as planned yet"));
        }
        if !desired.addresses.is_subset(&actual.addresses) {
            return Err("the device's addresses are not as planned yet".to_owned());
        }
        let mut networks: PerFamily<IpNetwork> = PerFamily::default();
        for (family, network) in self.admission.config.networks() {
            networks.set(family, network);
        }
        let env = SubnetEnv::new(networks, &own.subnets, self.backend.mtu(), self.options.ip_masq);
        let file = self.options.subnet_file.display();
        env.save(&self.options.subnet_file).map_err(|reason| {
            error!(%file, %reason, "cannot write the subnet file");
            format!("cannot write {file}: {reason}")
        })?;
        self.ready = true;
        self.status.update(|status| (status.ready, status.waiting_for) = (true, None));
        info!(subnets = %own.subnets, mtu = self.backend.mtu(), peers = self.status.read().peers, %file, "ready");
        notify::ready();
        Ok(())
    }

    fn enable_forwarding(&self) -> Result<(), String> {
        let uses = |family| self.admission.config.pools.get(family).is_some();
        sysctl::forwarding(uses(Family::V4), uses(Family::V6)).map_err(|reason| {
            warn!(%reason, "cannot enable forwarding: containers will not reach other hosts");
            format!("cannot enable forwarding: {reason}")
        })
    }
}

/// Sleeps until then, or for ever.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
