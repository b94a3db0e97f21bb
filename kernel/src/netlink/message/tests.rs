use netlink_packet_core::NLM_F_ACK;

use super::*;
use crate::state::{FdbEntry, Neighbour, ROUTE_PROTOCOL};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// The devices of the namespace in which iproute2 was listened to.
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

fn vxlan() -> Vxlan {
    Vxlan {
        vni: 1,
        port: 8472,
        underlay: Some(name("und0")),
        local: Some("192.168.0.1".parse().unwrap()),
        learning: false,
        gbp: false,
    }
}

fn vxlan_link() -> Link {
    let mac = Some(MacAddr6::new(2, 0, 0, 0, 0, 1));
    Link { kind: crate::LinkKind::Vxlan(vxlan()), mac, mtu: 1450, up: true }
}

fn via(destination: &str, gateway: &str, metric: u32) -> (RouteKey, Route) {
    let target = RouteTarget::Via { gateway: gateway.parse().unwrap(), link: device(), onlink: true };
    (
        RouteKey { destination: destination.parse().unwrap(), metric },
        Route { target, protocol: ROUTE_PROTOCOL },
    )
}

fn hex(request: Request) -> String {
    let most = request.bytes();
    let mut bytes = Vec::new();
    request.emit(0, &mut bytes);
    assert!(bytes.len() <= most);
    // It has every request acknowledged.
    bytes[6] |= NLM_F_ACK as u8;
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sent(operation: &Operation) -> String {
    hex(change(operation, index).unwrap())
}

/// What iproute2 6.1 sent, its sequence number blanked.
#[track_caller]
fn assert_as_iproute2(ours: &str, theirs: &str) {
    let blanked = format!("{}00000000{}", &theirs[..16], &theirs[24..]);
    assert_eq!(ours, blanked);
}

#[test]
fn a_device_is_made_as_by_ip_link() {
    // ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dev und0 local 192.168.0.1
    //     dstport 8472 nolearning
    assert_as_iproute2(
        &hex(create_vxlan(device(), &vxlan_link(), &vxlan(), Some(3))),
        &"80000000100005065721026b00000000000000000000000000000000000000000a000100020000000001000008000400\
         aa0500000e000300666c616e6e656c2e310000003c0012000900010076786c616e0000002c0002000800030003000000\
         080001000100000008000400c0a80001050007000000000006000f0021180000"
            // It sends the kind without the zero byte at its end.
            .replace("0900010076786c616e", "0a00010076786c616e"),
    );
    // It sends RTM_NEWLINK (16) where RTM_SETLINK (19) says more.
    let set = |theirs: &str| theirs.replacen("1000050", "1300050", 1);
    // ip link set flannel.1 addrgenmode none
    assert_as_iproute2(
        &hex(without_link_local(4)),
        &set(
            "30000000100005005721026b000000000000000004000000000000000000000010001a000c000a000500080001000000",
        ),
    );
    // ip link set flannel.1 up
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    assert_as_iproute2(
        &hex(update_link(4, &up)),
        &set("20000000100005005721026b0000000000000000040000000100000001000000"),
    );
}

#[test]
fn an_address_is_set_as_by_ip_address() {
    let add = |address: &str| {
        sent(&Operation::AddAddress(Address { link: device(), address: address.parse().unwrap() }))
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
    assert_as_iproute2(
        &sent(&Operation::DeleteAddress(Address { link: device(), address: "10.5.1.0/32".parse().unwrap() })),
        "28000000150005005921026b000000000220000004000000080002000a050100080001000a050100",
    );
}

#[test]
fn a_neighbour_is_set_as_by_ip_neighbour() {
    let neighbour = Neighbour { link: device(), address: "10.5.3.0".parse().unwrap() };
    // ip neigh replace 10.5.3.0 lladdr 0a:00:00:00:00:03 dev flannel.1 nud permanent
    assert_as_iproute2(
        &sent(&Operation::SetNeighbour { neighbour, mac: mac() }),
        "300000001c0005055921026b00000000020000000400000080000000080001000a0503000a0002000a00000000030000",
    );
    // ip neigh del 10.5.3.0 dev flannel.1
    assert_as_iproute2(
        &sent(&Operation::DeleteNeighbour(neighbour)),
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
        &sent(&Operation::SetFdb { entry, destination: "192.168.0.3".parse().unwrap() }),
        &as_flannel(
            "300000001c0005055921026b000000000700000004000000c00002000a0002000a0000000003000008000100c0a80003",
        ),
    );
    // bridge fdb del 0a:00:00:00:00:03 dev flannel.1 self
    assert_as_iproute2(
        &sent(&Operation::DeleteFdb(entry)),
        &as_flannel("280000001d0005005a21026b000000000700000004000000c00002000a0002000a00000000030000"),
    );
}

#[test]
fn a_route_is_added_as_by_ip_route() {
    // ip route add 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink proto 102
    let (key, route) = via("10.5.3.0/24", "10.5.3.0", 0);
    assert_as_iproute2(
        &sent(&Operation::AddRoute { key, route }),
        "34000000180005065821026b0000000002180000fe66000104000000080001000a050300080005000a050300\
         0800040004000000",
    );
    // ip route add fd00:5:0:3::/64 via fd00:5:0:3:: dev flannel.1 onlink proto 102 metric 1024
    let (key, route) = via("fd00:5:0:3::/64", "fd00:5:0:3::", 1024);
    assert_as_iproute2(
        &sent(&Operation::AddRoute { key, route }),
        "54000000180005065821026b000000000a400000fe6600010400000014000100fd0000050000000300000000\
         0000000014000500fd00000500000003000000000000000008000600000400000800040004000000",
    );
    // ip route add blackhole 10.5.0.0/16 proto 102
    let key = RouteKey { destination: "10.5.0.0/16".parse().unwrap(), metric: 0 };
    let route = Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL };
    assert_as_iproute2(
        &sent(&Operation::AddRoute { key, route }),
        "24000000180005065921026b0000000002100000fe66000600000000080001000a050000",
    );
}

#[test]
fn a_route_is_replaced_only_if_it_is_there() {
    // ip route replace 10.5.4.0/24 dev und0 proto 102, which has NLM_F_CREATE (0x400) too
    let key = RouteKey { destination: "10.5.4.0/24".parse().unwrap(), metric: 0 };
    let route = Route { target: RouteTarget::Link(name("und0")), protocol: ROUTE_PROTOCOL };
    assert_as_iproute2(
        &sent(&Operation::ReplaceRoute { key, route }),
        &"2c000000180005055821026b0000000002180000fe66fd0100000000080001000a0504000800040003000000"
            .replace("18000505", "18000501"),
    );
}

#[test]
fn a_route_is_deleted_only_if_it_leads_there_and_whatever_its_scope() {
    // ip route del 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink proto 102, which leaves the type open
    let (key, route) = via("10.5.3.0/24", "10.5.3.0", 0);
    assert_as_iproute2(
        &sent(&Operation::DeleteRoute { key, route }),
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
        &sent(&Operation::AddRoute { key, route }),
        "2c00000018000506b977026b0000000002180000fe66000100000000080001000a05030008001e000003050a",
    );
    // ip route del 10.5.3.0/24 nhid 168100608 proto 102, which leaves the type open
    assert_as_iproute2(
        &sent(&Operation::DeleteRoute { key, route }),
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
    // ip nexthop replace id 168100608 via 10.5.3.0 dev flannel.1 onlink proto 102, which has NLM_F_CREATE (0x400) too
    assert_as_iproute2(
        &sent(&Operation::ReplaceNextHop { id: NextHopId(168_100_608), next_hop }),
        &"3000000068000505b977026b00000000020066000400000008000100000305\
          0a080006000a0503000800050004000000"
            .replace("68000505", "68000501"),
    );
}

#[test]
fn there_is_no_message_about_a_device_that_is_unknown() {
    let neighbour = Neighbour { link: name("gone"), address: "10.5.3.0".parse().unwrap() };
    let operation = Operation::SetNeighbour { neighbour, mac: mac() };
    assert_eq!(change(&operation, index), None);
}

#[test]
fn only_what_is_wanted_anyway_makes_an_error_a_success() {
    let address = Address { link: device(), address: "10.5.1.0/32".parse().unwrap() };
    assert!(is_so_already(&Operation::AddAddress(address), libc::EEXIST));
    assert!(is_so_already(&Operation::DeleteAddress(address), libc::EADDRNOTAVAIL));
    assert!(!is_so_already(&Operation::DeleteAddress(address), libc::EPERM));
    let (key, route) = via("10.5.3.0/24", "10.5.3.0", 0);
    assert!(!is_so_already(&Operation::AddRoute { key, route }, libc::EEXIST), "that one is another's");
    assert!(is_so_already(&Operation::DeleteRoute { key, route }, libc::ESRCH));
}
