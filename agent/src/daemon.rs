//! The life of the agent: start, then one event loop that owns all state.
//!
//! Three things lead to work on the kernel: the leases changed, the kernel changed, time passed. The first changes what
//! is wanted, the other two what is known to be there; the reconciler closes the gap between the two.

mod backend;
mod clones;
mod overlaps;
mod peers;
mod reservation;
#[cfg(test)]
mod samples;
mod start;
mod underlay;

use std::path::PathBuf;
use std::time::Duration;

use flan_agent_api::{Code, SubnetEnv};
use flan_backends::Backend;
use flan_kernel::firewall::others::{FamilyTraffic, Outer, Traffic, Way};
use flan_kernel::{
    Firewall, Kernel, Plan, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Ruleset, State, memory, sysctl,
};
use flan_subnet_lease::{
    Family, Holding, Lease, LeaseSet, OwnKey, OwnLease, PerFamily, Sighting, WatchEvent,
};
use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};

use crate::lookout::{Lookout, Ours};
use crate::notify;
use crate::reconcile::{Heard, Outcome, Reconciler};
use crate::status::SharedStatus;
use backend::UdpRunner;
use overlaps::NetworkWatch;
use peers::{Teller, Unreached};
use underlay::UnderlayWatch;

pub use start::run;

/// Everything that the event loop owns.
struct Daemon<K, F> {
    options: Options,
    backend: Box<dyn Backend>,
    datapath: Option<UdpRunner>,
    underlay: UnderlayWatch,
    reconciler: Reconciler<K, F>,
    /// What is wanted of the kernel for ourselves, whoever the peers are.
    host: State,
    /// What the store holds, and what it is measured by: our own subnets among it.
    leases: LeaseSet,
    /// What the store holds under our key, for the keeper.
    own_key: watch::Sender<OwnKey>,
    /// This host's own networks, which subnets of the overlay may overlap.
    networks: NetworkWatch,
    /// Another machine with our node id.
    twin: Option<Sighting>,
    /// Peers that this backend cannot reach from here.
    unreached: Unreached,
    teller: Teller,
    status: SharedStatus,
    /// Sees what other programs do to our packets.
    lookout: Lookout,
    /// The packet filter rules that belong to `host`.
    rules: Ruleset,
    /// Whether they must be looked at.
    rules_due: bool,
    /// When the next round is due.
    due: Option<Instant>,
    /// When the kernel is to be read.
    read_due: Option<Instant>,
    /// When memory that was needed for a moment is to be given back.
    tidy_due: Option<Instant>,
    /// Rounds in a row in which something beside the kernel's objects failed.
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

/// How often the packet filter rules are looked at.
const RULES_INTERVAL: Duration = Duration::from_secs(3);
/// What another program changes within this time is put right together.
const REPAIR_DEBOUNCE: Duration = Duration::from_millis(30);
/// Changes of devices within this time lead to one reading.
const READ_DEBOUNCE: Duration = Duration::from_millis(100);
/// Changes of the external interface within this time are taken together: an address is replaced in two steps.
const UNDERLAY_DEBOUNCE: Duration = Duration::from_millis(500);
/// Memory is given back so long after much was done or read, when no more of the kind is likely to follow at once.
const TIDY_DELAY: Duration = Duration::from_secs(1);

impl<K: Kernel, F: Firewall> Daemon<K, F> {
    /// Runs until the watch or the keeper is gone, which neither is by itself.
    async fn run(
        mut self,
        mut events: mpsc::Receiver<WatchEvent<Lease>>,
        mut holding: watch::Receiver<Holding>,
    ) -> anyhow::Result<()> {
        let mut resync = interval(self.options.resync_interval);
        let mut rules = interval(RULES_INTERVAL);
        let mut alive = notify::watchdog();
        resync.reset(); // the kernel was read a moment ago
        self.plan_host();
        self.look_for_clones(Instant::now());
        loop {
            let due = self.next_due();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        self.heard(event);
                        while let Ok(event) = events.try_recv() {
                            self.heard(event);
                        }
                        self.round().await;
                    }
                    None => anyhow::bail!("the watch on the leases ended by itself"),
                },
                changed = holding.changed() => match changed {
                    Ok(()) => {
                        let now = holding.borrow_and_update().clone();
                        self.holds(now);
                    }
                    Err(_) => anyhow::bail!("the keeper of our lease ended by itself"),
                },
                heard = self.reconciler.hear() => self.kernel_told(heard),
                () = self.networks.next() => self.look_at_overlaps(),
                _ = resync.tick() => self.resync(),
                () = sleep_until(due) => self.time_passed().await,
                _ = rules.tick(), if self.ready => self.check_rules().await,
                _ = alive.tick() => notify::alive(),
            }
        }
    }

    /// Looks at all that nobody may have told of.
    fn resync(&mut self) {
        self.reconciler.read();
        self.networks.read();
        self.look_for_clones(Instant::now());
    }

    fn heard(&mut self, event: WatchEvent<Lease>) {
        if let WatchEvent::Interrupted { reason } = event {
            self.status.update(|status| status.store_problem = Some(reason));
            return;
        }
        self.leases.apply(event, Instant::now());
        if let Some(own_key) = self.leases.take_own_key() {
            self.own_key.send_replace(own_key);
        }
        self.status.update(|status| status.store_problem = None);
    }

    fn holds(&mut self, holding: Holding) {
        let Holding { lease, problem, twin } = holding;
        if twin.is_some() && twin != self.twin {
            self.twin = twin;
            self.look_for_clones(Instant::now());
        }
        self.status.update(|status| status.lease_problem = problem);
        let Some(own) = self.leases.admission().own.clone() else { return };
        if own.subnets != lease.subnets {
            self.leases.set_own(Some(OwnLease { subnets: lease.subnets, ..own }));
            self.plan_host();
            self.schedule(Duration::ZERO);
        }
    }

    fn kernel_told(&mut self, heard: Heard) {
        if heard.work {
            self.schedule(REPAIR_DEBOUNCE);
        }
        if heard.read {
            sooner(&mut self.read_due, READ_DEBOUNCE);
        }
        if heard.has_read && self.leases.peer_count() >= MANY {
            sooner(&mut self.tidy_due, TIDY_DELAY);
        }
        if heard.underlay {
            self.underlay.look_in(UNDERLAY_DEBOUNCE);
        }
        if heard.networks {
            self.networks.read_soon();
        }
        if heard.host {
            self.underlay.others_changed(&self.leases.admission().config);
            self.lookout.host_changed();
        }
    }

    fn schedule(&mut self, after: Duration) {
        sooner(&mut self.due, after);
    }

    fn next_due(&self) -> Option<Instant> {
        let dues = [
            self.due,
            self.read_due,
            self.tidy_due,
            self.underlay.due(),
            self.networks.due(),
            self.leases.missing_until(),
            self.teller.due(),
            self.unreached.due(),
            self.reconciler.due_at(Instant::now()),
        ];
        dues.into_iter().flatten().min()
    }

    async fn time_passed(&mut self) {
        let now = Instant::now();
        if self.read_due.is_some_and(|due| due <= now) {
            self.read_due = None;
            self.reconciler.read();
        }
        if self.underlay.due().is_some_and(|due| due <= now) {
            self.look_at_underlay().await;
        }
        if self.networks.due().is_some_and(|due| due <= now) {
            self.networks.read();
        }
        if self.tidy_due.is_some_and(|due| due <= now) {
            self.tidy_due = None;
            self.reconciler.compact();
            memory::give_back();
        }
        self.reconciler.tell(now);
        self.teller.sum_up(&self.leases, now);
        self.unreached.sum_up(now);
        self.round().await;
    }

    /// Looks after what the kernel does not tell of: a firewall that is reloaded, Docker that puts its rules first,
    /// forwarding that is switched off. Whatever is wrong is told by the next round.
    async fn check_rules(&mut self) {
        let forwarding = self.enable_forwarding();
        if self.reconciler.keep_rules(&self.rules).await.is_err() || forwarding.is_err() {
            self.rules_due = true;
            self.schedule(Duration::ZERO);
        }
        self.status.update(|status| status.repairs = self.reconciler.repairs());
    }

    /// Changes what is wanted as the leases have changed, and brings the kernel in line.
    async fn round(&mut self) {
        self.due = None;
        if !self.leases.is_complete() {
            return; // an absent lease means nothing yet
        }
        self.leases.expire(Instant::now());
        self.plan_peers();
        let outcome = self.reconciler.work(Instant::now()).await;
        let mut problem = None;
        if self.rules_due {
            let forwarding = self.enable_forwarding().err();
            let rules = self.reconciler.keep_rules(&self.rules).await.err();
            problem = forwarding.or(rules.map(|reason| reason.to_string()));
            self.rules_due = problem.is_some();
        }
        if let (Some(datapath), Some(own)) = (&mut self.datapath, &self.leases.admission().own)
            && self.reconciler.has_devices()
        {
            problem = problem.or(datapath.keep_running(&own.subnets, outcome.device_is_new).err());
            self.status.gauge(datapath.gauge());
        }
        if !self.ready && self.datapath.as_ref().is_none_or(UdpRunner::is_running) {
            problem = problem.or(self.get_ready().err());
        }
        self.settle(&outcome, problem);
    }

    /// Wants for ourselves what the backend plans, instead of what was wanted before.
    fn plan_host(&mut self) {
        let Some(own) = &self.leases.admission().own else { return };
        let mut host = State::default();
        self.backend.plan_host(&own.subnets, &mut host);
        let mut rules = Ruleset { masquerade: self.options.ip_masq, ..Ruleset::default() };
        if self.options.forward_rules {
            rules.forward = host.links.keys().copied().chain([self.underlay.link()]).collect();
        }
        for (family, network) in self.leases.admission().config.networks() {
            let Some(subnet) = own.subnets.get(family) else { continue };
            rules.families.push(flan_kernel::FamilyRules { network, subnet });
            if self.options.blackhole_route {
                // Behind every other route, so that the bridge's own wins as soon as there is one.
                let key = RouteKey { destination: subnet, metric: u32::MAX };
                host.routes.insert(key, Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL });
            }
        }
        self.status.update(|status| {
            status.subnets = own.subnets.iter().map(|(_, subnet)| subnet.to_string()).collect();
            // The subnet file and dockerd are out of date.
            status.ready = false;
        });
        self.ready = false;
        self.host.entries().for_each(|entry| self.reconciler.giving_up().want(entry));
        host.entries().for_each(|entry| self.reconciler.wanting().want(entry));
        self.host = host;
        (self.rules, self.rules_due) = (rules, true);
    }

    /// Wants for each peer that has changed what the backend plans for it now.
    fn plan_peers(&mut self) {
        let changes = self.leases.take_changes();
        if changes.is_empty() {
            return;
        }
        self.teller.tell(&changes, Instant::now());
        if !changes.quarantine.is_empty() {
            // What stands in a bad lease may have been large.
            sooner(&mut self.tidy_due, TIDY_DELAY);
        }
        if changes.peers.is_empty() {
            self.show_lists();
            return;
        }
        for change in &changes.peers {
            if let Some(before) = &change.before {
                self.unreached.forget(before);
                // Of a peer that cannot be reached nothing was wanted.
                let _ = self.backend.plan_peer(before, &mut self.reconciler.giving_up());
            }
            if let Some(after) = &change.after {
                want_peer(&*self.backend, &mut self.reconciler, &mut self.unreached, after);
            }
        }
        if let Some(datapath) = &mut self.datapath {
            datapath.change(&changes.peers);
        }
        self.peers_are_planned();
    }

    /// Wants for every peer what the backend plans, when nothing is wanted for any.
    fn plan_all_peers(&mut self) {
        self.unreached.clear();
        self.teller.tell(&self.leases.take_changes(), Instant::now());
        for peer in self.leases.peers() {
            want_peer(&*self.backend, &mut self.reconciler, &mut self.unreached, peer);
        }
        if let Some(datapath) = &mut self.datapath {
            datapath.replace(self.leases.peers());
        }
        self.peers_are_planned();
    }

    /// Tells those who go by the list of peers.
    fn peers_are_planned(&mut self) {
        self.show_lists();
        self.look_at_overlaps();
    }

    /// What the status says of peers and bad leases.
    fn show_lists(&self) {
        self.status.update(|status| {
            status.peers = self.leases.peer_count() - self.unreached.count();
            (status.unreachable, status.unreachable_count) = (self.unreached.some(), self.unreached.count());
            status.quarantined = peers::some_quarantined(&self.leases);
            status.quarantined_count = self.leases.quarantined_count();
        });
    }

    /// Says what is wrong now, and comes back to what has to be tried again.
    fn settle(&mut self, outcome: &Outcome, problem: Option<String>) {
        if problem.is_some() {
            self.failures += 1;
            self.schedule(retry_after(self.failures));
        } else {
            self.failures = 0;
        }
        if outcome.applied >= MANY {
            sooner(&mut self.tidy_due, TIDY_DELAY);
            info!(operations = outcome.applied, failed = outcome.failed, "brought the kernel in line");
        } else if outcome.applied > 0 {
            debug!(operations = outcome.applied, failed = outcome.failed, "brought the kernel in line");
        }
        // Without the external interface much is refused, and only because of that.
        let problem = problem.or_else(|| self.underlay.problem()).or_else(|| self.reconciler.problem());
        let peers = self.leases.peer_count();
        if let Some(own) = self.leases.admission().own.as_ref().filter(|_| self.ready) {
            let problem = problem.as_deref().map(|problem| format!("; {problem}")).unwrap_or_default();
            notify::working(&format!("{} with {peers} peers{problem}", own.subnets));
        }
        let repairs = self.reconciler.repairs();
        self.status.update(|status| (status.kernel_problem, status.repairs) = (problem, repairs));
        let taken = self.datapath.as_ref().and_then(UdpRunner::taken);
        self.status.report(Code::PortTaken, self.reconciler.port_taken().or(taken));
    }

    /// Tells dockerd and systemd, once what is planned for ourselves really stands.
    fn get_ready(&mut self) -> Result<(), String> {
        let Some(own) = &self.leases.admission().own else { return Ok(()) };
        if !self.reconciler.has_devices() {
            // What keeps them from it is told by the reconciler, and tried again.
            return Ok(());
        }
        let mut networks: PerFamily<IpNetwork> = PerFamily::default();
        for (family, network) in self.leases.admission().config.networks() {
            networks.set(family, network);
        }
        let env = SubnetEnv::new(networks, &own.subnets, self.backend.mtu(), self.options.ip_masq);
        let file = self.options.subnet_file.display();
        env.save(&self.options.subnet_file).map_err(|reason| {
            error!(%file, %reason, "cannot write the subnet file");
            format!("cannot write {file}: {reason}")
        })?;
        self.ready = true;
        self.lookout.ours_is(Ours { traffic: self.traffic(), env });
        let (mtu, peers) = (self.backend.mtu(), self.leases.peer_count());
        self.status.update(|status| (status.ready, status.waiting_for, status.mtu) = (true, None, mtu));
        info!(subnets = %own.subnets, mtu, peers, %file, "ready");
        notify::ready();
        Ok(())
    }

    /// What the packet filter of this host must let pass.
    fn traffic(&self) -> Traffic {
        let config = &self.leases.admission().config;
        let underlay = Way { link: self.underlay.link(), ours: false };
        let of_family = |(family, network)| {
            let subnet = self.leases.admission().own.as_ref()?.subnets.get(family)?;
            let addresses = self.host.addresses.keys();
            let own = addresses.filter(|address| Family::of(address.address.ip()) == family);
            let mut devices: Vec<Way> = own.map(|address| Way { link: address.link, ours: true }).collect();
            if devices.is_empty() || backend::routes_directly(config) {
                devices.push(underlay);
            }
            Some(FamilyTraffic { network, subnet, devices })
        };
        Traffic {
            families: config.networks().filter_map(of_family).collect(),
            outer: backend::udp_port(config).map(|port| Outer {
                port,
                link: underlay.link,
                addresses: self.underlay.external.underlay.addresses.values().copied().collect(),
            }),
            ..Traffic::default()
        }
    }

    fn enable_forwarding(&self) -> Result<(), String> {
        let uses = |family| self.leases.admission().config.pools.get(family).is_some();
        sysctl::forwarding(uses(Family::V4), uses(Family::V6)).map_err(|reason| {
            warn!(%reason, "cannot enable forwarding: containers will not reach other hosts");
            format!("cannot enable forwarding: {reason}")
        })
    }
}

/// Wants for a peer what the backend plans, or notes why it plans nothing.
fn want_peer<K: Kernel, F: Firewall>(
    backend: &dyn Backend,
    reconciler: &mut Reconciler<K, F>,
    unreached: &mut Unreached,
    peer: &Lease,
) {
    if let Err(reason) = backend.plan_peer(peer, reconciler.wanting()) {
        unreached.note(peer, &reason, Instant::now());
    }
}

/// Operations in one round that are worth a line in the log, and peers whose objects take memory worth the trouble.
const MANY: usize = 100;

/// How long to wait before what failed is tried again: 1 s, doubled each time, up to 30 s.
fn retry_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(30))
}

/// Brings `due` forward, so that it is reached `after` this moment at the latest.
fn sooner(due: &mut Option<Instant>, after: Duration) {
    let at = Instant::now() + after;
    *due = Some(due.map_or(at, |due| due.min(at)));
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Sleeps until then, or for ever.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
