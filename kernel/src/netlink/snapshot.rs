//! Reading what is ours out of the kernel's tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use netlink_packet_core::Nla;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoTun, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::message::{self, RouteFilter};
use super::requests::Requests;
use crate::KernelError;
use crate::state::{
    Address, FdbEntry, Link, LinkKind, LinkName, Neighbour, Ownership, ROUTE_PROTOCOL, Route, RouteKey,
    RouteTarget, State, Vxlan,
};

/// How often everything is read anew because a device went away between two tables.
const ATTEMPTS: usize = 5;

/// What is ours, with the indices of our devices.
pub(super) async fn snapshot(
    requests: &Requests,
    ownership: &Ownership,
) -> Result<(State, BTreeSet<u32>), KernelError> {
    for _ in 0..ATTEMPTS {
        match attempt(requests, ownership).await {
            Err(KernelError::Errno(libc::ENODEV)) => {}
            result => return result,
        }
    }
    Err(KernelError::Message(format!("a device went away during each of {ATTEMPTS} snapshots")))
}

/// One reading. `ENODEV` means that a device was deleted meanwhile.
async fn attempt(requests: &Requests, ownership: &Ownership) -> Result<(State, BTreeSet<u32>), KernelError> {
    let mut state = State::default();
    let mut names = Names::default();
    for &name in &ownership.links {
        let Some(message) = requests.link(name).await? else { continue };
        let (mut link, underlay) = device(name, &message)?;
        if let (LinkKind::Vxlan(vxlan), Some(index)) = (&mut link.kind, underlay) {
            vxlan.underlay = names.find(requests, index).await?;
        }
        names.0.insert(message.header.index, name);
        state.links.insert(name, link);
    }
    let indices: BTreeSet<u32> =
        names.0.iter().filter(|(_, name)| state.links.contains_key(name)).map(|(&index, _)| index).collect();
    for &index in &indices {
        let link = names.0[&index];
        read_link(requests, index, link, &mut state).await?;
    }
    for (key, route) in routes(requests, &indices).await? {
        let target = match route.target {
            RawTarget::Blackhole => RouteTarget::Blackhole,
            RawTarget::Device { index, gateway, onlink } => {
                let link = names.find(requests, index).await?.ok_or(KernelError::Errno(libc::ENODEV))?;
                match gateway {
                    Some(gateway) => RouteTarget::Via { gateway, link, onlink },
                    None => RouteTarget::Link(link),
                }
            }
        };
        // The kernel lists in the order in which it looks, and of several routes with one key uses the first.
        state.routes.entry(key).or_insert(Route { target, protocol: route.protocol });
    }
    Ok((state, indices))
}

/// Device names by index, asked for when first needed.
#[derive(Default)]
struct Names(BTreeMap<u32, LinkName>);

impl Names {
    async fn find(&mut self, requests: &Requests, index: u32) -> Result<Option<LinkName>, KernelError> {
        if let Some(&name) = self.0.get(&index) {
            return Ok(Some(name));
        }
        let Some(message) = requests.link_by_index(index).await? else { return Ok(None) };
        let name = link_name(&message)?;
        self.0.insert(index, name);
        Ok(Some(name))
    }
}

/// Reads what is on one of our devices.
async fn read_link(
    requests: &Requests,
    index: u32,
    link: LinkName,
    state: &mut State,
) -> Result<(), KernelError> {
    let addresses = requests.dump(message::dump_addresses(index), |entry| match entry {
        RouteNetlinkMessage::NewAddress(entry) => address(&entry, index),
        _ => None,
    });
    state.addresses.extend(addresses.await?.into_iter().map(|address| Address { link, address }));
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let neighbours = requests.dump(message::dump_neighbours(family, index), |entry| match entry {
            RouteNetlinkMessage::NewNeighbour(entry) => neighbour(&entry, index),
            _ => None,
        });
        let neighbours = without_family(neighbours.await)?;
        state
            .neighbours
            .extend(neighbours.into_iter().map(|(address, mac)| (Neighbour { link, address }, mac)));
    }
    let entries =
        requests.dump(message::dump_neighbours(AddressFamily::Bridge, index), |entry| match entry {
            RouteNetlinkMessage::NewNeighbour(entry) => fdb_entry(&entry, index),
            _ => None,
        });
    state.fdb.extend(entries.await?.into_iter().map(|(mac, ip)| (FdbEntry { link, mac }, ip)));
    Ok(())
}

/// Our routes of both families: those that lead into our devices, and those with our protocol number.
async fn routes(requests: &Requests, ours: &BTreeSet<u32>) -> Result<Vec<(RouteKey, RawRoute)>, KernelError> {
    let filters = || {
        let links = ours.iter().map(|&index| RouteFilter::Link(index));
        std::iter::once(RouteFilter::Protocol(ROUTE_PROTOCOL)).chain(links)
    };
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for filter in filters() {
            let routes = requests.dump(message::dump_routes(family, filter), |entry| match entry {
                RouteNetlinkMessage::NewRoute(entry) if entry.header.address_family == family => {
                    route(&entry).filter(|(_, route)| route.is_ours(ours))
                }
                _ => None,
            });
            found.extend(without_family(routes.await)?);
        }
    }
    Ok(found)
}

/// An empty table where the kernel has no such family, or no such table yet: it makes IPv4's main table for the
/// first route in it.
pub(super) fn without_family<T>(dumped: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match dumped {
        Err(KernelError::Errno(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(Vec::new()),
        dumped => dumped,
    }
}

/// The name of a device.
pub(super) fn link_name(message: &LinkMessage) -> Result<LinkName, KernelError> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })
        .ok_or_else(|| KernelError::Message(format!("device {} has no name", message.header.index)))?
        .parse()
        .map_err(|error| KernelError::Message(format!("device {}: {error}", message.header.index)))
}

/// The device that `message` describes, and the index of its underlay.
pub(super) fn device(name: LinkName, message: &LinkMessage) -> Result<(Link, Option<u32>), KernelError> {
    let (mut address, mut mtu, mut kind, mut data) = (None, 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => address = mac(bytes),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found),
                        LinkInfo::Data(found) => data = Some(found),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (kind, underlay) = match (kind, data) {
        (Some(InfoKind::Vxlan), Some(InfoData::Vxlan(data))) => {
            let (vxlan, underlay) = vxlan(data);
            (LinkKind::Vxlan(vxlan), underlay)
        }
        (Some(InfoKind::Tun), Some(InfoData::Tun(data))) => {
            (LinkKind::Tun { vnet_header: data.iter().any(is_vnet_header_on) }, None)
        }
        _ => {
            return Err(KernelError::Message(format!(
                "device {name} exists and is neither a VXLAN nor a TUN device; rename or delete it, or choose another VNI"
            )));
        }
    };
    let up = message.header.flags.contains(LinkFlags::Up);
    Ok((Link { kind, mac: address, mtu, up }, underlay))
}

/// The VXLAN settings, and the index of the underlay.
fn vxlan(data: &[InfoVxlan]) -> (Vxlan, Option<u32>) {
    let mut vxlan = Vxlan { vni: 0, port: 0, underlay: None, local: None, learning: false, gbp: false };
    let mut underlay = None;
    for info in data {
        match *info {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Link(index) if index != 0 => underlay = Some(index),
            InfoVxlan::Local(ip) if !ip.is_unspecified() => vxlan.local = Some(ip.into()),
            InfoVxlan::Local6(ip) if !ip.is_unspecified() => vxlan.local = Some(ip.into()),
            InfoVxlan::Learning(learning) => vxlan.learning = learning,
            InfoVxlan::Gbp => vxlan.gbp = true,
            _ => {}
        }
    }
    (vxlan, underlay)
}

/// `IFLA_TUN_VNET_HDR` (`linux/if_link.h`), a byte that is 1.
fn is_vnet_header_on(info: &InfoTun) -> bool {
    const IFLA_TUN_VNET_HDR: u16 = 5;
    let InfoTun::Other(attribute) = info else { return false };
    let mut value = [0];
    if attribute.kind() != IFLA_TUN_VNET_HDR || attribute.value_len() != value.len() {
        return false;
    }
    attribute.emit_value(&mut value);
    value == [1]
}

fn address(message: &AddressMessage, index: u32) -> Option<IpNetwork> {
    let ip = own_address(message)?;
    let theirs = message.header.index != index;
    let by_itself = matches!(ip, IpAddr::V6(ip) if is_link_local(ip));
    if theirs || by_itself { None } else { IpNetwork::new(ip, message.header.prefix_len).ok() }
}

/// This host's end: on a point-to-point link `IFA_ADDRESS` is the other one's.
pub(super) fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut remote = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(*ip),
            AddressAttribute::Address(ip) => remote = Some(*ip),
            _ => {}
        }
    }
    remote
}

fn neighbour(message: &NeighbourMessage, index: u32) -> Option<(IpAddr, MacAddr6)> {
    let header = &message.header;
    if header.ifindex != index || !is_permanent(header.state) || header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let (ip, mac) = neighbour_attributes(message);
    Some((ip?, mac?))
}

fn fdb_entry(message: &NeighbourMessage, index: u32) -> Option<(MacAddr6, IpAddr)> {
    let header = &message.header;
    if header.ifindex != index || !header.flags.contains(NeighbourFlags::Own) {
        return None;
    }
    // What was learned is not ours to delete; it makes way for a permanent entry when one is set.
    if !is_permanent(header.state) {
        return None;
    }
    let (ip, mac) = neighbour_attributes(message);
    let mac = mac.filter(|mac| !mac.is_nil() && mac.is_unicast())?;
    Some((mac, ip?))
}

/// The states are bits, and `bridge(8)` sets another one with it.
fn is_permanent(state: NeighbourState) -> bool {
    u16::from(state) & u16::from(NeighbourState::Permanent) != 0
}

fn neighbour_attributes(message: &NeighbourMessage) -> (Option<IpAddr>, Option<MacAddr6>) {
    let (mut ip, mut lladdr) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => ip = neighbour_ip(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(bytes),
            _ => {}
        }
    }
    (ip, lladdr)
}

/// In a message of `AF_BRIDGE` the family of the destination shows in its length only.
fn neighbour_ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(&bytes[..]).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(&bytes[..]).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<MacAddr6> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddr6::from)
}

/// A route with its device by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawRoute {
    pub(super) target: RawTarget,
    pub(super) protocol: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawTarget {
    Device { index: u32, gateway: Option<IpAddr>, onlink: bool },
    Blackhole,
}

impl RawRoute {
    /// As [`Ownership`] says.
    fn is_ours(&self, links: &BTreeSet<u32>) -> bool {
        let by_kernel = self.protocol == u8::from(RouteProtocol::Kernel);
        let on_ours = matches!(self.target, RawTarget::Device { index, .. } if links.contains(&index));
        self.protocol == ROUTE_PROTOCOL || (on_ours && !by_kernel)
    }
}

/// A unicast or blackhole route of the main table, with one next hop, that does not depend on anything but the
/// destination: the only kinds that we make, and so the only ones that can be ours. `None` for all others.
pub(super) fn route(message: &RouteMessage) -> Option<(RouteKey, RawRoute)> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut destination = None;
    let (mut metric, mut index, mut gateway) = (0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(ip) => destination = route_ip(ip),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(ip) => gateway = route_ip(ip),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::Via(RouteVia::Inet(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN)
        || header.tos != 0
        || header.source_prefix_length != 0
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let destination = destination.or(match header.address_family {
        AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    })?;
    if matches!(destination, IpAddr::V6(ip) if is_link_local(ip) || ip.is_multicast()) {
        return None;
    }
    let destination = IpNetwork::new(destination, header.destination_prefix_length).ok()?;
    let target = match header.kind {
        RouteType::Unicast => {
            RawTarget::Device { index: index?, gateway, onlink: header.flags.contains(RouteFlags::Onlink) }
        }
        RouteType::BlackHole => RawTarget::Blackhole,
        _ => return None,
    };
    Some((RouteKey { destination, metric }, RawRoute { target, protocol: header.protocol.into() }))
}

/// An address in a route message.
pub(super) fn route_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// `fe80::/10`.
fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests;
