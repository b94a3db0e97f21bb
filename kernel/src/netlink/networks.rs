//! The networks in which this host has addresses or to which it has routes, whoever made them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::entry::{self, link_name};
use super::message;
use super::questions::link_entry;
use super::reading::without_family;
use super::socket::Socket;
use crate::KernelError;
use crate::kind::address;
use crate::kind::gateway::ROUTE_PROTOCOL;
use crate::kind::link_name::LinkName;
use crate::kind::route::{self, RawRoute, RawTarget, RouteFilter};

/// A network that this host is in or routes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// The destination of a route, or an address of the host with its prefix length.
    pub network: IpNetwork,
    /// The device with the address or of the route; `None` for a route to no device or to several.
    pub link: Option<LinkName>,
    /// The kind of that device.
    pub device: DeviceKind,
    /// How we know of the network.
    pub origin: Origin,
}

/// The kind of a device, as far as it distinguishes container networks from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// A bridge.
    Bridge,
    /// Made for a container or a virtual machine: a veth, whose peer may be in it, a TAP device, or a device that
    /// shares another's link.
    Guest,
    /// Anything else, including no device.
    Other,
}

/// How we know of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The host has an address in it.
    Address,
    /// There is a route to it in the main table.
    Route {
        /// The next hop.
        gateway: Option<IpAddr>,
    },
}

/// Returns all networks in which this host has addresses or to which the main table has routes, except for default
/// routes, routes that the kernel makes for addresses, and those with [`ROUTE_PROTOCOL`]. Of routes, returns only those
/// whose destination `keeps` accepts: a router may have a million. Reads everything once, concurrently with other work.
/// Must be called in a tokio runtime.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub async fn host_networks(
    keeps: impl Fn(&IpNetwork) -> bool + Send + 'static,
) -> Result<Vec<HostNetwork>, KernelError> {
    // Opened here, in the caller's network namespace: the reading thread may be in another.
    let socket = Socket::open();
    let read = move || read(&mut socket?, keeps);
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| KernelError::Message(format!("reading the host's networks: {error}")))?
}

/// Name and kind of each device, by index.
type Devices = BTreeMap<u32, (LinkName, DeviceKind)>;

fn read(socket: &mut Socket, keeps: impl Fn(&IpNetwork) -> bool) -> Result<Vec<HostNetwork>, KernelError> {
    let devices: Devices = socket.dump(&message::dump_links(), Devices::new, |found, body| {
        found.extend(link_entry(body).and_then(|link| Some((link.header.index, named(&link)?))));
    })?;
    let mut networks = socket.dump(&address::dump(0), Vec::new, |found, body| {
        found.extend(entry::address(body).map(|(index, network)| {
            let (link, device) = device(&devices, Some(index));
            HostNetwork { network, link, device, origin: Origin::Address }
        }));
    })?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let routes = socket.dump(&route::dump(family, RouteFilter::All), Vec::new, |found, body| {
            // There may be tens of thousands of our own.
            let of_others = route::protocol(body) != Some(ROUTE_PROTOCOL);
            if of_others && body.first().copied() == Some(u8::from(family)) {
                let route = RawRoute::read(body).filter(|route| keeps(&route.key.destination));
                found.extend(route.and_then(|route| network_of(&route, &devices)));
            }
        });
        networks.extend(without_family(routes)?);
    }
    Ok(networks)
}

fn named(link: &LinkMessage) -> Option<(LinkName, DeviceKind)> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let kind = infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(DeviceKind::Bridge),
        LinkInfo::Kind(kind) if is_for_guests(kind) => Some(DeviceKind::Guest),
        _ => None,
    });
    Some((link_name(link).ok()?, kind.unwrap_or(DeviceKind::Other)))
}

fn is_for_guests(kind: &InfoKind) -> bool {
    matches!(
        kind,
        InfoKind::Veth
            | InfoKind::Netkit
            | InfoKind::Tun
            | InfoKind::MacVlan
            | InfoKind::MacVtap
            | InfoKind::IpVlan
            | InfoKind::IpVtap
    )
}

/// Returns the network that another program's route reveals. `None` for one that only rejects or drops packets.
fn network_of(route: &RawRoute, devices: &Devices) -> Option<HostNetwork> {
    if route.is_default() || route.is_by_kernel() {
        return None;
    }
    let (index, gateway) = match route.target {
        RawTarget::Device { index, gateway, .. } => (Some(index), gateway),
        RawTarget::NextHop { index, .. } => (index, None),
        RawTarget::Blackhole
        | RawTarget::Throw
        | RawTarget::Other(libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT) => return None,
        RawTarget::Several | RawTarget::Other(_) => (None, None),
    };
    let (link, device) = device(devices, index);
    Some(HostNetwork { network: route.key.destination, link, device, origin: Origin::Route { gateway } })
}

fn device(devices: &Devices, index: Option<u32>) -> (Option<LinkName>, DeviceKind) {
    match index.and_then(|index| devices.get(&index)) {
        Some((name, kind)) => (Some(*name), *kind),
        None => (None, DeviceKind::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::route::RouteKey;

    fn route(destination: &str, protocol: u8, target: RawTarget) -> RawRoute {
        RawRoute { key: RouteKey { destination: destination.parse().unwrap(), metric: 0 }, protocol, target }
    }

    #[test]
    fn a_route_is_a_network_unless_it_is_a_default_one_or_the_kernels_own() {
        let devices = Devices::from([(2, ("eth1".parse().unwrap(), DeviceKind::Other))]);
        let gateway: Option<IpAddr> = Some("192.168.64.1".parse().unwrap());
        let via = RawTarget::Device { index: 2, gateway, onlink: false };
        let found = |destination, protocol| network_of(&route(destination, protocol, via), &devices);
        assert_eq!(
            found("10.5.3.0/24", libc::RTPROT_STATIC),
            Some(HostNetwork {
                network: "10.5.3.0/24".parse().unwrap(),
                link: Some("eth1".parse().unwrap()),
                device: DeviceKind::Other,
                origin: Origin::Route { gateway },
            })
        );
        assert_eq!(found("0.0.0.0/0", libc::RTPROT_STATIC), None);
        assert_eq!(found("10.5.3.0/24", libc::RTPROT_KERNEL), None);
        let several = route("10.5.3.0/24", libc::RTPROT_STATIC, RawTarget::Several);
        assert_eq!(network_of(&several, &devices).unwrap().link, None);
        for target in [
            RawTarget::Blackhole,
            RawTarget::Throw,
            RawTarget::Other(libc::RTN_UNREACHABLE),
            RawTarget::Other(libc::RTN_PROHIBIT),
        ] {
            assert_eq!(network_of(&route("10.5.3.0/24", libc::RTPROT_STATIC, target), &devices), None);
        }
    }

    #[tokio::test]
    async fn the_networks_of_this_host_are_read_without_any_right() {
        let networks = host_networks(|_| true).await.unwrap();
        let loopback = networks.iter().find(|network| network.network.ip().is_loopback());
        // A network namespace whose lo is down has none.
        assert!(loopback.is_none_or(|lo| lo.link.is_some() && lo.origin == Origin::Address), "{networks:?}");
    }
}
