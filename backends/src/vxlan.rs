//! The vxlan backend: the kernel's VXLAN, configured with every peer in advance, so that it never has to ask or learn.

use std::net::IpAddr;

use flan_kernel::{
    Address, Addresses, Fdb, FdbEntry, Link, LinkKind, LinkName, Links, Neighbour, Neighbours, Ownership,
    Plain, Plan, State, Wire,
};
use flan_subnet_lease::{BackendData, Family, Lease, PerFamily, SubnetPool, Subnets, VxlanConfig, VxlanData};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::route::{self, Gateways, Via};
use crate::senders::Senders;
use crate::{Abilities, Backend, BackendError, Underlay, Unreachable};

/// Plans a device for each family in use and, for each peer and family, a neighbour, a forwarding entry and a route.
/// With `DirectRouting` a peer on the link gets only a plain route.
#[derive(Debug, Clone)]
pub struct Vxlan {
    config: VxlanConfig,
    underlay: Underlay,
    devices: PerFamily<Device>,
    gateways: Gateways,
    senders: Senders,
}

#[derive(Debug, Clone, Copy)]
struct Device {
    pool: SubnetPool,
    name: LinkName,
    mac: MacAddr6,
    mtu: u32,
    local: IpAddr,
}

#[derive(Debug, Clone, Copy)]
struct Way {
    device: Device,
    subnet: IpNetwork,
    public_ip: IpAddr,
    /// The MAC of its VXLAN device; `None` if packets are not encapsulated.
    mac: Option<MacAddr6>,
}

impl Vxlan {
    /// Decides on the devices for the families of `pools`. A device that exists in `actual` keeps its MAC; a new one
    /// gets a MAC derived from `node_id`, its address and the VNI, so that it is the same after a reboot.
    ///
    /// # Errors
    /// [`BackendError`] if the external interface is unsuitable, or senders cannot be checked as the config requires.
    pub fn new(
        config: VxlanConfig,
        pools: &PerFamily<SubnetPool>,
        underlay: &Underlay,
        abilities: Abilities,
        node_id: &str,
        actual: &State,
    ) -> Result<Self, BackendError> {
        let Abilities { gateways, checks_senders } = abilities;
        let senders = Senders::of(VxlanConfig::NAME, config.strict_source, checks_senders)?;
        let mut devices = PerFamily::default();
        for (family, &pool) in pools.iter() {
            let local = *underlay
                .addresses
                .get(family)
                .ok_or(BackendError::NoAddress { link: underlay.link, family })?;
            let name = device_name(family, config.vni).ok_or(BackendError::DeviceName { vni: config.vni })?;
            let kept = actual.links.get(&name).and_then(|link| link.mac).filter(|mac| is_usable(*mac));
            let mac = kept.unwrap_or_else(|| stable_mac(node_id, local, config.vni));
            let mtu = inner_mtu(&config, underlay, family)?;
            devices.set(family, Device { pool, name, mac, mtu, local });
        }
        Ok(Self { config, underlay: underlay.clone(), devices, gateways, senders })
    }

    /// Returns what belongs to a vxlan backend with this VNI in the kernel, even after a restart.
    pub fn ownership_of(config: &VxlanConfig) -> Ownership {
        Ownership {
            links: Family::ALL.into_iter().filter_map(|family| device_name(family, config.vni)).collect(),
            ..Ownership::default()
        }
    }

    fn plan_device(&self, family: Family, device: &Device, own: &Subnets, plan: &mut dyn Plan) {
        let kind = LinkKind::Vxlan(flan_kernel::Vxlan {
            vni: self.config.vni,
            port: self.config.port,
            underlay: Some(self.underlay.link),
            local: Some(device.local),
            learning: self.config.learning,
            gbp: self.config.gbp,
        });
        let link = Link { kind, mac: Some(device.mac), mtu: device.mtu, up: true };
        plan.add::<Links>(device.name, link.into());
        if let Some(subnet) = own.get(family) {
            let address = IpNetwork::from(subnet.ip());
            plan.add::<Addresses>(Address { link: device.name, address }, ());
            let VxlanConfig { port, vni, .. } = self.config;
            let wire = Wire { ipv6: device.local.is_ipv6(), port, vni: Some(vni) };
            self.senders.check_datagrams(wire, &device.pool, subnet, plan);
            if self.config.direct_routing {
                let plain = Plain { link: self.underlay.link, network: device.pool.network() };
                self.senders.check_plain(plain, &device.pool, subnet, plan);
            }
        }
    }

    fn way(&self, family: Family, device: &Device, peer: &Lease) -> Option<Way> {
        let subnet = peer.subnets.get(family)?;
        let public_ip = *peer.attributes.public_ips.get(family)?;
        let is_direct = self.config.direct_routing && self.underlay.is_on_link(public_ip);
        let mac = if is_direct { None } else { Some(peer.attributes.vxlan(family)?.vtep_mac) };
        Some(Way { device: *device, subnet, public_ip, mac })
    }

    fn plan_way(&self, way: &Way, plan: &mut dyn Plan) {
        let Way { device, subnet, public_ip, mac } = *way;
        // A peer on the link may still encapsulate what it sends.
        self.senders.let_in(public_ip, subnet, &device.pool, plan);
        let Some(mac) = mac else {
            self.senders.let_in_plain(subnet, &device.pool, plan);
            return route::plan_direct(subnet, public_ip, self.underlay.link, plan);
        };
        let (link, gateway) = (device.name, subnet.ip());
        plan.add::<Neighbours>(Neighbour { link, address: gateway }, mac);
        plan.add::<Fdb>(FdbEntry { link, mac }, public_ip);
        route::plan_via(subnet, Via { gateway, link, onlink: true }, self.gateways, plan);
    }
}

impl Backend for Vxlan {
    fn lease_data(&self) -> PerFamily<BackendData> {
        let data = |device: Device| VxlanData { vni: Some(self.config.vni), vtep_mac: device.mac };
        self.devices.map(|device| data(device).into())
    }

    fn plan_host(&self, own: &Subnets, plan: &mut dyn Plan) {
        for (family, device) in self.devices.iter() {
            self.plan_device(family, device, own, plan);
        }
    }

    fn plan_peer(&self, peer: &Lease, plan: &mut dyn Plan) -> Result<(), Unreachable> {
        let mut ways = PerFamily::default();
        for (family, device) in self.devices.iter() {
            ways.set(family, self.way(family, device, peer).ok_or(Unreachable::Incomplete { family })?);
        }
        ways.values().for_each(|way| self.plan_way(way, plan));
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.devices.values().map(|device| device.mtu).min().unwrap_or_default()
    }
}

/// Returns `flannel.<VNI>`, and `flannel-v6.<VNI>` for IPv6. `None` if the name is too long for the kernel; no network
/// config has such a VNI.
fn device_name(family: Family, vni: u32) -> Option<LinkName> {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
    .parse()
    .ok()
}

/// Returns the VNI whose device has this `name`. One name per VNI: `flannel.01` is not ours.
pub(crate) fn vni_of(name: LinkName) -> Option<u32> {
    let text = name.as_str();
    let vni = text.strip_prefix("flannel.").or_else(|| text.strip_prefix("flannel-v6."))?.parse().ok()?;
    Family::ALL.into_iter().any(|family| device_name(family, vni) == Some(name)).then_some(vni)
}

/// Returns the bytes that VXLAN adds: outer IP header (20 or 40), UDP (8), VXLAN (8), inner Ethernet (14). RFC 7348.
fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

fn inner_mtu(config: &VxlanConfig, underlay: &Underlay, family: Family) -> Result<u32, BackendError> {
    let outer = config.mtu.unwrap_or(underlay.mtu);
    if outer > underlay.mtu {
        warn!(
            configured = outer, carried = underlay.mtu, interface = %underlay.link,
            "Backend.MTU is more than the external interface carries: large packets will be sent in fragments or lost",
        );
    }
    let least = overhead(family) + if family == Family::V6 { 1280 } else { 576 };
    match outer {
        mtu if mtu < least => Err(BackendError::MtuTooSmall { link: underlay.link, mtu, least }),
        mtu => Ok(mtu - overhead(family)),
    }
}

/// Returns a locally administered unicast MAC (IEEE 802, second bit of the first byte) , the same after every boot.
fn stable_mac(node_id: &str, local: IpAddr, vni: u32) -> MacAddr6 {
    let digest = Sha256::digest(format!("flan vtep {node_id} {local} {vni}"));
    MacAddr6::new((digest[0] & 0xfc) | 0x02, digest[1], digest[2], digest[3], digest[4], digest[5])
}

fn is_usable(mac: MacAddr6) -> bool {
    mac.is_unicast() && !mac.is_nil()
}

#[cfg(test)]
mod tests {
    use flan_kernel::diff;

    use super::*;
    use crate::samples;

    const NODE: &str = "5ca1ab1e";
    const OWN: &str = "10.5.1.0/24";
    const BOTH: &str = r#"{"PublicIP":"192.168.64.12","PublicIPv6":"fd64::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:62"}}"#;

    fn vxlan(families: &[Family], actual: &State) -> Vxlan {
        with(VxlanConfig::default(), families, actual)
    }

    fn with(config: VxlanConfig, families: &[Family], actual: &State) -> Vxlan {
        on(&samples::underlay(), config, families, actual).unwrap()
    }

    fn on(
        underlay: &Underlay,
        config: VxlanConfig,
        families: &[Family],
        actual: &State,
    ) -> Result<Vxlan, BackendError> {
        Vxlan::new(config, &samples::pools(families), underlay, samples::ABLE, NODE, actual)
    }

    fn h2() -> Lease {
        let value = r#"{"PublicIP":"192.168.64.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}"#;
        samples::lease("10.5.2.0/24", value)
    }

    fn lines(state: &State) -> Vec<String> {
        diff(state, &State::default()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_host_has_a_device_with_the_base_address_of_its_subnet() {
        let host = samples::host(&vxlan(&[Family::V4], &State::default()), OWN);
        assert_eq!(host.links[&"flannel.1".parse().unwrap()].mtu, 1450);
        assert_eq!(
            lines(&host)[1..],
            [
                "add address 10.5.1.0/32 dev flannel.1",
                "add check shortcut ip",
                "add check peers ip udp 8472 vni 1"
            ]
        );
    }

    #[test]
    fn a_peer_gets_a_neighbour_a_forwarding_entry_and_a_route() {
        let peer = samples::peer(&vxlan(&[Family::V4], &State::default()), &h2()).unwrap();
        assert_eq!(
            lines(&peer),
            [
                "add sender peer 192.168.64.12",
                "add neighbour 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:00:02",
                "add fdb 02:00:00:00:00:02 dev flannel.1 dst 192.168.64.12",
                "add nexthop id 168100352 via 10.5.2.0 dev flannel.1 onlink",
                "add route 10.5.2.0/24 nhid 168100352 dev flannel.1",
            ]
        );
    }

    #[test]
    fn with_direct_routing_a_peer_on_the_link_gets_a_plain_route_alone() {
        let config = VxlanConfig { direct_routing: true, ..VxlanConfig::default() };
        let backend = with(config.clone(), &[Family::V4], &State::default());
        assert_eq!(
            lines(&samples::peer(&backend, &h2()).unwrap()),
            ["add sender peer 192.168.64.12", "add route 10.5.2.0/24 via 192.168.64.12 dev eth0"]
        );
        let elsewhere = Underlay { on_link: vec![], ..samples::underlay() };
        let backend = on(&elsewhere, config, &[Family::V4], &State::default()).unwrap();
        assert_eq!(lines(&samples::peer(&backend, &h2()).unwrap()).len(), 5);
    }

    #[test]
    fn with_strict_source_what_a_peer_sends_comes_from_its_subnet_and_goes_to_ours() {
        let config = VxlanConfig { strict_source: true, ..VxlanConfig::default() };
        let backend = with(config.clone(), &Family::ALL, &State::default());
        let host = samples::host(&backend, "10.5.1.0/24,fd00:5:0:1::/64");
        let checks: Vec<String> = host.checks.keys().map(ToString::to_string).collect();
        assert_eq!(
            checks,
            [
                "whole ip6 udp 8472",
                "carries ip udp 8472 vni 1",
                "carries ip6 udp 8472 vni 1",
                "inner-source ip udp 8472 vni 1 /24",
                "inner-source ip6 udp 8472 vni 1 /64",
                "inner-destination ip udp 8472 vni 1 10.5.1.0/24",
                "inner-destination ip6 udp 8472 vni 1 fd00:5:0:1::/64",
            ]
        );
        let peer = samples::peer(&backend, &samples::lease("10.5.2.0/24,fd00:5:0:2::/64", BOTH)).unwrap();
        let sources: Vec<String> = peer.sources.keys().map(ToString::to_string).collect();
        assert_eq!(sources, ["peer 192.168.64.12 subnet 10.5.2.0", "peer fd64::12 subnet fd00:5:0:2::"]);
        // A peer on the link may send either way.
        let direct = VxlanConfig { direct_routing: true, ..config };
        let backend = with(direct, &[Family::V4], &State::default());
        assert_eq!(samples::peer(&backend, &h2()).unwrap().sources.len(), 2);
        assert_eq!(samples::host(&backend, OWN).checks.len(), 5);
    }

    #[test]
    fn both_families_are_planned_by_the_same_code() {
        let backend = vxlan(&[Family::V4, Family::V6], &State::default());
        let host = samples::host(&backend, "10.5.1.0/24,fd00:5:0:1::/64");
        assert_eq!((host.links.len(), host.addresses.len()), (2, 2));
        assert_eq!(host.links[&"flannel-v6.1".parse().unwrap()].mtu, 1430);
        assert_eq!(backend.mtu(), 1430);
        let peer = samples::peer(&backend, &samples::lease("10.5.2.0/24,fd00:5:0:2::/64", BOTH)).unwrap();
        let routes: Vec<String> =
            lines(&peer).into_iter().filter(|line| line.starts_with("add route")).collect();
        assert_eq!(
            routes,
            [
                "add route 10.5.2.0/24 nhid 168100352 dev flannel.1",
                "add route fd00:5:0:2::/64 via fd00:5:0:2:: dev flannel-v6.1 onlink",
            ]
        );
    }

    #[test]
    fn a_device_that_is_there_keeps_its_mac_and_a_new_one_has_the_same_after_every_boot() {
        let fresh = vxlan(&[Family::V4], &State::default());
        assert_eq!(fresh.lease_data(), vxlan(&[Family::V4], &State::default()).lease_data());
        let mac = fresh.devices.v4.unwrap().mac;
        assert!(is_usable(mac) && mac.is_local());

        let mut there = samples::host(&fresh, OWN);
        let kept: MacAddr6 = "c6:d2:32:6f:8f:44".parse().unwrap();
        there.links.get_mut(&"flannel.1".parse().unwrap()).unwrap().mac = Some(kept);
        assert_eq!(vxlan(&[Family::V4], &there).devices.v4.unwrap().mac, kept);
    }

    #[test]
    fn an_interface_that_cannot_carry_it_is_refused_with_what_would() {
        let refusal = |underlay: &Underlay, family| {
            on(underlay, VxlanConfig::default(), &[family], &State::default()).unwrap_err().to_string()
        };
        let small = Underlay { mtu: 600, ..samples::underlay() };
        assert_eq!(
            refusal(&small, Family::V4),
            "external interface eth0 carries 600 bytes; at least 626 are needed"
        );
        let addresses = PerFamily { v6: None, ..samples::underlay().addresses };
        let v4_only = Underlay { addresses, ..samples::underlay() };
        assert_eq!(
            refusal(&v4_only, Family::V6),
            "external interface eth0 has no IPv6 address, and the network uses IPv6"
        );
    }

    #[test]
    fn the_lease_says_what_flannel_reads() {
        let mut there = samples::host(&vxlan(&[Family::V4], &State::default()), OWN);
        there.links.values_mut().for_each(|link| link.mac = Some("c6:d2:32:6f:8f:44".parse().unwrap()));
        let data = vxlan(&[Family::V4], &there).lease_data();
        assert_eq!(data.v4.unwrap().to_value().to_string(), r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#);
    }
}
