//! Routes in the main table.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::gateway::{Gateway, NextHopId, ROUTE_PROTOCOL};
use super::link_name::LinkName;
use super::{Edit, Kind, Name, Upheaval, next_hop};
use crate::KernelError;
use crate::netlink::entry;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::{Request, family, with_flags};
use crate::netlink::object::{InTheWay, NetlinkObject, Notification, Told};
use crate::netlink::reading::{Reading, without_family};
use crate::netlink::socket::breaks_socket;
use crate::netlink::wire::{Attributes, Frame, u32_at};
use crate::netlink::words;

/// Routes in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routes {}

/// `rtm_protocol` of routes that the kernel makes itself (`RTPROT_KERNEL`).
const BY_KERNEL: u8 = libc::RTPROT_KERNEL;

/// The identity of a route in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination network.
    pub destination: IpNetwork,
    /// Metric; the lowest wins. IPv4 uses 0 by default, IPv6 1024.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The next step.
    pub target: RouteTarget,
    /// `rtm_protocol`: [`ROUTE_PROTOCOL`] in wanted routes; any value in a snapshot.
    pub protocol: u8,
}

/// The next step of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTarget {
    /// To a next hop on a device.
    Via {
        /// The next hop.
        gateway: IpAddr,
        /// The device.
        link: LinkName,
        /// Treat the next hop as reachable on the device although no route says so.
        onlink: bool,
    },
    /// To a next hop object.
    NextHop {
        /// The object.
        id: NextHopId,
        /// The device that the object leads to.
        link: LinkName,
    },
    /// Directly out of a device.
    Link(LinkName),
    /// Dropped silently.
    Blackhole,
    /// To no route of this table, also not a shorter one. Without other tables: network unreachable.
    Throw,
}

impl RouteTarget {
    /// Returns the device that packets leave through, if any.
    pub fn link(&self) -> Option<LinkName> {
        match *self {
            Self::Via { link, .. } | Self::NextHop { link, .. } | Self::Link(link) => Some(link),
            Self::Blackhole | Self::Throw => None,
        }
    }
}

impl Kind for Routes {
    type Key = RouteKey;
    type Value = Route;

    const NAME: Name = Name { short: "route", one: "route", many: "routes" };
    const ADD_OVERWRITES: bool = false;
    const NEEDS_DEVICE_UP: bool = true;

    fn show(key: &RouteKey, route: &Route, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{key} {route}")
    }

    fn is_marked(route: &Route) -> bool {
        route.protocol == ROUTE_PROTOCOL
    }

    fn is_default_route(key: &RouteKey) -> bool {
        key.destination.prefix() == 0
    }

    fn device(_: &RouteKey, route: &Route) -> Option<LinkName> {
        route.target.link()
    }

    fn survives(key: &RouteKey, route: &Route, upheaval: &Upheaval) -> bool {
        let is_ipv4_by_itself = key.destination.is_ipv4() && Self::next_hop(route).is_none();
        !(upheaval.anew || upheaval.is_down || upheaval.loses_ipv4 && is_ipv4_by_itself)
    }

    /// Returns false for a route with a next hop object: it disappears with the object, which may have moved.
    fn goes_with_device(route: &Route) -> bool {
        Self::next_hop(route).is_none()
    }

    /// Compares as the kernel does: the device of a next hop object is not part of the route.
    fn is_named_by(standing: &Route, named: &Route) -> bool {
        standing.protocol == named.protocol
            && match (Self::next_hop(standing), Self::next_hop(named)) {
                (None, None) => standing.target == named.target,
                (standing, named) => standing == named,
            }
    }

    fn next_hop(route: &Route) -> Option<NextHopId> {
        match route.target {
            RouteTarget::NextHop { id, .. } => Some(id),
            _ => None,
        }
    }

    fn inline(route: &Route, gateway: &Gateway) -> Route {
        let Gateway { address: gateway, link, onlink } = *gateway;
        Route { target: RouteTarget::Via { gateway, link, onlink }, ..*route }
    }

    fn moved(route: &Route, gateway: &Gateway) -> Route {
        match route.target {
            RouteTarget::NextHop { id, .. } => {
                Route { target: RouteTarget::NextHop { id, link: gateway.link }, ..*route }
            }
            _ => *route,
        }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        // As `ip route` prints it: the default metric of the family is left out.
        let usual = if self.destination.is_ipv4() { 0 } else { 1024 };
        if self.metric == usual { Ok(()) } else { write!(f, " metric {}", self.metric) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            RouteTarget::Via { gateway, link, onlink } => {
                write!(f, "{}", Gateway { address: gateway, link, onlink })?;
            }
            RouteTarget::NextHop { id, link } => write!(f, "nhid {} dev {link}", id.0)?,
            RouteTarget::Link(link) => write!(f, "dev {link}")?,
            RouteTarget::Blackhole => f.write_str("blackhole")?,
            RouteTarget::Throw => f.write_str("throw")?,
        }
        if self.protocol == ROUTE_PROTOCOL { Ok(()) } else { write!(f, " proto {}", self.protocol) }
    }
}

impl NetlinkObject for Routes {
    const MESSAGES: &[u16] = &[libc::RTM_NEWROUTE, libc::RTM_DELROUTE];

    fn request(edit: &Edit<Self>, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        Some(match edit {
            Edit::Add { key, value } => with_flags(
                RouteNetlinkMessage::NewRoute(message(key, value, index)?),
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL,
            ),
            Edit::Replace { key, value, .. } => with_flags(
                RouteNetlinkMessage::NewRoute(message(key, value, index)?),
                NLM_F_REQUEST | NLM_F_REPLACE,
            ),
            Edit::Delete { key, held } => {
                let mut message = message(key, held, index)?;
                // The kernel takes this as "any scope" (`fib_table_delete` in `net/ipv4/fib_trie.c`).
                message.header.scope = RouteScope::NoWhere;
                with_flags(RouteNetlinkMessage::DelRoute(message), NLM_F_REQUEST)
            }
        })
    }

    /// Describes the route of another program that blocks each of these. Skips a route of ours that we did not know of.
    fn in_the_way(
        edits: &[&Edit<Self>],
        lookup: &mut Lookup<'_>,
    ) -> Result<Vec<Option<InTheWay>>, KernelError> {
        let places: BTreeMap<RouteKey, usize> = edits.iter().map(|edit| *edit.key()).zip(0..).collect();
        let mut found: Vec<Option<InTheWay>> = edits.iter().map(|_| None).collect();
        for (family, ipv6) in [(AddressFamily::Inet, false), (AddressFamily::Inet6, true)] {
            if !places.keys().any(|key| key.destination.is_ipv6() == ipv6) {
                continue;
            }
            let routes = lookup.dump(&dump(family, RouteFilter::All), |body| {
                RawRoute::read(body).filter(|route| places.contains_key(&route.key))
            });
            let routes = match without_family(routes) {
                Ok(routes) => routes,
                Err(error) if breaks_socket(&error) => return Err(error),
                Err(_) => continue,
            };
            for route in routes {
                let on_ours = route.target.index().is_some_and(|index| lookup.ours(index).is_some());
                let Some(&place) = places.get(&route.key).filter(|_| !route.is_ours(on_ours)) else {
                    continue;
                };
                // flannel's host-gw leaves such routes.
                let is_as_good = leads_as(&route, edits[place].value(), lookup);
                found[place] = Some(match is_as_good {
                    true => InTheWay::AsGood,
                    false => InTheWay::Taken(in_words(&route, |index| lookup.name(index))),
                });
            }
        }
        Ok(found)
    }

    /// Reads both families: routes with our protocol number and routes into our devices. If several have one key, keeps
    /// the one that the kernel uses.
    fn read(reading: &mut Reading<'_>) -> Result<Vec<(RouteKey, Route)>, KernelError> {
        let links = reading.ours().into_iter().map(|(index, _)| RouteFilter::Link(index));
        let filters: Vec<RouteFilter> =
            std::iter::once(RouteFilter::Protocol(ROUTE_PROTOCOL)).chain(links).collect();
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for &filter in &filters {
                let by_protocol = matches!(filter, RouteFilter::Protocol(_));
                let Reading { socket, next_hops, ours, .. } = &mut *reading;
                let found = socket.dump(&dump(family, filter), Vec::new, |found, body| {
                    // Take each route from only one of the dumps: we made most routes into our devices.
                    let of_this_dump = (protocol(body) == Some(ROUTE_PROTOCOL)) == by_protocol;
                    if of_this_dump && body.first().copied() == Some(u8::from(family)) {
                        let route = RawRoute::read(body).map(|route| route.led_by(next_hops));
                        found.extend(route.filter(|route| {
                            route.is_ours(route.target.index().is_some_and(|index| ours.contains_key(&index)))
                        }));
                    }
                });
                all.extend(without_family(found)?);
            }
        }
        // The kernel lists routes in lookup order, and uses the first of several with one key.
        all.sort_by_key(|route| route.key);
        all.dedup_by_key(|route| route.key);
        let mut ours = Vec::with_capacity(all.len());
        for RawRoute { key, protocol, target } in all {
            let link = target.index().map(|index| reading.must_find(index)).transpose()?;
            ours.extend(target.named(link).map(|target| (key, Route { target, protocol })));
        }
        Ok(ours)
    }

    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        let Some(mut route) = RawRoute::read(frame.body) else { return };
        if let RawTarget::NextHop { id, index: index @ None } = &mut route.target {
            *index = next_hop::index_of(*id, lookup);
        }
        // The default route decides which interface is the external one.
        if route.is_default() {
            tell(Notification::DefaultRoute);
        }
        let ours = route.is_ours(route.target.index().is_some_and(|index| lookup.ours(index).is_some()));
        if frame.kind == libc::RTM_DELROUTE {
            // A route that was not ours may have blocked a wanted one.
            return tell(Notification::Fact((route.key, None)));
        }
        // It was added after another of the same key; the message does not say which of them is used.
        let is_second = frame.flags & NLM_F_APPEND != 0
            && (ours || (route.target == RawTarget::Several && !route.is_by_kernel()));
        if is_second {
            tell(Notification::Unknown);
        } else if ours {
            let link = route.target.index().and_then(|index| lookup.name(index));
            let Some(target) = route.target.named(link) else { return };
            tell(Notification::Fact((route.key, Some(Route { target, protocol: route.protocol }))));
        } else if frame.flags & NLM_F_REPLACE != 0 || frame.flags & (NLM_F_EXCL | NLM_F_APPEND) == 0 {
            // It may have replaced one of ours, or precede it.
            tell(Notification::Fact((route.key, None)));
        }
    }
}

/// Returns whether a route of another program leads where ours would.
fn leads_as(found: &RawRoute, route: &Route, lookup: &mut Lookup<'_>) -> bool {
    let RawTarget::Device { index, gateway: Some(found), .. } = found.target else { return false };
    let gateway = match route.target {
        RouteTarget::Via { gateway, .. } => gateway,
        RouteTarget::NextHop { id, .. } => Ipv4Addr::from_bits(id.0).into(),
        RouteTarget::Link(_) | RouteTarget::Blackhole | RouteTarget::Throw => return false,
    };
    gateway == found && lookup.name(index) == route.target.link()
}

/// Describes a route of another program: `10.5.3.0/24 via 192.168.64.1 dev eth0 proto static`.
fn in_words(route: &RawRoute, name: impl FnMut(u32) -> Option<LinkName>) -> String {
    let mut text = route.key.to_string();
    match route.target {
        RawTarget::Device { index, gateway, .. } => {
            if let Some(gateway) = gateway {
                let _ = write!(text, " via {gateway}");
            }
            words::device(&mut text, Some(index), name);
        }
        RawTarget::NextHop { id, index } => {
            let _ = write!(text, " nhid {}", id.0);
            words::device(&mut text, index, name);
        }
        RawTarget::Blackhole => text.insert_str(0, "blackhole "),
        RawTarget::Throw => text.insert_str(0, "throw "),
        RawTarget::Several => text.push_str(" with several next hops"),
        RawTarget::Other(kind) => text.insert_str(0, kind_of_route(kind)),
    }
    let _ = write!(text, " proto {}", words::protocol(route.protocol));
    text
}

fn kind_of_route(kind: u8) -> &'static str {
    match kind {
        libc::RTN_LOCAL => "local ",
        libc::RTN_BROADCAST => "broadcast ",
        libc::RTN_ANYCAST => "anycast ",
        libc::RTN_MULTICAST => "multicast ",
        libc::RTN_UNREACHABLE => "unreachable ",
        libc::RTN_PROHIBIT => "prohibit ",
        _ => "",
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum RouteFilter {
    All,
    Protocol(u8),
    Link(u32),
}

/// Requests routes of the main table. A kernel without dump filters sends all routes of all tables.
pub(crate) fn dump(family: AddressFamily, filter: RouteFilter) -> Request {
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

fn message(key: &RouteKey, route: &Route, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<RouteMessage> {
    let destination = key.destination.network();
    let straight = matches!(route.target, RouteTarget::Link(_));
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(destination),
        destination_prefix_length: key.destination.prefix(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(route.protocol),
        // The scope that `ip route` chooses: link if there is no gateway. IPv6 has no scopes.
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
        // The object says the rest, and the kernel refuses to be told twice.
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
        RouteTarget::Throw => {
            message.attributes.extend(priority);
            message.header.kind = RouteType::Throw;
        }
    }
    Some(message)
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawRoute {
    pub(crate) key: RouteKey,
    pub(crate) protocol: u8,
    pub(crate) target: RawTarget,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawTarget {
    Device {
        index: u32,
        gateway: Option<IpAddr>,
        onlink: bool,
    },
    /// To a next hop object; not every kernel reports where it leads.
    NextHop {
        id: NextHopId,
        index: Option<u32>,
    },
    Blackhole,
    Throw,
    /// A unicast route with several next hops.
    Several,
    /// Another type (`RTN_*`), which we never make.
    Other(u8),
}

impl RawTarget {
    /// Returns the device, if there is one and it is known.
    pub(crate) fn index(&self) -> Option<u32> {
        match *self {
            Self::Device { index, .. } => Some(index),
            Self::NextHop { index, .. } => index,
            Self::Blackhole | Self::Throw | Self::Several | Self::Other(_) => None,
        }
    }

    /// Returns the same with the name of the device. `None` for targets that we never make, or without a required name.
    fn named(&self, link: Option<LinkName>) -> Option<RouteTarget> {
        Some(match *self {
            Self::Blackhole => RouteTarget::Blackhole,
            Self::Throw => RouteTarget::Throw,
            Self::Device { gateway: Some(gateway), onlink, .. } => {
                RouteTarget::Via { gateway, link: link?, onlink }
            }
            Self::Device { gateway: None, .. } => RouteTarget::Link(link?),
            Self::NextHop { id, .. } => RouteTarget::NextHop { id, link: link? },
            Self::Several | Self::Other(_) => return None,
        })
    }
}

impl RawRoute {
    /// Reads the body of a route message. `None` for a route of another table, for one that depends on more than the
    /// destination, and for those that the kernel makes for link-local addresses and groups.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        const FIXED_BYTES: usize = 12;
        const RTA_NH_ID: u16 = 30;
        const RTNH_F_ONLINK: u32 = 4;
        let &[family, length, source_length, tos, table, protocol, _, kind] = body.first_chunk()?;
        let flags = u32_at(body, 8)?;
        if source_length != 0 || tos != 0 || flags & libc::RTM_F_CLONED != 0 {
            return None;
        }
        let mut table = u32::from(table);
        let (mut destination, mut metric) = (None, 0);
        let (mut index, mut gateway, mut id, mut several) = (None, None, None, false);
        for (attribute, value) in Attributes::behind(body, FIXED_BYTES) {
            match attribute {
                libc::RTA_TABLE => table = u32_at(value, 0)?,
                libc::RTA_DST => destination = entry::ip(value),
                libc::RTA_PRIORITY => metric = u32_at(value, 0)?,
                libc::RTA_OIF => index = u32_at(value, 0),
                libc::RTA_GATEWAY => gateway = entry::ip(value),
                // A gateway of another family than the destination; its family precedes it.
                libc::RTA_VIA => gateway = value.get(2..).and_then(entry::ip),
                libc::RTA_MULTIPATH => several = true,
                RTA_NH_ID => id = u32_at(value, 0).map(NextHopId),
                _ => {}
            }
        }
        if table != u32::from(libc::RT_TABLE_MAIN) {
            return None;
        }
        let destination = destination.or(match i32::from(family) {
            libc::AF_INET => Some(IpAddr::from([0; 4])),
            libc::AF_INET6 => Some(IpAddr::from([0; 16])),
            _ => None,
        })?;
        if matches!(destination, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast()) {
            return None;
        }
        let key = RouteKey { destination: IpNetwork::new(destination, length).ok()?, metric };
        let target = match (kind, id, index) {
            (libc::RTN_BLACKHOLE, None, _) => RawTarget::Blackhole,
            (libc::RTN_THROW, None, _) => RawTarget::Throw,
            (libc::RTN_UNICAST, _, _) if several => RawTarget::Several,
            (libc::RTN_UNICAST, Some(id), index) => RawTarget::NextHop { id, index },
            (libc::RTN_UNICAST, None, Some(index)) => {
                RawTarget::Device { index, gateway, onlink: flags & RTNH_F_ONLINK != 0 }
            }
            _ => RawTarget::Other(kind),
        };
        Some(Self { key, protocol, target })
    }

    /// Fills in the device that its next hop object leads to, which not every kernel reports with the route
    /// (`net.ipv4.nexthop_compat_mode`).
    fn led_by(mut self, next_hops: &BTreeMap<NextHopId, u32>) -> Self {
        if let RawTarget::NextHop { id, index } = &mut self.target
            && let Some(known) = next_hops.get(id)
        {
            *index = Some(*known);
        }
        self
    }

    pub(crate) fn is_default(&self) -> bool {
        self.key.destination.prefix() == 0
    }

    /// Implements [`Ownership`](crate::Ownership) for a route that leads into a device of ours or not.
    pub(crate) fn is_ours(&self, on_ours: bool) -> bool {
        match self.target {
            RawTarget::Several | RawTarget::Other(_) => false,
            _ => self.protocol == ROUTE_PROTOCOL || (on_ours && !self.is_by_kernel()),
        }
    }

    /// Returns whether the kernel made it, for an address.
    pub(crate) fn is_by_kernel(&self) -> bool {
        self.protocol == BY_KERNEL
    }
}

/// Reads `rtm_protocol` from the body of a route message.
pub(crate) fn protocol(body: &[u8]) -> Option<u8> {
    body.get(5).copied()
}

#[cfg(test)]
mod tests;
