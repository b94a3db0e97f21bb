use netlink_packet_route::route::RouteNextHop;

use super::*;
use crate::diff::Operation;
use crate::netlink::message::{Message, change, create_vxlan};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn inner(message: Message) -> RouteNetlinkMessage {
    match message.payload {
        netlink_packet_core::NetlinkPayload::InnerMessage(inner) => inner,
        other => panic!("{other:?}"),
    }
}

/// What the kernel would show of a route that we make, on device 4.
fn shown(destination: &str, metric: u32, target: RouteTarget) -> RouteMessage {
    let key = RouteKey { destination: destination.parse().unwrap(), metric };
    let add = Operation::AddRoute { key, route: Route { target, protocol: ROUTE_PROTOCOL } };
    match inner(change(&add, |_| Some(4)).unwrap()) {
        RouteNetlinkMessage::NewRoute(route) => route,
        other => panic!("{other:?}"),
    }
}

fn via(gateway: &str) -> RouteTarget {
    RouteTarget::Via { gateway: gateway.parse().unwrap(), link: name("flannel.1"), onlink: true }
}

#[test]
fn routes_that_we_make_are_recognised() {
    for (destination, metric, gateway) in [("10.5.3.0/24", 0, "10.5.3.0"), ("fd00::/64", 1024, "fd00::")] {
        let (key, found) = route(&shown(destination, metric, via(gateway))).unwrap();
        assert_eq!(key, RouteKey { destination: destination.parse().unwrap(), metric });
        let gateway = Some(gateway.parse().unwrap());
        assert_eq!(found.target, RawTarget::Device { index: 4, gateway, onlink: true });
        assert_eq!(found.protocol, ROUTE_PROTOCOL);
    }
    let (_, found) = route(&shown("10.5.0.0/16", 0, RouteTarget::Blackhole)).unwrap();
    assert_eq!(found.target, RawTarget::Blackhole);
}

#[test]
fn routes_of_a_kind_that_we_do_not_make_are_not_ours() {
    let ours = || shown("10.5.3.0/24", 0, via("10.5.3.0"));
    let mut other = ours();
    other.attributes.push(RouteAttribute::Table(100));
    assert_eq!(route(&other), None, "another table");
    let mut other = ours();
    other.header.tos = 4;
    assert_eq!(route(&other), None, "for one type of service");
    let mut other = ours();
    other.header.flags |= RouteFlags::Cloned;
    assert_eq!(route(&other), None, "an exception that the kernel has noted");
    let mut other = ours();
    other.attributes.push(RouteAttribute::MultiPath(vec![RouteNextHop::default()]));
    assert_eq!(route(&other), None, "several next hops");
    for destination in ["fe80::/64", "ff00::/8"] {
        assert_eq!(route(&shown(destination, 256, RouteTarget::Link(name("flannel.1")))), None);
    }
}

#[test]
fn the_main_table_may_be_named_in_an_attribute() {
    let mut message = shown("10.5.3.0/24", 0, via("10.5.3.0"));
    message.header.table = 252;
    assert_eq!(route(&message), None);
    message.attributes.push(RouteAttribute::Table(254));
    assert!(route(&message).is_some());
}

#[test]
fn ours_are_routes_with_our_number_and_those_into_our_devices_but_the_kernels() {
    let (_, found) = route(&shown("10.5.3.0/24", 0, via("10.5.3.0"))).unwrap();
    let ours =
        |protocol, links: &[u32]| RawRoute { protocol, ..found }.is_ours(&links.iter().copied().collect());
    assert!(ours(ROUTE_PROTOCOL, &[]));
    assert!(ours(3, &[4]));
    assert!(!ours(2, &[4]));
    assert!(!ours(3, &[5]));
}

#[test]
fn a_device_that_we_make_is_recognised() {
    for local in ["192.168.0.1", "fd01::1"] {
        let settings = Vxlan {
            vni: 7,
            port: 4789,
            underlay: None,
            local: Some(local.parse().unwrap()),
            learning: true,
            gbp: true,
        };
        let mac = Some(MacAddr6::new(2, 0, 0, 0, 0, 1));
        let want = Link { kind: LinkKind::Vxlan(settings.clone()), mac, mtu: 1430, up: false };
        let message = create_vxlan(name("flannel.7"), &want, &settings, Some(3));
        let RouteNetlinkMessage::NewLink(message) = inner(message) else { panic!("not a device") };
        assert_eq!(device(name("flannel.7"), &message).unwrap(), (want, Some(3)));
        assert_eq!(link_name(&message).unwrap(), name("flannel.7"));
    }
}

#[test]
fn a_device_of_another_kind_is_refused_by_name() {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])];
    let error = device(name("flannel.1"), &message).unwrap_err();
    assert!(error.to_string().starts_with("device flannel.1 exists and is neither"), "{error}");
}

fn neighbour_message(
    state: u16,
    flags: NeighbourFlags,
    attributes: Vec<NeighbourAttribute>,
) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = 4;
    message.header.state = state.into();
    message.header.flags = flags;
    message.attributes = attributes;
    message
}

#[test]
fn of_the_neighbours_the_permanent_ones_are_ours() {
    let attributes = || {
        vec![
            NeighbourAttribute::Destination(IpAddr::from([10, 5, 3, 0]).into()),
            NeighbourAttribute::LinkLayerAddress(vec![10, 0, 0, 0, 0, 3]),
        ]
    };
    let found = |state| neighbour(&neighbour_message(state, NeighbourFlags::empty(), attributes()), 4);
    assert_eq!(found(0x80), Some(("10.5.3.0".parse().unwrap(), MacAddr6::new(10, 0, 0, 0, 0, 3))));
    for (state, what) in [(0x02, "reachable"), (0x40, "noarp"), (0x20, "failed")] {
        assert_eq!(found(state), None, "{what}");
    }
    assert_eq!(neighbour(&neighbour_message(0x80, NeighbourFlags::empty(), attributes()), 5), None);
}

#[test]
fn of_the_forwarding_entries_the_permanent_ones_to_one_mac_are_ours() {
    let found = |state, mac: [u8; 6], ip: &[u8]| {
        let attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::Destination(NeighbourAddress::Other(ip.to_vec())),
        ];
        fdb_entry(&neighbour_message(state, NeighbourFlags::Own, attributes), 4)
    };
    let mac = [10, 0, 0, 0, 0, 3];
    let ipv4 = [192, 168, 0, 3];
    let want = Some((MacAddr6::from(mac), IpAddr::from(ipv4)));
    assert_eq!(found(0x80, mac, &ipv4), want);
    assert_eq!(found(0xc0, mac, &ipv4), want, "as bridge(8) makes them");
    assert_eq!(found(0x80, mac, &[0xfd; 16]).unwrap().1, IpAddr::from([0xfd; 16]));
    assert_eq!(found(0x02, mac, &ipv4), None, "learned");
    assert_eq!(found(0x80, [0; 6], &ipv4), None, "the default destination");
    assert_eq!(found(0x80, [1, 0, 0x5e, 0, 0, 1], &ipv4), None, "multicast");
}
