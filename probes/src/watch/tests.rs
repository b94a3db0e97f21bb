use std::collections::BTreeMap;

use super::*;
use crate::findings::Named;
use crate::health::State;

fn way() -> Way {
    Way {
        encapsulation: Some("VXLAN (UDP 8472)".to_owned()),
        mtu: 1450,
        overlay: vec!["10.5.0.0".parse().unwrap()],
        underlay: vec!["192.168.64.10".parse().unwrap()],
    }
}

fn target(number: u16) -> Target {
    let [high, low] = number.to_be_bytes();
    Target {
        subnet: format!("10.{}.{low}.0/24", 6 + u16::from(high)).parse().unwrap(),
        host: format!("h{number}"),
        underlay: format!("192.168.{}.{low}", 65 + u16::from(high)).parse().unwrap(),
        is_direct: false,
        has_agent: true,
    }
}

/// A network in memory: what is sent to an address that `answers` accepts is answered after a millisecond.
struct World {
    watch: Watch,
    now: Instant,
    started: Instant,
    /// When each target was probed.
    probed: BTreeMap<IpAddr, Vec<Duration>>,
}

impl World {
    fn of(rate: u16, targets: u16) -> Self {
        let now = Instant::now();
        let mut watch = Watch::new(rate, now);
        watch.targets_are(way(), (0..targets).map(target).collect(), now);
        Self { watch, now, started: now, probed: BTreeMap::new() }
    }

    fn run(&mut self, time: Duration, answers: impl Fn(&Packet) -> bool) {
        let end = self.now + time;
        while let Some(due) = self.watch.due().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            let packets = self.watch.time_passed(self.now);
            if let Some(first) = packets.first() {
                self.probed.entry(first.to).or_default().push(self.now - self.started);
            }
            for packet in packets.iter().filter(|packet| answers(packet)) {
                self.watch.answered(packet.nonce, self.now + Duration::from_millis(1));
            }
        }
        self.now = end;
    }

    fn text(&self) -> String {
        let Findings { unreachable, narrow, lossy, agents, .. } = self.watch.findings(8475).unwrap();
        [unreachable, narrow, lossy, agents].iter().filter_map(Named::text).collect::<Vec<_>>().join("\n")
    }
}

/// Whether it goes to the host h1.
fn is_first(packet: &Packet) -> bool {
    ["10.6.1.0", "192.168.65.1"].contains(&packet.to.to_string().as_str())
}

fn is_full(packet: &Packet) -> bool {
    packet.echo.is_some_and(|bytes| bytes > 1350)
}

#[test]
fn all_peers_are_probed_in_turn_and_never_more_a_second_than_the_rate() {
    for (targets, seconds, at_least) in [(1, 60, 20), (20, 60, 20), (1000, 250, 2)] {
        let mut world = World::of(10, targets);
        world.run(Duration::from_secs(seconds), |_| true);
        assert_eq!(world.probed.len(), usize::from(targets));
        assert!(world.probed.values().all(|times| times.len() >= at_least), "{targets} targets");
        let mut times: Vec<Duration> = world.probed.into_values().flatten().collect();
        times.sort_unstable();
        let fastest = times.windows(11).map(|window| window[10] - window[0]).min();
        assert!(fastest.is_none_or(|window| window >= Duration::from_millis(999)), "{fastest:?}");
    }
}

#[test]
fn each_fault_is_named_within_thirteen_seconds_and_gone_ten_seconds_after_it() {
    type Passes = fn(&Packet) -> bool;
    let faults: [(&str, Passes, &str); 4] = [
        (
            "encapsulation",
            |packet| !packet.to.to_string().starts_with("10.6.1."),
            "h1 (10.6.1.0/24): its underlay address 192.168.65.1 answers, but nothing comes back through VXLAN (UDP 8472)",
        ),
        ("cable", |packet| !is_first(packet), "neither its underlay address 192.168.65.1 nor anything"),
        (
            "size",
            |packet| !is_first(packet) || !is_full(packet),
            "packets of 1450 bytes do not come back, those of up to 1350 do",
        ),
        (
            "agent",
            |packet| !is_first(packet) || packet.echo.is_some(),
            "its fland does not answer on UDP 8475",
        ),
    ];
    for (targets, (name, answers, text)) in [3, 20].into_iter().flat_map(|few| faults.map(|one| (few, one))) {
        let mut world = World::of(10, targets);
        world.run(Duration::from_secs(10), |_| true);
        assert_eq!(world.text(), "", "before {name}");
        world.run(Duration::from_secs(13), answers);
        assert!(world.text().contains(text), "{name}: {}", world.text());
        world.run(Duration::from_secs(10), |_| true);
        assert_eq!(world.text(), "", "after {name}");
    }
}

#[test]
fn a_host_that_is_shut_down_costs_no_more_probes_than_others() {
    let mut world = World::of(10, 20);
    world.run(Duration::from_secs(30), |_| true);
    world.run(Duration::from_secs(3), |packet| !is_first(packet) || packet.echo.is_some());
    world.probed.clear();
    world.run(Duration::from_secs(600), |packet| !is_first(packet));
    let probes = |address: &str| world.probed[&address.parse::<IpAddr>().unwrap()].len();
    assert!((250..330).contains(&probes("192.168.65.1")), "{}", probes("192.168.65.1"));
    assert!((250..330).contains(&probes("192.168.65.2")), "{}", probes("192.168.65.2"));
}

#[test]
fn an_agent_that_restarts_within_seven_seconds_is_no_problem() {
    let mut world = World::of(10, 3);
    world.run(Duration::from_secs(10), |_| true);
    world.run(Duration::from_secs(7), |packet| packet.echo.is_some());
    assert_eq!(world.text(), "");
}

#[test]
fn a_narrow_path_that_loses_some_is_told_with_the_right_size() {
    for seed in 0..20_u32 {
        let mut world = World::of(10, 3);
        world.run(Duration::from_secs(10), |_| true);
        let (mut number, mut told) = (seed * 7919, 0);
        for _ in 0..60 {
            let lost = std::cell::Cell::new(number);
            world.run(Duration::from_secs(2), |packet| {
                // A fiftieth, by a generator of Lehmer's.
                lost.set((u64::from(lost.get()) * 48_271 % 0x7fff_ffff) as u32 | 1);
                lost.get() % 50 != 0 && !is_full(packet)
            });
            number = lost.get();
            let text = world.text();
            if text.contains("those of up to") {
                told += 1;
                assert!(text.contains("those of up to 1350 do"), "{text}");
            }
        }
        assert!(told > 30, "{told}");
    }
}

#[test]
fn answers_from_the_old_address_of_a_peer_say_nothing_of_the_new_one() {
    let mut world = World::of(10, 1);
    let due = world.watch.due().unwrap();
    let packets = world.watch.time_passed(due);
    let moved = Target { underlay: "192.168.99.1".parse().unwrap(), ..target(0) };
    world.watch.targets_are(way(), vec![moved], due);
    packets.iter().for_each(|packet| world.watch.answered(packet.nonce, due));
    assert_eq!(world.watch.seen(8475, due)[0].1.state, State::Unknown);
}

#[test]
fn a_peer_that_asks_is_probed_soon_if_it_seemed_away() {
    let mut world = World::of(10, 200);
    world.run(Duration::from_secs(60), |_| true);
    let first = |packet: &Packet| !packet.to.to_string().starts_with("10.6.1.");
    world.run(Duration::from_secs(60), first);
    assert!(world.text().contains("h1 "));
    let now = world.now;
    world.watch.asked_by("10.6.1.0".parse().unwrap(), now);
    world.run(Duration::from_secs(6), |_| true);
    assert_eq!(world.text(), "");
}

#[test]
fn after_a_change_to_a_backend_without_packets_nobody_is_probed() {
    let mut world = World::of(10, 3);
    world.run(Duration::from_secs(10), |_| false);
    let now = world.now;
    world.watch.clear(now);
    assert!(world.watch.findings(8475).is_none() && world.watch.due().is_none());
}

#[test]
fn many_peers_are_named_in_part_and_counted() {
    let mut world = World::of(100, 9);
    world.run(Duration::from_secs(10), |_| true);
    world.run(Duration::from_secs(10), |_| false);
    let findings = world.watch.findings(8475).unwrap();
    assert_eq!(findings.unreachable.count(), 9);
    assert!(findings.are_all_lost());
    world.run(Duration::from_secs(300), |_| false);
    assert!(world.watch.findings(8475).unwrap().are_all_lost(), "five minutes later");
    assert!(
        findings.unreachable.text().unwrap().ends_with("; and others: flanctl peers lists all"),
        "{}",
        world.text()
    );
}

#[test]
fn a_host_that_stood_still_blames_nobody() {
    let mut world = World::of(10, 1);
    world.run(Duration::from_secs(10), |_| true);
    for _ in 0..9 {
        let due = world.watch.due().unwrap();
        world.watch.time_passed(due);
        world.now = due + Duration::from_secs(30);
        world.watch.time_passed(world.now);
    }
    assert_eq!(world.text(), "");
}

#[test]
fn what_is_known_of_a_peer_is_kept_until_it_changes() {
    let mut world = World::of(10, 2);
    world.run(Duration::from_secs(16), |_| false);
    let states = |world: &World| -> Vec<State> {
        world.watch.seen(8475, world.now).into_iter().map(|(_, seen)| seen.state).collect()
    };
    assert_eq!(states(&world), [State::Unreachable, State::Unreachable]);
    let moved = Target { underlay: "192.168.99.1".parse().unwrap(), ..target(1) };
    world.watch.targets_are(way(), vec![target(0), moved.clone(), target(2)], world.now);
    assert_eq!(states(&world), [State::Unreachable, State::Unknown, State::Unknown]);
    world.watch.targets_are(Way { mtu: 1400, ..way() }, vec![target(0), moved], world.now);
    assert_eq!(states(&world), [State::Unknown, State::Unknown]);
    let now = world.now;
    assert!(world.watch.asked_by("10.6.0.0".parse().unwrap(), now));
    assert!(!world.watch.asked_by("10.6.2.0".parse().unwrap(), now));
}

#[test]
fn without_an_overlay_address_packets_go_from_underlay_to_underlay() {
    let mut watch = Watch::new(10, Instant::now());
    let way = Way { overlay: Vec::new(), encapsulation: None, mtu: 1500, ..way() };
    watch.targets_are(way, vec![target(1)], Instant::now());
    let packets = watch.time_passed(watch.due().unwrap());
    let own: IpAddr = "192.168.64.10".parse().unwrap();
    assert!(packets.iter().all(|packet| packet.to == target(1).underlay && packet.from == Some(own)));
    assert_eq!(
        packets.iter().map(|packet| packet.echo).collect::<Vec<_>>(),
        [Some(64), Some(64), Some(1500), None]
    );
}
