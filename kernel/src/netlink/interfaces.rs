//! The host's own interfaces and routes, for choosing the one that carries the overlay.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::message::{self, RouteFilter};
use super::requests::Requests;
use super::snapshot::{link_name, own_address, route_ip, without_family};
use crate::KernelError;
use crate::state::LinkName;

/// A network interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: LinkName,
    /// The kernel's number for it (`if_nametoindex(3)`).
    pub index: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Whether it leads back to the host itself.
    pub loopback: bool,
    /// Its addresses with their prefix length: those of global scope first, and of these the lasting ones before
    /// temporary and deprecated ones; else in the kernel's order.
    pub addresses: Vec<IpNetwork>,
}

/// All interfaces of the current network namespace, by index. Must be called in a tokio runtime.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer, or a device has a name that is none.
pub async fn interfaces() -> Result<Vec<Interface>, KernelError> {
    let requests = Requests::open()?;
    let links = requests.dump(message::dump_links(), |entry| match entry {
        RouteNetlinkMessage::NewLink(link) => Some(interface(&link)),
        _ => None,
    });
    let mut interfaces = links
        .await?
        .into_iter()
        .map(|interface| interface.map(|interface| (interface.index, interface)))
        .collect::<Result<BTreeMap<u32, Interface>, KernelError>>()?;
    let addresses = requests.dump(message::dump_addresses(0), |entry| match entry {
        RouteNetlinkMessage::NewAddress(address) => ranked(&address),
        _ => None,
    });
    let mut addresses = addresses.await?;
    addresses.sort_by_key(|address| address.rank);
    for address in addresses {
        if let Some(interface) = interfaces.get_mut(&address.index) {
            interface.addresses.push(address.network);
        }
    }
    Ok(interfaces.into_values().collect())
}

/// The index of the interface that the default route of the main table with the lowest metric leads out of; `None`
/// if there is no default route of that family. Must be called in a tokio runtime.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub async fn default_route(ipv6: bool) -> Result<Option<u32>, KernelError> {
    let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let requests = Requests::open()?;
    let routes = requests.dump(message::dump_routes(family, RouteFilter::All), |entry| match entry {
        RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family => default(&route),
        _ => None,
    });
    // Of equal ones the kernel uses the first.
    Ok(without_family(routes.await)?.into_iter().min_by_key(|(metric, _)| *metric).map(|(_, index)| index))
}

/// The index of the interface by which a packet to `ip` would leave, and the source address that it would get.
/// Must be called in a tokio runtime.
///
/// # Errors
/// [`KernelError::Errno`] with `ENETUNREACH` or the like if there is no way; else if the netlink socket cannot be
/// opened or does not answer.
pub async fn route_to(ip: IpAddr) -> Result<(u32, Option<IpAddr>), KernelError> {
    match Requests::open()?.one(message::get_route(ip)).await? {
        RouteNetlinkMessage::NewRoute(route) => way(&route).ok_or(KernelError::Errno(libc::ENETUNREACH)),
        other => Err(KernelError::Message(format!("unexpected answer about a route: {other:?}"))),
    }
}

fn interface(link: &LinkMessage) -> Result<Interface, KernelError> {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Ok(Interface {
        name: link_name(link)?,
        index: link.header.index,
        mtu: mtu.unwrap_or_default(),
        up: link.header.flags.contains(LinkFlags::Up),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        addresses: Vec::new(),
    })
}

struct Ranked {
    index: u32,
    network: IpNetwork,
    /// Lower comes first.
    rank: (u8, bool),
}

fn ranked(address: &AddressMessage) -> Option<Ranked> {
    let header = &address.header;
    let flags = address
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        })
        .unwrap_or(AddressFlags::from_bits_retain(header.flags.bits().into()));
    // For IPv6 the flag of secondary addresses means temporary ones; for IPv4, the second of a subnet.
    let passing = flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated);
    Some(Ranked {
        index: header.index,
        network: IpNetwork::new(own_address(address)?, header.prefix_len).ok()?,
        rank: (header.scope.into(), passing),
    })
}

/// Metric and interface of a default route.
fn default(route: &RouteMessage) -> Option<(u32, u32)> {
    let header = &route.header;
    let mut table = u32::from(header.table);
    let (mut metric, mut index) = (0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::MultiPath(hops) => {
                let usable = |flags: RouteNextHopFlags| {
                    !flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
                };
                index =
                    hops.iter().find(|hop| usable(hop.flags)).or(hops.first()).map(|hop| hop.interface_index);
            }
            _ => {}
        }
    }
    let is_default = header.destination_prefix_length == 0
        && header.kind == RouteType::Unicast
        && header.source_prefix_length == 0
        && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    is_default.then_some((metric, index?))
}

fn way(route: &RouteMessage) -> Option<(u32, Option<IpAddr>)> {
    if !matches!(route.header.kind, RouteType::Unicast | RouteType::Local | RouteType::Anycast) {
        return None;
    }
    let (mut index, mut source) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::PrefSource(ip) => source = route_ip(ip),
            _ => {}
        }
    }
    Some((index?, source))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressScope;
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    fn default_by(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_default_route_is_unicast_and_in_the_main_table() {
        let attributes = vec![RouteAttribute::Priority(100), RouteAttribute::Oif(2)];
        assert_eq!(default(&default_by(attributes.clone())), Some((100, 2)));
        let mut other = default_by(attributes.clone());
        other.header.destination_prefix_length = 8;
        assert_eq!(default(&other), None);
        let mut other = default_by(attributes.clone());
        other.attributes.push(RouteAttribute::Table(100));
        assert_eq!(default(&other), None);
        let mut other = default_by(attributes);
        other.header.kind = RouteType::BlackHole;
        assert_eq!(default(&other), None);
    }

    #[test]
    fn of_a_default_route_with_several_next_hops_the_first_that_works_counts() {
        let hop = |index, flags| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.flags = flags;
            hop
        };
        let hops = vec![hop(2, RouteNextHopFlags::Linkdown), hop(3, RouteNextHopFlags::empty())];
        assert_eq!(default(&default_by(vec![RouteAttribute::MultiPath(hops)])), Some((0, 3)));
    }

    #[test]
    fn the_way_to_an_unreachable_address_is_none() {
        let mut route = default_by(vec![RouteAttribute::Oif(1)]);
        assert_eq!(way(&route), Some((1, None)));
        route.header.kind = RouteType::Unreachable;
        assert_eq!(way(&route), None);
    }

    #[test]
    fn lasting_global_addresses_come_first() {
        let address = |ip: &str, scope, flags| {
            let mut address = AddressMessage::default();
            address.header.scope = scope;
            address.header.prefix_len = 64;
            address.attributes =
                vec![AddressAttribute::Address(ip.parse().unwrap()), AddressAttribute::Flags(flags)];
            ranked(&address).unwrap()
        };
        let mut addresses = [
            address("fe80::1", AddressScope::Link, AddressFlags::Permanent),
            address("fd00::2", AddressScope::Universe, AddressFlags::Secondary),
            address("fd00::3", AddressScope::Universe, AddressFlags::Permanent),
        ];
        addresses.sort_by_key(|address| address.rank);
        assert_eq!(
            addresses.map(|address| address.network.to_string()),
            ["fd00::3/64", "fd00::2/64", "fe80::1/64"]
        );
    }
}
