use flan_kernel::Kernel;
use flan_kernel::fake::FakeKernel;
use flan_kernel::netlink::Holder;
use flan_kernel::{
    Check, Edit, Link, LinkKind, NextHop, NextHopId, Plan, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget,
    Source, Vxlan, Wire,
};

use futures::FutureExt;

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

/// A reconciler and its kernel.
struct Pair {
    kernel: FakeKernel,
    reconciler: Reconciler,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let mut reconciler = Reconciler::default();
        reconciler.own(&Ownership { links: [device()].into(), senders: true, ..Ownership::default() });
        Self { kernel: FakeKernel::new(), reconciler, now: Instant::now() }
    }

    /// Creates a reconciler that has read the kernel and wants three peers.
    fn with_three_peers() -> Self {
        let mut pair = Self::new();
        pair.read();
        pair.want(&host());
        (2..5).for_each(|number| pair.want(&peer(number)));
        pair
    }

    fn want(&mut self, state: &State) {
        state.entries().for_each(|entry| self.reconciler.wanting().want(entry));
    }

    fn read(&mut self) -> Consequences {
        self.reconciler.read_anew();
        self.reconciler.reading_begins();
        let reading = self.kernel.snapshot(self.reconciler.ownership());
        let read = reading.now_or_never().expect("the fake answers at once");
        self.reconciler.take_in_all(read, false, self.now)
    }

    /// Handles the kernel's notifications.
    fn hear(&mut self) -> Consequences {
        let mut follows = Consequences::default();
        while let Some(changes) = self.kernel.changes().now_or_never() {
            follows |= self.reconciler.take_in(changes);
        }
        follows
    }

    /// Runs one round, without handling the kernel's notifications of it.
    fn work(&mut self) -> Outcome {
        let operations = self.reconciler.begin(true, self.now);
        let refused = self.kernel.apply(&operations).now_or_never().expect("the fake answers at once");
        self.reconciler.carried_out(&operations, &refused, self.now);
        self.reconciler.end_round()
    }

    /// Runs rounds until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..10 {
            while self.hear().read {
                self.read();
            }
            if self.work().touched_devices {
                self.read();
            }
        }
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn repaired(&self, kind: &str) -> u64 {
        self.reconciler.repairs().of(kind)
    }
}

#[test]
fn a_second_round_finds_nothing_to_do() {
    let mut pair = Pair::with_three_peers();
    assert_eq!(pair.work().applied, 7);
    pair.settle();
    pair.kernel.take_applied();
    pair.settle();
    assert_eq!(pair.kernel.take_applied(), []);
    assert_eq!(pair.reconciler.problem(), None);
    assert_eq!(pair.repaired("route"), 0);
}

#[test]
fn nothing_is_done_before_the_kernel_was_read() {
    let mut pair = Pair::new();
    pair.kernel.fail_next_snapshot(KernelError::Errno(12));
    pair.read();
    pair.want(&host());
    pair.work();
    assert_eq!(pair.kernel.take_applied(), []);
}

#[test]
fn one_refused_operation_stops_nothing_else_and_is_tried_again_later() {
    let mut pair = Pair::with_three_peers();
    pair.kernel.fail_next(|operation| operation.object() == Object::Route(key(3)), KernelError::Errno(12));
    let outcome = pair.work();
    assert_eq!((outcome.applied, outcome.failed), (6, 1));
    assert!(pair.reconciler.problem().unwrap().contains("10.5.3.0/24"));
    assert_eq!(pair.work().applied, 0, "not before its time");
    pair.later(1);
    assert_eq!(pair.work().applied, 1);
    assert_eq!(pair.reconciler.problem(), None);
}

#[test]
fn who_has_the_port_is_told_and_what_follows_from_it_is_not() {
    let mut pair = Pair::with_three_peers();
    let holder = Holder::Vxlan { name: "vx9".parse().unwrap(), external: true };
    let taken = KernelError::PortTaken { port: 8472, holder };
    pair.kernel.fail_next(|operation| operation.object() == Object::Link(device()), taken);
    // The kernel answers so while the device exists but is down.
    for number in 2..5 {
        let is_it = move |operation: &Operation| operation.object() == Object::Route(key(number));
        pair.kernel.fail_next(is_it, KernelError::Errno(100));
    }
    pair.work();
    let told = pair.reconciler.port_taken().unwrap();
    assert!(told.starts_with("UDP port 8472 is taken by VXLAN device vx9 in external mode, so"), "{told}");
    assert!(told.contains("; delete it (ip link del vx9), or choose another port"), "{told}");
    let problem = pair.reconciler.problem().unwrap();
    assert!(problem.ends_with("UDP port 8472 is taken by VXLAN device vx9 in external mode"), "{problem}");
    pair.later(1);
    pair.work();
    assert_eq!((pair.reconciler.port_taken(), pair.reconciler.problem()), (None, None));
}

#[test]
fn what_was_refused_is_forgotten_with_the_peer() {
    let mut pair = Pair::with_three_peers();
    pair.kernel.fail_next(|operation| operation.object() == Object::Route(key(3)), KernelError::Errno(12));
    pair.work();
    peer(3).entries().for_each(|entry| pair.reconciler.giving_up().want(entry));
    pair.work();
    assert_eq!(pair.reconciler.problem(), None);
}

#[test]
fn what_another_program_deletes_is_put_back_and_counted() {
    let mut pair = Pair::with_three_peers();
    pair.settle();
    pair.kernel.edit(|state| state.routes.retain(|route, _| *route != key(3)));
    assert!(pair.hear().work);
    assert_eq!(pair.work().applied, 1);
    assert_eq!((pair.repaired("route"), pair.repaired("nexthop")), (1, 0));
}

#[test]
fn a_reading_finds_what_nobody_told() {
    let mut pair = Pair::with_three_peers();
    pair.settle();
    pair.kernel.delete_link(device());
    pair.settle();
    let mut wanted = host();
    for number in 2..5 {
        wanted.next_hops.extend(peer(number).next_hops);
        wanted.routes.extend(peer(number).routes);
    }
    assert_eq!(pair.kernel.state(), wanted);
    assert_eq!(pair.repaired("link"), 1);
}

#[test]
fn what_is_heard_twice_is_heard_of_both() {
    let mut follows = Consequences { work: true, networks: true, ..Consequences::default() };
    follows |= Consequences { host: true, underlay: true, ..Consequences::default() };
    follows |= Consequences { read: true, ..Consequences::default() };
    let all = Consequences { work: true, read: true, underlay: true, networks: true, host: true };
    assert_eq!(follows, all);
}

#[test]
fn a_notification_that_was_lost_may_have_told_of_anything() {
    let mut pair = Pair::with_three_peers();
    let follows = pair.reconciler.take_in(vec![Change::Unknown]);
    assert_eq!(
        follows,
        Consequences { read: true, underlay: true, networks: true, host: true, ..Consequences::default() }
    );
}

#[test]
fn senders_that_went_without_a_word_come_back_with_the_rule_that_measures_them() {
    let mut pair = Pair::with_three_peers();
    let wire = Wire { ipv6: false, port: 8472, vni: Some(1) };
    let (source, check) = (Source::Peer("192.168.64.12".parse().unwrap()), Check::Peers(wire));
    let senders = State { sources: [(source, ())].into(), checks: [(check, ())].into(), ..State::default() };
    pair.want(&senders);
    pair.settle();
    pair.kernel.take_applied();
    // The kernel reports only the rule.
    let told = vec![Change::Fact(Fact::Check(check, None)), Change::SendersGone];
    let follows = pair.reconciler.take_in(told);
    assert_eq!(follows, Consequences { work: true, read: true, ..Consequences::default() });
    pair.work();
    assert_eq!(
        pair.kernel.take_applied(),
        [
            Operation::Source(Edit::Add { key: source, value: () }),
            Operation::Check(Edit::Add { key: check, value: () })
        ]
    );
    assert_eq!((pair.repaired("sender"), pair.repaired("check")), (1, 1));
}

#[test]
fn a_repair_that_is_undone_again_and_again_is_not_fought_for() {
    let mut pair = Pair::with_three_peers();
    pair.settle();
    for _ in 0..20 {
        pair.kernel.edit(|state| state.routes.retain(|route, _| *route != key(3)));
        pair.settle();
    }
    assert_eq!(pair.repaired("route"), 8);
    assert!(
        pair.reconciler.problem().unwrap().contains("route 10.5.3.0/24"),
        "{:?}",
        pair.reconciler.problem()
    );
    pair.kernel.edit(|state| state.routes.retain(|route, _| *route != key(2)));
    pair.settle();
    assert_eq!(pair.repaired("route"), 9, "others are put right at once");
    pair.later(1);
    pair.settle();
    assert_eq!(pair.repaired("route"), 10);
    assert_eq!(pair.reconciler.problem(), None);
}

#[test]
fn without_its_device_a_route_waits_for_no_time() {
    let mut pair = Pair::with_three_peers();
    pair.kernel.fail_next(|operation| operation.object() == Object::Link(device()), KernelError::Errno(17));
    let outcome = pair.work();
    assert_eq!(outcome.applied, 0);
    assert!(pair.reconciler.problem().unwrap().starts_with("create link flannel.1"));
    pair.later(1);
    assert_eq!(pair.work().applied, 7);
}
