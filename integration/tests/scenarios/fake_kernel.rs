//! The kernel in memory, which the tests without root stand on, does what Linux does: the same operations on both, whether
//! they make sense or not, and the same comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::chance::{Chance, seed_from};
use flan_integration::inside::Inside;
use flan_integration::{Lab, LabOptions};
use flan_kernel::fake::FakeKernel;
use flan_kernel::kind::Changed;
use flan_kernel::netlink::Linux;
use flan_kernel::{
    Address, Addresses, Change, Check, Checks, Edit, Fact, FailedOperation, Fdb, FdbEntry, Kernel,
    KernelError, Link, LinkKind, LinkName, Links, Listed, Neighbour, Neighbours, NextHop, NextHopId,
    NextHops, Object, Operation, Ownership, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Routes, Source,
    Sources, State, Vxlan, Wire, diff,
};
use futures::FutureExt;

const SEED: &str = "FLAN_DAMAGE_SEED";
/// Sequences of operations, and how long each is.
const SEQUENCES: usize = 40;
const LENGTH: usize = 25;
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn the_kernel_in_memory_does_what_linux_does() -> Result<()> {
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        let host = lab.host("h1")?;
        let seed = seed_from(SEED)?;
        println!("make scenarios DAMAGE_SEED={seed} does this again");
        let local = host.address();
        Inside::of(host.netns())?.run(LIMIT, async move {
            let mut chance = Chance::of_seed(seed);
            for sequence in 0..SEQUENCES {
                let mut both = Both::new(local)?;
                both.compare_states().await.context("at the start")?;
                for step in 0..LENGTH {
                    let operations = both.any_operations(&mut chance);
                    both.carry_out(&operations)
                        .await
                        .with_context(|| format!("sequence {sequence}, step {step}: {operations:#?}"))?;
                }
                both.clean_up().await?;
            }
            Ok(())
        })
    })
}

/// Linux and the one in memory, which hold the same.
struct Both {
    linux: Linux,
    fake: FakeKernel,
    ownership: Ownership,
    local: Ipv4Addr,
    held: State,
}

impl Both {
    fn new(local: Ipv4Addr) -> Result<Self> {
        let ownership = Ownership { links: [device()].into(), senders: true, ..Ownership::default() };
        let (linux, fake) = (Linux::new()?, FakeKernel::new());
        Ok(Self { linux, fake, ownership, local, held: State::default() })
    }

    /// Does the same on both, and compares what they refuse, tell and hold.
    async fn carry_out(&mut self, operations: &[Operation]) -> Result<()> {
        told(&mut self.linux);
        told(&mut self.fake);
        let by_linux = refusals(&self.linux.apply(operations).await);
        let by_fake = refusals(&self.fake.apply(operations).await);
        ensure!(by_linux == by_fake, "Linux refuses {by_linux:#?}\nthe other {by_fake:#?}");
        let (by_linux, by_fake) = (told(&mut self.linux), told(&mut self.fake));
        self.compare_states().await?;
        // What goes with another object Linux may tell or not, and in between it may say more.
        let unsaid: Vec<_> = by_fake.difference(&by_linux).collect();
        ensure!(unsaid.is_empty(), "Linux does not tell {unsaid:#?}\nbut {by_linux:#?}");
        Ok(())
    }

    async fn compare_states(&mut self) -> Result<()> {
        let linux = self.linux.snapshot(&self.ownership).await?;
        let fake = self.fake.snapshot(&self.ownership).await?;
        let missing = lines(&diff(&linux, &fake));
        ensure!(linux == fake, "the one in memory would have to {missing:#?}");
        self.held = linux;
        Ok(())
    }

    async fn clean_up(&mut self) -> Result<()> {
        let failed = self.linux.apply(&diff(&State::default(), &self.held)).await;
        ensure!(failed.is_empty(), "{failed:#?}");
        Ok(())
    }

    /// One to three operations, often such as cannot be carried out. On a device there is more to do while it is there.
    fn any_operations(&self, chance: &mut Chance) -> Vec<Operation> {
        let devices = if self.held.links.is_empty() { 3 } else { 12 };
        let operations = (0..=chance.below(3)).map(|_| match chance.below(devices) {
            0 | 1 => self.any::<Links>(device(), link(self.local, chance).into(), chance),
            2 => self.any::<Routes>(route_key(chance), route(chance), chance),
            3 => self.any::<Addresses>(address(chance), (), chance),
            4 => self.any::<Neighbours>(neighbour(chance), mac(chance).into(), chance),
            5 => self.any::<Fdb>(fdb_entry(chance), underlay(chance), chance),
            6 => self.any::<Sources>(Source::Peer(underlay(chance)), (), chance),
            7 => self.any::<Checks>(Check::Peers(wire(chance)), (), chance),
            8 | 9 => {
                let address = gateway(chance);
                let next_hop = NextHop {
                    gateway: gateway(chance).into(),
                    link: device(),
                    onlink: true,
                    protocol: ROUTE_PROTOCOL,
                };
                self.any::<NextHops>(NextHopId::from(address), next_hop, chance)
            }
            _ => self.any::<Routes>(route_key(chance), route(chance), chance),
        });
        // No more than one for each object, as a diff has them.
        let operations: BTreeMap<Object, Operation> =
            operations.map(|operation| (operation.object(), operation)).collect();
        operations.into_values().collect()
    }

    fn any<K: Listed>(&self, key: K::Key, value: K::Value, chance: &mut Chance) -> Operation {
        let held = K::of(&self.held).get(&key).cloned();
        // To make a device again that is there is how Linux goes on with one that was made and not brought up.
        let adds = held.is_none() || K::CHANGED != Changed::ByDevice;
        K::operation(match (chance.below(5), held) {
            (0 | 1, _) if adds => Edit::Add { key, value },
            (2, held) => Edit::Delete { key, held: held.unwrap_or(value) },
            (_, Some(held)) if held == value => Edit::Delete { key, held },
            (_, Some(held)) => Edit::Replace { key, held, value },
            (3, None) => Edit::Replace { key, held: value.clone(), value },
            (_, None) => Edit::Add { key, value },
        })
    }
}

fn device() -> LinkName {
    "flannel.1".parse().unwrap_or_else(|error| panic!("{error}"))
}

fn link(local: Ipv4Addr, chance: &mut Chance) -> Link {
    let vxlan = Vxlan {
        vni: 1,
        port: chance.pick(&[8472, 8472, 8472, 4789]),
        underlay: "eth0".parse().ok(),
        local: Some(local.into()),
        learning: false,
        gbp: false,
    };
    let mac = Some([2, 0, 0, 0, 1, chance.pick(&[1, 1, 1, 2])].into());
    let mtu = chance.pick(&[1450, 1450, 1400]);
    Link { kind: LinkKind::Vxlan(vxlan), mac, mtu, up: chance.below(5) > 0 }
}

fn gateway(chance: &mut Chance) -> Ipv4Addr {
    Ipv4Addr::new(10, 5, chance.pick(&[2, 3]), 0)
}

fn underlay(chance: &mut Chance) -> IpAddr {
    Ipv4Addr::new(192, 168, 64, chance.pick(&[12, 13])).into()
}

fn mac(chance: &mut Chance) -> [u8; 6] {
    [2, 0, 0, 0, 2, chance.pick(&[2, 3])]
}

fn address(chance: &mut Chance) -> Address {
    let address = chance.pick(&["10.5.1.0/32", "10.5.9.0/32"]);
    Address { address: address.parse().unwrap_or_else(|error| panic!("{error}")), link: device() }
}

fn neighbour(chance: &mut Chance) -> Neighbour {
    Neighbour { address: gateway(chance).into(), link: device() }
}

fn fdb_entry(chance: &mut Chance) -> FdbEntry {
    FdbEntry { mac: mac(chance).into(), link: device() }
}

fn wire(chance: &mut Chance) -> Wire {
    Wire { ipv6: false, port: chance.pick(&[8472, 4789]), vni: Some(1) }
}

fn route_key(chance: &mut Chance) -> RouteKey {
    let destination = format!("{}/24", gateway(chance));
    let destination = destination.parse().unwrap_or_else(|error| panic!("{error}"));
    RouteKey { destination, metric: chance.pick(&[5, 5, 7]) }
}

fn route(chance: &mut Chance) -> Route {
    let target = match chance.below(6) {
        0 => RouteTarget::Via { gateway: gateway(chance).into(), link: device(), onlink: true },
        1 => RouteTarget::Link(device()),
        2 => RouteTarget::Blackhole,
        3 => RouteTarget::Throw,
        _ => RouteTarget::NextHop { id: NextHopId::from(gateway(chance)), link: device() },
    };
    Route { target, protocol: ROUTE_PROTOCOL }
}

/// What was refused, each with its reason as far as both must agree on it.
fn refusals(failed: &[FailedOperation]) -> BTreeSet<(String, String)> {
    let reason = |reason: &KernelError| match reason {
        KernelError::Taken(_) => "taken".to_owned(),
        KernelError::NoSuchLink(name) => format!("no {name}"),
        reason => reason.errno().map_or_else(|| reason.to_string(), |errno| format!("error {errno}")),
    };
    failed.iter().map(|failed| (failed.operation.to_string(), reason(&failed.reason))).collect()
}

/// What was told since the last time, without doubles.
fn told(kernel: &mut impl Kernel) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    while let Some(changes) = kernel.changes().now_or_never() {
        all.extend(changes.iter().map(|change| match change {
            Change::Fact(Fact::Source(..) | Fact::Check(..)) => String::new(),
            change => format!("{change:?}"),
        }));
    }
    all
}

fn lines(operations: &[Operation]) -> Vec<String> {
    operations.iter().map(ToString::to_string).collect()
}
