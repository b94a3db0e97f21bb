//! Finds everything that all backends together have made on a host, without a network config, by the marks that a
//! restarted agent recognises. For taking a host out of the network, handing it over to flanneld, and for what an earlier
//! config of the network left behind.

use std::collections::BTreeSet;

use flan_kernel::{
    Address, Kernel, KernelError, LinkKind, LinkName, Ownership, ROUTE_PROTOCOL, Route, RouteTarget, State,
    netlink,
};
use flan_subnet_lease::Subnets;
use ipnetwork::IpNetwork;

use crate::{bridge, udp, vxlan, wireguard};

/// `rtm_protocol` of flannel's routes (`RTPROT_BOOT`), which `ip route` does not print.
const FLANNELS_PROTOCOL: u8 = 3;

/// What a kernel holds of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Everything that is ours.
    pub state: State,
    /// Devices with a name and kind of ours that belong to another network or program.
    pub others: Vec<LinkName>,
}

/// Returns whether a device of ours may have this name: `flannel0`, `flannel.<VNI>` or `flannel-v6.<VNI>`,
/// `flannel-wg` or `flannel-wg-v6`.
fn may_be_ours(name: LinkName) -> bool {
    name == udp::device()
        || wireguard::is_name(name)
        || vxlan::vni_of(name).is_some()
        || bridge::is_name(name)
}

impl Holdings {
    /// Reads a host with these subnets, one of each network that it is in.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn read(kernel: &mut impl Kernel, subnets: &[Subnets]) -> Result<Self, KernelError> {
        let links = netlink::devices_of_our_kinds()?.into_iter().filter(|name| may_be_ours(*name)).collect();
        let mut ours = Ownership { links, ..Ownership::default() };
        let mut actual = kernel.snapshot(&ours).await?;
        ours.fou_ports = actual.links.values().filter_map(|link| link.fou_port()).collect();
        if !ours.fou_ports.is_empty() {
            actual = kernel.snapshot(&ours).await?;
        }
        Ok(Self::of(actual, subnets))
    }

    /// Returns the devices with their ports, for an agent that is to delete what its network no longer wants.
    pub fn ownership(&self) -> Ownership {
        Ownership {
            links: self.state.links.keys().copied().collect(),
            fou_ports: self.state.fou_ports.keys().map(|port| port.port).collect(),
            ..Ownership::default()
        }
    }

    /// Finds what is ours in `actual`, which covers every device with a name of ours. A device is ours if it has the
    /// base address of this host's `subnets`, or if a route or next hop object with our protocol number leads into it.
    pub fn of(actual: State, subnets: &[Subnets]) -> Self {
        let ours = our_links(&actual, subnets);
        let others = actual.links.keys().filter(|link| !ours.contains(link)).copied().collect();
        let mut state = actual;
        state.links.retain(|link, _| ours.contains(link));
        let ports: Vec<u16> = state.links.values().filter_map(|link| link.fou_port()).collect();
        state.fou_ports.retain(|port, ()| ports.contains(&port.port));
        state.wireguards.retain(|link, _| ours.contains(link));
        state.wireguard_peers.retain(|peer, _| ours.contains(&peer.link));
        state.checksums.retain(|link, ()| ours.contains(link));
        state.addresses.retain(|address, ()| ours.contains(&address.link));
        state.neighbours.retain(|neighbour, _| ours.contains(&neighbour.link));
        state.fdb.retain(|entry, _| ours.contains(&entry.link));
        state.next_hops.retain(|_, hop| hop.protocol == ROUTE_PROTOCOL || ours.contains(&hop.link));
        state.routes.retain(|_, route| {
            route.protocol == ROUTE_PROTOCOL || route.target.link().is_some_and(|link| ours.contains(&link))
        });
        Self { state, others }
    }

    /// Returns whether a device of ours has the base address of these subnets.
    pub fn has_device_of(&self, subnets: &Subnets) -> bool {
        let mut bases = subnets.iter().map(|(_, subnet)| IpNetwork::from(subnet.ip()));
        bases.any(|base| self.state.addresses.keys().any(|address| address.address == base))
    }

    /// Returns whether this host is on wireguard, whoever encrypts.
    pub fn has_wireguard(&self) -> bool {
        self.state.links.keys().any(|name| wireguard::is_name(*name))
    }

    /// Returns the same as flanneld makes it, so that it can replace and delete all of it: routes with their gateway
    /// inline and without our protocol number, no next hop object, no blackhole, and no TUN or IPIP device: flanneld makes
    /// its own.
    pub fn as_flannels(&self) -> State {
        let mut state = self.state.clone();
        state.next_hops.clear();
        state.fou_ports.clear();
        state.checksums.clear();
        let resolver = bridge::resolver_device();
        state.links.retain(|name, link| {
            *name != resolver && !matches!(link.kind, LinkKind::Tun { .. } | LinkKind::Ipip(_))
        });
        let stays = |link: LinkName| state.links.contains_key(&link) || !self.state.links.contains_key(&link);
        state.addresses.retain(|address, ()| stays(address.link));
        state.neighbours.retain(|neighbour, _| stays(neighbour.link));
        state.fdb.retain(|entry, _| stays(entry.link));
        state.routes.retain(|_, route| route.target.link().is_some_and(stays));
        state.routes.values_mut().for_each(|route| *route = self.as_flannels_route(*route));
        state
    }

    fn as_flannels_route(&self, route: Route) -> Route {
        let target = match route.target {
            RouteTarget::NextHop { id, .. } => match self.state.next_hops.get(&id) {
                Some(hop) => RouteTarget::Via { gateway: hop.gateway, link: hop.link, onlink: hop.onlink },
                // Another program's object, which stays in place.
                None => route.target,
            },
            target => target,
        };
        let protocol = if route.protocol == ROUTE_PROTOCOL { FLANNELS_PROTOCOL } else { route.protocol };
        Route { target, protocol }
    }
}

fn our_links(actual: &State, subnets: &[Subnets]) -> BTreeSet<LinkName> {
    let bases: Vec<IpNetwork> =
        subnets.iter().flat_map(Subnets::iter).map(|(_, subnet)| subnet.ip().into()).collect();
    let addresses = actual.addresses.keys().filter(|address| bases.contains(&address.address));
    let hops = actual.next_hops.values().filter(|hop| hop.protocol == ROUTE_PROTOCOL);
    let routes = actual.routes.values().filter(|route| route.protocol == ROUTE_PROTOCOL);
    let is_inside = |address: &&Address| {
        subnets.iter().any(|ours| ours.iter().any(|(_, subnet)| subnet.contains(address.address.ip())))
    };
    let of_bridges = actual.addresses.keys().filter(|address| {
        address.link == bridge::resolver_device() || bridge::is_name(address.link) && is_inside(address)
    });
    addresses
        .chain(of_bridges)
        .map(|address| address.link)
        .chain(hops.map(|hop| hop.link))
        .chain(routes.filter_map(|route| route.target.link()))
        .filter(|name| actual.links.get(name).is_some_and(|link| is_of_our_kind(*name, &link.kind)))
        .collect()
}

fn is_of_our_kind(name: LinkName, kind: &LinkKind) -> bool {
    match kind {
        LinkKind::Vxlan(vxlan) => vxlan::vni_of(name) == Some(vxlan.vni),
        LinkKind::Tun { .. } => name == udp::device() || wireguard::is_name(name),
        LinkKind::Ipip(_) => name == udp::device(),
        LinkKind::Wireguard => wireguard::is_name(name),
        LinkKind::Bridge => bridge::is_name(name),
    }
}

#[cfg(test)]
mod tests {
    use flan_kernel::{NextHopId, RouteKey, diff};
    use flan_subnet_lease::{Family, UdpConfig, VxlanConfig};

    use super::*;
    use crate::{Abilities, Udp, Vxlan, samples};

    const OWN: &str = "10.5.1.0/24,fd00:5:0:1::/64";
    const PEER: &str = r#"{"PublicIP":"192.168.64.12","PublicIPv6":"fd64::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:62"}}"#;

    fn name(text: &str) -> LinkName {
        text.parse().unwrap()
    }

    fn own() -> Subnets {
        OWN.parse().unwrap()
    }

    fn vxlan(config: VxlanConfig) -> Vxlan {
        let pools = samples::pools(&Family::ALL);
        let abilities = Abilities { checks_senders: false, ..samples::ABLE };
        Vxlan::new(config, &pools, &samples::underlay(), abilities, "n", &State::default()).unwrap()
    }

    fn with(mut one: State, other: &State) -> State {
        other.entries().for_each(|entry| one.insert(entry));
        one
    }

    /// Returns the state of this host on vxlan, with one peer and a blackhole.
    fn on_vxlan(config: VxlanConfig) -> State {
        let backend = vxlan(config);
        let peer = samples::lease("10.5.2.0/24,fd00:5:0:2::/64", PEER);
        let mut state = with(samples::host(&backend, OWN), &samples::peer(&backend, &peer).unwrap());
        let key = RouteKey { destination: "10.5.1.0/24".parse().unwrap(), metric: u32::MAX };
        state.routes.insert(key, Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL });
        state
    }

    fn on_udp() -> State {
        let networks = [(Family::V4, "10.5.0.0/16".parse().unwrap())].into_iter();
        let udp = Udp::new(UdpConfig::default(), networks, &samples::underlay(), false).unwrap();
        samples::host(&udp, "10.5.1.0/24")
    }

    fn lines(desired: &State, actual: &State) -> Vec<String> {
        diff(desired, actual).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_of_ours_are_known_and_others_are_not() {
        for ours in ["flannel0", "flannel.1", "flannel-v6.1", "flannel.4096", "flannel-wg"] {
            assert!(may_be_ours(name(ours)), "{ours}");
        }
        for other in ["flannel1", "flannel.", "flannel.x", "flannel.01", "flannel.+1", "flannel-wg1", "eth0"]
        {
            assert!(!may_be_ours(name(other)), "{other}");
        }
    }

    #[test]
    fn what_every_backend_made_is_found() {
        for state in [on_vxlan(VxlanConfig::default()), on_udp()] {
            let holdings = Holdings::of(state.clone(), &[own()]);
            assert_eq!((&holdings.state, holdings.others.len()), (&state, 0));
        }
    }

    #[test]
    fn a_device_of_another_network_is_left_alone_with_all_that_is_on_it() {
        let other = vxlan(VxlanConfig { vni: 7, ..VxlanConfig::default() });
        let mut other = samples::host(&other, "10.9.1.0/24,fd00:9:0:1::/64");
        let key = RouteKey { destination: "10.9.2.0/24".parse().unwrap(), metric: 0 };
        let target =
            RouteTarget::Via { gateway: "10.9.2.0".parse().unwrap(), link: name("flannel.7"), onlink: true };
        other.routes.insert(key, Route { target, protocol: FLANNELS_PROTOCOL });
        let ours = on_vxlan(VxlanConfig::default());
        let holdings = Holdings::of(with(ours.clone(), &other), &[own()]);
        assert_eq!(holdings.state, ours);
        assert_eq!(holdings.others, [name("flannel-v6.7"), name("flannel.7")]);
    }

    #[test]
    fn without_a_subnet_file_a_device_is_known_by_what_leads_into_it() {
        let holdings = Holdings::of(on_vxlan(VxlanConfig::default()), &[]);
        assert!(holdings.others.is_empty());
        assert_eq!(holdings.state.links.len(), 2);
        let alone = samples::host(&vxlan(VxlanConfig::default()), OWN);
        assert_eq!(Holdings::of(alone, &[]).others.len(), 2);
    }

    #[test]
    fn a_device_of_our_name_and_another_kind_is_not_ours() {
        let mut state = on_udp();
        let tun = state.links.remove(&name("flannel0")).unwrap();
        state.links.insert(name("flannel.1"), tun);
        state.routes.clear();
        let address = Address { address: "10.5.1.0/32".parse().unwrap(), link: name("flannel.1") };
        state.addresses = [(address, ())].into();
        assert_eq!(Holdings::of(state, &[own()]).others, [name("flannel.1")]);
    }

    #[test]
    fn routes_of_vxlan_become_flannels_before_the_objects_go() {
        let actual = on_vxlan(VxlanConfig::default());
        let holdings = Holdings::of(actual.clone(), &[own()]);
        assert_eq!(
            lines(&holdings.as_flannels(), &actual),
            [
                "replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink proto 3",
                "replace route fd00:5:0:2::/64 via fd00:5:0:2:: dev flannel-v6.1 onlink proto 3",
                "delete route 10.5.1.0/24 metric 4294967295 blackhole",
                "delete nexthop id 168100352 via 10.5.2.0 dev flannel.1 onlink",
            ]
        );
    }

    #[test]
    fn a_direct_route_keeps_its_gateway() {
        let actual = on_vxlan(VxlanConfig { direct_routing: true, ..VxlanConfig::default() });
        let holdings = Holdings::of(actual.clone(), &[own()]);
        assert_eq!(
            lines(&holdings.as_flannels(), &actual)[0],
            "replace route 10.5.2.0/24 via 192.168.64.12 dev eth0 proto 3"
        );
    }

    #[test]
    fn the_tun_device_goes_with_its_route() {
        let actual = on_udp();
        let holdings = Holdings::of(actual.clone(), &[own()]);
        assert_eq!(lines(&holdings.as_flannels(), &actual), ["delete link flannel0"]);
    }

    #[test]
    fn what_is_flannels_already_stays_as_it_is() {
        let first = Holdings::of(on_vxlan(VxlanConfig::default()), &[own()]).as_flannels();
        let again = Holdings::of(first.clone(), &[own()]);
        assert_eq!(lines(&again.as_flannels(), &first), [""; 0]);
    }

    #[test]
    fn a_route_by_another_programs_object_stays_as_it_is() {
        let mut actual = on_vxlan(VxlanConfig::default());
        let key = RouteKey { destination: "10.77.0.0/16".parse().unwrap(), metric: 0 };
        let target = RouteTarget::NextHop { id: NextHopId(9), link: name("flannel.1") };
        let route = Route { target, protocol: 4 };
        actual.routes.insert(key, route);
        let holdings = Holdings::of(actual, &[own()]);
        assert_eq!(holdings.as_flannels().routes[&key], route);
    }
}
