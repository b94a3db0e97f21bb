//! The udp backend: each inner IPv4 packet travels unchanged, as the payload of one UDP datagram.
//!
//! On the [kernel path](KernelPath), an IPIP device with FOU sends them. On the user path, the kernel gives packets for the
//! overlay network to a TUN device; [`Datapath`] forwards them, and gives the kernel what arrives. The wire format is
//! flannel's; the speed of the user path comes from handling many packets at a time on both sides.

mod datapath;
mod forwarding;
#[cfg(fuzzing)]
pub mod fuzz;
mod kernel_path;

use std::net::{IpAddr, Ipv4Addr};

use flan_kernel::tun::TunMode;
use flan_kernel::{
    self as kernel, Address, Addresses, Link, LinkKind, LinkName, Links, Ownership, Plan, ROUTE_PROTOCOL,
    Route, RouteKey, RouteTarget, Source, Sources, Wire,
};
use flan_subnet_lease::{Family, Lease, Subnets, UdpConfig};
use ipnetwork::IpNetwork;

use crate::{Backend, BackendError, Underlay, Unreachable, senders};

pub use crate::userspace::counters::{Counters, Totals};
pub use crate::userspace::gauge::{Gauge, Modes};
pub use crate::userspace::running::DatapathError;
pub use datapath::Datapath;
pub use forwarding::ForwardingTable;
pub use kernel_path::KernelPath;

/// Bytes that the encapsulation adds: outer IPv4 header (20) and UDP header (8).
const OVERHEAD: u32 = 28;
/// The smallest packet that every IPv4 host must accept, RFC 791.
const LEAST_MTU: u32 = 576;
/// flannel's name for the device.
const DEVICE: &str = "flannel0";

/// Plans the TUN device, its address and one route for the whole network.
#[derive(Debug, Clone, PartialEq)]
pub struct Udp {
    config: UdpConfig,
    ends: Ends,
    /// Whether the kernel drops packets from others than peers before the data path has to.
    checks_senders: bool,
}

/// What both paths have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ends {
    network: IpNetwork,
    /// The source address of the datagrams, and the destination of the peers'.
    local: Ipv4Addr,
    device: LinkName,
    mtu: u32,
}

impl Ends {
    fn new(
        mut networks: impl Iterator<Item = (Family, IpNetwork)>,
        underlay: &Underlay,
    ) -> Result<Self, BackendError> {
        let (Some((Family::V4, network)), None) = (networks.next(), networks.next()) else {
            return Err(BackendError::Ipv4Only { backend: UdpConfig::NAME });
        };
        let no_address = BackendError::NoAddress { link: underlay.link, family: Family::V4 };
        let Some(IpAddr::V4(local)) = underlay.addresses.v4 else { return Err(no_address) };
        let least = LEAST_MTU + OVERHEAD;
        if underlay.mtu < least {
            return Err(BackendError::MtuTooSmall { link: underlay.link, mtu: underlay.mtu, least });
        }
        Ok(Self { network, local, device: device(), mtu: underlay.mtu - OVERHEAD })
    }
}

impl Udp {
    /// Decides on the device for `network`.
    ///
    /// # Errors
    /// [`BackendError`] for a network without IPv4, which flannel's wire format requires, and for an unsuitable
    /// external interface.
    pub fn new(
        config: UdpConfig,
        networks: impl Iterator<Item = (Family, IpNetwork)>,
        underlay: &Underlay,
        checks_senders: bool,
    ) -> Result<Self, BackendError> {
        Ok(Self { config, ends: Ends::new(networks, underlay)?, checks_senders })
    }

    /// Returns what belongs to a udp backend in the kernel, on either path, even after a restart.
    pub fn ownership_of(config: &UdpConfig) -> Ownership {
        Ownership { links: [device()].into(), fou_ports: [config.port].into(), ..Ownership::default() }
    }

    /// Returns the name of the device, on either path.
    pub fn device_name() -> LinkName {
        device()
    }

    /// Starts the threads that move packets between the device and the wire. The device must exist.
    ///
    /// # Errors
    /// [`DatapathError`] if the device or the port cannot be opened.
    pub fn start(&self, own: &Subnets, table: &ForwardingTable) -> Result<Datapath, DatapathError> {
        let subnet = match own.get(Family::V4) {
            Some(IpNetwork::V4(subnet)) => Some(subnet),
            _ => None,
        };
        Datapath::start(
            datapath::Settings {
                device: self.ends.device,
                tun: self.wanted(),
                gso: self.config.gso,
                gro: self.config.gro,
                local: self.ends.local,
                port: self.config.port,
                address: subnet.map_or(Ipv4Addr::UNSPECIFIED, |subnet| subnet.network()),
                mtu: self.ends.mtu,
                strict: subnet.filter(|_| self.config.strict_source),
            },
            table.reader(),
        )
    }

    /// Returns the device.
    pub fn device(&self) -> LinkName {
        self.ends.device
    }

    fn wanted(&self) -> TunMode {
        let on = self.config.tun_offload;
        TunMode { vnet_header: on, tso: on, uso: on }
    }
}

impl Backend for Udp {
    fn plan_host(&self, own: &Subnets, plan: &mut dyn Plan) {
        let Ends { network, device, mtu, .. } = self.ends;
        let kind = LinkKind::Tun { vnet_header: self.config.tun_offload };
        plan.add::<Links>(device, Link { kind, mac: None, mtu, up: true }.into());
        if let Some(subnet) = own.get(Family::V4) {
            let address = IpNetwork::from(subnet.ip());
            plan.add::<Addresses>(Address { link: device, address }, ());
        }
        plan.add::<kernel::Routes>(
            RouteKey { destination: network, metric: 0 },
            Route { target: RouteTarget::Link(device), protocol: ROUTE_PROTOCOL },
        );
        if self.checks_senders {
            let wire = Wire { ipv6: false, port: self.config.port, vni: None };
            senders::check_peers(wire, plan);
        }
    }

    fn plan_peer(&self, peer: &Lease, plan: &mut dyn Plan) -> Result<(), Unreachable> {
        // The host's one route leads to all of them; the data path knows each.
        if let Some(&address) = peer.attributes.public_ips.get(Family::V4).filter(|_| self.checks_senders) {
            plan.add::<Sources>(Source::Peer(address), ());
        }
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.ends.mtu
    }
}

pub(crate) fn device() -> LinkName {
    DEVICE.parse().expect("a valid name, tested below")
}

#[cfg(test)]
mod tests {
    use flan_kernel::{State, diff};

    use super::*;
    use crate::samples;

    fn network() -> (Family, IpNetwork) {
        (Family::V4, "10.5.0.0/16".parse().unwrap())
    }

    #[test]
    fn the_whole_network_leads_into_the_device() {
        let backend =
            Udp::new(UdpConfig::default(), [network()].into_iter(), &samples::underlay(), true).unwrap();
        let plan = samples::host(&backend, "10.5.1.0/24");
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
            samples::peer(&backend, &peer).unwrap().sources
        };
        assert_eq!(planned(true), [(Source::Peer("192.168.64.12".parse().unwrap()), ())].into());
        assert!(planned(false).is_empty());
    }

    #[test]
    fn a_network_with_ipv6_is_refused() {
        let v6 = (Family::V6, "fd00:5::/48".parse().unwrap());
        let error = Udp::new(UdpConfig::default(), [network(), v6].into_iter(), &samples::underlay(), true)
            .unwrap_err();
        assert_eq!(error.to_string(), "backend udp carries only IPv4, but the network uses IPv6");
    }
}
