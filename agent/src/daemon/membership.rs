//! Which networks this host is in, and why. It is in a network as long as anything needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flan_agent_api::SubnetEnv;
use flan_backends::bridge;
use flan_docker::{Attachment, Demand};
use flan_kernel::netlink;
use flan_subnet_lease::{NetworkName, Store};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Daemon;
use super::start::previous;
use super::store::{Reports, StoreTasks};
use crate::agent::{DEFAULT_NETWORK, Event, NetworkId};
use crate::args::Args;
use crate::network::{self, Network, NetworkEvent, Settings, UdpRunner, WireguardRunner};
use crate::status::{SharedNetwork, SharedStatus};
use crate::wireguard;

/// Why this host is in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// `--networks`, or the default network.
    Flag,
    /// `flanctl network join`.
    Operator,
    /// Containers of Docker.
    Docker,
}

/// A network that this host is in.
struct Member {
    id: NetworkId,
    reasons: BTreeSet<Reason>,
    status: SharedNetwork,
    /// The subnet file's content, once packets flow.
    ready: watch::Sender<Option<SubnetEnv>>,
}

/// The networks that this host is in.
pub(super) struct Membership {
    args: Arc<Args>,
    store: Store,
    status: SharedStatus,
    renew_margin: Option<Duration>,
    /// Those beside the default one.
    named: BTreeMap<NetworkName, Member>,
    next: NetworkId,
}

impl Membership {
    /// Creates it without networks.
    pub(super) fn new(
        args: Arc<Args>,
        store: Store,
        status: SharedStatus,
        renew_margin: Option<Duration>,
    ) -> Self {
        Self { args, store, status, renew_margin, named: BTreeMap::new(), next: DEFAULT_NETWORK }
    }

    /// Begins a network; the first is the default one, without a name.
    pub(super) fn begin(
        &mut self,
        name: Option<NetworkName>,
        reasons: BTreeSet<Reason>,
        reports: &mut Reports,
    ) -> (Network, StoreTasks) {
        let id = self.next;
        self.next += 1;
        let (store, status, file) = match &name {
            None => (
                self.store.clone(),
                self.status.default_network().clone(),
                self.args.subnet_file.path.clone(),
            ),
            Some(name) => {
                let file = self.args.subnet_dir.file(name);
                (self.store.network(name), self.status.add_network(name.clone()), file)
            }
        };
        let has_bridge = reasons.contains(&Reason::Docker);
        if let Some(name) = &name {
            let ready = watch::Sender::new(None);
            self.named.insert(name.clone(), Member { id, reasons, status: status.clone(), ready });
        }
        let span = network::span(name.as_ref());
        let of_network = name.as_ref().map(|name| format!(" --network {name}")).unwrap_or_default();
        let flags = self.args.store.as_typed() + &of_network;
        let settings = self.settings(name, file, &store);
        let tasks = StoreTasks::new(id, store, flags, status.clone(), span, reports);
        let network = Network::new(id, self.args.clone(), status, settings, has_bridge, Instant::now());
        (network, tasks)
    }

    fn settings(&self, name: Option<NetworkName>, file: PathBuf, store: &Store) -> Settings {
        let previous = previous(&file);
        Settings {
            name,
            place: format!("{}/config in the store at {}", store.prefix(), store.endpoints()),
            flags: self.args.store.as_typed(),
            previous: previous.as_ref().and_then(SubnetEnv::subnets),
            previous_networks: previous.map(|env| env.networks).unwrap_or_default(),
            file,
            node: self.args.identity(),
            renew_margin: self.renew_margin,
            datapath: UdpRunner::boxed,
            wireguard_datapath: WireguardRunner::boxed,
            kernel_path: netlink::check_fou,
            kernel_wireguard: wireguard::check_kernel,
            wireguard_key: wireguard::key,
        }
    }

    /// Records that the network's subnet file is written, so that packets flow.
    pub(super) fn is_ready(&mut self, id: NetworkId, env: SubnetEnv) {
        if let Some(member) = self.named.values().find(|member| member.id == id) {
            member.ready.send_replace(Some(env));
        }
    }
}

impl<K, F> Daemon<K, F> {
    /// Joins or leaves a network, and returns the events that do it.
    pub(super) fn obey(&mut self, demand: Demand, reports: &mut Reports) -> Vec<Event> {
        match demand {
            Demand::Attach { network, answer } => self.attach(network, answer, reports),
            Demand::Detach { network } => self.no_longer(&network, Reason::Docker),
        }
    }

    /// Joins a network for Docker's containers, with a bridge for them.
    fn attach(
        &mut self,
        network: NetworkName,
        answer: oneshot::Sender<Attachment>,
        reports: &mut Reports,
    ) -> Vec<Event> {
        let mut events = self.join(&network, Reason::Docker, reports);
        let (Some(member), Some(bridge)) =
            (self.membership.named.get_mut(&network), bridge::device_of(&network))
        else {
            return events;
        };
        if member.reasons.insert(Reason::Docker) {
            // What was written so far is without the bridge.
            member.ready.send_replace(None);
            events.push(Event::Network(member.id, NetworkEvent::Bridge(true)));
        }
        let status = member.status.clone();
        let waits_for = Box::new(move || status.read().waiting_for);
        // Who asked may have given up.
        let _ = answer.send(Attachment { bridge, ready: member.ready.subscribe(), waits_for });
        events
    }

    fn join(&mut self, name: &NetworkName, reason: Reason, reports: &mut Reports) -> Vec<Event> {
        if self.membership.named.contains_key(name) {
            return Vec::new();
        }
        let (network, tasks) = self.membership.begin(Some(name.clone()), [reason].into(), reports);
        self.tasks.insert(network.id(), tasks);
        vec![Event::Joins(Box::new(network))]
    }

    /// Leaves the network if nothing else needs it.
    fn no_longer(&mut self, name: &NetworkName, reason: Reason) -> Vec<Event> {
        let Some(member) = self.membership.named.get_mut(name) else { return Vec::new() };
        member.reasons.remove(&reason);
        let id = member.id;
        if !member.reasons.is_empty() {
            return vec![Event::Network(id, NetworkEvent::Bridge(false))];
        }
        self.membership.named.remove(name);
        self.membership.status.remove_network(name);
        if let Some(tasks) = self.tasks.remove(&id) {
            tasks.leave();
        }
        vec![Event::Leaves(id)]
    }
}
