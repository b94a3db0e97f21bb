use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;

use super::*;
use crate::netlink::message::{Request, create_vxlan};
use crate::state::{NextHopId, RouteKey};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn inner(request: Request) -> RouteNetlinkMessage {
    let Request::Route(message) = request else { panic!("about a next hop object") };
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
}

/// A next hop object with device 4.
fn object(id: u32) -> Shown {
    let gateway = Some("10.5.3.0".parse().unwrap());
    Shown { id: NextHopId(id), protocol: ROUTE_PROTOCOL, index: Some(4), gateway, onlink: true }
}

#[test]
fn a_route_leads_where_its_object_does_even_if_the_kernel_does_not_say_so() {
    let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
    let target = |id, index| RawTarget::NextHop { id: NextHopId(id), index };
    let led =
        |target| led_by_object(RawRoute { key, protocol: ROUTE_PROTOCOL, target }, &[object(3), object(7)]);
    assert_eq!(led(target(7, None)).target, target(7, Some(4)));
    assert_eq!(led(target(8, None)).target, target(8, None));
    assert_eq!(led(target(8, Some(5))).target, target(8, Some(5)), "one that came since");
    assert!(is_into(&led(target(3, None)), &[(4, name("flannel.1"))].into()));
    assert!(!is_into(&led(target(8, None)), &[(4, name("flannel.1"))].into()));
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
