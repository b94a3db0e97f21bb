use super::*;
use crate::kind::Edit;
use crate::kind::gateway::ROUTE_PROTOCOL;
use crate::kind::next_hop::NextHop;
use crate::kind::route::{Route, RouteKey, RouteTarget};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

const ID: NextHopId = NextHopId(168_100_608);

fn route(target: RouteTarget) -> (RouteKey, Route) {
    let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
    (key, Route { target, protocol: ROUTE_PROTOCOL })
}

fn next_hop() -> NextHop {
    let gateway = "10.5.3.0".parse().unwrap();
    NextHop { gateway, link: name("flannel.1"), onlink: true, protocol: ROUTE_PROTOCOL }
}

fn by_object() -> (RouteKey, Route) {
    route(RouteTarget::NextHop { id: ID, link: name("flannel.1") })
}

#[test]
fn routes_do_without_an_object_whose_id_is_anothers() {
    let gateway = Gateway { address: "10.5.3.0".parse().unwrap(), link: name("flannel.1"), onlink: true };
    let (key, route) = by_object();
    let operations = [
        Operation::Route(Edit::Add { key, value: route }),
        Operation::Route(Edit::Replace { key, held: route, value: route }),
        Operation::Route(Edit::Delete { key, held: route }),
    ];
    let free = TakenIds::default();
    let taken = TakenIds([(ID, gateway)].into());
    for operation in &operations {
        assert!(operation.to_string().contains("nhid 168100608"));
        assert_eq!(*free.without(operation), *operation);
        assert!(taken.without(operation).to_string().ends_with("via 10.5.3.0 dev flannel.1 onlink"));
    }
    let other = Operation::NextHop(Edit::Delete { key: ID, held: next_hop() });
    assert_eq!(*taken.without(&other), other);
    assert!(taken.is_anothers(&other) && !free.is_anothers(&other));
}

#[test]
fn a_round_without_a_socket_fails_what_is_left_and_keeps_what_is_known() {
    let (key, route) = by_object();
    let operations = [
        Operation::NextHop(Edit::Delete { key: ID, held: next_hop() }),
        Operation::Route(Edit::Add { key, value: route }),
        Operation::Route(Edit::Delete { key, held: route }),
    ];
    let mut round = Round::new(&operations, false);
    round.begun = 2;
    round.failed.insert(1, KernelError::Errno(libc::EEXIST));
    round.give_up(&KernelError::Socket("gone".to_owned()));
    let failed: Vec<_> = round.into_failed().iter().map(ToString::to_string).collect();
    assert_eq!(
        failed,
        [
            "add route 10.5.3.0/24 nhid 168100608 dev flannel.1: File exists (os error 17)",
            "delete route 10.5.3.0/24 nhid 168100608 dev flannel.1: netlink socket: gone",
        ]
    );
}

#[test]
fn a_refusal_that_says_that_it_is_so_already_is_none() {
    let (key, route) = by_object();
    let operations = [
        Operation::NextHop(Edit::Delete { key: ID, held: next_hop() }),
        Operation::Route(Edit::Delete { key, held: route }),
    ];
    let mut socket = Socket::open().unwrap();
    let (devices, mut taken) = (Mutex::default(), TakenIds::default());
    let mut access = Access { socket: &mut socket, devices: &devices, taken: &mut taken };
    let mut round = Round::new(&operations, false);
    round.settle(0, KernelError::Errno(libc::ENOENT), &mut access).unwrap();
    round.settle(1, KernelError::NoSuchLink(name("flannel.1")), &mut access).unwrap();
    assert!(round.failed.is_empty());
    let refused = KernelError::Refused { errno: libc::EPERM, text: "no".to_owned() };
    round.settle(0, refused, &mut access).unwrap();
    assert_eq!(round.failed[&0].to_string(), "Operation not permitted (os error 1): no");
}
