//! The udp backend: each inner IPv4 packet travels as it is, as the payload of one UDP datagram.
//!
//! The kernel gives packets for the overlay network to a TUN device; [`Datapath`] sends them on, and gives the kernel
//! what arrives. The wire is flannel's; the speed comes from handling many packets at a time on both sides.

mod checksum;
mod coalescing;
mod counters;
mod datapath;
mod forwarding;
#[cfg(fuzzing)]
pub mod fuzz;
mod gauge;
mod icmp;
mod packet;
mod segmentation;

use std::net::{IpAddr, Ipv4Addr};

use flan_kernel::tun::TunMode;
use flan_kernel::{
    Address, Link, LinkKind, LinkName, Ownership, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Source,
    State, Wire,
};
use flan_subnet_lease::{Family, Lease, PerFamily, Subnets, UdpConfig};
use ipnetwork::IpNetwork;

use crate::{Backend, BackendError, LeaseFields, Underlay, Unreachable, senders};

pub use counters::{Counters, Totals};
pub use datapath::{Datapath, DatapathError};
pub use forwarding::ForwardingTable;
pub use gauge::{Gauge, Modes};

/// Bytes that the wire adds to a packet: outer IPv4 header (20) and UDP header (8).
const OVERHEAD: u32 = 28;
/// The smallest packet that every IPv4 host must take, RFC 791.
const LEAST_MTU: u32 = 576;
/// flannel's name for the device.
const DEVICE: &str = "flannel0";

/// Plans the TUN device, its address and one route for the whole network.
#[derive(Debug, Clone, PartialEq)]
pub struct Udp {
    config: UdpConfig,
    network: IpNetwork,
    local: Ipv4Addr,
    device: LinkName,
    mtu: u32,
    /// The kernel drops what comes from others than peers, before the data path has to.
    checks_senders: bool,
}

impl Udp {
    /// Decides on the device for `network`.
    ///
    /// # Errors
    /// [`BackendError`] for a network without IPv4, which flannel's wire cannot carry, and for an external interface
    /// that cannot carry this.
    pub fn new(
        config: UdpConfig,
        mut networks: impl Iterator<Item = (Family, IpNetwork)>,
        underlay: &Underlay,
        checks_senders: bool,
    ) -> Result<Self, BackendError> {
        let (Some((Family::V4, network)), None) = (networks.next(), networks.next()) else {
            return Err(BackendError::Ipv4Only { backend: "udp" });
        };
        let no_address = BackendError::NoAddress { link: underlay.link, family: Family::V4 };
        let Some(IpAddr::V4(local)) = underlay.addresses.v4 else { return Err(no_address) };
        let least = LEAST_MTU + OVERHEAD;
        if underlay.mtu < least {
            return Err(BackendError::MtuTooSmall { link: underlay.link, mtu: underlay.mtu, least });
        }
        let mtu = underlay.mtu - OVERHEAD;
        Ok(Self { config, network, local, device: device(), mtu, checks_senders })
    }

    /// What in the kernel belongs to a udp backend, from its first start on and after a restart.
    pub fn ownership() -> Ownership {
        Ownership { links: [device()].into(), senders: false }
    }

    /// Starts the threads that move packets between the device and the wire. The device must stand.
    ///
    /// # Errors
    /// [`DatapathError`] when the device or the port cannot be opened.
    pub fn start(&self, own: &Subnets, table: &ForwardingTable) -> Result<Datapath, DatapathError> {
        let subnet = match own.get(Family::V4) {
            Some(IpNetwork::V4(subnet)) => Some(subnet),
            _ => None,
        };
        Datapath::start(
            datapath::Settings {
                device: self.device,
                tun: self.wanted(),
                gso: self.config.gso,
                gro: self.config.gro,
                local: self.local,
                port: self.config.port,
                address: subnet.map_or(Ipv4Addr::UNSPECIFIED, |subnet| subnet.network()),
                mtu: self.mtu,
                strict: subnet.filter(|_| self.config.strict_source),
            },
            table.reader(),
        )
    }

    /// The device.
    pub fn device(&self) -> LinkName {
        self.device
    }

    fn wanted(&self) -> TunMode {
        let on = self.config.tun_offload;
        TunMode { vnet_header: on, tso: on, uso: on }
    }
}

impl Backend for Udp {
    fn name(&self) -> &'static str {
        "udp"
    }

    fn lease_fields(&self) -> LeaseFields {
        // flannel's udp writes neither a type nor data.
        LeaseFields { backend: None, data: PerFamily::default() }
    }

    fn host(&self, own: &Subnets) -> State {
        let mut state = State::default();
        let kind = LinkKind::Tun { vnet_header: self.config.tun_offload };
        state.links.insert(self.device, Link { kind, mac: None, mtu: self.mtu, up: true });
        if let Some(subnet) = own.get(Family::V4) {
            let address = IpNetwork::from(subnet.ip());
            state.addresses.insert(Address { link: self.device, address });
        }
        state.routes.insert(
            RouteKey { destination: self.network, metric: 0 },
            Route { target: RouteTarget::Link(self.device), protocol: ROUTE_PROTOCOL },
        );
        if self.checks_senders {
            let wire = Wire { ipv6: false, port: self.config.port, vni: None };
            senders::check_peers(wire, &mut state);
        }
        state
    }

    fn peer(&self, peer: &Lease) -> Result<State, Unreachable> {
        // The one route of the host leads to all of them; the data path knows each.
        let mut state = State::default();
        if let Some(&address) = peer.attributes.public_ips.get(Family::V4).filter(|_| self.checks_senders) {
            state.sources.insert(Source::Peer(address));
        }
        Ok(state)
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }
}

pub(crate) fn device() -> LinkName {
    DEVICE.parse().expect("a valid name, tested below")
}

#[cfg(test)]
mod tests {
    use flan_kernel::diff;

    use super::*;
    use crate::samples;

    fn network() -> (Family, IpNetwork) {
        (Family::V4, "10.5.0.0/16".parse().unwrap())
    }

    #[test]
    fn the_whole_network_leads_into_the_device() {
        let backend =
            Udp::new(UdpConfig::default(), [network()].into_iter(), &samples::underlay(), true).unwrap();
        let plan = backend.host(&"10.5.1.0/24".parse().unwrap());
        let lines: Vec<String> = diff(&plan, &State::default()).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "create link flannel0 type tun vnet_hdr on mtu 1472 up",
                "add address 10.5.1.0/32 dev flannel0",
                "add route 10.5.0.0/16 dev flannel0",
                "add check shortcut ip",
                "add check peers ip udp 8285",
            ]
        );
    }

    #[test]
    fn a_peers_address_is_let_in_where_senders_are_checked() {
        let peer = samples::lease("10.5.2.0/24", r#"{"PublicIP":"192.168.64.12"}"#);
        let planned = |checks| {
            let networks = [network()].into_iter();
            let backend = Udp::new(UdpConfig::default(), networks, &samples::underlay(), checks).unwrap();
            backend.peer(&peer).unwrap().sources
        };
        assert_eq!(planned(true), [Source::Peer("192.168.64.12".parse().unwrap())].into());
        assert!(planned(false).is_empty());
    }

    #[test]
    fn a_network_with_ipv6_is_refused() {
        let v6 = (Family::V6, "fd00:5::/48".parse().unwrap());
        let error = Udp::new(UdpConfig::default(), [network(), v6].into_iter(), &samples::underlay(), true)
            .unwrap_err();
        assert_eq!(error.to_string(), "backend udp carries IPv4 alone, and the network uses IPv6");
    }
}
