//! Reading what is ours out of the kernel's tables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use netlink_packet_core::Nla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoTun, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::devices::Devices;
use super::entry::{self, RawNeighbour, RawRoute, RawTarget};
use super::message::{self, RouteFilter};
use super::next_hop::Shown;
use super::nft;
use super::socket::Socket;
use crate::KernelError;
use crate::state::{
    Address, FdbEntry, Link, LinkKind, LinkName, Neighbour, NextHop, Ownership, ROUTE_PROTOCOL, Route,
    RouteTarget, State, Vxlan,
};

/// How often everything is read anew because a device went away between two tables.
const ATTEMPTS: usize = 5;

/// What is ours; who may send to us if there is a socket to ask. The names of our devices are noted in `devices`.
///
/// # Errors
/// [`KernelError::Interrupted`] if a table changed each time that it was read.
pub(super) fn snapshot(
    socket: &mut Socket,
    ownership: &Ownership,
    devices: &Mutex<Devices>,
    nft: &mut Option<Socket>,
) -> Result<State, KernelError> {
    for _ in 0..ATTEMPTS {
        match attempt(socket, ownership, devices) {
            Err(error) if error.errno() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
            Ok(mut state) => {
                if let Some(nft) = nft {
                    nft::read(nft, &mut state)?;
                }
                return Ok(state);
            }
        }
    }
    Err(KernelError::Interrupted)
}

/// One reading. `ENODEV` means that a device was deleted meanwhile.
fn attempt(
    socket: &mut Socket,
    ownership: &Ownership,
    devices: &Mutex<Devices>,
) -> Result<State, KernelError> {
    let mut names = Names::default();
    let (links, ours) = links(socket, ownership, devices, &mut names)?;
    let mut state = State { links, ..State::default() };
    let (mut all_neighbours, mut all_fdb) = (Vec::new(), Vec::new());
    for (&index, &link) in &ours {
        let addresses = addresses(socket, index)?;
        state.addresses.extend(addresses.into_iter().map(|address| Address { link, address }));
        let found = neighbours(socket, index)?.into_iter();
        all_neighbours.extend(found.map(|(address, mac)| (Neighbour { link, address }, mac)));
        all_fdb.extend(fdb(socket, index)?.into_iter().map(|(mac, ip)| (FdbEntry { link, mac }, ip)));
    }
    // Made of all entries at once, a map is filled to the last place.
    state.neighbours = all_neighbours.into_iter().collect();
    state.fdb = all_fdb.into_iter().collect();
    let objects = next_hops(socket)?;
    let mut all_next_hops = Vec::new();
    for object in &objects {
        if object.is_ours(object.index.is_some_and(|index| ours.contains_key(&index)))
            && let Shown { id, protocol, index: Some(index), gateway: Some(gateway), onlink } = *object
        {
            let link = names.must_find(socket, index)?;
            all_next_hops.push((id, NextHop { gateway, link, onlink, protocol }));
        }
    }
    state.next_hops = all_next_hops.into_iter().collect();
    let mut all_routes = Vec::new();
    for route in routes(socket, &ours, &objects)? {
        if let Some(target) = target(&route, socket, &mut names)? {
            all_routes.push((route.key, Route { target, protocol: route.protocol }));
        }
    }
    state.routes = all_routes.into_iter().collect();
    Ok(state)
}

/// Our devices, by name, and their names by index.
#[expect(clippy::type_complexity)]
fn links(
    socket: &mut Socket,
    ownership: &Ownership,
    devices: &Mutex<Devices>,
    names: &mut Names,
) -> Result<(BTreeMap<LinkName, Link>, BTreeMap<u32, LinkName>), KernelError> {
    let (mut links, mut ours) = (BTreeMap::new(), BTreeMap::new());
    for &name in &ownership.links {
        let Some(message) = socket.link(name)? else { continue };
        let (mut link, underlay) = device(name, &message)?;
        if let (LinkKind::Vxlan(vxlan), Some(index)) = (&mut link.kind, underlay) {
            vxlan.underlay = names.find(socket, index)?;
        }
        let index = message.header.index;
        let mut devices = devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.stands(name, index, link.kind.clone());
        ours.insert(index, name);
        names.0.insert(index, name);
        links.insert(name, link);
    }
    Ok((links, ours))
}

/// The addresses of one of our devices.
fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<IpNetwork>, KernelError> {
    socket.dump(&message::dump_addresses(index), Vec::new, |found, body| {
        let address = entry::address(body).filter(|(of, _)| *of == index);
        found.extend(address.map(|(_, address)| address));
    })
}

/// Where a route leads; `None` for one that is not ours.
fn target(
    route: &RawRoute,
    socket: &mut Socket,
    names: &mut Names,
) -> Result<Option<RouteTarget>, KernelError> {
    Ok(match route.target {
        RawTarget::Blackhole => Some(RouteTarget::Blackhole),
        RawTarget::Device { index, gateway, onlink } => {
            let link = names.must_find(socket, index)?;
            Some(match gateway {
                Some(gateway) => RouteTarget::Via { gateway, link, onlink },
                None => RouteTarget::Link(link),
            })
        }
        RawTarget::NextHop { id, index: Some(index) } => {
            Some(RouteTarget::NextHop { id, link: names.must_find(socket, index)? })
        }
        RawTarget::NextHop { index: None, .. } | RawTarget::Several | RawTarget::Other(_) => None,
    })
}

/// Device names by index, asked for when first needed.
#[derive(Default)]
struct Names(BTreeMap<u32, LinkName>);

impl Names {
    fn find(&mut self, socket: &mut Socket, index: u32) -> Result<Option<LinkName>, KernelError> {
        if let Some(&name) = self.0.get(&index) {
            return Ok(Some(name));
        }
        let Some(name) = socket.link_name(index)? else { return Ok(None) };
        self.0.insert(index, name);
        Ok(Some(name))
    }

    /// The name of a device that something leads to, so that it was there a moment ago.
    fn must_find(&mut self, socket: &mut Socket, index: u32) -> Result<LinkName, KernelError> {
        self.find(socket, index)?.ok_or(KernelError::Errno(libc::ENODEV))
    }
}

/// The permanent neighbours of one of our devices, in their order.
fn neighbours(socket: &mut Socket, index: u32) -> Result<Vec<(IpAddr, MacAddr6)>, KernelError> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let of_family = |body: &[u8]| body.first().copied() == Some(u8::from(family));
        let found = socket.dump(&message::dump_neighbours(family, index), Vec::new, |found, body| {
            let neighbour = RawNeighbour::read(body).filter(|entry| entry.index == index && of_family(body));
            if let Some((ip, Some(mac))) = neighbour.and_then(|entry| entry.neighbour()) {
                found.push((ip, mac));
            }
        });
        all.extend(without_family(found)?);
    }
    all.sort_unstable();
    Ok(all)
}

/// The permanent forwarding entries of one of our devices, in their order.
fn fdb(socket: &mut Socket, index: u32) -> Result<Vec<(MacAddr6, IpAddr)>, KernelError> {
    let request = message::dump_neighbours(AddressFamily::Bridge, index);
    let mut found = socket.dump(&request, Vec::new, |found, body| {
        let entry = RawNeighbour::read(body).filter(|entry| entry.index == index);
        if let Some((mac, Some(ip))) = entry.and_then(|entry| entry.fdb()) {
            found.push((mac, ip));
        }
    })?;
    found.sort_unstable();
    Ok(found)
}

/// All next hop objects, by id: whoever made them, routes of ours may lead there.
fn next_hops(socket: &mut Socket) -> Result<Vec<Shown>, KernelError> {
    let found = socket.dump(&message::dump_next_hops(), Vec::new, |found: &mut Vec<Shown>, body| {
        found.extend(Shown::read(body));
    });
    let mut found = match found {
        // A kernel before 5.3.
        Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Vec::new(),
        found => found?,
    };
    found.sort_unstable_by_key(|object| object.id);
    Ok(found)
}

/// Our routes of both families, those with our protocol number and those into our devices, by key: of several with
/// one key, the one that the kernel uses.
fn routes(
    socket: &mut Socket,
    ours: &BTreeMap<u32, LinkName>,
    objects: &[Shown],
) -> Result<Vec<RawRoute>, KernelError> {
    let filters = || {
        let links = ours.keys().map(|&index| RouteFilter::Link(index));
        std::iter::once(RouteFilter::Protocol(ROUTE_PROTOCOL)).chain(links)
    };
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for filter in filters() {
            let by_protocol = matches!(filter, RouteFilter::Protocol(_));
            let found = socket.dump(&message::dump_routes(family, filter), Vec::new, |found, body| {
                // Each in one of the dumps: most of what leads into our devices is of our making.
                let of_this_dump = (entry::route_protocol(body) == Some(ROUTE_PROTOCOL)) == by_protocol;
                if of_this_dump && body.first().copied() == Some(u8::from(family)) {
                    let route = RawRoute::read(body).map(|route| led_by_object(route, objects));
                    found.extend(route.filter(|route| route.is_ours(is_into(route, ours))));
                }
            });
            all.extend(without_family(found)?);
        }
    }
    // The kernel lists in the order in which it looks, and of several routes with one key uses the first.
    all.sort_by_key(|route| route.key);
    all.dedup_by_key(|route| route.key);
    Ok(all)
}

/// A route with the device that its next hop object leads to, which not every kernel shows with the route
/// (`net.ipv4.nexthop_compat_mode`).
fn led_by_object(mut route: RawRoute, objects: &[Shown]) -> RawRoute {
    if let RawTarget::NextHop { id, index } = &mut route.target
        && let Ok(position) = objects.binary_search_by_key(id, |object| object.id)
    {
        *index = objects[position].index;
    }
    route
}

fn is_into(route: &RawRoute, ours: &BTreeMap<u32, LinkName>) -> bool {
    match route.target {
        RawTarget::Device { index, .. } | RawTarget::NextHop { index: Some(index), .. } => {
            ours.contains_key(&index)
        }
        _ => false,
    }
}

/// An empty table where the kernel has no such family, or no such table yet: it makes IPv4's main table for the
/// first route in it.
pub(super) fn without_family<T>(dumped: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match dumped {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
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
            LinkAttribute::Address(bytes) => address = entry::mac(bytes),
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

/// Whether the device stays without a program: a TUN device that is told not to goes with the program that made it.
pub(super) fn is_persistent(message: &LinkMessage) -> bool {
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let tun = infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(data)) => Some(data),
        _ => None,
    });
    tun.is_none_or(|data| data.iter().any(|info| is_on(info, IFLA_TUN_PERSIST)))
}

fn is_vnet_header_on(info: &InfoTun) -> bool {
    is_on(info, IFLA_TUN_VNET_HDR)
}

/// Attributes of a TUN device (`linux/if_link.h`).
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_TUN_PERSIST: u16 = 6;

/// Whether this is the attribute, and its byte is 1.
fn is_on(info: &InfoTun, wanted: u16) -> bool {
    let InfoTun::Other(attribute) = info else { return false };
    let mut value = [0];
    if attribute.kind() != wanted || attribute.value_len() != value.len() {
        return false;
    }
    attribute.emit_value(&mut value);
    value == [1]
}

#[cfg(test)]
mod tests;
