use netlink_packet_core::{Emitable, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteType};
use proptest::prelude::*;

use super::*;
use crate::diff::Operation;
use crate::netlink::message::{Request, change};
use crate::netlink::test_bytes::bytes;
use crate::netlink::wire::Frames;
use crate::state::{Route, RouteTarget};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// The body of the message that `hex` shows.
fn body(hex: &str) -> Vec<u8> {
    Frames(&bytes(hex)).next().unwrap().unwrap().body.to_vec()
}

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// What the kernel would show of a route that we make, on device 4.
fn shown(destination: &str, metric: u32, target: RouteTarget) -> RouteMessage {
    let key = RouteKey { destination: destination.parse().unwrap(), metric };
    let add = Operation::AddRoute { key, route: Route { target, protocol: ROUTE_PROTOCOL } };
    let Some(Request::Route(message)) = change(&add, |_| Some(4)) else { panic!("no route") };
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => route,
        other => panic!("{other:?}"),
    }
}

fn via(gateway: &str) -> RouteTarget {
    RouteTarget::Via { gateway: gateway.parse().unwrap(), link: name("flannel.1"), onlink: true }
}

fn read(message: &RouteMessage) -> Option<RawRoute> {
    RawRoute::read(&emitted(message))
}

#[test]
fn routes_that_we_make_are_recognised() {
    for (destination, metric, gateway) in [("10.5.3.0/24", 0, "10.5.3.0"), ("fd00::/64", 1024, "fd00::")] {
        let found = read(&shown(destination, metric, via(gateway))).unwrap();
        assert_eq!(found.key, RouteKey { destination: destination.parse().unwrap(), metric });
        let gateway = Some(gateway.parse().unwrap());
        assert_eq!(found.target, RawTarget::Device { index: 4, gateway, onlink: true });
        assert!(found.is_ours(false));
    }
    let id = NextHopId(168_100_608);
    let found = read(&shown("10.5.3.0/24", 0, RouteTarget::NextHop { id, link: name("flannel.1") })).unwrap();
    assert_eq!(found.target, RawTarget::NextHop { id, index: None });
    let found = read(&shown("10.5.0.0/16", 0, RouteTarget::Blackhole)).unwrap();
    assert_eq!(found.target, RawTarget::Blackhole);
}

#[test]
fn a_route_by_an_object_is_read_as_the_kernel_shows_it() {
    // Of a dump on Linux 6.18.
    let shown = body(
        "4400000018002200010000009455000002180000fe6600010400000008000f00fe000000080001000a050300\
         08001e000003050a080005000a0503000800040004000000",
    );
    let found = RawRoute::read(&shown).unwrap();
    assert_eq!(found.target, RawTarget::NextHop { id: NextHopId(168_100_608), index: Some(4) });
    assert_eq!((found.key.to_string().as_str(), found.protocol), ("10.5.3.0/24", ROUTE_PROTOCOL));
    assert_eq!(route_protocol(&shown), Some(ROUTE_PROTOCOL));
}

#[test]
fn a_route_of_ipv6_is_read_as_the_kernel_shows_it() {
    let shown = body(
        "880000001800220001000000945500000a400000fe6600010400000008000f00fe00000014000100fd00000500000003\
         0000000000000000080006000004000014000500fd000005000000030000000000000000080004000400000024000c00\
         00000000000000000000000000000000000000000000000000000000000000000500140000000000",
    );
    let found = RawRoute::read(&shown).unwrap();
    let gateway = Some("fd00:5:0:3::".parse().unwrap());
    assert_eq!(found.target, RawTarget::Device { index: 4, gateway, onlink: true });
    assert_eq!(found.key.to_string(), "fd00:5:0:3::/64");
}

#[test]
fn routes_of_a_kind_that_we_do_not_make_are_not_ours() {
    let ours = || shown("10.5.3.0/24", 0, via("10.5.3.0"));
    let mut other = ours();
    other.attributes.push(RouteAttribute::Table(100));
    assert_eq!(read(&other), None, "another table");
    let mut other = ours();
    other.header.tos = 4;
    assert_eq!(read(&other), None, "for one type of service");
    let mut other = ours();
    other.header.flags |= RouteFlags::Cloned;
    assert_eq!(read(&other), None, "an exception that the kernel has noted");
    let mut other = ours();
    other.attributes.push(RouteAttribute::MultiPath(vec![RouteNextHop::default()]));
    let several = read(&other).unwrap();
    assert_eq!(several.target, RawTarget::Several);
    assert!(!several.is_ours(true));
    let mut other = ours();
    other.header.kind = RouteType::Unreachable;
    assert!(!read(&other).unwrap().is_ours(true));
    for destination in ["fe80::/64", "ff00::/8"] {
        assert_eq!(read(&shown(destination, 256, RouteTarget::Link(name("flannel.1")))), None);
    }
}

#[test]
fn the_main_table_may_be_named_in_an_attribute() {
    let mut message = shown("10.5.3.0/24", 0, via("10.5.3.0"));
    message.header.table = 252;
    assert_eq!(read(&message), None);
    message.attributes.push(RouteAttribute::Table(254));
    assert!(read(&message).is_some());
}

#[test]
fn ours_are_routes_with_our_number_and_those_into_our_devices_but_the_kernels() {
    let found = read(&shown("10.5.3.0/24", 0, via("10.5.3.0"))).unwrap();
    let ours = |protocol, on_ours| RawRoute { protocol, ..found }.is_ours(on_ours);
    assert!(ours(ROUTE_PROTOCOL, false));
    assert!(ours(3, true));
    assert!(!ours(2, true));
    assert!(!ours(3, false));
}

fn neighbour(
    family: AddressFamily,
    state: u16,
    flags: NeighbourFlags,
    attributes: Vec<NeighbourAttribute>,
) -> Option<RawNeighbour> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = 4;
    message.header.state = state.into();
    message.header.flags = flags;
    message.attributes = attributes;
    RawNeighbour::read(&emitted(&message))
}

#[test]
fn of_the_neighbours_the_permanent_ones_are_ours() {
    let attributes = || {
        vec![
            NeighbourAttribute::Destination(IpAddr::from([10, 5, 3, 0]).into()),
            NeighbourAttribute::LinkLayerAddress(vec![10, 0, 0, 0, 0, 3]),
        ]
    };
    let found = |state| neighbour(AddressFamily::Inet, state, NeighbourFlags::empty(), attributes()).unwrap();
    let ip: IpAddr = "10.5.3.0".parse().unwrap();
    assert_eq!(found(0x80).neighbour(), Some((ip, Some(MacAddr6::new(10, 0, 0, 0, 0, 3)))));
    assert_eq!(found(0x80).fdb(), None);
    for (state, what) in [(0x02, "reachable"), (0x40, "noarp"), (0x20, "failed")] {
        assert_eq!(found(state).neighbour(), Some((ip, None)), "{what}");
    }
    assert_eq!(neighbour(AddressFamily::Inet, 0x80, NeighbourFlags::Proxy, attributes()), None);
}

#[test]
fn of_the_forwarding_entries_the_permanent_ones_to_one_mac_are_ours() {
    let found = |state, mac: [u8; 6], ip: &[u8]| {
        let attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::Destination(NeighbourAddress::Other(ip.to_vec())),
        ];
        neighbour(AddressFamily::Bridge, state, NeighbourFlags::Own, attributes).unwrap().fdb()
    };
    let mac = [10, 0, 0, 0, 0, 3];
    let ipv4 = [192, 168, 0, 3];
    let want = Some((MacAddr6::from(mac), Some(IpAddr::from(ipv4))));
    assert_eq!(found(0x80, mac, &ipv4), want);
    assert_eq!(found(0xc0, mac, &ipv4), want, "as bridge(8) makes them");
    assert_eq!(found(0x80, mac, &[0xfd; 16]).unwrap().1, Some(IpAddr::from([0xfd; 16])));
    assert_eq!(found(0x02, mac, &ipv4), Some((MacAddr6::from(mac), None)), "learned");
    assert_eq!(found(0x80, [0; 6], &ipv4), None, "the default destination");
    assert_eq!(found(0x80, [1, 0, 0x5e, 0, 0, 1], &ipv4), None, "multicast");
    assert_eq!(
        neighbour(AddressFamily::Bridge, 0x80, NeighbourFlags::Controller, vec![]),
        None,
        "a bridge's"
    );
}

#[test]
fn neighbours_and_entries_are_read_as_the_kernel_shows_them() {
    let shown = body(
        "4c0000001c0022000100000094550000020000000400000080000001080001000a0503000a0002000a00000000030000\
         0800040000000000140003000c0000000c0000000c00000000000000",
    );
    let found = RawNeighbour::read(&shown).unwrap();
    let mac = MacAddr6::new(10, 0, 0, 0, 0, 3);
    assert_eq!(found.neighbour(), Some(("10.5.3.0".parse().unwrap(), Some(mac))));
    assert_eq!(found.index, 4);
    let shown = body(
        "440000001c00020001000000945500000700000004000000c00002010a0002000a0000000003000008000100c0a80003\
         14000300000000000c0000000c00000000000000",
    );
    let found = RawNeighbour::read(&shown).unwrap();
    assert_eq!(found.fdb(), Some((mac, Some("192.168.0.3".parse().unwrap()))));
}

#[test]
fn a_link_local_address_of_ipv6_is_the_kernels() {
    let ours = body(
        "5400000014000000b977026b915500000220800004000000080001000a050100080002000a0501000e000300666c616e\
         6e656c2e31000000080008008000000014000600ffffffffffffffff002c2500002c2500",
    );
    assert_eq!(address(&ours), Some((4, "10.5.1.0/32".parse().unwrap())));
    let by_itself = body(
        "500000001500000000000000000000000a40c0fd0400000014000100fe800000000000007cb692fffe08004614000600\
         ffffffffffffffffec2b2500ec2b250008000800c000000005000b0003000000",
    );
    assert_eq!(address(&by_itself), None);
    assert_eq!(address_index(&by_itself), Some(4));
}

#[test]
fn a_device_is_told_of_by_name_unless_it_is_about_its_place_in_a_bridge() {
    // The first attribute of what Linux 6.18 says of a device that was renamed.
    let mut renamed = bytes("00000100040000000210000041000000").to_vec();
    renamed.extend(bytes("0d00030072656e616d65643100000000"));
    assert_eq!(link(&renamed), Some((4, name("renamed1"))));
    renamed[0] = libc::AF_BRIDGE as u8;
    assert_eq!(link(&renamed), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..96), family in 0..12u8) {
        if let Some(first) = bytes.first_mut() {
            *first = family;
        }
        let _ = address(&bytes);
        let _ = link(&bytes);
        let _ = RawNeighbour::read(&bytes).map(|entry| (entry.neighbour(), entry.fdb()));
        let _ = RawRoute::read(&bytes).map(|route| route.is_ours(true));
    }
}
