use flan_kernel::fake::{FakeFirewall, FakeKernel};
use flan_kernel::netlink::Holder;
use flan_kernel::{
    Check, Edit, Link, LinkKind, NextHop, NextHopId, Plan, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget,
    Source, Vxlan, Wire,
};

use super::*;

fn device() -> LinkName {
    "flannel.1".parse().unwrap()
}

fn key(number: u8) -> RouteKey {
    RouteKey { destination: format!("10.5.{number}.0/24").parse().unwrap(), metric: 0 }
}

fn host() -> State {
    let kind = LinkKind::Vxlan(Vxlan {
        vni: 1,
        port: 8472,
        underlay: Some("eth0".parse().unwrap()),
        local: Some("192.168.64.11".parse().unwrap()),
        learning: false,
        gbp: false,
    });
    let mac = Some("02:00:00:00:00:01".parse().unwrap());
    State { links: [(device(), Link { kind, mac, mtu: 1450, up: true }.into())].into(), ..State::default() }
}

fn peer(number: u8) -> State {
    let gateway = std::net::Ipv4Addr::new(10, 5, number, 0);
    let (id, link) = (NextHopId::from(gateway), device());
    let next_hop = NextHop { gateway: gateway.into(), link, onlink: true, protocol: ROUTE_PROTOCOL };
    let route = Route { target: RouteTarget::NextHop { id, link }, protocol: ROUTE_PROTOCOL };
    State { next_hops: [(id, next_hop)].into(), routes: [(key(number), route)].into(), ..State::default() }
}

fn want(reconciler: &mut Reconciler<FakeKernel, FakeFirewall>, state: &State) {
    state.entries().for_each(|entry| reconciler.wanting().want(entry));
}

/// A kernel, and a reconciler that wants three peers of it.
async fn three_peers() -> (FakeKernel, Reconciler<FakeKernel, FakeFirewall>) {
    let kernel = FakeKernel::new();
    let ownership = Ownership { links: [device()].into(), senders: true };
    let mut reconciler = Reconciler::new(kernel.clone(), FakeFirewall::new(), ownership);
    reconciler.read_now().await.unwrap();
    want(&mut reconciler, &host());
    (2..5).for_each(|number| want(&mut reconciler, &peer(number)));
    (kernel, reconciler)
}

/// Lets everything happen that happens by itself, and works until nothing is left to do.
async fn settle(reconciler: &mut Reconciler<FakeKernel, FakeFirewall>, now: Instant) {
    for _ in 0..10 {
        while let Some(heard) = reconciler.hear().now_or_never() {
            if heard.read {
                reconciler.read();
            }
        }
        reconciler.work(now).await;
    }
}

#[tokio::test]
async fn a_second_round_finds_nothing_to_do() {
    let (kernel, mut reconciler) = three_peers().await;
    let now = Instant::now();
    assert_eq!(reconciler.work(now).await.applied, 7);
    settle(&mut reconciler, now).await;
    kernel.take_applied();
    settle(&mut reconciler, now).await;
    assert_eq!(kernel.take_applied(), []);
    assert_eq!(reconciler.problem(), None);
    assert_eq!(reconciler.repairs().of("route"), 0);
}

#[tokio::test]
async fn nothing_is_done_before_the_kernel_was_read() {
    let kernel = FakeKernel::new();
    let mut reconciler = Reconciler::new(
        kernel.clone(),
        FakeFirewall::new(),
        Ownership { links: [device()].into(), senders: true },
    );
    kernel.fail_next_snapshot(KernelError::Errno(12));
    assert!(reconciler.read_now().await.is_err());
    want(&mut reconciler, &host());
    reconciler.work(Instant::now()).await;
    assert_eq!(kernel.take_applied(), []);
}

#[tokio::test]
async fn one_refused_operation_stops_nothing_else_and_is_tried_again_later() {
    let (kernel, mut reconciler) = three_peers().await;
    kernel.fail_next(|operation| operation.object() == Object::Route(key(3)), KernelError::Errno(12));
    let now = Instant::now();
    let outcome = reconciler.work(now).await;
    assert_eq!((outcome.applied, outcome.failed), (6, 1));
    assert!(reconciler.problem().unwrap().contains("10.5.3.0/24"));
    assert_eq!(reconciler.work(now).await.applied, 0, "not before its time");
    let later = now + Duration::from_secs(1);
    assert_eq!(reconciler.work(later).await.applied, 1);
    assert_eq!(reconciler.problem(), None);
}

#[tokio::test]
async fn who_has_the_port_is_told_and_what_follows_from_it_is_not() {
    let (kernel, mut reconciler) = three_peers().await;
    let holder = Holder::Vxlan { name: "vx9".parse().unwrap(), external: true };
    let taken = KernelError::PortTaken { port: 8472, holder };
    kernel.fail_next(|operation| operation.object() == Object::Link(device()), taken);
    // As the kernel does with a device that is there and down.
    for number in 2..5 {
        let is_it = move |operation: &Operation| operation.object() == Object::Route(key(number));
        kernel.fail_next(is_it, KernelError::Errno(100));
    }
    let now = Instant::now();
    reconciler.work(now).await;
    let told = reconciler.port_taken().unwrap();
    assert!(told.starts_with("UDP port 8472 is taken by VXLAN device vx9 in external mode, so"), "{told}");
    assert!(told.contains("; delete it (ip link del vx9), or choose another Backend.Port"), "{told}");
    let problem = reconciler.problem().unwrap();
    assert!(problem.ends_with("UDP port 8472 is taken by VXLAN device vx9 in external mode"), "{problem}");
    reconciler.work(now + Duration::from_secs(1)).await;
    assert_eq!((reconciler.port_taken(), reconciler.problem()), (None, None));
}

#[tokio::test]
async fn what_was_refused_is_forgotten_with_the_peer() {
    let (kernel, mut reconciler) = three_peers().await;
    kernel.fail_next(|operation| operation.object() == Object::Route(key(3)), KernelError::Errno(12));
    let now = Instant::now();
    reconciler.work(now).await;
    peer(3).entries().for_each(|entry| reconciler.giving_up().want(entry));
    reconciler.work(now).await;
    assert_eq!(reconciler.problem(), None);
}

#[tokio::test]
async fn what_another_program_deletes_is_put_back_and_counted() {
    let (kernel, mut reconciler) = three_peers().await;
    let now = Instant::now();
    settle(&mut reconciler, now).await;
    kernel.edit(|state| state.routes.retain(|route, _| *route != key(3)));
    assert!(reconciler.hear().await.work);
    assert_eq!(reconciler.work(now).await.applied, 1);
    assert_eq!((reconciler.repairs().of("route"), reconciler.repairs().of("nexthop")), (1, 0));
}

#[tokio::test]
async fn a_reading_finds_what_nobody_told() {
    let (kernel, mut reconciler) = three_peers().await;
    let now = Instant::now();
    settle(&mut reconciler, now).await;
    kernel.delete_link(device());
    settle(&mut reconciler, now).await;
    let mut wanted = host();
    for number in 2..5 {
        wanted.next_hops.extend(peer(number).next_hops);
        wanted.routes.extend(peer(number).routes);
    }
    assert_eq!(kernel.state(), wanted);
    assert_eq!(reconciler.repairs().of("link"), 1);
}

#[test]
fn what_is_heard_twice_is_heard_of_both() {
    let mut heard = Heard { work: true, networks: true, ..Heard::default() };
    heard |= Heard { host: true, underlay: true, ..Heard::default() };
    heard |= Heard { read: true, has_read: true, ..Heard::default() };
    let all = Heard { work: true, read: true, underlay: true, networks: true, host: true, has_read: true };
    assert_eq!(heard, all);
}

#[tokio::test]
async fn a_notification_that_was_lost_may_have_told_of_anything() {
    let (_, mut reconciler) = three_peers().await;
    let heard = reconciler.take_in(vec![Change::Unknown]);
    assert_eq!(heard, Heard { read: true, underlay: true, networks: true, host: true, ..Heard::default() });
}

#[tokio::test]
async fn senders_that_went_without_a_word_come_back_with_the_rule_that_measures_them() {
    let (kernel, mut reconciler) = three_peers().await;
    let wire = Wire { ipv6: false, port: 8472, vni: Some(1) };
    let (source, check) = (Source::Peer("192.168.64.12".parse().unwrap()), Check::Peers(wire));
    let senders = State { sources: [(source, ())].into(), checks: [(check, ())].into(), ..State::default() };
    want(&mut reconciler, &senders);
    let now = Instant::now();
    settle(&mut reconciler, now).await;
    kernel.take_applied();
    // Of the two, the kernel tells of the rule alone.
    let told = vec![Change::Fact(Fact::Check(check, None)), Change::SendersGone];
    let heard = reconciler.take_in(told);
    assert_eq!(heard, Heard { work: true, read: true, ..Heard::default() });
    reconciler.work(now).await;
    assert_eq!(
        kernel.take_applied(),
        [
            Operation::Source(Edit::Add { key: source, value: () }),
            Operation::Check(Edit::Add { key: check, value: () })
        ]
    );
    assert_eq!((reconciler.repairs().of("sender"), reconciler.repairs().of("check")), (1, 1));
}

#[tokio::test]
async fn a_repair_that_is_undone_again_and_again_is_not_fought_for() {
    let (kernel, mut reconciler) = three_peers().await;
    let now = Instant::now();
    settle(&mut reconciler, now).await;
    for _ in 0..20 {
        kernel.edit(|state| state.routes.retain(|route, _| *route != key(3)));
        settle(&mut reconciler, now).await;
    }
    assert_eq!(reconciler.repairs().of("route"), 8);
    assert!(reconciler.problem().unwrap().contains("route 10.5.3.0/24"), "{:?}", reconciler.problem());
    kernel.edit(|state| state.routes.retain(|route, _| *route != key(2)));
    settle(&mut reconciler, now).await;
    assert_eq!(reconciler.repairs().of("route"), 9, "others are put right at once");
    settle(&mut reconciler, now + Duration::from_secs(1)).await;
    assert_eq!(reconciler.repairs().of("route"), 10);
    assert_eq!(reconciler.problem(), None);
}

#[tokio::test]
async fn without_its_device_a_route_waits_for_no_time() {
    let (kernel, mut reconciler) = three_peers().await;
    kernel.fail_next(|operation| operation.object() == Object::Link(device()), KernelError::Errno(17));
    let now = Instant::now();
    let outcome = reconciler.work(now).await;
    assert_eq!(outcome.applied, 0);
    assert!(reconciler.problem().unwrap().starts_with("create link flannel.1"));
    assert_eq!(reconciler.work(now + Duration::from_secs(1)).await.applied, 7);
}
