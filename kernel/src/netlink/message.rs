//! Operations and questions as netlink messages. Pure.

use std::net::IpAddr;

use macaddr::MacAddr6;
use netlink_packet_core::{
    Emitable, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{next_hop, nft};
use crate::diff::{LinkChange, Operation};
use crate::state::{Address, Link, LinkName, NextHop, NextHopId, Route, RouteKey, RouteTarget, Vxlan};

/// A message to the kernel, that is not numbered yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// One that netlink-packet-route knows.
    Route(NetlinkMessage<RouteNetlinkMessage>),
    /// About next hop objects.
    NextHop(next_hop::Request),
    /// About nftables.
    Nft(nft::Request),
}

impl Request {
    /// Writes it to the end of `buffer`, with its number.
    pub(super) fn emit(mut self, sequence: u32, buffer: &mut Vec<u8>) {
        match &mut self {
            Self::Route(message) => {
                message.header.sequence_number = sequence;
                message.finalize();
                let start = buffer.len();
                buffer.resize(start + message.buffer_len(), 0);
                message.emit(&mut buffer[start..]);
            }
            Self::NextHop(request) => request.emit(sequence, buffer),
            Self::Nft(request) => request.emit(sequence, buffer),
        }
    }

    /// No fewer bytes than it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Route(message) => message.buffer_len(),
            Self::NextHop(_) => next_hop::Request::MOST_BYTES,
            Self::Nft(request) => request.bytes(),
        }
    }
}

/// `NLM_F_*` of a change. Which of them shall be acknowledged is for the one who sends them.
const CHANGE: u16 = NLM_F_REQUEST;

/// Whether the operation takes something away, so that it is as good as done if that is not there.
pub(super) fn is_deletion(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::DeleteLink { .. }
            | Operation::DeleteAddress(_)
            | Operation::DeleteNeighbour(_)
            | Operation::DeleteFdb(_)
            | Operation::DeleteNextHop(_)
            | Operation::DeleteRoute { .. }
    )
}

/// Whether `errno` says that what `operation` wants is so already.
pub(super) fn is_so_already(operation: &Operation, errno: i32) -> bool {
    match operation {
        Operation::AddAddress(_) => errno == libc::EEXIST,
        _ if is_deletion(operation) => {
            matches!(errno, libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)
        }
        _ => false,
    }
}

/// An operation on an address, a neighbour, a forwarding entry, a next hop or a route as a message. `None` if `index` does not
/// know the device, or the operation is about a device itself, which takes several messages, see [`create_link`] and its
/// neighbours, or about nftables.
pub(super) fn change(operation: &Operation, index: impl Fn(LinkName) -> Option<u32>) -> Option<Request> {
    let (inner, flags) = match operation {
        Operation::AddAddress(address) => (
            RouteNetlinkMessage::NewAddress(address_message(address, index(address.link)?)),
            CHANGE | NLM_F_CREATE | NLM_F_EXCL,
        ),
        Operation::DeleteAddress(address) => {
            (RouteNetlinkMessage::DelAddress(address_message(address, index(address.link)?)), CHANGE)
        }
        Operation::SetNeighbour { neighbour, mac } => (
            RouteNetlinkMessage::NewNeighbour(neighbour_message(
                neighbour.address,
                index(neighbour.link)?,
                Some(*mac),
            )),
            CHANGE | NLM_F_CREATE | NLM_F_REPLACE,
        ),
        Operation::DeleteNeighbour(neighbour) => (
            RouteNetlinkMessage::DelNeighbour(neighbour_message(
                neighbour.address,
                index(neighbour.link)?,
                None,
            )),
            CHANGE,
        ),
        Operation::SetFdb { entry, destination } => (
            RouteNetlinkMessage::NewNeighbour(fdb_message(entry.mac, index(entry.link)?, Some(*destination))),
            CHANGE | NLM_F_CREATE | NLM_F_REPLACE,
        ),
        Operation::DeleteFdb(entry) => {
            (RouteNetlinkMessage::DelNeighbour(fdb_message(entry.mac, index(entry.link)?, None)), CHANGE)
        }
        Operation::AddNextHop { id, next_hop } => {
            let flags = CHANGE | NLM_F_CREATE | NLM_F_EXCL;
            return Some(next_hop_request(*id, flags, next_hop, index(next_hop.link)?));
        }
        // Without NLM_F_CREATE: if ours is gone, there is nothing to replace.
        Operation::ReplaceNextHop { id, next_hop } => {
            let flags = CHANGE | NLM_F_REPLACE;
            return Some(next_hop_request(*id, flags, next_hop, index(next_hop.link)?));
        }
        Operation::DeleteNextHop(id) => {
            let (kind, id) = (next_hop::DELETE, Some(*id));
            return Some(Request::NextHop(next_hop::Request { kind, flags: CHANGE, id, next_hop: None }));
        }
        Operation::AddRoute { key, route } => (
            RouteNetlinkMessage::NewRoute(route_message(key, route, index)?),
            CHANGE | NLM_F_CREATE | NLM_F_EXCL,
        ),
        Operation::ReplaceRoute { key, route } => {
            (RouteNetlinkMessage::NewRoute(route_message(key, route, index)?), CHANGE | NLM_F_REPLACE)
        }
        Operation::DeleteRoute { key, route } => {
            let mut message = route_message(key, route, index)?;
            // The kernel takes this for "whatever its scope" (`fib_table_delete` in `net/ipv4/fib_trie.c`).
            message.header.scope = RouteScope::NoWhere;
            (RouteNetlinkMessage::DelRoute(message), CHANGE)
        }
        Operation::CreateLink { .. }
        | Operation::ReplaceLink { .. }
        | Operation::UpdateLink { .. }
        | Operation::DeleteLink { .. }
        | Operation::AddSource(_)
        | Operation::DeleteSource(_)
        | Operation::AddCheck(_)
        | Operation::DeleteCheck(_) => return None,
    };
    Some(with_flags(inner, flags))
}

/// Makes a VXLAN device, which is down: before it goes up it must be known whether it shall get a link-local address.
pub(super) fn create_vxlan(name: LinkName, link: &Link, vxlan: &Vxlan, underlay: Option<u32>) -> Request {
    let mut data: Vec<InfoVxlan> = underlay.map(InfoVxlan::Link).into_iter().collect();
    data.push(InfoVxlan::Id(vxlan.vni));
    data.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }));
    data.extend([InfoVxlan::Learning(vxlan.learning), InfoVxlan::Port(vxlan.port)]);
    if vxlan.gbp {
        data.push(InfoVxlan::Gbp);
    }
    let mut message = LinkMessage::default();
    message.attributes =
        link.mac.map(|mac| LinkAttribute::Address(mac.as_bytes().to_vec())).into_iter().collect();
    message.attributes.extend([
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ]);
    with_flags(RouteNetlinkMessage::NewLink(message), CHANGE | NLM_F_CREATE | NLM_F_EXCL)
}

/// Keeps the kernel from making a link-local IPv6 address, which nothing on a device for IPv4 has a use for.
pub(super) fn without_link_local(index: u32) -> Request {
    let mut message = link_message(index);
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    with_flags(RouteNetlinkMessage::SetLink(message), CHANGE)
}

/// Changes a device in place.
pub(super) fn update_link(index: u32, change: &LinkChange) -> Request {
    let mut message = link_message(index);
    if let Some(up) = change.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.as_bytes().to_vec())));
    message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    with_flags(RouteNetlinkMessage::SetLink(message), CHANGE)
}

/// Deletes a device.
pub(super) fn delete_link(index: u32) -> Request {
    with_flags(RouteNetlinkMessage::DelLink(link_message(index)), CHANGE)
}

/// Asks for a device by its name.
pub(super) fn get_link_by_name(name: LinkName) -> Request {
    let mut message = link_message(0);
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    with_flags(without_counters(message), NLM_F_REQUEST)
}

/// Asks for a device by its index.
pub(super) fn get_link_by_index(index: u32) -> Request {
    with_flags(without_counters(link_message(index)), NLM_F_REQUEST)
}

/// Asks for all devices of a kind. Not every kernel filters: the answers may be of any kind.
pub(super) fn dump_links_of_kind(kind: InfoKind) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    with_flags(without_counters(message), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Asks for all devices.
pub(super) fn dump_links() -> Request {
    with_flags(without_counters(LinkMessage::default()), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Asks for the addresses of one device, or with 0 of all.
pub(super) fn dump_addresses(index: u32) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    with_flags(RouteNetlinkMessage::GetAddress(message), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Asks for a device's neighbours of one family, or with `AF_BRIDGE` for its forwarding entries.
pub(super) fn dump_neighbours(family: AddressFamily, index: u32) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::IfIndex(index));
    with_flags(RouteNetlinkMessage::GetNeighbour(message), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Which routes of the main table to ask for.
#[derive(Debug, Clone, Copy)]
pub(super) enum RouteFilter {
    All,
    Protocol(u8),
    Link(u32),
}

/// Asks for routes of the main table. A kernel that does not know filters sends all of all tables.
pub(super) fn dump_routes(family: AddressFamily, filter: RouteFilter) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    match filter {
        RouteFilter::All => {}
        RouteFilter::Protocol(protocol) => message.header.protocol = RouteProtocol::from(protocol),
        RouteFilter::Link(index) => message.attributes.push(RouteAttribute::Oif(index)),
    }
    with_flags(RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Asks for one next hop object.
pub(super) fn get_next_hop(id: NextHopId) -> Request {
    let (kind, id) = (next_hop::GET, Some(id));
    Request::NextHop(next_hop::Request { kind, flags: NLM_F_REQUEST, id, next_hop: None })
}

/// Asks for all next hop objects.
pub(super) fn dump_next_hops() -> Request {
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    Request::NextHop(next_hop::Request { kind: next_hop::GET, flags, id: None, next_hop: None })
}

fn next_hop_request(id: NextHopId, flags: u16, next_hop: &NextHop, index: u32) -> Request {
    let (kind, id, next_hop) = (next_hop::NEW, Some(id), Some((*next_hop, index)));
    Request::NextHop(next_hop::Request { kind, flags, id, next_hop })
}

fn with_flags(inner: RouteNetlinkMessage, flags: u16) -> Request {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    Request::Route(NetlinkMessage::new(header, NetlinkPayload::InnerMessage(inner)))
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header = LinkHeader { index, ..LinkHeader::default() };
    message
}

fn without_counters(mut message: LinkMessage) -> RouteNetlinkMessage {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

fn address_message(address: &Address, index: u32) -> AddressMessage {
    let ip = address.address.ip();
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: family(ip),
        prefix_len: address.address.prefix(),
        // Nobody else on the overlay can have it, and a tentative address could not be used at once.
        flags: if ip.is_ipv6() { AddressHeaderFlags::Nodad } else { AddressHeaderFlags::empty() },
        scope: AddressScope::Universe,
        index,
    };
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

fn neighbour_message(address: IpAddr, index: u32, mac: Option<MacAddr6>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: family(address),
        ifindex: index,
        state: NeighbourState::Permanent,
        ..NeighbourHeader::default()
    };
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.extend(mac.map(link_layer_address));
    message
}

/// A deletion names no destination and so means all of the MAC's.
fn fdb_message(mac: MacAddr6, index: u32, destination: Option<IpAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: AddressFamily::Bridge,
        ifindex: index,
        state: NeighbourState::Permanent,
        // In the device's own table, not in that of a bridge above it.
        flags: NeighbourFlags::Own,
        ..NeighbourHeader::default()
    };
    message.attributes.push(link_layer_address(mac));
    message.attributes.extend(destination.map(|ip| NeighbourAttribute::Destination(ip.into())));
    message
}

fn link_layer_address(mac: MacAddr6) -> NeighbourAttribute {
    NeighbourAttribute::LinkLayerAddress(mac.as_bytes().to_vec())
}

fn route_message(
    key: &RouteKey,
    route: &Route,
    index: impl Fn(LinkName) -> Option<u32>,
) -> Option<RouteMessage> {
    let destination = key.destination.network();
    let straight = matches!(route.target, RouteTarget::Link(_));
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(destination),
        destination_prefix_length: key.destination.prefix(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(route.protocol),
        // As `ip route` chooses: what is reached without a gateway is on the link. IPv6 knows no scopes.
        scope: if straight && destination.is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let priority = (key.metric != 0).then_some(RouteAttribute::Priority(key.metric));
    message.attributes = vec![RouteAttribute::Destination(destination.into())];
    match route.target {
        RouteTarget::Via { gateway, link, onlink } => {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            message.attributes.extend(priority);
            message.attributes.push(RouteAttribute::Oif(index(link)?));
            if onlink {
                message.header.flags = RouteFlags::Onlink;
            }
        }
        // The object says the rest, and what it says may not be said twice.
        RouteTarget::NextHop { id, .. } => {
            message.attributes.extend(priority);
            message.attributes.push(RouteAttribute::NhId(id.0));
        }
        RouteTarget::Link(link) => {
            message.attributes.extend(priority);
            message.attributes.push(RouteAttribute::Oif(index(link)?));
        }
        RouteTarget::Blackhole => {
            message.attributes.extend(priority);
            message.header.kind = RouteType::BlackHole;
        }
    }
    Some(message)
}

#[cfg(test)]
mod tests;
