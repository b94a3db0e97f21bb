//! The way from the state that is to the state that is wanted, as ordered operations. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use macaddr::MacAddr6;

use crate::change::Object;
use crate::source::{Check, Source};
use crate::state::{
    Address, FdbEntry, Link, LinkKind, LinkName, Neighbour, NextHop, NextHopId, ROUTE_PROTOCOL, Route,
    RouteKey, RouteTarget, State, Vxlan,
};

/// One change to the kernel. Displayed as one readable line in the words of `ip(8)` and `bridge(8)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Makes a device with everything that [`Link`] says. Fails with `EEXIST` if the name is taken.
    CreateLink {
        /// The device's name.
        name: LinkName,
        /// What it shall be.
        link: Link,
    },
    /// Deletes a device and makes it anew, for what the kernel does not change in place. Everything on the device
    /// is gone afterwards.
    ReplaceLink {
        /// The device's name.
        name: LinkName,
        /// What it shall be.
        link: Link,
        /// Each field that differs, with both values: `port is 4789, want 8472`.
        because: String,
    },
    /// Changes a device in place.
    UpdateLink {
        /// The device's name.
        name: LinkName,
        /// What changes.
        change: LinkChange,
    },
    /// Deletes a device with everything on it.
    DeleteLink {
        /// The device's name.
        name: LinkName,
    },
    /// Adds an address; one that is there already is as good.
    AddAddress(Address),
    /// Deletes an address.
    DeleteAddress(Address),
    /// Makes a permanent neighbour, or changes its MAC.
    SetNeighbour {
        /// Which.
        neighbour: Neighbour,
        /// The MAC behind it.
        mac: MacAddr6,
    },
    /// Deletes a neighbour.
    DeleteNeighbour(Neighbour),
    /// Makes a permanent forwarding entry, or changes its destination.
    SetFdb {
        /// Which.
        entry: FdbEntry,
        /// The underlay address that the outer packet goes to.
        destination: IpAddr,
    },
    /// Deletes a forwarding entry.
    DeleteFdb(FdbEntry),
    /// Makes a next hop object. Fails with `EEXIST` where another program has one of that id.
    AddNextHop {
        /// Its id.
        id: NextHopId,
        /// What it is.
        next_hop: NextHop,
    },
    /// Changes a next hop object of ours, and with it every route that names it.
    ReplaceNextHop {
        /// Its id.
        id: NextHopId,
        /// What it shall be.
        next_hop: NextHop,
    },
    /// Deletes a next hop object, and with it every route that still names it.
    DeleteNextHop(NextHopId),
    /// Adds a route. Fails with `EEXIST` where any route of the same destination and metric stands: that one is not
    /// ours, and we do not overwrite it.
    AddRoute {
        /// Destination and metric.
        key: RouteKey,
        /// Where it leads.
        route: Route,
    },
    /// Changes a route of ours in one step, without a moment in which there is none. Fails with `ENOENT` if it is gone.
    ReplaceRoute {
        /// Destination and metric.
        key: RouteKey,
        /// Where it shall lead.
        route: Route,
    },
    /// Deletes exactly this route, and none that leads elsewhere.
    DeleteRoute {
        /// Destination and metric.
        key: RouteKey,
        /// Where it leads now.
        route: Route,
    },
    /// Lets a sender in; one that is let in already is as good.
    AddSource(Source),
    /// Lets a sender in no longer.
    DeleteSource(Source),
    /// Begins to measure senders.
    AddCheck(Check),
    /// Measures them no longer.
    DeleteCheck(Check),
}

impl Operation {
    /// What the operation is about.
    pub fn object(&self) -> Object {
        match *self {
            Self::CreateLink { name, .. }
            | Self::ReplaceLink { name, .. }
            | Self::UpdateLink { name, .. }
            | Self::DeleteLink { name } => Object::Link(name),
            Self::AddAddress(address) | Self::DeleteAddress(address) => Object::Address(address),
            Self::SetNeighbour { neighbour, .. } | Self::DeleteNeighbour(neighbour) => {
                Object::Neighbour(neighbour)
            }
            Self::SetFdb { entry, .. } | Self::DeleteFdb(entry) => Object::Fdb(entry),
            Self::AddNextHop { id, .. } | Self::ReplaceNextHop { id, .. } | Self::DeleteNextHop(id) => {
                Object::NextHop(id)
            }
            Self::AddRoute { key, .. } | Self::ReplaceRoute { key, .. } | Self::DeleteRoute { key, .. } => {
                Object::Route(key)
            }
            Self::AddSource(source) | Self::DeleteSource(source) => Object::Source(source),
            Self::AddCheck(check) | Self::DeleteCheck(check) => Object::Check(check),
        }
    }

    /// The device that must be there for the operation; `None` for one about a device itself, and for what needs none.
    pub fn link(&self) -> Option<LinkName> {
        match self {
            Self::AddAddress(address) | Self::DeleteAddress(address) => Some(address.link),
            Self::SetNeighbour { neighbour, .. } | Self::DeleteNeighbour(neighbour) => Some(neighbour.link),
            Self::SetFdb { entry, .. } | Self::DeleteFdb(entry) => Some(entry.link),
            Self::AddNextHop { next_hop, .. } | Self::ReplaceNextHop { next_hop, .. } => Some(next_hop.link),
            Self::AddRoute { route, .. }
            | Self::ReplaceRoute { route, .. }
            | Self::DeleteRoute { route, .. } => route.target.link(),
            Self::DeleteNextHop(_)
            | Self::CreateLink { .. }
            | Self::ReplaceLink { .. }
            | Self::UpdateLink { .. }
            | Self::DeleteLink { .. }
            | Self::AddSource(_)
            | Self::DeleteSource(_)
            | Self::AddCheck(_)
            | Self::DeleteCheck(_) => None,
        }
    }
}

/// What is to change on a device; `None` leaves a field as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// The device's MAC. The kernel changes it on a device that is up, and drops all neighbours of that device,
    /// permanent ones too (`neigh_changeaddr` in `net/core/neighbour.c`).
    pub mac: Option<MacAddr6>,
    /// Largest inner IP packet in bytes.
    pub mtu: Option<u32>,
    /// Administratively up. Going down drops the device's routes, neighbours and IPv6 addresses.
    pub up: Option<bool>,
}

/// The operations that lead from `actual` to `desired`, in an order that never leaves a gap: first everything that is
/// added or changed (links, addresses, senders, neighbours, forwarding entries, next hops, then routes, so that no route
/// leads to a next hop that cannot be resolved; checks last, when every sender is known), then everything that is deleted,
/// the other way round.
///
/// What goes down with a device is neither deleted by itself nor taken for present: the routes of a device that is
/// down, everything on a device that is replaced, and the neighbours of a device whose MAC changes are added anew.
pub fn diff(desired: &State, actual: &State) -> Vec<Operation> {
    // What is wanted of a new host; grown step by step, it would be copied as often.
    let State { neighbours, fdb, next_hops, routes, sources, .. } = desired;
    let most = neighbours.len() + fdb.len() + next_hops.len() + routes.len() + sources.len();
    let mut operations = Vec::with_capacity(most);
    let lost = add_links(desired, actual, &mut operations);
    add_addresses(desired, actual, &lost, &mut operations);
    operations.extend(desired.sources.difference(&actual.sources).copied().map(Operation::AddSource));
    add_neighbours(desired, actual, &lost, &mut operations);
    add_fdb(desired, actual, &lost, &mut operations);
    add_next_hops(desired, actual, &lost, &mut operations);
    add_routes(desired, actual, &lost, &mut operations);
    operations.extend(desired.checks.difference(&actual.checks).copied().map(Operation::AddCheck));
    operations.extend(actual.checks.difference(&desired.checks).copied().map(Operation::DeleteCheck));
    delete(desired, actual, &lost, &mut operations);
    operations
}

/// What the kernel drops by itself when the link operations are carried out.
#[derive(Default)]
struct Lost {
    /// Devices that are replaced: nothing on them is left.
    everything: BTreeSet<LinkName>,
    /// Devices whose neighbours go.
    neighbours: BTreeSet<LinkName>,
    /// Devices whose IPv6 addresses go.
    ipv6_addresses: BTreeSet<LinkName>,
    /// Devices whose routes and next hop objects go, or are gone.
    routes: BTreeSet<LinkName>,
    /// Devices that are deleted in the end, and take all that is theirs with them. Until then it is there.
    in_the_end: BTreeSet<LinkName>,
}

impl Lost {
    fn address(&self, address: &Address) -> bool {
        self.everything.contains(&address.link)
            || (address.address.is_ipv6() && self.ipv6_addresses.contains(&address.link))
    }

    fn neighbour(&self, neighbour: &Neighbour) -> bool {
        self.everything.contains(&neighbour.link) || self.neighbours.contains(&neighbour.link)
    }

    fn fdb(&self, entry: &FdbEntry) -> bool {
        self.everything.contains(&entry.link)
    }

    fn next_hop(&self, next_hop: &NextHop) -> bool {
        self.everything.contains(&next_hop.link) || self.routes.contains(&next_hop.link)
    }

    fn route(&self, route: &Route) -> bool {
        route.target.link().is_some_and(|link| self.everything.contains(&link) || self.routes.contains(&link))
    }
}

fn add_links(desired: &State, actual: &State, operations: &mut Vec<Operation>) -> Lost {
    let mut lost = Lost::default();
    for (&name, link) in &desired.links {
        let Some(standing) = actual.links.get(&name) else {
            operations.push(Operation::CreateLink { name, link: link.clone() });
            continue;
        };
        let differences = fixed_differences(link, standing);
        if !differences.is_empty() {
            lost.everything.insert(name);
            operations.push(Operation::ReplaceLink {
                name,
                link: link.clone(),
                because: differences.join(", "),
            });
            continue;
        }
        let change = LinkChange {
            mac: link.mac.filter(|_| link.mac != standing.mac),
            mtu: (link.mtu != standing.mtu).then_some(link.mtu),
            up: (link.up != standing.up).then_some(link.up),
        };
        if !standing.up || change.up == Some(false) {
            lost.routes.insert(name);
        }
        if change.mac.is_some() || change.up == Some(false) {
            lost.neighbours.insert(name);
        }
        if change.up == Some(false) {
            lost.ipv6_addresses.insert(name);
        }
        if change != LinkChange::default() {
            operations.push(Operation::UpdateLink { name, change });
        }
    }
    lost.in_the_end =
        actual.links.keys().filter(|&name| !desired.links.contains_key(name)).copied().collect();
    lost
}

/// The fields that the kernel does not change in place, or that we do not, because the device's sockets and multicast
/// memberships would have to follow (`vxlan_changelink` in `drivers/net/vxlan/vxlan_core.c`).
fn fixed_differences(want: &Link, have: &Link) -> Vec<String> {
    match (&want.kind, &have.kind) {
        (LinkKind::Vxlan(want), LinkKind::Vxlan(have)) => vxlan_differences(want, have),
        (LinkKind::Tun { vnet_header: want }, LinkKind::Tun { vnet_header: have }) if want == have => {
            Vec::new()
        }
        (want, have) => vec![format!("it is {have}, want {want}")],
    }
}

fn vxlan_differences(want: &Vxlan, have: &Vxlan) -> Vec<String> {
    fn text<T: ToString>(value: Option<&T>) -> String {
        value.map_or_else(|| "none".to_owned(), ToString::to_string)
    }
    let mut differences = Vec::new();
    let mut compare = |field: &str, have: String, want: String| {
        if have != want {
            differences.push(format!("{field} is {have}, want {want}"));
        }
    };
    compare("vni", have.vni.to_string(), want.vni.to_string());
    compare("port", have.port.to_string(), want.port.to_string());
    compare("underlay", text(have.underlay.as_ref()), text(want.underlay.as_ref()));
    compare("local", text(have.local.as_ref()), text(want.local.as_ref()));
    compare("learning", on(have.learning).to_owned(), on(want.learning).to_owned());
    compare("gbp", on(have.gbp).to_owned(), on(want.gbp).to_owned());
    differences
}

fn add_addresses(desired: &State, actual: &State, lost: &Lost, operations: &mut Vec<Operation>) {
    for address in &desired.addresses {
        if !actual.addresses.contains(address) || lost.address(address) {
            operations.push(Operation::AddAddress(*address));
        }
    }
}

fn add_neighbours(desired: &State, actual: &State, lost: &Lost, operations: &mut Vec<Operation>) {
    for (neighbour, mac) in &desired.neighbours {
        if actual.neighbours.get(neighbour) != Some(mac) || lost.neighbour(neighbour) {
            operations.push(Operation::SetNeighbour { neighbour: *neighbour, mac: *mac });
        }
    }
}

fn add_fdb(desired: &State, actual: &State, lost: &Lost, operations: &mut Vec<Operation>) {
    for (entry, destination) in &desired.fdb {
        if actual.fdb.get(entry) != Some(destination) || lost.fdb(entry) {
            operations.push(Operation::SetFdb { entry: *entry, destination: *destination });
        }
    }
}

fn add_next_hops(desired: &State, actual: &State, lost: &Lost, operations: &mut Vec<Operation>) {
    for (&id, &next_hop) in &desired.next_hops {
        match actual.next_hops.get(&id) {
            Some(standing) if !lost.next_hop(standing) => {
                if *standing != next_hop {
                    operations.push(Operation::ReplaceNextHop { id, next_hop });
                }
            }
            _ => operations.push(Operation::AddNextHop { id, next_hop }),
        }
    }
}

fn add_routes(desired: &State, actual: &State, lost: &Lost, operations: &mut Vec<Operation>) {
    for (&key, &route) in &desired.routes {
        match actual.routes.get(&key) {
            Some(standing) if !lost.route(standing) => {
                if *standing != route {
                    operations.push(Operation::ReplaceRoute { key, route });
                }
            }
            _ => operations.push(Operation::AddRoute { key, route }),
        }
    }
}

fn delete(desired: &State, actual: &State, lost: &Lost, operations: &mut Vec<Operation>) {
    let leaves = |link: &LinkName| lost.in_the_end.contains(link);
    // One whose next hop object moves to another device moves with it.
    let goes = |route: &Route| match route.target {
        RouteTarget::NextHop { id, link } => leaves(&link) && !desired.next_hops.contains_key(&id),
        target => target.link().is_some_and(|link| leaves(&link)),
    };
    operations.extend(
        superfluous(&actual.routes, &desired.routes)
            .filter(|(_, route)| !lost.route(route) && !goes(route))
            .map(|(&key, &route)| Operation::DeleteRoute { key, route }),
    );
    operations.extend(
        superfluous(&actual.next_hops, &desired.next_hops)
            .filter(|(_, next_hop)| !lost.next_hop(next_hop) && !leaves(&next_hop.link))
            .map(|(&id, _)| Operation::DeleteNextHop(id)),
    );
    operations.extend(
        superfluous(&actual.fdb, &desired.fdb)
            .map(|(entry, _)| entry)
            .filter(|entry| !lost.fdb(entry) && !leaves(&entry.link))
            .map(|entry| Operation::DeleteFdb(*entry)),
    );
    operations.extend(
        superfluous(&actual.neighbours, &desired.neighbours)
            .map(|(neighbour, _)| neighbour)
            .filter(|neighbour| !lost.neighbour(neighbour) && !leaves(&neighbour.link))
            .map(|neighbour| Operation::DeleteNeighbour(*neighbour)),
    );
    operations.extend(
        actual
            .addresses
            .difference(&desired.addresses)
            .filter(|address| !lost.address(address) && !leaves(&address.link))
            .map(|address| Operation::DeleteAddress(*address)),
    );
    operations.extend(actual.sources.difference(&desired.sources).copied().map(Operation::DeleteSource));
    operations.extend(lost.in_the_end.iter().map(|&name| Operation::DeleteLink { name }));
}

fn superfluous<'a, K: Ord, V>(
    actual: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    actual.iter().filter(|(key, _)| !desired.contains_key(key))
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateLink { name, link } => write!(f, "create link {name} {link}"),
            Self::ReplaceLink { name, link, because } => {
                write!(f, "replace link {name} {link} ({because})")
            }
            Self::UpdateLink { name, change } => write!(f, "change link {name}{change}"),
            Self::DeleteLink { name } => write!(f, "delete link {name}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
            Self::SetNeighbour { neighbour, mac } => {
                write!(f, "set neighbour {neighbour} lladdr {}", Mac(mac))
            }
            Self::DeleteNeighbour(neighbour) => write!(f, "delete neighbour {neighbour}"),
            Self::SetFdb { entry, destination } => write!(f, "set fdb {entry} dst {destination}"),
            Self::DeleteFdb(entry) => write!(f, "delete fdb {entry}"),
            Self::AddNextHop { id, next_hop } => write!(f, "add nexthop {id} {next_hop}"),
            Self::ReplaceNextHop { id, next_hop } => write!(f, "replace nexthop {id} {next_hop}"),
            Self::DeleteNextHop(id) => write!(f, "delete nexthop {id}"),
            Self::AddRoute { key, route } => write!(f, "add route {key} {route}"),
            Self::ReplaceRoute { key, route } => write!(f, "replace route {key} {route}"),
            Self::DeleteRoute { key, route } => write!(f, "delete route {key} {route}"),
            Self::AddSource(source) => write!(f, "let in {source}"),
            Self::DeleteSource(source) => write!(f, "let in no longer {source}"),
            Self::AddCheck(check) => write!(f, "add check {check}"),
            Self::DeleteCheck(check) => write!(f, "delete check {check}"),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::Neighbour(neighbour) => write!(f, "neighbour {neighbour}"),
            Self::Fdb(entry) => write!(f, "fdb {entry}"),
            Self::NextHop(id) => write!(f, "nexthop {id}"),
            Self::Route(key) => write!(f, "route {key}"),
            Self::Source(source) => write!(f, "sender {source}"),
            Self::Check(check) => write!(f, "check {check}"),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(mac) = &self.mac {
            write!(f, " address {}", Mac(mac))?;
        }
        write!(f, " mtu {} {}", self.mtu, up_or_down(self.up))
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vxlan = match self {
            Self::Vxlan(vxlan) => vxlan,
            Self::Tun { vnet_header } => {
                return write!(f, "type tun vnet_hdr {}", on(*vnet_header));
            }
        };
        write!(f, "type vxlan id {} port {}", vxlan.vni, vxlan.port)?;
        if let Some(local) = vxlan.local {
            write!(f, " local {local}")?;
        }
        if let Some(underlay) = vxlan.underlay {
            write!(f, " dev {underlay}")?;
        }
        write!(f, " {}learning", if vxlan.learning { "" } else { "no" })?;
        if vxlan.gbp { f.write_str(" gbp") } else { Ok(()) }
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mac) = &self.mac {
            write!(f, " address {}", Mac(mac))?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(up) = self.up {
            write!(f, " {}", up_or_down(up))?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", Mac(&self.mac), self.link)
    }
}

impl fmt::Display for NextHopId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.0)
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "via {} dev {}{}", self.gateway, self.link, if self.onlink { " onlink" } else { "" })?;
        if self.protocol == ROUTE_PROTOCOL { Ok(()) } else { write!(f, " proto {}", self.protocol) }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        // What `ip route` shows: the family's default metric goes without saying.
        let usual = if self.destination.is_ipv4() { 0 } else { 1024 };
        if self.metric == usual { Ok(()) } else { write!(f, " metric {}", self.metric) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            RouteTarget::Via { gateway, link, onlink } => {
                write!(f, "via {gateway} dev {link}{}", if onlink { " onlink" } else { "" })?;
            }
            RouteTarget::NextHop { id, link } => write!(f, "nhid {} dev {link}", id.0)?,
            RouteTarget::Link(link) => write!(f, "dev {link}")?,
            RouteTarget::Blackhole => f.write_str("blackhole")?,
        }
        if self.protocol == ROUTE_PROTOCOL { Ok(()) } else { write!(f, " proto {}", self.protocol) }
    }
}

/// A MAC as `ip(8)` prints it, in lower case.
pub(crate) struct Mac<'a>(pub(crate) &'a MacAddr6);

impl fmt::Display for Mac<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0.into_array();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn up_or_down(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

#[cfg(test)]
mod tests;
