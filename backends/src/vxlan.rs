//! The vxlan backend: the kernel's VXLAN, told of every peer beforehand, so that it never has to ask or learn.

use std::net::IpAddr;

use flan_kernel::{
    Address, FdbEntry, Link, LinkKind, LinkName, Neighbour, Ownership, ROUTE_PROTOCOL, Route, RouteKey,
    RouteTarget, State,
};
use flan_subnet_lease::{Family, Lease, PerFamily, Subnets, VxlanConfig, VxlanData};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::{Backend, BackendError, LeaseFields, Underlay};

/// Plans a device for each family in use and, for each peer and family, a neighbour, a forwarding entry and a route.
#[derive(Debug, Clone)]
pub struct Vxlan {
    config: VxlanConfig,
    underlay: LinkName,
    devices: PerFamily<Device>,
}

/// The device of one family.
#[derive(Debug, Clone, Copy)]
struct Device {
    name: LinkName,
    mac: MacAddr6,
    mtu: u32,
    local: IpAddr,
}

impl Vxlan {
    /// Decides on the devices for `families`. A device that is there, as `actual` says, keeps its MAC; a new one gets
    /// one that `node_id`, its address and the VNI determine, so that not even a reboot has to be told to the peers.
    ///
    /// # Errors
    /// [`BackendError`] when the external interface cannot carry this.
    pub fn new(
        config: VxlanConfig,
        families: impl Iterator<Item = Family>,
        underlay: &Underlay,
        node_id: &str,
        actual: &State,
    ) -> Result<Self, BackendError> {
        let mut devices = PerFamily::default();
        for family in families {
            let local = *underlay
                .addresses
                .get(family)
                .ok_or(BackendError::NoAddress { link: underlay.link, family })?;
            let name = device_name(family, config.vni).ok_or(BackendError::DeviceName { vni: config.vni })?;
            let mac = match actual.links.get(&name) {
                Some(Link { mac: Some(mac), .. }) if is_usable(*mac) => *mac,
                _ => stable_mac(node_id, local, config.vni),
            };
            devices.set(family, Device { name, mac, mtu: inner_mtu(&config, underlay, family)?, local });
        }
        Ok(Self { config, underlay: underlay.link, devices })
    }

    /// What in the kernel belongs to a vxlan backend with this VNI, from its first start on and after a restart.
    pub fn ownership_of(config: &VxlanConfig) -> Ownership {
        Ownership {
            links: Family::ALL.into_iter().filter_map(|family| device_name(family, config.vni)).collect(),
        }
    }

    /// The MACs of our devices.
    pub fn macs(&self) -> PerFamily<MacAddr6> {
        let mut macs = PerFamily::default();
        for (family, device) in self.devices.iter() {
            macs.set(family, device.mac);
        }
        macs
    }

    fn plan_device(&self, family: Family, device: &Device, own: &Subnets, state: &mut State) {
        let kind = LinkKind::Vxlan(flan_kernel::Vxlan {
            vni: self.config.vni,
            port: self.config.port,
            underlay: Some(self.underlay),
            local: Some(device.local),
            learning: self.config.learning,
            gbp: self.config.gbp,
        });
        let link = Link { kind, mac: Some(device.mac), mtu: device.mtu, up: true };
        state.links.insert(device.name, link);
        if let Some(subnet) = own.get(family) {
            let address = IpNetwork::from(subnet.ip());
            state.addresses.insert(Address { link: device.name, address });
        }
    }

    fn plan_peer(&self, family: Family, device: &Device, peer: &Lease, state: &mut State) -> Option<()> {
        let subnet = peer.subnets.get(family)?;
        let public_ip = *peer.attributes.public_ips.get(family)?;
        let mac = peer.attributes.vxlan(family)?.vtep_mac;
        let (link, gateway) = (device.name, subnet.ip());
        state.neighbours.insert(Neighbour { link, address: gateway }, mac);
        state.fdb.insert(FdbEntry { link, mac }, public_ip);
        state.routes.insert(
            RouteKey { destination: subnet, metric: default_metric(family) },
            Route { target: RouteTarget::Via { gateway, link, onlink: true }, protocol: ROUTE_PROTOCOL },
        );
        Some(())
    }
}

impl Backend for Vxlan {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn lease_fields(&self) -> LeaseFields {
        let mut data = PerFamily::default();
        for (family, device) in self.devices.iter() {
            let value = VxlanData { vni: Some(self.config.vni), vtep_mac: device.mac };
            data.set(family, serde_json::json!(value));
        }
        LeaseFields { backend: Some(self.name().to_owned()), data }
    }

    fn plan(&self, own: &Subnets, peers: &[&Lease]) -> State {
        let mut state = State::default();
        for (family, device) in self.devices.iter() {
            self.plan_device(family, device, own, &mut state);
            for peer in peers {
                if self.plan_peer(family, device, peer, &mut state).is_none() {
                    warn!(subnets = %peer.subnets, %family, "a lease without what vxlan needs was not quarantined");
                }
            }
        }
        state
    }

    fn mtu(&self) -> u32 {
        self.devices.values().map(|device| device.mtu).min().unwrap_or_default()
    }
}

/// `flannel.<VNI>`, and `flannel-v6.<VNI>` for IPv6. `None` where the kernel has no such long names; no network config
/// has such a VNI.
fn device_name(family: Family, vni: u32) -> Option<LinkName> {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
    .parse()
    .ok()
}

/// The route metric that the kernel gives when none is asked for: 0 for IPv4, 1024 for IPv6 (`IP6_RT_PRIO_USER`).
fn default_metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// Bytes that VXLAN adds: outer IP header (20 or 40), UDP (8), VXLAN (8), inner Ethernet (14). RFC 7348.
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

/// A locally administered unicast MAC (IEEE 802, second bit of the first byte) that is the same after every boot.
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
    use flan_subnet_lease::LeaseAttributes;

    use super::*;

    const NODE: &str = "5ca1ab1e";

    fn underlay() -> Underlay {
        let addresses =
            PerFamily { v4: Some("192.168.64.11".parse().unwrap()), v6: Some("fd64::11".parse().unwrap()) };
        Underlay { link: "eth0".parse().unwrap(), mtu: 1500, addresses }
    }

    fn vxlan(families: &[Family], actual: &State) -> Vxlan {
        Vxlan::new(VxlanConfig::default(), families.iter().copied(), &underlay(), NODE, actual).unwrap()
    }

    fn peer(subnets: &str, value: &str, mod_revision: i64) -> Lease {
        Lease {
            subnets: subnets.parse().unwrap(),
            attributes: LeaseAttributes::from_json(value.as_bytes()).unwrap(),
            etcd_lease: Some(7),
            create_revision: 1,
            mod_revision,
        }
    }

    fn h2() -> Lease {
        let value = r#"{"PublicIP":"192.168.64.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}"#;
        peer("10.5.2.0/24", value, 1)
    }

    fn planned(state: &State) -> Vec<String> {
        diff(state, &State::default()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_peer_gets_a_neighbour_a_forwarding_entry_and_a_route() {
        let plan = vxlan(&[Family::V4], &State::default()).plan(&"10.5.1.0/24".parse().unwrap(), &[&h2()]);
        let lines = planned(&plan);
        assert_eq!(plan.links[&"flannel.1".parse().unwrap()].mtu, 1450);
        assert_eq!((plan.neighbours.len(), plan.fdb.len(), plan.routes.len()), (1, 1, 1));
        let tail = &lines[1..];
        for (line, parts) in tail.iter().zip([
            ["10.5.1.0/32", "flannel.1"],
            ["10.5.2.0", "02:00:00:00:00:02"],
            ["192.168.64.12", "02:00:00:00:00:02"],
            ["10.5.2.0/24 via 10.5.2.0 dev flannel.1", "onlink"],
        ]) {
            let line = line.to_lowercase();
            assert!(parts.iter().all(|part| line.contains(part)), "{line} lacks one of {parts:?}");
        }
        assert_eq!(tail.len(), 4);
    }

    #[test]
    fn both_families_are_planned_by_the_same_code() {
        let value = r#"{"PublicIP":"192.168.64.12","PublicIPv6":"fd64::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:62"}}"#;
        let backend = vxlan(&[Family::V4, Family::V6], &State::default());
        let plan = backend.plan(
            &"10.5.1.0/24,fd00:5:0:1::/64".parse().unwrap(),
            &[&peer("10.5.2.0/24,fd00:5:0:2::/64", value, 1)],
        );
        assert_eq!((plan.links.len(), plan.addresses.len(), plan.routes.len()), (2, 2, 2));
        assert_eq!(plan.links[&"flannel-v6.1".parse().unwrap()].mtu, 1430);
        assert_eq!(backend.mtu(), 1430);
        assert!(
            plan.routes
                .keys()
                .any(|key| key.metric == 1024 && key.destination.to_string() == "fd00:5:0:2::/64")
        );
    }

    #[test]
    fn a_device_that_is_there_keeps_its_mac_and_a_new_one_has_the_same_after_every_boot() {
        let fresh = vxlan(&[Family::V4], &State::default());
        assert_eq!(fresh.macs(), vxlan(&[Family::V4], &State::default()).macs());
        let mac = fresh.macs().v4.unwrap();
        assert!(is_usable(mac) && mac.is_local());

        let mut there = fresh.plan(&"10.5.1.0/24".parse().unwrap(), &[]);
        let kept: MacAddr6 = "c6:d2:32:6f:8f:44".parse().unwrap();
        there.links.get_mut(&"flannel.1".parse().unwrap()).unwrap().mac = Some(kept);
        assert_eq!(vxlan(&[Family::V4], &there).macs().v4, Some(kept));
    }

    #[test]
    fn an_interface_that_cannot_carry_it_is_refused_with_what_would() {
        let small = Underlay { mtu: 600, ..underlay() };
        let error =
            Vxlan::new(VxlanConfig::default(), [Family::V4].into_iter(), &small, NODE, &State::default());
        assert_eq!(
            error.unwrap_err().to_string(),
            "external interface eth0 carries 600 bytes; at least 626 are needed"
        );
        let v4_only = Underlay { addresses: PerFamily { v6: None, ..underlay().addresses }, ..underlay() };
        let error =
            Vxlan::new(VxlanConfig::default(), [Family::V6].into_iter(), &v4_only, NODE, &State::default());
        assert_eq!(
            error.unwrap_err().to_string(),
            "external interface eth0 has no IPv6 address, and the network uses IPv6"
        );
    }

    #[test]
    fn the_lease_says_what_flannel_reads() {
        let mut there = State::default();
        let mut link = vxlan(&[Family::V4], &there).plan(&"10.5.1.0/24".parse().unwrap(), &[]).links;
        link.values_mut().for_each(|link| link.mac = Some("c6:d2:32:6f:8f:44".parse().unwrap()));
        there.links = link;
        let data = vxlan(&[Family::V4], &there).lease_fields().data;
        assert_eq!(data.v4.unwrap().to_string(), r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#);
    }
}
