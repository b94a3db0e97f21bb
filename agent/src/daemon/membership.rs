//! Which networks this host is in, and why. It is in a network as long as anything needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flan_agent_api::{SubnetEnv, write_whole};
use flan_backends::bridge;
use flan_docker::{Attachment, Demand};
use flan_kernel::netlink;
use flan_subnet_lease::{NetworkName, Store, Subnets};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tracing::warn;

use super::Daemon;
use super::joined_file::JoinedFile;
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
    /// `--networks`.
    Flag,
    /// `flanctl network join`.
    Operator,
    /// Containers of Docker.
    Docker,
}

/// What somebody tells the agent, and where the answer goes: an error says why it cannot be.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) order: Order,
    pub(crate) answer: oneshot::Sender<Result<(), String>>,
}

/// What somebody tells the agent.
#[derive(Debug)]
pub(crate) enum Order {
    /// Be in the network from now on.
    Join(NetworkName),
    /// No longer, unless something else needs it.
    Leave(NetworkName),
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
    pub(super) joined: JoinedFile,
    /// Whether this host serves the names of containers.
    serves_names: bool,
    /// Those beside the default one.
    named: BTreeMap<NetworkName, Member>,
    next: NetworkId,
    /// Networks that this host has left, each with a channel that is closed once its lease is released.
    left: BTreeMap<NetworkName, oneshot::Receiver<()>>,
}

impl Membership {
    /// Creates it without networks.
    pub(super) fn new(
        args: Arc<Args>,
        store: Store,
        status: SharedStatus,
        renew_margin: Option<Duration>,
        joined: JoinedFile,
        serves_names: bool,
    ) -> Self {
        Self {
            args,
            store,
            status,
            renew_margin,
            joined,
            serves_names,
            named: BTreeMap::new(),
            next: DEFAULT_NETWORK,
            left: BTreeMap::new(),
        }
    }

    /// Begins a network; the first is the default one, without a name.
    pub(super) fn begin(
        &mut self,
        name: Option<&NetworkName>,
        reasons: BTreeSet<Reason>,
        reports: &mut Reports,
    ) -> (Network, StoreTasks) {
        let id = self.next;
        self.next += 1;
        let (store, status, file) = match name {
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
        if let Some(name) = name {
            let ready = watch::Sender::new(None);
            self.named.insert(name.clone(), Member { id, reasons, status: status.clone(), ready });
        }
        let span = network::span(name);
        let of_network = name.map(|name| format!(" --network {name}")).unwrap_or_default();
        let flags = self.args.store.as_typed() + &of_network;
        let settings = self.settings(name.cloned(), file, &store, has_bridge);
        let mut tasks = StoreTasks::new(id, store, flags, status.clone(), span, reports);
        if let Some(earlier) = name.and_then(|name| self.left.remove(name)) {
            tasks.wait_for(earlier);
        }
        let network = Network::new(id, self.args.clone(), status, settings, Instant::now());
        (network, tasks)
    }

    fn settings(
        &self,
        name: Option<NetworkName>,
        file: PathBuf,
        store: &Store,
        has_bridge: bool,
    ) -> Settings {
        let previous = previous(&file);
        Settings {
            has_resolver: name.is_none() && self.serves_names,
            name,
            place: format!("{}/config in the store at {}", store.prefix(), store.endpoints()),
            flags: self.args.store.as_typed(),
            previous: previous.as_ref().and_then(SubnetEnv::subnets),
            previous_networks: previous.map(|env| env.networks).unwrap_or_default(),
            preferred: preferred(&self.args, &file),
            file,
            has_bridge,
            node: self.args.identity(),
            renew_margin: self.renew_margin,
            datapath: UdpRunner::boxed,
            wireguard_datapath: WireguardRunner::boxed,
            kernel_path: netlink::check_fou,
            kernel_wireguard: wireguard::check_kernel,
            wireguard_key: wireguard::key,
        }
    }

    /// Takes back what somebody told, unless the host would stay in the network.
    fn take_back(&mut self, network: &NetworkName) -> Result<(), String> {
        let Some(member) = self.named.get(network) else {
            return Err(format!("this host is not in network {network}"));
        };
        if member.reasons.contains(&Reason::Flag) {
            return Err(format!("--networks of fland names {network}; start fland without it"));
        }
        let for_containers = member.reasons.contains(&Reason::Docker);
        if for_containers && !member.reasons.contains(&Reason::Operator) {
            return Err(format!(
                "containers of this host are in network {network}; it leaves with the last one"
            ));
        }
        let left = self.joined.remove(network);
        left.map_err(|reason| format!("cannot write which networks to join: {reason}"))
    }

    /// Moves the subnet file of a network that this host has left: its subnets are taken again, if they are free then.
    pub(super) fn put_away(&self, file: &Path) {
        // It may have joined again meanwhile.
        if self.named.keys().any(|name| self.args.subnet_dir.file(name) == file) {
            return;
        }
        let kept = std::fs::read(file).and_then(|content| {
            write_whole(&left_file(&self.args, file), &content, 0o644)?;
            std::fs::remove_file(file)
        });
        if let Err(reason) = kept
            && reason.kind() != io::ErrorKind::NotFound
        {
            warn!(file = %file.display(), %reason, "cannot put away the subnet file of a network that this host has left");
        }
    }

    /// Returns the name of a network; `None` for the default one.
    pub(super) fn name_of(&self, id: NetworkId) -> Option<NetworkName> {
        self.named.iter().find(|(_, member)| member.id == id).map(|(name, _)| name.clone())
    }

    /// Records that the network's subnet file is written, so that packets flow.
    pub(super) fn is_ready(&mut self, id: NetworkId, env: SubnetEnv) {
        if let Some(member) = self.named.values().find(|member| member.id == id) {
            member.ready.send_replace(Some(env));
        }
    }
}

impl<K, F> Daemon<K, F> {
    /// Does what somebody told, and returns the events that do it.
    pub(super) fn obey(&mut self, told: Told, reports: &mut Reports) -> Vec<Event> {
        let (done, events) = match told.order {
            Order::Join(network) => {
                let saved = self.membership.joined.insert(&network);
                match saved {
                    Ok(()) => (Ok(()), self.join(&network, Reason::Operator, reports)),
                    Err(reason) => {
                        (Err(format!("cannot write which networks to join: {reason}")), Vec::new())
                    }
                }
            }
            Order::Leave(network) => match self.membership.take_back(&network) {
                Ok(()) => (Ok(()), self.no_longer(&network, Reason::Operator)),
                Err(reason) => (Err(reason), Vec::new()),
            },
        };
        // Who told it may be gone.
        let _ = told.answer.send(done);
        events
    }

    /// Joins or leaves a network for containers, and returns the events that do it.
    pub(super) fn meet(&mut self, demand: Demand, reports: &mut Reports) -> Vec<Event> {
        match demand {
            Demand::Attach { network, answer } => self.attach(&network, answer, reports),
            Demand::Detach { network } => self.no_longer(&network, Reason::Docker),
        }
    }

    /// Joins a network for Docker's containers, with a bridge for them.
    fn attach(
        &mut self,
        network: &NetworkName,
        answer: oneshot::Sender<Attachment>,
        reports: &mut Reports,
    ) -> Vec<Event> {
        let mut events = self.join(network, Reason::Docker, reports);
        let (Some(member), Some(bridge)) =
            (self.membership.named.get_mut(network), bridge::device_of(network))
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
        if let Some(member) = self.membership.named.get_mut(name) {
            // Who attaches containers looks at the reasons itself.
            if reason != Reason::Docker {
                member.reasons.insert(reason);
            }
            return Vec::new();
        }
        let (network, tasks) = self.membership.begin(Some(name), [reason].into(), reports);
        self.tasks.insert(network.id(), tasks);
        vec![Event::Joins(Box::new(network))]
    }

    /// Leaves the network if nothing else needs it.
    fn no_longer(&mut self, name: &NetworkName, reason: Reason) -> Vec<Event> {
        let Some(member) = self.membership.named.get_mut(name) else { return Vec::new() };
        let (id, was_needed) = (member.id, member.reasons.remove(&reason));
        if !member.reasons.is_empty() {
            let has_bridge = member.reasons.contains(&Reason::Docker);
            let event = was_needed.then_some(Event::Network(id, NetworkEvent::Bridge(has_bridge)));
            return event.into_iter().collect();
        }
        self.membership.named.remove(name);
        if let Some(names) = &self.names {
            names.has_left(name);
        }
        self.membership.status.remove_network(name);
        if let Some(released) = self.tasks.remove(&id).and_then(StoreTasks::leave) {
            self.membership.left.insert(name.clone(), released);
        }
        vec![Event::Leaves(id)]
    }
}

/// Returns where the subnet file of a network is kept after this host has left it.
fn left_file(args: &Args, file: &Path) -> PathBuf {
    args.state_dir.join("left").join(file.file_name().unwrap_or_default())
}

/// Returns the subnets that this host had when it last left the network.
fn preferred(args: &Args, file: &Path) -> Option<Subnets> {
    previous(&left_file(args, file)).as_ref().and_then(SubnetEnv::subnets)
}
