use macaddr::MacAddr6;
use proptest::prelude::*;

use super::*;
use crate::fake::FakeKernel;
use crate::{
    Address, Change, FdbEntry, Kernel, Link, LinkKind, Neighbour, NextHop, NextHopId, Ownership,
    ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Vxlan,
};

fn device() -> LinkName {
    "flannel.1".parse().unwrap()
}

/// Returns a device with its address.
fn host() -> State {
    let kind = LinkKind::Vxlan(Vxlan {
        vni: 1,
        port: 8472,
        underlay: Some("eth0".parse().unwrap()),
        local: Some("192.168.64.1".parse().unwrap()),
        learning: false,
        gbp: false,
    });
    let mac = Some(MacAddr6::new(2, 0, 0, 0, 0, 1));
    State {
        links: [(device(), Link { kind, mac, mtu: 1450, up: true }.into())].into(),
        addresses: [(Address { link: device(), address: "10.5.1.0/32".parse().unwrap() }, ())].into(),
        ..State::default()
    }
}

/// Returns the objects for a peer. Peers whose numbers differ by 100 are one host with two subnets.
fn peer(number: u8) -> State {
    let (link, mac) = (device(), MacAddr6::new(2, 0, 0, 0, 1, number % 100));
    let gateway = std::net::Ipv4Addr::new(10, 5, number, 0);
    let id = NextHopId::from(gateway);
    let next_hop = NextHop { gateway: gateway.into(), link, onlink: true, protocol: ROUTE_PROTOCOL };
    let key = RouteKey { destination: format!("{gateway}/24").parse().unwrap(), metric: 0 };
    let route = Route { target: RouteTarget::NextHop { id, link }, protocol: ROUTE_PROTOCOL };
    State {
        neighbours: [(Neighbour { link, address: gateway.into() }, mac)].into(),
        fdb: [(FdbEntry { link, mac }, format!("192.168.64.{}", number % 100).parse().unwrap())].into(),
        next_hops: [(id, next_hop)].into(),
        routes: [(key, route)].into(),
        ..State::default()
    }
}

struct Host {
    kernel: FakeKernel,
    ledger: Ledger,
}

impl Host {
    fn new() -> Self {
        let mut host = Self { kernel: FakeKernel::new(), ledger: Ledger::default() };
        host.want(&self::host());
        host
    }

    fn want(&mut self, state: &State) {
        state.entries().for_each(|entry| self.ledger.want(entry));
    }

    fn give_up(&mut self, state: &State) {
        state.entries().for_each(|entry| self.ledger.giving_up().want(entry));
    }

    /// Applies the ledger's operations, then reads notifications. Returns the operations.
    async fn work(&mut self) -> Vec<String> {
        let operations = self.ledger.operations();
        let failed = self.kernel.apply(&operations).await;
        assert!(failed.is_empty(), "{failed:#?}");
        operations.iter().for_each(|operation| self.ledger.carried_out(operation));
        let news = self.listen();
        assert_eq!(news, [], "echoes of our own operations are no news");
        operations.iter().map(ToString::to_string).collect()
    }

    /// Records the kernel's notifications, and returns those that are news.
    fn listen(&mut self) -> Vec<Object> {
        let changes = futures::FutureExt::now_or_never(self.kernel.changes()).unwrap_or_default();
        let facts = changes.into_iter().filter_map(|change| match change {
            Change::Fact(fact) => Some(fact),
            _ => None,
        });
        facts.filter_map(|fact| self.ledger.observe(&fact)).collect()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn one_peer_more_or_less_costs_what_one_peer_costs() {
    block_on(async {
        let mut host = Host::new();
        (2..50).for_each(|number| host.want(&peer(number)));
        host.work().await;
        host.want(&peer(50));
        assert_eq!(host.work().await.len(), 4);
        host.give_up(&peer(7));
        assert_eq!(host.work().await.len(), 4);
        assert_eq!(host.work().await, [""; 0]);
    });
}

#[test]
fn what_another_program_takes_away_is_put_back_alone() {
    block_on(async {
        let mut host = Host::new();
        (2..10).for_each(|number| host.want(&peer(number)));
        host.work().await;
        host.kernel.edit(|state| {
            let key = RouteKey { destination: "10.5.4.0/24".parse().unwrap(), metric: 0 };
            state.routes.remove(&key);
        });
        let key = RouteKey { destination: "10.5.4.0/24".parse().unwrap(), metric: 0 };
        assert_eq!(host.listen(), [Object::Route(key)]);
        assert_eq!(host.work().await, ["add route 10.5.4.0/24 nhid 168100864 dev flannel.1"]);
    });
}

#[test]
fn what_two_leases_of_one_host_share_stays_until_both_are_gone() {
    block_on(async {
        let mut host = Host::new();
        host.want(&peer(3));
        host.want(&peer(103));
        host.work().await;
        host.give_up(&peer(3));
        let operations = host.work().await;
        assert!(!operations.iter().any(|operation| operation.contains("fdb")), "{operations:#?}");
        host.give_up(&peer(103));
        assert!(host.work().await.iter().any(|operation| operation.starts_with("delete fdb")));
    });
}

#[derive(Debug, Clone)]
enum Event {
    Joins(u8),
    Leaves(u8),
    /// Another program removes the route at this position.
    TakesRoute(usize),
    TakesNeighbour(usize),
    ChangesFdb(usize),
    Works,
    Reads,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let number = || prop::sample::select(vec![2u8, 3, 4, 5, 102, 103]);
    let event = prop_oneof![
        number().prop_map(Event::Joins),
        number().prop_map(Event::Leaves),
        (0..9usize).prop_map(Event::TakesRoute),
        (0..9usize).prop_map(Event::TakesNeighbour),
        (0..9usize).prop_map(Event::ChangesFdb),
        Just(Event::Works),
        Just(Event::Reads),
    ];
    prop::collection::vec(event, 0..40)
}

proptest! {
    #[test]
    fn whatever_happens_the_kernel_ends_up_with_what_is_wanted(events in events()) {
        block_on(async {
            let mut host = Host::new();
            let mut here = std::collections::BTreeSet::new();
            for event in events {
                match event {
                    Event::Joins(number) => if here.insert(number) { host.want(&peer(number)) },
                    Event::Leaves(number) => if here.remove(&number) { host.give_up(&peer(number)) },
                    Event::TakesRoute(place) => host.kernel.edit(|state| {
                        if let Some(key) = state.routes.keys().nth(place).copied() { state.routes.remove(&key); }
                    }),
                    Event::TakesNeighbour(place) => host.kernel.edit(|state| {
                        if let Some(key) = state.neighbours.keys().nth(place).copied() { state.neighbours.remove(&key); }
                    }),
                    Event::ChangesFdb(place) => host.kernel.edit(|state| {
                        if let Some(to) = state.fdb.values_mut().nth(place) { *to = "192.0.2.1".parse().unwrap() }
                    }),
                    Event::Works => {
                        host.listen();
                        host.work().await;
                    }
                    Event::Reads => {
                        host.listen();
                        host.ledger.begin_reading();
                        let actual = host.kernel.snapshot(&Ownership { links: [device()].into(), senders: false, ..Ownership::default() }).await.unwrap();
                        host.ledger.reset(actual);
                    }
                }
            }
            host.listen();
            host.work().await;
            let mut wanted = self::host();
            for number in here {
                let peer = peer(number);
                wanted.neighbours.extend(peer.neighbours);
                wanted.fdb.extend(peer.fdb);
                wanted.next_hops.extend(peer.next_hops);
                wanted.routes.extend(peer.routes);
            }
            prop_assert_eq!(host.kernel.state(), wanted);
            prop_assert!(host.ledger.operations().is_empty());
            Ok(())
        })?;
    }
}
