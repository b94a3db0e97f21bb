//! Surroundings of an agent: kernel and packet filter in memory, an interface, and a store that the story scripts.

use std::cell::RefCell;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use flan_agent_api::{Code, NetworkStatus, Repairs, SubnetEnv};
use flan_backends::udp::Gauge;
use flan_backends::{Abilities, Gateways, HostNetworks, Udp};
use flan_kernel::fake::{FakeFirewall, FakeKernel};
use flan_kernel::netlink::{FouLack, Interface};
use flan_kernel::{Change, Firewall, Kernel, LinkKind, Ownership};
use flan_subnet_lease::{
    Claim, HeldLease, Holding, KeyChange, Lease, LeaseAttributes, Listing, NetworkName, NodeIdentity,
    PeerChange, PerFamily, Subnets, WatchEvent,
};
use flan_wireguard_keys::PrivateKey;
use futures::FutureExt;
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use crate::agent::{Agent, Effect, Event, NetworkId};
use crate::args::Args;
use crate::host::Host;
use crate::network::{Datapath, LeaseClaim, Network, NetworkEffect, NetworkEvent, Settings, samples};
use crate::status::{SharedNetwork, SharedStatus};
use flan_host::interface::Survey;

/// A peer: the base of its subnet, its address, and the MAC of its device.
type Peer = (&'static str, &'static str, &'static str);
pub(super) const PEER_2: Peer = ("10.5.2.0", "192.168.64.12", "02:00:00:00:00:0c");
pub(super) const PEER_3: Peer = ("10.5.3.0", "192.168.64.13", "02:00:00:00:00:0d");

/// An agent and its surroundings.
pub(super) struct World {
    agent: Agent,
    host: SharedStatus,
    networks: Vec<SharedNetwork>,
    /// Subnet files of networks that were left.
    pub(super) put_away: Vec<PathBuf>,
    pub(super) kernel: FakeKernel,
    pub(super) firewall: FakeFirewall,
    /// The only interface, which has the default route.
    pub(super) interface: Interface,
    now: Instant,
    /// How many networks follow their config.
    pub(super) followed: usize,
    /// In the file of the WireGuard key.
    pub(super) key: Option<PrivateKey>,
    claims: Vec<(NetworkId, LeaseClaim)>,
    pub(super) saved: Vec<SubnetEnv>,
    pub(super) cannot_save: bool,
    pub(super) save_attempts: usize,
    /// Whether a reading of the kernel lasts until [`World::finish_reading`].
    pub(super) reads_slowly: bool,
    reading: Option<Ownership>,
    pub(super) readings: usize,
    pub(super) network_readings: usize,
    pub(super) reconnects: usize,
    pub(super) notified_ready: usize,
    /// The statuses sent to systemd.
    pub(super) systemd: Vec<String>,
    /// Why the agent has ended.
    pub(super) ended: Option<String>,
}

impl World {
    /// Starts an agent with these flags, which requests its network config.
    pub(super) fn with(flags: &[&str]) -> Self {
        Self::of_networks(1, FakeKernel::new(), &[], flags)
    }

    /// Restarts an agent on this host, whose subnet file names this subnet.
    pub(super) fn restarted(kernel: FakeKernel, previous: &str) -> Self {
        Self::of_networks(1, kernel, &[previous], &[])
    }

    /// Starts an agent and makes it ready.
    pub(super) fn joined(config: &str, subnet: &str, peers: &[Peer]) -> Self {
        let mut world = Self::with(&[]);
        world.config_is(0, config);
        world.lease(0, subnet);
        world.leases(0, listed(peers));
        assert!(world.status().ready, "{:?}", world.status());
        world
    }

    /// Starts an agent in so many networks, whose subnet files name these subnets, each of a network of length 16.
    pub(super) fn of_networks(count: usize, kernel: FakeKernel, previous: &[&str], flags: &[&str]) -> Self {
        let args = Arc::new(Args::parse_from(std::iter::once("fland").chain(flags.iter().copied())));
        let (now, abilities) =
            (Instant::now(), Abilities { gateways: Gateways::Objects, checks_senders: true });
        let shared = SharedStatus::default();
        let name = |id| -> Option<NetworkName> { (id > 0).then(|| format!("n{id}").parse().unwrap()) };
        let status =
            |id| name(id).map_or_else(|| shared.default_network().clone(), |name| shared.add_network(name));
        let statuses: Vec<SharedNetwork> = (0..count).map(status).collect();
        let network = |(id, status): (NetworkId, &SharedNetwork)| {
            let previous: Option<Subnets> = previous.get(id).map(|subnets| subnets.parse().unwrap());
            let mut previous_networks = PerFamily::default();
            for (family, subnet) in previous.iter().flat_map(Subnets::iter) {
                let whole = IpNetwork::new(subnet.network(), 16).unwrap();
                previous_networks.set(family, IpNetwork::new(whole.network(), 16).unwrap());
            }
            let settings = Settings {
                name: name(id),
                file: "/run/flannel/subnet.env".into(),
                place: match name(id) {
                    None => "/coreos.com/network/config in the store".to_owned(),
                    Some(name) => format!("/coreos.com/network/{name}/config in the store"),
                },
                flags: String::new(),
                previous,
                previous_networks,
                preferred: None,
                has_bridge: false,
                has_resolver: false,
                node: NodeIdentity { host: Some("host-1".into()), id: Some("node-1".into()) },
                renew_margin: None,
                datapath: FakeDatapath::boxed,
                wireguard_datapath: |_| unreachable!("the fake kernel has WireGuard"),
                kernel_path: |_| Err(FouLack::Fou),
                kernel_wireguard: || Ok(()),
                wireguard_key: |_| Ok([64; 32].into()),
            };
            Network::new(id, args.clone(), status.clone(), settings, now)
        };
        let networks = statuses.iter().enumerate().map(network).collect();
        let mut host = Host::new(args.clone(), abilities, true, shared.clone());
        // As at every start: what an earlier agent made.
        let links = kernel.state().links.into_keys().collect();
        host.reconciler.own(&Ownership { links, ..Ownership::default() });
        let interface = Interface {
            name: "eth0".parse().unwrap(),
            index: 2,
            mtu: 1500,
            up: true,
            carrier: true,
            loopback: false,
            addresses: vec!["192.168.64.11/24".parse().unwrap()],
            confined: Default::default(),
            bridge: false,
            master: None,
        };
        let mut world = Self {
            agent: Agent::new(host, networks),
            host: shared,
            networks: statuses,
            put_away: Vec::new(),
            kernel,
            firewall: FakeFirewall::new(),
            interface,
            now,
            followed: 0,
            key: Some([64; 32].into()),
            claims: Vec::new(),
            saved: Vec::new(),
            cannot_save: false,
            save_attempts: 0,
            reads_slowly: false,
            reading: None,
            readings: 0,
            network_readings: 0,
            reconnects: 0,
            notified_ready: 0,
            systemd: Vec::new(),
            ended: None,
        };
        world.feed(Event::Time);
        world
    }

    pub(super) fn config_is(&mut self, network: NetworkId, json: &str) {
        self.config_answer(network, Ok(Some(json.as_bytes().to_vec())));
    }

    pub(super) fn config_answer(&mut self, network: NetworkId, answer: Result<Option<Vec<u8>>, String>) {
        self.feed(Event::Network(network, NetworkEvent::Config(answer)));
    }

    pub(super) fn claim(&self, network: NetworkId) -> &Claim {
        &self.claim_of(network).claim
    }

    pub(super) fn attributes(&self, network: NetworkId) -> LeaseAttributes {
        self.claim_of(network).terms.borrow().attributes.clone()
    }

    fn claim_of(&self, network: NetworkId) -> &LeaseClaim {
        let claim = self.claims.iter().find(|(of, _)| *of == network);
        claim.map(|(_, claim)| claim).expect("the network has claimed a lease")
    }

    /// Grants a lease of this subnet.
    pub(super) fn lease(&mut self, network: NetworkId, subnet: &str) {
        self.claim_of(network);
        self.feed(Event::Network(network, NetworkEvent::Leased(holding(subnet))));
    }

    /// Replaces our lease by one of this subnet.
    pub(super) fn holds(&mut self, network: NetworkId, subnet: &str) {
        self.feed(Event::Network(network, NetworkEvent::Holding(holding(subnet))));
    }

    pub(super) fn leases(&mut self, network: NetworkId, event: WatchEvent<Lease>) {
        self.feed(Event::Network(network, NetworkEvent::Leases(event)));
    }

    /// Delivers the kernel's notifications.
    pub(super) fn leave(&mut self, network: NetworkId) {
        self.feed(Event::Leaves(network));
        self.pass(Duration::ZERO);
    }

    pub(super) fn attach_containers(&mut self, network: NetworkId, wanted: bool) {
        self.feed(Event::Network(network, NetworkEvent::Bridge(wanted)));
        self.pass(Duration::ZERO);
    }

    pub(super) fn hear(&mut self) {
        self.tell();
        self.pass(Duration::ZERO);
    }

    pub(super) fn rename_interface(&mut self, name: &str) {
        self.interface.name = name.parse().unwrap();
        let name = self.interface.name;
        self.kernel.edit(|state| {
            for link in state.links.values_mut() {
                if let LinkKind::Vxlan(vxlan) = &mut link.kind {
                    vxlan.underlay = Some(name);
                }
            }
        });
        // The kernel does not report that our device has an underlay of another name.
        let _ = self.kernel.changes().now_or_never();
        self.kernel.tell(Change::Link(name));
    }

    /// Finishes the current reading of the kernel.
    pub(super) fn finish_reading(&mut self) {
        let ownership = self.reading.take().expect("the kernel is being read");
        let read =
            self.kernel.snapshot(&ownership).now_or_never().expect("what is in memory answers at once");
        self.feed(Event::Read(read));
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.agent.due(self.now).filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.feed(Event::Time);
        }
        self.now = until;
    }

    /// Returns the status of the first network.
    pub(super) fn status(&self) -> NetworkStatus {
        self.status_of(0)
    }

    pub(super) fn status_of(&self, network: NetworkId) -> NetworkStatus {
        self.networks[network].read()
    }

    pub(super) fn repairs(&self) -> Repairs {
        self.host.read().host.repairs
    }

    /// What is wrong of this kind in the default network, or on this host.
    pub(super) fn problem(&self, code: Code) -> Option<String> {
        let status = self.status();
        status.problem(code).or(self.host.read().default.problem(code)).map(str::to_owned)
    }

    pub(super) fn waits_for(&self) -> String {
        self.status().waiting_for.unwrap_or_default()
    }

    /// Returns where our routes lead.
    pub(super) fn routes(&self) -> Vec<String> {
        self.kernel.state().routes.keys().map(|key| key.destination.to_string()).collect()
    }

    /// Returns the source address of the first device.
    pub(super) fn local_address(&self) -> String {
        let state = self.kernel.state();
        let local = state.links.values().find_map(|link| match &link.kind {
            LinkKind::Vxlan(vxlan) => vxlan.local,
            _ => None,
        });
        local.as_ref().map(IpAddr::to_string).unwrap_or_default()
    }

    /// Handles an event and, like the event loop, what is due then.
    fn feed(&mut self, event: Event) {
        let effects = self.agent.handle(event, self.now);
        self.carry_out(effects);
        let mut rounds = 0;
        while self.agent.due(self.now).is_some_and(|due| due <= self.now) && self.ended.is_none() {
            let effects = self.agent.handle(Event::Time, self.now);
            self.carry_out(effects);
            rounds += 1;
            assert!(rounds < 100, "there is no end of what is due at one moment");
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Some(event) = self.answer(effect) {
                let effects = self.agent.handle(event, self.now);
                self.carry_out(effects);
            }
        }
    }

    fn answer(&mut self, effect: Effect) -> Option<Event> {
        const AT_ONCE: &str = "what is in memory answers at once";
        match effect {
            Effect::Read(ownership) => {
                self.tell();
                let effects = self.agent.handle(Event::ReadingBegins, self.now);
                self.carry_out(effects);
                self.readings += 1;
                if self.reads_slowly {
                    self.reading = Some(ownership);
                    return None;
                }
                return Some(Event::Read(self.kernel.snapshot(&ownership).now_or_never().expect(AT_ONCE)));
            }
            Effect::Apply(operations) => {
                let refused = self.kernel.apply(&operations).now_or_never().expect(AT_ONCE);
                let effects = self.agent.handle(Event::CarriedOut { operations, refused }, self.now);
                self.tell();
                self.carry_out(effects);
            }
            Effect::KeepRules { rules, .. } => {
                let kept = self.firewall.apply(&rules).now_or_never().expect(AT_ONCE);
                let kept = kept.map_err(|reason| reason.to_string());
                return Some(Event::Rules { kept, forwards: Ok(()) });
            }
            Effect::Survey(_) => {
                let interfaces = vec![self.interface.clone()];
                return Some(Event::Surveyed(Ok(Survey { interfaces, default_routes: vec![2], way: None })));
            }
            // Told by `Agent::probed`, and there are no probes here.
            Effect::Probe => {}
            Effect::AskName(_) => return Some(Event::Named(Some(self.interface.name))),
            Effect::ReadNetworks(_) => {
                self.network_readings += 1;
                return Some(Event::Networks(Ok(HostNetworks::default())));
            }
            Effect::Reconnect => self.reconnects += 1,
            Effect::LookFor(_) | Effect::HostChanged | Effect::GiveBackMemory => {}
            Effect::PutAway(file) => self.put_away.push(file),
            Effect::Ready => self.notified_ready += 1,
            Effect::Status(status) => self.systemd.push(status),
            Effect::Network(id, effect) => match effect {
                NetworkEffect::FollowConfig => self.followed += 1,
                NetworkEffect::ListLeases => {}
                NetworkEffect::ReadKey => {
                    let key = self.key.clone().ok_or_else(|| "no key here".to_owned());
                    return Some(Event::Network(id, NetworkEvent::Key(key)));
                }
                NetworkEffect::Claim(claim) => self.claims.push((id, *claim)),
                NetworkEffect::Save { env, .. } => {
                    self.save_attempts += 1;
                    let saved = if self.cannot_save { Err("a read-only disk".to_owned()) } else { Ok(()) };
                    if saved.is_ok() {
                        self.saved.push(env);
                    }
                    return Some(Event::Network(id, NetworkEvent::Saved(saved)));
                }
            },
            Effect::End(reason) => self.ended = Some(reason.to_string()),
        }
        None
    }

    /// Lets the agent hear what the kernel has to tell, and nothing more.
    fn tell(&mut self) {
        while let Some(changes) = self.kernel.changes().now_or_never() {
            let effects = self.agent.handle(Event::Kernel(changes), self.now);
            self.carry_out(effects);
        }
    }
}

fn holding(subnet: &str) -> Holding {
    let subnets = subnet.parse().unwrap();
    Holding::new(HeldLease { subnets, etcd_lease: Some(7), mod_revision: 1 })
}

/// Lists exactly these peers' leases.
pub(super) fn listed(peers: &[Peer]) -> WatchEvent<Lease> {
    WatchEvent::Listed(Listing::of(peers.iter().map(entry).collect(), 1, 1))
}

/// Adds or changes a peer's lease.
pub(super) fn put(peer: Peer) -> WatchEvent<Lease> {
    let listing = Listing::of(vec![entry(&peer)], 2, 1);
    WatchEvent::Changed(listing.items.into_iter().map(KeyChange::Put).collect())
}

/// Deletes a peer's lease.
pub(super) fn deleted((base, ..): Peer) -> WatchEvent<Lease> {
    WatchEvent::Changed(vec![KeyChange::Delete { key: format!("{base}-24") }])
}

fn entry((base, ip, mac): &Peer) -> flan_subnet_lease::Entry {
    let vni = if base.starts_with("10.6.") { 2 } else { 1 };
    let backend = match mac.is_empty() {
        true => r#""BackendType":"udp""#.to_owned(),
        false => format!(r#""BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"{mac}"}}"#),
    };
    samples::entry(&format!("{base}-24"), &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,{backend}}}"#), 2)
}

#[derive(Debug, Default)]
pub(super) struct Datapaths {
    /// Whether starting fails.
    pub(super) refuses: bool,
    pub(super) starts: usize,
    /// Number of peers in the last data path.
    pub(super) peers: usize,
}

thread_local! {
    static DATAPATHS: RefCell<Datapaths> = RefCell::default();
}

pub(super) fn datapaths(look: impl FnOnce(&mut Datapaths)) {
    DATAPATHS.with_borrow_mut(look);
}

/// A data path that moves no packets.
struct FakeDatapath {
    runs: bool,
    peers: usize,
}

impl FakeDatapath {
    fn boxed(_: Udp) -> Box<dyn Datapath> {
        Box::new(Self { runs: false, peers: 0 })
    }
}

impl Datapath for FakeDatapath {
    fn change(&mut self, changes: &[PeerChange]) {
        self.peers += changes.iter().filter(|change| change.before.is_none()).count();
        self.peers -= changes.iter().filter(|change| change.after.is_none()).count();
    }

    fn replace(&mut self, peers: &mut dyn Iterator<Item = &Lease>) {
        self.peers = peers.count();
    }

    fn keep_running(&mut self, _: &Subnets, device_is_new: bool) -> Result<(), String> {
        DATAPATHS.with_borrow_mut(|datapaths| {
            if datapaths.refuses {
                return Err("no TUN here".to_owned());
            }
            datapaths.starts += usize::from(!self.runs || device_is_new);
            datapaths.peers = self.peers;
            self.runs = true;
            Ok(())
        })
    }

    fn does_the_same_as(&self, _: &dyn Datapath) -> bool {
        false
    }

    fn taken(&self) -> Option<String> {
        None
    }

    fn is_running(&self) -> bool {
        self.runs
    }

    fn gauge(&self) -> Option<Arc<Gauge>> {
        None
    }
}
