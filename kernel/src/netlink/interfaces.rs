//! The host's own interfaces and routes, for choosing the interface that carries the overlay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;
use tokio::time::timeout;

use super::entry::link_name;
use super::link_message::update_link;
use super::reading::without_family;
use super::socket::{Socket, breaks_socket, socket_error};
use crate::KernelError;
use crate::kind::link::LinkChange;
use crate::kind::link_name::LinkName;

/// How long the kernel may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// How often a dump is restarted because the table changed while it was read.
const DUMP_ATTEMPTS: usize = 5;

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
    /// Whether the link works: a cable is plugged in, the other end is up.
    pub carrier: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Its addresses with prefix lengths. Global scope comes first, and there permanent addresses before temporary and
    /// deprecated ones; otherwise in the kernel's order.
    pub addresses: Vec<IpNetwork>,
    /// Addresses that the kernel does not use towards other hosts: link or host scope, or duplicates of another host's
    /// address on the link (`dadfailed` in `ip address`).
    pub confined: BTreeSet<IpAddr>,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// The index of the bridge, bond or VRF that this interface belongs to (`master` in `ip link`).
    pub master: Option<u32>,
}

/// Returns all interfaces of the current network namespace, by index. Must be called in a tokio runtime.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer, or a device has an invalid name.
pub async fn interfaces() -> Result<Vec<Interface>, KernelError> {
    let mut handle = connect()?;
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut interfaces = BTreeMap::new();
    for answer in dump(&mut handle, &RouteNetlinkMessage::GetLink(request)).await? {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            interfaces.insert(link.header.index, interface(&link)?);
        }
    }
    let answers = dump(&mut handle, &RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
    let mut addresses: Vec<Ranked> = answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => ranked(address),
            _ => None,
        })
        .collect();
    addresses.sort_by_key(|address| address.rank);
    for address in addresses {
        if let Some(interface) = interfaces.get_mut(&address.index) {
            interface.addresses.push(address.network);
            if address.confined {
                interface.confined.insert(address.network.ip());
            }
        }
    }
    Ok(interfaces.into_values().collect())
}

/// Returns the indices of the interfaces that default routes of the main table lead to: lowest metric first, and each
/// interface once. Must be called in a tokio runtime.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub async fn default_routes(ipv6: bool) -> Result<Vec<u32>, KernelError> {
    let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let answers = dump(&mut connect()?, &RouteNetlinkMessage::GetRoute(request)).await;
    let found = without_family(answers)?.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family => default(&route),
        _ => None,
    });
    Ok(by_metric(found.collect()))
}

/// Returns the current name of the interface; `None` if it does not exist.
pub fn name_of(index: u32) -> Option<LinkName> {
    nix::net::if_::if_indextoname(index).ok()?.to_str().ok()?.parse().ok()
}

/// Returns whether this process may change the kernel state of its network namespace. Asks the kernel, because the
/// capabilities of a process in a user namespace say nothing about a network namespace outside of it.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub fn may_change() -> Result<bool, KernelError> {
    // No interface has this index. The kernel says so only to a process that may change interfaces.
    let nothing = update_link(i32::MAX.unsigned_abs(), &LinkChange::default());
    match Socket::open()?.change_one(nothing) {
        Err(error) if error.errno() == Some(libc::EPERM) => Ok(false),
        Err(error) if breaks_socket(&error) => Err(error),
        _ => Ok(true),
    }
}

/// Returns the index of the interface through which a packet to `ip` would leave, and its source address. Must be
/// called in a tokio runtime.
///
/// # Errors
/// [`KernelError::Errno`] with `ENETUNREACH` or similar if there is no route; other errors if the netlink socket cannot
/// be opened or does not answer.
pub async fn route_to(ip: IpAddr) -> Result<(u32, Option<IpAddr>), KernelError> {
    let mut request = RouteMessage::default();
    request.header.address_family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    request.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    request.attributes.push(RouteAttribute::Destination(ip.into()));
    let (answers, _) = ask(&mut connect()?, RouteNetlinkMessage::GetRoute(request), 0).await?;
    match answers.first() {
        Some(RouteNetlinkMessage::NewRoute(route)) => way(route).ok_or(KernelError::Errno(libc::ENETUNREACH)),
        other => Err(KernelError::Message(format!("unexpected answer about a route: {other:?}"))),
    }
}

/// Returns whether the kernel drops a packet from `source` to `own`, an address of this host, that arrives on the interface
/// with this index: where `rp_filter` is strict, because the way back leads elsewhere, with all rules and routes. Must be
/// called in a tokio runtime.
///
/// # Errors
/// As [`route_to`].
pub async fn is_refused_from(source: IpAddr, own: IpAddr, index: u32) -> Result<bool, KernelError> {
    let mut request = RouteMessage::default();
    request.header.address_family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let length = if own.is_ipv4() { 32 } else { 128 };
    (request.header.destination_prefix_length, request.header.source_prefix_length) = (length, length);
    request.attributes.extend([
        RouteAttribute::Destination(own.into()),
        RouteAttribute::Source(source.into()),
        RouteAttribute::Iif(index),
    ]);
    match ask(&mut connect()?, RouteNetlinkMessage::GetRoute(request), 0).await {
        // As `ip route get OWN from SOURCE iif NAME` says it: "Invalid cross-device link"; since Linux 6.13 "Invalid argument".
        Err(error) if matches!(error.errno(), Some(libc::EXDEV | libc::EINVAL)) => Ok(true),
        answer => answer.map(|_| false),
    }
}

/// Opens a separate socket for a few questions; its task ends with the handle.
fn connect() -> Result<Handle, KernelError> {
    // With strict checks the kernel filters; without (before 4.20) it sends everything, and we drop the rest.
    let (connection, handle, _unsolicited) = rtnetlink::new_connection_with_strict_check()
        .or_else(|_| rtnetlink::new_connection())
        .map_err(socket_error)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Reads a table consistently: repeats a dump during which the kernel reports a change.
async fn dump(
    handle: &mut Handle,
    request: &RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
    for _ in 0..DUMP_ATTEMPTS {
        if let (answers, true) = ask(handle, request.clone(), NLM_F_DUMP).await? {
            return Ok(answers);
        }
    }
    Err(KernelError::Interrupted)
}

/// Returns all answers to a question, and whether they are consistent.
async fn ask(
    handle: &mut Handle,
    request: RouteNetlinkMessage,
    flags: u16,
) -> Result<(Vec<RouteNetlinkMessage>, bool), KernelError> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | flags;
    let mut answers = handle.request(message).map_err(|error| KernelError::Socket(error.to_string()))?;
    let (mut found, mut consistent) = (Vec::new(), true);
    while let Some(answer) = timeout(LIMIT, answers.next()).await.map_err(|_| KernelError::TimedOut(LIMIT))? {
        consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(inner) => found.push(inner),
            NetlinkPayload::Error(error) => {
                return Err(KernelError::Errno(error.raw_code().saturating_neg()));
            }
            other => return Err(KernelError::Message(format!("unexpected answer: {other:?}"))),
        }
    }
    Ok((found, consistent))
}

fn interface(link: &LinkMessage) -> Result<Interface, KernelError> {
    let mut interface = Interface {
        name: link_name(link)?,
        index: link.header.index,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        carrier: link.header.flags.contains(LinkFlags::LowerUp),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        addresses: Vec::new(),
        confined: BTreeSet::new(),
        bridge: false,
        master: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(index) => interface.master = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(infos) => {
                interface.bridge = infos.iter().any(|info| match info {
                    LinkInfo::Kind(InfoKind::Bridge) => true,
                    LinkInfo::Kind(InfoKind::Other(kind)) => kind == "openvswitch",
                    _ => false,
                });
            }
            _ => {}
        }
    }
    Ok(interface)
}

/// Returns our end: on a point-to-point link `IFA_ADDRESS` is the other one.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
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

struct Ranked {
    index: u32,
    network: IpNetwork,
    /// Lower sorts first.
    rank: (u8, bool),
    /// See [`Interface::confined`].
    confined: bool,
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
    // On IPv6 addresses the flag `Secondary` means temporary; on IPv4, a further address in a subnet.
    let passing = flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated);
    let scope = u8::from(header.scope);
    Some(Ranked {
        index: header.index,
        network: IpNetwork::new(own_address(address)?, header.prefix_len).ok()?,
        rank: (scope, passing),
        confined: scope >= AddressScope::Link.into() || flags.contains(AddressFlags::Dadfailed),
    })
}

/// Returns the interfaces in the order in which the kernel would use them. Of equal metrics it uses the first.
fn by_metric(mut routes: Vec<(u32, Vec<u32>)>) -> Vec<u32> {
    routes.sort_by_key(|(metric, _)| *metric);
    let mut seen = BTreeSet::new();
    routes.into_iter().flat_map(|(_, hops)| hops).filter(|index| seen.insert(*index)).collect()
}

/// Returns metric and interfaces of a default route; of several next hops, working ones come first.
fn default(route: &RouteMessage) -> Option<(u32, Vec<u32>)> {
    let header = &route.header;
    let mut table = u32::from(header.table);
    let (mut metric, mut hops) = (0, Vec::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(oif) => hops = vec![*oif],
            RouteAttribute::MultiPath(several) => {
                let fails = |flags: RouteNextHopFlags| {
                    flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
                };
                let mut several: Vec<_> = several.iter().collect();
                several.sort_by_key(|hop| fails(hop.flags));
                hops = several.iter().map(|hop| hop.interface_index).collect();
            }
            _ => {}
        }
    }
    let is_default = header.destination_prefix_length == 0
        && header.kind == RouteType::Unicast
        && header.source_prefix_length == 0
        && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    (is_default && !hops.is_empty()).then_some((metric, hops))
}

fn way(route: &RouteMessage) -> Option<(u32, Option<IpAddr>)> {
    if !matches!(route.header.kind, RouteType::Unicast | RouteType::Local | RouteType::Anycast) {
        return None;
    }
    let (mut index, mut source) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some((*ip).into()),
            _ => {}
        }
    }
    Some((index?, source))
}

#[cfg(test)]
mod tests {
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
        assert_eq!(default(&default_by(attributes.clone())), Some((100, vec![2])));
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
    fn of_a_default_route_with_several_next_hops_those_that_work_come_first() {
        let hop = |index, flags| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.flags = flags;
            hop
        };
        let hops = vec![
            hop(2, RouteNextHopFlags::Linkdown),
            hop(3, RouteNextHopFlags::empty()),
            hop(4, RouteNextHopFlags::empty()),
        ];
        let route = default_by(vec![RouteAttribute::MultiPath(hops)]);
        assert_eq!(default(&route), Some((0, vec![3, 4, 2])));
    }

    #[test]
    fn default_routes_come_by_metric_and_equal_ones_in_the_order_of_the_kernel() {
        let routes = vec![(200, vec![5]), (100, vec![4, 2]), (100, vec![3]), (0, vec![2])];
        assert_eq!(by_metric(routes), [2, 4, 3, 5]);
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

    #[test]
    fn an_address_is_confined_by_its_scope_or_by_another_host_that_has_it() {
        let confined = |scope, flags| {
            let mut address = AddressMessage::default();
            address.header.scope = scope;
            address.attributes =
                vec![AddressAttribute::Address([10, 0, 0, 1].into()), AddressAttribute::Flags(flags)];
            ranked(&address).unwrap().confined
        };
        assert!(!confined(AddressScope::Universe, AddressFlags::Permanent));
        assert!(confined(AddressScope::Universe, AddressFlags::Dadfailed));
        assert!(confined(AddressScope::Link, AddressFlags::Permanent));
        assert!(confined(AddressScope::Host, AddressFlags::Permanent));
    }
}
