use std::net::IpAddr;

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use proptest::prelude::*;

use super::*;
use crate::fake::FakeKernel;
use crate::{
    Address, Check, FdbEntry, FouPort, Kernel, Link, LinkKind, Neighbour, NextHop, NextHopId, Ownership,
    ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Source, Vxlan, Wire, WireguardDevice, WireguardPeer,
    WireguardPeerKey,
};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn vxlan() -> Vxlan {
    Vxlan {
        vni: 1,
        port: 8472,
        underlay: Some(name("eth0")),
        local: Some("192.168.0.1".parse().unwrap()),
        learning: false,
        gbp: false,
    }
}

fn link() -> Link {
    let mac = Some(MacAddr6::new(2, 0, 0, 0, 0, 1));
    Link { kind: LinkKind::Vxlan(vxlan()), mac, mtu: 1450, up: true }
}

/// The next hop object for 10.5.3.0.
const ID: NextHopId = NextHopId(168_100_608);

/// Returns a host with one peer.
fn joined() -> State {
    let device = name("flannel.1");
    let gateway = "10.5.3.0".parse().unwrap();
    let mac = MacAddr6::new(0x0a, 0, 0, 0, 0, 3);
    State {
        links: [(device, link().into())].into(),
        addresses: [(Address { link: device, address: "10.5.1.0/32".parse().unwrap() }, ())].into(),
        neighbours: [(Neighbour { link: device, address: gateway }, mac)].into(),
        fdb: [(FdbEntry { link: device, mac }, "192.168.0.3".parse().unwrap())].into(),
        next_hops: [(ID, NextHop { gateway, link: device, onlink: true, protocol: ROUTE_PROTOCOL })].into(),
        routes: [(
            RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 },
            Route { target: RouteTarget::NextHop { id: ID, link: device }, protocol: ROUTE_PROTOCOL },
        )]
        .into(),
        ..State::default()
    }
}

fn lines(operations: &[Operation]) -> Vec<String> {
    operations.iter().map(ToString::to_string).collect()
}

const PEER: [&str; 4] = [
    "add neighbour 10.5.3.0 dev flannel.1 lladdr 0a:00:00:00:00:03",
    "add fdb 0a:00:00:00:00:03 dev flannel.1 dst 192.168.0.3",
    "add nexthop id 168100608 via 10.5.3.0 dev flannel.1 onlink",
    "add route 10.5.3.0/24 nhid 168100608 dev flannel.1",
];

#[test]
fn an_empty_kernel_gets_everything_in_the_order_of_need() {
    let operations = lines(&diff(&joined(), &State::default()));
    assert_eq!(
        operations[..2],
        [
            "create link flannel.1 type vxlan id 1 port 8472 local 192.168.0.1 dev eth0 nolearning \
             address 02:00:00:00:00:01 mtu 1450 up",
            "add address 10.5.1.0/32 dev flannel.1",
        ]
    );
    assert_eq!(operations[2..], PEER);
}

#[test]
fn a_peer_that_left_is_deleted_route_first() {
    let mut alone = joined();
    alone.neighbours.clear();
    alone.fdb.clear();
    alone.next_hops.clear();
    alone.routes.clear();
    assert_eq!(
        lines(&diff(&alone, &joined())),
        [
            "delete route 10.5.3.0/24 nhid 168100608 dev flannel.1",
            "delete nexthop id 168100608 via 10.5.3.0 dev flannel.1 onlink",
            "delete fdb 0a:00:00:00:00:03 dev flannel.1 dst 192.168.0.3",
            "delete neighbour 10.5.3.0 dev flannel.1 lladdr 0a:00:00:00:00:03",
        ]
    );
}

#[test]
fn a_device_that_is_not_wanted_takes_its_own_with_it() {
    let route = "delete route 10.5.3.0/24 nhid 168100608 dev flannel.1";
    assert_eq!(lines(&diff(&State::default(), &joined())), [route, "delete link flannel.1"]);
}

#[test]
fn a_replaced_device_is_filled_anew_and_the_reason_names_every_field() {
    let mut other = joined();
    other.links.insert(
        name("flannel.1"),
        Link { kind: LinkKind::Vxlan(Vxlan { port: 4789, underlay: None, ..vxlan() }), ..link() }.into(),
    );
    let operations = lines(&diff(&joined(), &other));
    assert!(
        operations[0].ends_with("(port is 4789, want 8472, underlay is none, want eth0)"),
        "{operations:#?}"
    );
    assert_eq!(operations[1], "add address 10.5.1.0/32 dev flannel.1");
    assert_eq!(operations[2..], PEER);
}

#[test]
fn a_new_mac_costs_the_neighbours_and_nothing_else() {
    let mut other = joined();
    other
        .links
        .insert(name("flannel.1"), Link { mac: Some(MacAddr6::new(2, 0, 0, 0, 0, 9)), ..link() }.into());
    assert_eq!(
        lines(&diff(&joined(), &other)),
        [
            "change link flannel.1 address 02:00:00:00:00:01",
            "add neighbour 10.5.3.0 dev flannel.1 lladdr 0a:00:00:00:00:03",
        ]
    );
}

#[test]
fn the_routes_of_a_device_that_is_down_are_added_anew() {
    let mut other = joined();
    other.links.insert(name("flannel.1"), Link { up: false, mtu: 1400, ..link() }.into());
    assert_eq!(lines(&diff(&joined(), &other)), ["change link flannel.1 mtu 1450 up", PEER[2], PEER[3]]);
}

#[test]
fn a_route_that_another_program_made_through_our_device_is_taken_over_in_place() {
    let mut flannels = joined();
    for route in flannels.routes.values_mut() {
        route.protocol = 3;
    }
    assert_eq!(
        lines(&diff(&joined(), &flannels)),
        ["replace route 10.5.3.0/24 nhid 168100608 dev flannel.1"]
    );
}

#[test]
fn a_route_that_would_move_with_its_next_hop_to_another_device_is_deleted_if_it_is_not_wanted() {
    let other = name("flannel.2");
    let mut desired = State { links: [(other, link().into())].into(), ..State::default() };
    let next_hop = NextHop { link: other, ..joined().next_hops[&ID] };
    desired.next_hops.insert(ID, next_hop);
    assert_eq!(
        lines(&diff(&desired, &joined()))[1..],
        [
            "replace nexthop id 168100608 via 10.5.3.0 dev flannel.2 onlink",
            "delete route 10.5.3.0/24 nhid 168100608 dev flannel.1",
            "delete link flannel.1",
        ]
    );
}

#[test]
fn a_route_moves_off_a_device_before_the_device_goes() {
    let mut desired = State::default();
    let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
    let target =
        RouteTarget::Via { gateway: "192.168.0.3".parse().unwrap(), link: name("eth0"), onlink: false };
    desired.routes.insert(key, Route { target, protocol: ROUTE_PROTOCOL });
    assert_eq!(
        lines(&diff(&desired, &joined())),
        ["replace route 10.5.3.0/24 via 192.168.0.3 dev eth0", "delete link flannel.1"]
    );
}

#[test]
fn metric_and_protocol_are_shown_when_they_are_not_the_usual_ones() {
    let key = RouteKey { destination: "fd00:5::/64".parse().unwrap(), metric: 1024 };
    let route = Route { target: RouteTarget::Link(name("flannel-v6.1")), protocol: 4 };
    let delete = Operation::Route(Edit::Delete { key, held: route });
    assert_eq!(delete.to_string(), "delete route fd00:5::/64 dev flannel-v6.1 proto 4");
    let key = RouteKey { destination: "10.5.0.0/16".parse().unwrap(), metric: 7 };
    let route = Route { target: RouteTarget::Blackhole, protocol: ROUTE_PROTOCOL };
    let add = Operation::Route(Edit::Add { key, value: route });
    assert_eq!(add.to_string(), "add route 10.5.0.0/16 metric 7 blackhole");
}

/// Draws from few names and values, so that wanted and actual state often overlap.
mod any {
    use super::*;

    const LINKS: [&str; 2] = ["flannel.1", "flannel-v6.1"];

    pub(super) fn names() -> BTreeSet<LinkName> {
        LINKS.map(name).into()
    }

    fn mac() -> impl Strategy<Value = MacAddr6> {
        (0..3u8).prop_map(|last| MacAddr6::new(2, 0, 0, 0, 0, last))
    }

    fn ip() -> impl Strategy<Value = IpAddr> {
        (any::<bool>(), 0..3u8).prop_map(|(v6, n)| {
            if v6 { format!("fd00::{n}").parse().unwrap() } else { format!("10.5.{n}.0").parse().unwrap() }
        })
    }

    fn link(up: bool) -> impl Strategy<Value = Box<Link>> {
        let up = if up { Just(true).boxed() } else { prop::bool::weighted(0.8).boxed() };
        let port = prop::sample::select(vec![8472u16, 8472, 8472, 4789]);
        (port, mac(), 1449..1451u32, up).prop_map(|(port, mac, mtu, up)| {
            let kind = LinkKind::Vxlan(Vxlan { port, ..vxlan() });
            Box::new(Link { kind, mac: Some(mac), mtu, up })
        })
    }

    fn target() -> impl Strategy<Value = RouteTarget> {
        let device = prop::sample::select(vec!["flannel.1", "flannel-v6.1", "eth0"]).prop_map(name);
        prop_oneof![
            (ip(), device.clone(), any::<bool>()).prop_map(|(gateway, link, onlink)| RouteTarget::Via {
                gateway,
                link,
                onlink
            }),
            // Its device must be the one that the object leads to; see `state`.
            (1..4u32, device.clone()).prop_map(|(id, link)| RouteTarget::NextHop { id: NextHopId(id), link }),
            device.prop_map(RouteTarget::Link),
            Just(RouteTarget::Blackhole),
            Just(RouteTarget::Throw),
        ]
    }

    pub(super) fn ownership() -> Ownership {
        Ownership { links: names(), fou_ports: [8285].into(), wireguard: true, senders: true }
    }

    /// Generates a state that the kernel could hold: nothing on a missing device, and on a device that is down only
    /// what such a device can have. With `wanted`, devices are up and made by us.
    pub(super) fn state(wanted: bool) -> impl Strategy<Value = State> {
        let device = || prop::sample::select(LINKS.to_vec()).prop_map(name);
        let links = prop::collection::btree_map(device(), link(wanted), 0..3);
        let addresses = prop::collection::btree_set((device(), ip()), 0..4);
        let neighbours = prop::collection::btree_map((device(), ip()), mac(), 0..4);
        let fdb = prop::collection::btree_map((device(), mac()), ip(), 0..4);
        let protocol = prop::sample::select(vec![ROUTE_PROTOCOL, ROUTE_PROTOCOL, 4]);
        let next_hops = prop::collection::btree_map(1..4u32, (ip(), device(), any::<bool>()), 0..4);
        let routes = prop::collection::btree_map((ip(), 0..2u32), (target(), protocol), 0..6);
        let source = prop_oneof![
            ip().prop_map(Source::Peer),
            (ip(), ip()).prop_map(|(peer, subnet)| Source::Inner { peer, subnet }),
            ip().prop_map(Source::Plain),
        ];
        let sources = prop::collection::btree_set(source, 0..4);
        let wire = (any::<bool>(), prop::option::of(1..3u32));
        let wire = wire.prop_map(|(ipv6, vni)| Wire { ipv6, port: 8472, vni });
        let checks = prop::collection::btree_set(wire.prop_map(Check::Peers), 0..3);
        let fou_ports = prop::collection::btree_set(0..3u8, 0..3);
        let checksums = prop::collection::btree_set(device(), 0..2);
        let wireguards = prop::collection::btree_map(device(), 0..3u16, 0..2);
        let peers =
            prop::collection::btree_map((device(), 0..3u8), prop::collection::btree_set(ip(), 0..3), 0..4);
        let tunnels = (fou_ports, checksums, wireguards, peers);
        (links, addresses, neighbours, fdb, next_hops, routes, sources, checks, tunnels).prop_map(
            move |(links, addresses, neighbours, fdb, next_hops, routes, sources, checks, tunnels)| {
                let (fou_ports, checksums, wireguards, peers) = tunnels;
                let exists = |device: &LinkName| links.contains_key(device);
                let ours = |device: &LinkName| LINKS.map(name).contains(device);
                let is_up = |device: &LinkName| links.get(device).is_some_and(|link| link.up);
                let next_hops: BTreeMap<NextHopId, NextHop> = next_hops
                    .into_iter()
                    .filter(|(_, (_, link, _))| is_up(link))
                    .map(|(id, (gateway, link, onlink))| {
                        (NextHopId(id), NextHop { gateway, link, onlink, protocol: ROUTE_PROTOCOL })
                    })
                    .collect();
                State {
                    fou_ports: fou_ports
                        .into_iter()
                        .map(|last| (FouPort { address: [192, 168, 64, last].into(), port: 8285 }, ()))
                        .collect(),
                    wireguards: wireguards
                        .into_iter()
                        .filter(|(link, _)| exists(link))
                        .map(|(link, port)| (link, WireguardDevice { private_key: [64; 32].into(), port }))
                        .collect(),
                    wireguard_peers: peers
                        .into_iter()
                        .filter(|((link, _), _)| exists(link))
                        .map(|((link, key), allowed)| {
                            let allowed = allowed.into_iter().map(IpNetwork::from).collect();
                            let public_key = [key; 32].into();
                            let peer = WireguardPeer { allowed, ..WireguardPeer::default() };
                            (WireguardPeerKey { link, public_key }, peer)
                        })
                        .collect(),
                    checksums: checksums.into_iter().filter(exists).map(|link| (link, ())).collect(),
                    addresses: addresses
                        .into_iter()
                        .filter(|(link, ip)| is_up(link) || (exists(link) && ip.is_ipv4()))
                        // Without an IPv4 address a device carries no IPv4 routes.
                        .chain(links.keys().filter(|_| wanted).map(|link| (*link, [10, 5, 9, 0].into())))
                        .map(|(link, ip)| (Address { link, address: ip.into() }, ()))
                        .collect(),
                    neighbours: neighbours
                        .into_iter()
                        .filter(|((link, _), _)| exists(link))
                        .map(|((link, address), mac)| (Neighbour { link, address }, mac))
                        .collect(),
                    fdb: fdb
                        .into_iter()
                        .filter(|((link, _), _)| exists(link))
                        .map(|((link, mac), ip)| (FdbEntry { link, mac }, ip))
                        .collect(),
                    routes: routes
                        .into_iter()
                        .filter_map(|(key, (target, protocol))| match target {
                            RouteTarget::NextHop { id, .. } => {
                                let link = next_hops.get(&id)?.link;
                                Some((key, (RouteTarget::NextHop { id, link }, protocol)))
                            }
                            target => Some((key, (target, protocol))),
                        })
                        .filter(|(_, (target, _))| {
                            target.link().is_none_or(|link| !ours(&link) || is_up(&link))
                        })
                        .map(|((ip, metric), (target, protocol))| {
                            let on_ours = target.link().is_some_and(|link| ours(&link));
                            let protocol = if on_ours && !wanted { protocol } else { ROUTE_PROTOCOL };
                            (RouteKey { destination: ip.into(), metric }, Route { target, protocol })
                        })
                        .collect(),
                    next_hops,
                    links,
                    sources: sources.into_iter().map(|source| (source, ())).collect(),
                    checks: checks.into_iter().map(|check| (check, ())).collect(),
                }
            },
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn carrying_out_a_diff_gives_what_is_wanted(desired in any::state(true), actual in any::state(false)) {
        let mut kernel = FakeKernel::holding(actual.clone());
        let operations = diff(&desired, &actual);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let failed = kernel.apply(&operations).await;
            prop_assert!(failed.is_empty(), "{failed:#?}");
            let after = kernel.snapshot(&any::ownership()).await.unwrap();
            prop_assert_eq!(&after, &desired, "after {:#?}", lines(&operations));
            Ok(())
        })?;
    }

    #[test]
    fn what_is_as_wanted_needs_nothing(state in any::state(true)) {
        prop_assert_eq!(diff(&state, &state), []);
    }

    #[test]
    fn nothing_is_deleted_before_the_last_addition(desired in any::state(true), actual in any::state(false)) {
        let operations = diff(&desired, &actual);
        prop_assert!(operations.is_sorted_by_key(Operation::is_deletion), "{:#?}", lines(&operations));
    }

    #[test]
    fn nobody_is_measured_before_every_sender_is_known(desired in any::state(true), actual in any::state(false)) {
        let operations = diff(&desired, &actual);
        let first = operations.iter().position(|operation| matches!(operation, Operation::Check(Edit::Add { .. })));
        let last = operations.iter().rposition(|operation| matches!(operation, Operation::Source(Edit::Add { .. })));
        prop_assert!(first.is_none_or(|first| last < Some(first)), "{:#?}", lines(&operations));
        let first = operations.iter().position(|operation| matches!(operation, Operation::Source(Edit::Delete { .. })));
        let last = operations.iter().rposition(|operation| matches!(operation, Operation::Check(Edit::Delete { .. })));
        prop_assert!(first.is_none_or(|first| last < Some(first)), "{:#?}", lines(&operations));
    }

    #[test]
    fn no_route_is_added_before_what_resolves_its_next_hop(
        desired in any::state(true),
        actual in any::state(false),
    ) {
        let operations = diff(&desired, &actual);
        let first_route = operations.iter().position(|operation| {
            matches!(operation, Operation::Route(_)) && !operation.is_deletion()
        });
        let last_resolution = operations.iter().rposition(|operation| {
            matches!(operation, Operation::Neighbour(_) | Operation::Fdb(_) | Operation::NextHop(Edit::Add { .. }))
                && !operation.is_deletion()
        });
        if let (Some(route), Some(resolution)) = (first_route, last_resolution) {
            prop_assert!(resolution < route, "{:#?}", lines(&operations));
        }
    }
}

#[test]
fn a_device_of_another_kind_is_replaced() {
    let mut other = joined();
    other.links.insert(
        name("flannel.1"),
        Link { kind: LinkKind::Tun { vnet_header: true }, mac: None, ..link() }.into(),
    );
    let operations = lines(&diff(&joined(), &other));
    assert!(operations[0].contains("(it is type tun vnet_hdr on, want type vxlan id 1"), "{operations:#?}");
}
