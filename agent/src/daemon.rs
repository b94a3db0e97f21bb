//! The event loop around the [`Agent`].

mod docker;
mod joined_file;
mod membership;
mod names;
mod reservation;
mod start;
mod store;
mod summary;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flan_backends::HostNetworks;
use flan_docker::Demand;
use flan_kernel::{Firewall, Kernel, KernelError, Operation, Ruleset, State, memory, netlink, sysctl};
use flan_probes::Prober;
use flan_subnet_lease::{Lease, Store, WatchEvent};
use futures::future::{BoxFuture, OptionFuture};
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use self::membership::Membership;
pub(crate) use self::membership::{Order, Told};
use self::names::Names;
use self::store::{Reports, StoreTasks};
use crate::agent::{Agent, Effect, Event, NetworkId};
use crate::args::Args;
use crate::lookout::Lookout;
use crate::network::{NetworkEffect, NetworkEvent};
use crate::status::socket::PeersAsked;
use crate::{notify, probing};
use flan_host::interface::Selection;

pub use start::run;

/// Operations between reads of kernel notifications, which must not pile up.
const STRIDE: usize = 2048;

/// The agent, and everything that its effects use.
struct Daemon<K, F> {
    agent: Agent,
    args: Arc<Args>,
    kernel: K,
    firewall: F,
    store: Store,
    /// Those of each network.
    tasks: BTreeMap<NetworkId, StoreTasks>,
    membership: Membership,
    /// Which networks Docker's containers need.
    demands: mpsc::UnboundedReceiver<Demand>,
    /// `None` if no names are served.
    names: Option<Names>,
    /// What people tell by the socket.
    told: mpsc::Receiver<Told>,
    lookout: Lookout,
    prober: Prober,
    /// Questions that come by the socket.
    asked: mpsc::Receiver<PeersAsked>,
    /// Readings in progress, of our objects and of the host's networks.
    reading: OptionFuture<BoxFuture<'static, Result<State, KernelError>>>,
    reading_networks: OptionFuture<BoxFuture<'static, Result<HostNetworks, KernelError>>>,
}

impl<K: Kernel, F: Firewall> Daemon<K, F> {
    /// Runs until a setting turns out not to work or a task ends, which no task should.
    async fn run(mut self, mut reports: Reports) -> anyhow::Result<()> {
        let mut alive = notify::watchdog();
        self.feed(Event::Time).await?;
        loop {
            let due = self.agent.due(Instant::now());
            let event = tokio::select! {
                changes = self.kernel.changes() => Some(Event::Kernel(changes)),
                Some(read) = &mut self.reading => {
                    self.reading = None.into();
                    Some(Event::Read(read))
                }
                Some(read) = &mut self.reading_networks => {
                    self.reading_networks = None.into();
                    Some(Event::Networks(read))
                }
                Some(event) = reports.leases.next() => {
                    self.feed_leases(event, &mut reports).await?;
                    None
                }
                event = reports.events.recv() => event.map(|(network, event)| Event::Network(network, event)),
                Some(demand) = self.demands.recv() => {
                    for event in self.meet(demand, &mut reports) {
                        self.feed(event).await?;
                    }
                    None
                }
                Some(told) = self.told.recv() => {
                    for event in self.obey(told, &mut reports) {
                        self.feed(event).await?;
                    }
                    None
                }
                Some(answer) = self.asked.recv() => {
                    let mut peers = self.agent.peers();
                    probing::add(&mut peers, &self.prober);
                    let _ = answer.send((probing::source(&self.prober), peers));
                    None
                }
                () = any_failed(&mut self.tasks) => anyhow::bail!("the keeper of our lease ended unexpectedly"),
                () = self.prober.failed() => anyhow::bail!("the probes of peers ended unexpectedly"),
                () = sleep_until(due) => None,
                _ = alive.tick() => {
                    notify::alive();
                    None
                }
            };
            if let Some(event) = event {
                self.feed(event).await?;
            }
            // Waits of refused operations that are over are no longer due, so what was due before counts, too.
            let now = Instant::now();
            if due.into_iter().chain(self.agent.due(now)).any(|due| due <= now) {
                self.feed(Event::Time).await?;
            }
        }
    }

    /// Handles an event and carries out all effects that follow.
    async fn feed(&mut self, event: Event) -> anyhow::Result<()> {
        let mut effects: VecDeque<Effect> = self.agent.handle(event, Instant::now()).into();
        while let Some(effect) = effects.pop_front() {
            effects.extend(self.carry_out(effect).await?);
        }
        Ok(())
    }

    /// Handles all pending lease events, so that one round follows.
    async fn feed_leases(
        &mut self,
        event: (NetworkId, Option<WatchEvent<Lease>>),
        reports: &mut Reports,
    ) -> anyhow::Result<()> {
        let mut next = Some(event);
        while let Some((network, event)) = next {
            // The event that this host has a lease comes before the leases.
            while let Ok((network, event)) = reports.events.try_recv() {
                self.feed(Event::Network(network, event)).await?;
            }
            let event = match event {
                Some(event) => event,
                // This host has left the network.
                None if !self.tasks.contains_key(&network) => break,
                None => anyhow::bail!("the lease watch ended unexpectedly"),
            };
            self.feed(Event::Network(network, NetworkEvent::Leases(event))).await?;
            next = reports.leases.next().now_or_never().flatten();
        }
        Ok(())
    }

    /// Carries out operations, and handles the kernel's notifications in between.
    async fn apply(&mut self, operations: Vec<Operation>) -> Vec<Effect> {
        let (mut effects, mut left) = (Vec::new(), operations.into_iter().peekable());
        while left.peek().is_some() {
            let operations: Vec<Operation> = left.by_ref().take(STRIDE).collect();
            let refused = self.kernel.apply(&operations).await;
            let carried_out = Event::CarriedOut { operations, refused };
            effects.extend(self.agent.handle(carried_out, Instant::now()));
            if let Some(told) = self.notified() {
                effects.extend(self.agent.handle(told, Instant::now()));
            }
        }
        effects
    }

    /// Returns the pending kernel notifications.
    fn notified(&mut self) -> Option<Event> {
        let mut told = Vec::new();
        while let Some(changes) = self.kernel.changes().now_or_never() {
            told.extend(changes);
        }
        (!told.is_empty()).then_some(Event::Kernel(told))
    }

    /// Carries out an effect and returns what follows. Only starts what takes long.
    async fn carry_out(&mut self, effect: Effect) -> anyhow::Result<Vec<Effect>> {
        let mut event = None;
        match effect {
            Effect::Apply(operations) => return Ok(self.apply(operations).await),
            Effect::Read(ownership) => {
                // Notifications so far are older than what will be read.
                let told = self.notified();
                let mut effects = told.map_or_else(Vec::new, |told| self.agent.handle(told, Instant::now()));
                effects.extend(self.agent.handle(Event::ReadingBegins, Instant::now()));
                self.reading = Some(self.kernel.snapshot(&ownership)).into();
                return Ok(effects);
            }
            Effect::KeepRules { rules, forwarding } => {
                let (forwards, kept) = (enable_forwarding(forwarding), self.keep_rules(&rules).await);
                event = Some(Event::Rules { kept, forwards });
            }
            Effect::Survey(overlays) => {
                let survey = Selection { args: &self.args.interface, overlays: &overlays }.survey().await;
                event = Some(Event::Surveyed(survey));
            }
            Effect::AskName(index) => event = Some(Event::Named(netlink::name_of(index))),
            Effect::ReadNetworks(overlays) => {
                let reading: BoxFuture<'static, _> = Box::pin(HostNetworks::read_overlapping(overlays));
                self.reading_networks = Some(reading).into();
            }
            Effect::Reconnect => self.store.reconnect(),
            Effect::LookFor(ours) => self.lookout.ours_is(ours),
            Effect::HostChanged => self.lookout.host_changed(),
            Effect::Probe => match self.agent.probed() {
                Some((way, targets)) => self.prober.targets_are(way, targets),
                None => self.prober.clear(),
            },
            Effect::GiveBackMemory => memory::give_back(),
            Effect::PutAway(file) => self.membership.put_away(&file),
            Effect::Ready => notify::ready(),
            Effect::Status(status) => notify::status(&status),
            Effect::Network(id, effect) => event = self.carry_out_of(id, effect),
            Effect::End(reason) => return Err(reason),
        }
        Ok(event.map_or_else(Vec::new, |event| self.agent.handle(event, Instant::now())))
    }

    /// Carries out an effect of one network and returns what follows at once.
    fn carry_out_of(&mut self, id: NetworkId, effect: NetworkEffect) -> Option<Event> {
        let tasks = self.tasks.get_mut(&id)?;
        let event = match effect {
            NetworkEffect::FollowConfig => {
                tasks.follow_config();
                return None;
            }
            NetworkEffect::ListLeases => {
                tasks.list_leases();
                return None;
            }
            NetworkEffect::Claim(claim) => {
                tasks.claim(*claim);
                return None;
            }
            NetworkEffect::ReadKey => {
                let key = self.args.wireguard_key_file.file();
                let missing = || format!("the WireGuard key {} is gone", key.path().display());
                let read = key.read().map_err(|reason| reason.to_string());
                NetworkEvent::Key(read.and_then(|key| key.ok_or_else(missing)))
            }
            NetworkEffect::Save { file, env } => {
                let saved = env.save(&file).map_err(|reason| reason.to_string());
                if saved.is_ok() {
                    if let Some(names) = &self.names {
                        names.network_is(self.membership.name_of(id), &env);
                    }
                    self.membership.is_ready(id, env);
                }
                NetworkEvent::Saved(saved)
            }
        };
        Some(Event::Network(id, event))
    }

    async fn keep_rules(&mut self, rules: &Ruleset) -> Result<bool, String> {
        self.firewall.apply(rules).await.map_err(|reason| {
            warn!(%reason, "cannot put the packet filter rules in place");
            reason.to_string()
        })
    }
}

fn enable_forwarding((v4, v6): (bool, bool)) -> Result<(), String> {
    sysctl::forwarding(v4, v6).map_err(|reason| {
        warn!(%reason, "cannot enable forwarding: containers will not reach other hosts");
        format!("cannot enable forwarding: {reason}")
    })
}

/// Waits until the keeper of any lease ends, which it should not.
async fn any_failed(tasks: &mut BTreeMap<NetworkId, StoreTasks>) {
    let all = tasks.values_mut().map(|tasks| Box::pin(tasks.failed()));
    futures::future::select_all(all).await;
}

/// Sleeps until this time, or forever.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
