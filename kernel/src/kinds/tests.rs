use macaddr::MacAddr6;

use super::*;
use crate::kind::address::Address;
use crate::kind::fdb::FdbEntry;
use crate::kind::gateway::ROUTE_PROTOCOL;
use crate::kind::neighbour::Neighbour;
use crate::kind::next_hop::NextHop;
use crate::kind::route::{Route, RouteKey, RouteTarget};
use crate::netlink::test_bytes::{assert_as_iproute2, hex};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// Returns the devices of the namespace in which iproute2 was captured.
fn index(name: LinkName) -> Option<u32> {
    match name.as_str() {
        "und0" => Some(3),
        "flannel.1" => Some(4),
        _ => None,
    }
}

fn device() -> LinkName {
    name("flannel.1")
}

fn mac() -> MacAddr6 {
    MacAddr6::new(0x0a, 0, 0, 0, 0, 3)
}

fn via(destination: &str, gateway: &str, metric: u32) -> (RouteKey, Route) {
    let target = RouteTarget::Via { gateway: gateway.parse().unwrap(), link: device(), onlink: true };
    (
        RouteKey { destination: destination.parse().unwrap(), metric },
        Route { target, protocol: ROUTE_PROTOCOL },
    )
}

fn sent(operation: &Operation) -> String {
    hex(operation.request(&index).unwrap())
}

#[test]
fn an_address_is_set_as_by_ip_address() {
    let add = |address: &str| {
        let key = Address { link: device(), address: address.parse().unwrap() };
        sent(&Operation::Address(Edit::Add { key, value: () }))
    };
    // ip addr add 10.5.1.0/32 dev flannel.1
    assert_as_iproute2(
        &add("10.5.1.0/32"),
        "28000000140005065821026b000000000220000004000000080002000a050100080001000a050100",
    );
    // ip addr add fd00:5::/128 dev flannel.1 nodad
    assert_as_iproute2(
        &add("fd00:5::/128"),
        "40000000140005065821026b000000000a8002000400000014000200fd000005000000000000000000000000\
         14000100fd000005000000000000000000000000",
    );
    // ip addr del 10.5.1.0/32 dev flannel.1
    let key = Address { link: device(), address: "10.5.1.0/32".parse().unwrap() };
    assert_as_iproute2(
        &sent(&Operation::Address(Edit::Delete { key, held: () })),
        "28000000150005005921026b000000000220000004000000080002000a050100080001000a050100",
    );
}

#[test]
fn a_neighbour_is_set_as_by_ip_neighbour() {
    let neighbour = Neighbour { link: device(), address: "10.5.3.0".parse().unwrap() };
    // ip neigh replace 10.5.3.0 lladdr 0a:00:00:00:00:03 dev flannel.1 nud permanent
    assert_as_iproute2(
        &sent(&Operation::Neighbour(Edit::Add { key: neighbour, value: mac() })),
        "300000001c0005055921026b00000000020000000400000080000000080001000a0503000a0002000a00000000030000",
    );
    // ip neigh del 10.5.3.0 dev flannel.1
    assert_as_iproute2(
        &sent(&Operation::Neighbour(Edit::Delete { key: neighbour, held: mac() })),
        "240000001d0005005a21026b00000000020000000400000080000000080001000a050300",
    );
}

#[test]
fn a_forwarding_entry_is_set_as_by_bridge_but_for_a_state_that_flannel_does_not_set() {
    let entry = FdbEntry { link: device(), mac: mac() };
    // bridge sets NUD_NOARP (0x40) beside NUD_PERMANENT (0x80).
    let as_flannel = |theirs: &str| theirs.replace("04000000c0000200", "0400000080000200");
    // bridge fdb replace 0a:00:00:00:00:03 dev flannel.1 dst 192.168.0.3 self permanent
    assert_as_iproute2(
        &sent(&Operation::Fdb(Edit::Add { key: entry, value: "192.168.0.3".parse().unwrap() })),
        &as_flannel(
            "300000001c0005055921026b000000000700000004000000c00002000a0002000a0000000003000008000100c0a80003",
        ),
    );
    // bridge fdb del 0a:00:00:00:00:03 dev flannel.1 self
    assert_as_iproute2(
        &sent(&Operation::Fdb(Edit::Delete { key: entry, held: "192.168.0.3".parse().unwrap() })),
        &as_flannel("280000001d0005005a21026b000000000700000004000000c00002000a0002000a00000000030000"),
    );
}

#[test]
fn a_route_is_added_as_by_ip_route() {
    // ip route add 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink proto 102
    let (key, route) = via("10.5.3.0/24", "10.5.3.0", 0);
    assert_as_iproute2(
        &sent(&Operation::Route(Edit::Add { key, value: route })),
        "34000000180005065821026b0000000002180000fe66000104000000080001000a050300080005000a050300\
         0800040004000000",
    );
    // ip route add fd00:5:0:3::/64 via fd00:5:0:3:: dev flannel.1 onlink proto 102 metric 1024
    let (key, route) = via("fd00:5:0:3::/64", "fd00:5:0:3::", 1024);
    assert_as_iproute2(
        &sent(&Operation::Route(Edit::Add { key, value: route })),
        "54000000180005065821026b000000000a400000fe6600010400000014000100fd0000050000000300000000\
         0000000014000500fd00000500000003000000000000000008000600000400000800040004000000",
    );
    // ip route add blackhole 10.5.0.0/16 proto 102
    let key = RouteKey { destination: "10.5.0.0/16".parse().unwrap(), metric: 0 };
    let route = Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL };
    assert_as_iproute2(
        &sent(&Operation::Route(Edit::Add { key, value: route })),
        "24000000180005065921026b0000000002100000fe66000600000000080001000a050000",
    );
}

#[test]
fn a_route_is_replaced_only_if_it_is_there() {
    // ip route replace 10.5.4.0/24 dev und0 proto 102, which also sets NLM_F_CREATE (0x400)
    let key = RouteKey { destination: "10.5.4.0/24".parse().unwrap(), metric: 0 };
    let route = Route { target: RouteTarget::Link(name("und0")), protocol: ROUTE_PROTOCOL };
    assert_as_iproute2(
        &sent(&Operation::Route(Edit::Replace { key, held: route, value: route })),
        &"2c000000180005055821026b0000000002180000fe66fd0100000000080001000a0504000800040003000000"
            .replace("18000505", "18000501"),
    );
}

#[test]
fn a_route_is_deleted_only_if_it_leads_there_and_whatever_its_scope() {
    // ip route del 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink proto 102, which leaves the type open
    let (key, route) = via("10.5.3.0/24", "10.5.3.0", 0);
    assert_as_iproute2(
        &sent(&Operation::Route(Edit::Delete { key, held: route })),
        &"34000000190005005921026b0000000002180000fe66ff0004000000080001000a050300080005000a0503000800040004000000"
            .replace("fe66ff00", "fe66ff01"),
    );
}

#[test]
fn a_route_to_a_next_hop_object_is_made_and_deleted_as_by_ip_route() {
    let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
    let target = RouteTarget::NextHop { id: NextHopId(168_100_608), link: device() };
    let route = Route { target, protocol: ROUTE_PROTOCOL };
    // ip route add 10.5.3.0/24 nhid 168100608 proto 102
    assert_as_iproute2(
        &sent(&Operation::Route(Edit::Add { key, value: route })),
        "2c00000018000506b977026b0000000002180000fe66000100000000080001000a05030008001e000003050a",
    );
    // ip route del 10.5.3.0/24 nhid 168100608 proto 102, which leaves the type open
    assert_as_iproute2(
        &sent(&Operation::Route(Edit::Delete { key, held: route })),
        &"2c00000019000500b977026b0000000002180000fe66ff0000000000080001000a05030008001e000003050a"
            .replace("fe66ff00", "fe66ff01"),
    );
}

#[test]
fn a_next_hop_is_replaced_only_if_it_is_there() {
    let next_hop = NextHop {
        gateway: "10.5.3.0".parse().unwrap(),
        link: device(),
        onlink: true,
        protocol: ROUTE_PROTOCOL,
    };
    // ip nexthop replace id 168100608 via 10.5.3.0 dev flannel.1 onlink proto 102, which also sets NLM_F_CREATE (0x400)
    assert_as_iproute2(
        &sent(&Operation::NextHop(Edit::Replace {
            key: NextHopId(168_100_608),
            held: next_hop,
            value: next_hop,
        })),
        &"3000000068000505b977026b00000000020066000400000008000100000305\
          0a080006000a0503000800050004000000"
            .replace("68000505", "68000501"),
    );
}

#[test]
fn there_is_no_message_about_a_device_that_is_unknown() {
    let neighbour = Neighbour { link: name("gone"), address: "10.5.3.0".parse().unwrap() };
    let operation = Operation::Neighbour(Edit::Add { key: neighbour, value: mac() });
    assert_eq!(operation.request(&index), None);
}

#[test]
fn only_what_is_wanted_anyway_makes_an_error_a_success() {
    let address = Address { link: device(), address: "10.5.1.0/32".parse().unwrap() };
    assert!(Operation::Address(Edit::Add { key: address, value: () }).is_so_already(libc::EEXIST));
    assert!(Operation::Address(Edit::Delete { key: address, held: () }).is_so_already(libc::EADDRNOTAVAIL));
    assert!(!Operation::Address(Edit::Delete { key: address, held: () }).is_so_already(libc::EPERM));
    let (key, route) = via("10.5.3.0/24", "10.5.3.0", 0);
    assert!(
        !Operation::Route(Edit::Add { key, value: route }).is_so_already(libc::EEXIST),
        "that one is another's"
    );
    assert!(Operation::Route(Edit::Delete { key, held: route }).is_so_already(libc::ESRCH));
}
