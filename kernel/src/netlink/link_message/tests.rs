use macaddr::MacAddr6;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;

use super::*;
use crate::netlink::entry::link_name;
use crate::netlink::test_bytes::{assert_as_iproute2, hex};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
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
    Link { kind: LinkKind::Vxlan(vxlan()), mac, mtu: 1450, up: true }
}

fn inner(request: Request) -> RouteNetlinkMessage {
    let Request::Route(message) = request else { panic!("no message about a device") };
    match message.payload {
        netlink_packet_core::NetlinkPayload::InnerMessage(inner) => inner,
        other => panic!("{other:?}"),
    }
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
    assert_eq!(device(name("flan-blue"), &message).unwrap().0.kind, LinkKind::Bridge);
    message.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)])];
    let error = device(name("flan-blue"), &message).unwrap_err();
    assert!(error.to_string().starts_with("device flan-blue exists and is no bridge"), "{error}");
}

#[test]
fn a_tun_device_that_goes_with_its_program_is_told_from_one_that_stays() {
    let tun = |persist| {
        let attribute = DefaultNla::new(IFLA_TUN_PERSIST, vec![persist]);
        let data = InfoData::Tun(vec![InfoTun::Other(attribute)]);
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun), LinkInfo::Data(data)])];
        is_persistent(&message)
    };
    assert_eq!([tun(0), tun(1)], [false, true]);
}

#[test]
fn a_device_is_made_as_by_ip_link() {
    // ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dev und0 local 192.168.0.1
    //     dstport 8472 nolearning
    assert_as_iproute2(
        &hex(create_vxlan(name("flannel.1"), &vxlan_link(), &vxlan(), Some(3))),
        &"80000000100005065721026b00000000000000000000000000000000000000000a000100020000000001000008000400\
         aa0500000e000300666c616e6e656c2e310000003c0012000900010076786c616e0000002c0002000800030003000000\
         080001000100000008000400c0a80001050007000000000006000f0021180000"
            // iproute2 sends the kind without the final zero byte.
            .replace("0900010076786c616e", "0a00010076786c616e"),
    );
    // It sends RTM_NEWLINK (16) where RTM_SETLINK (19) is more precise.
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
