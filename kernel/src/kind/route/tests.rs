use netlink_packet_core::{Emitable, NetlinkPayload};
use netlink_packet_route::route::RouteNextHop;
use proptest::prelude::*;

use super::*;
use crate::netlink::test_bytes::bytes;
use crate::netlink::wire::Frames;

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// Returns the body of the message in `hex`.
fn body(hex: &str) -> Vec<u8> {
    Frames(&bytes(hex)).next().unwrap().unwrap().body.to_vec()
}

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// Returns what the kernel would report for a route that we make, on device 4.
fn shown(destination: &str, metric: u32, target: RouteTarget) -> RouteMessage {
    let key = RouteKey { destination: destination.parse().unwrap(), metric };
    let add = Edit::<Routes>::Add { key, value: Route { target, protocol: ROUTE_PROTOCOL } };
    let Some(Request::Route(message)) = Routes::request(&add, &|_| Some(4)) else { panic!("no route") };
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
    for (target, raw) in
        [(RouteTarget::Blackhole, RawTarget::Blackhole), (RouteTarget::Throw, RawTarget::Throw)]
    {
        assert_eq!(read(&shown("10.5.0.0/16", 0, target)).unwrap().target, raw);
    }
}

#[test]
fn a_route_by_an_object_is_read_as_the_kernel_shows_it() {
    // From a dump on Linux 6.18.
    let shown = body(
        "4400000018002200010000009455000002180000fe6600010400000008000f00fe000000080001000a050300\
         08001e000003050a080005000a0503000800040004000000",
    );
    let found = RawRoute::read(&shown).unwrap();
    assert_eq!(found.target, RawTarget::NextHop { id: NextHopId(168_100_608), index: Some(4) });
    assert_eq!((found.key.to_string().as_str(), found.protocol), ("10.5.3.0/24", ROUTE_PROTOCOL));
    assert_eq!(protocol(&shown), Some(ROUTE_PROTOCOL));
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

fn named(index: u32) -> Option<LinkName> {
    (index == 2).then(|| "eth0".parse().unwrap())
}

fn words_of(protocol: u8, metric: u32, target: RawTarget) -> String {
    let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric };
    in_words(&RawRoute { key, protocol, target }, named)
}

#[test]
fn a_route_is_shown_as_by_ip_route() {
    let gateway = Some("192.168.64.1".parse().unwrap());
    let via = |index| RawTarget::Device { index, gateway, onlink: false };
    assert_eq!(words_of(4, 0, via(2)), "10.5.3.0/24 via 192.168.64.1 dev eth0 proto static");
    assert_eq!(words_of(102, 7, via(9)), "10.5.3.0/24 metric 7 via 192.168.64.1 dev if9 proto 102");
    assert_eq!(words_of(12, 0, RawTarget::Blackhole), "blackhole 10.5.3.0/24 proto bird");
    assert_eq!(words_of(3, 0, RawTarget::Throw), "throw 10.5.3.0/24 proto boot");
    assert_eq!(words_of(11, 0, RawTarget::Several), "10.5.3.0/24 with several next hops proto zebra");
    let object = RawTarget::NextHop { id: NextHopId(5), index: None };
    assert_eq!(words_of(11, 0, object), "10.5.3.0/24 nhid 5 proto zebra");
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..96), family in 0..12u8) {
        if let Some(first) = bytes.first_mut() {
            *first = family;
        }
        let _ = RawRoute::read(&bytes).map(|route| route.is_ours(true));
    }
}
