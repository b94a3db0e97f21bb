//! The udp backend on a kernel with FOU and IPIP: the same packets on the wire, without a program in between.

use flan_kernel::{
    Address, Addresses, Check, Checks, Checksums, FouPort, FouPorts, Ipip, Link, LinkKind, LinkName, Links,
    Plan, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Routes, Wire,
};
use flan_subnet_lease::{Family, Lease, PerFamily, SubnetPool, Subnets, UdpConfig};
use ipnetwork::IpNetwork;

use super::Ends;
use crate::route::{Via, plan_via};
use crate::senders::Senders;
use crate::{Abilities, Backend, BackendError, Gateways, Underlay, Unreachable};

/// Plans an IPIP device that sends FOU datagrams, the port that takes them, and one route to each peer.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelPath {
    config: UdpConfig,
    pool: SubnetPool,
    ends: Ends,
    gateways: Gateways,
    senders: Senders,
}

impl KernelPath {
    /// Decides on the device for a network of these `pools`.
    ///
    /// # Errors
    /// As [`Udp::new`](super::Udp::new), and if the config requires a check that this host does not make.
    pub fn new(
        config: UdpConfig,
        pools: &PerFamily<SubnetPool>,
        underlay: &Underlay,
        abilities: Abilities,
    ) -> Result<Self, BackendError> {
        let networks = pools.iter().map(|(family, pool)| (family, pool.network()));
        let ends = Ends::new(networks, underlay)?;
        let senders = Senders::of(UdpConfig::NAME, config.strict_source, abilities.checks_senders)?;
        let pool = pools.v4.ok_or(BackendError::Ipv4Only { backend: UdpConfig::NAME })?;
        Ok(Self { config, pool, ends, gateways: abilities.gateways, senders })
    }

    fn device(&self) -> LinkName {
        self.ends.device
    }

    fn wire(&self) -> Wire {
        Wire { ipv6: false, port: self.config.port, vni: None }
    }
}

impl Backend for KernelPath {
    fn plan_host(&self, own: &Subnets, plan: &mut dyn Plan) {
        let Ends { network, local, device, mtu } = self.ends;
        let port = self.config.port;
        let source_port = if self.config.fixed_source_port { port } else { 0 };
        let kind = LinkKind::Ipip(Ipip { local, port, source_port, is_plain: true });
        plan.add::<Links>(device, Link { kind, mac: None, mtu, up: true }.into());
        plan.add::<FouPorts>(FouPort { address: local, port }, ());
        // The device takes IPIP packets without a datagram, too.
        plan.add::<Checks>(Check::RawIpip(local), ());
        // Without this route, packets to a subnet that no peer has would follow the default route. It costs other
        // packets nothing, unlike a rule.
        plan.add::<Routes>(
            RouteKey { destination: network, metric: 0 },
            Route { target: RouteTarget::Throw, protocol: ROUTE_PROTOCOL },
        );
        if let Some(subnet) = own.get(Family::V4) {
            plan.add::<Addresses>(Address { link: device, address: IpNetwork::from(subnet.ip()) }, ());
            self.senders.check_datagrams(self.wire(), &self.pool, subnet, plan);
        }
    }

    fn plan_peer(&self, peer: &Lease, plan: &mut dyn Plan) -> Result<(), Unreachable> {
        let incomplete = Unreachable::Incomplete { family: Family::V4 };
        let (Some(&gateway), Some(subnet)) =
            (peer.attributes.public_ips.get(Family::V4), peer.subnets.get(Family::V4))
        else {
            return Err(incomplete);
        };
        plan_via(subnet, Via { gateway, link: self.device(), onlink: true }, self.gateways, plan);
        self.senders.let_in(gateway, subnet, &self.pool, plan);
        // flanneld reads each datagram as it arrives, and a virtual interface completes nothing.
        if peer.attributes.node.id.is_none() {
            plan.add::<Checksums>(self.device(), ());
        }
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.ends.mtu
    }
}
