//! What an agent has put into the kernel, damaged by hand: it is back soon, and as it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::chance::{self, Chance};
use flan_integration::holdings::{Holdings, rules};
use flan_integration::overlay::DEVICE;
use flan_integration::witness::Witness;
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::stage::{ends_of, hosts_with_status, wait_until_reached};

/// One object is back within this time, with a second for a machine that does other things.
const OBJECT: Duration = Duration::from_millis(1000);

/// A device with everything on it.
const DEVICE_LIMIT: Duration = Duration::from_secs(2);

/// Where packet filter rules are concerned, of which the kernel does not tell.
const RULES: Duration = Duration::from_secs(5);

/// Events of the story of chance, and how long one repair may take when others came right before it.
const EVENTS: u64 = 15;
const CHANCE_LIMIT: Duration = Duration::from_secs(10);

/// The variable that lets a story of chance be told again.
const SEED_VARIABLE: &str = "FLAN_DAMAGE_SEED";

/// A MAC and an underlay address that nobody has.
const NO_MAC: &str = "02:00:00:00:0b:ad";
const NO_HOST: &str = "192.168.64.250";

/// A peer as the host that is damaged sees it.
struct Target {
    subnet: String,
    base: String,
    mac: String,
}

impl Target {
    fn of(peer: &Host) -> Result<Target> {
        let env = peer.subnet_env()?;
        Ok(Target { subnet: env.base(), base: env.base_address().to_string(), mac: peer.vtep_mac()? })
    }

    /// Each object of this peer deleted, or altered where another form would not be somebody else's.
    fn damages(&self) -> Vec<String> {
        let Target { subnet, base, mac } = self;
        vec![
            format!("ip route del {subnet}"),
            format!("ip neighbour del {base} dev {DEVICE}"),
            format!("bridge fdb del {mac} dev {DEVICE} self"),
            format!("ip neighbour replace {base} lladdr {NO_MAC} dev {DEVICE} nud permanent"),
            format!("bridge fdb replace {mac} dev {DEVICE} dst {NO_HOST} self permanent"),
        ]
    }

    /// The id of the nexthop object that its route goes by.
    fn next_hop(&self, holdings: &Holdings) -> Result<String> {
        let lines = holdings.lines(&["nexthop id ", &format!("gateway {} ", self.base)]);
        let id = lines.first().and_then(|line| line.split_whitespace().nth(2));
        Ok(id
            .with_context(|| format!("no nexthop object for {}; there is\n{holdings}", self.base))?
            .to_owned())
    }
}

/// What a whole device can suffer. Each leaves it, or makes it, something that fland has to put right.
fn device_damages() -> [String; 5] {
    [
        format!("ip link del {DEVICE}"),
        format!("ip link set {DEVICE} name elsewhere"),
        format!("ip link set {DEVICE} down"),
        format!("ip link set {DEVICE} mtu 1280"),
        format!("ip link set {DEVICE} address {NO_MAC}"),
    ]
}

/// A host whose kernel is damaged, with what must be there after each repair.
struct Patient<'a> {
    host: &'a Host,
    witness: Witness,
    before: Holdings,
}

impl Patient<'_> {
    fn new(host: &Host) -> Result<Patient<'_>> {
        let witness = Witness::start(host.netns())?;
        Ok(Patient { host, witness, before: Holdings::of(host.netns())? })
    }

    /// Does what `command` says, makes sure that it did something, and waits until all is as before.
    fn recovers_from(&self, command: &str, limit: Duration) -> Result<()> {
        let mark = self.witness.mark();
        self.host.run("sh", &["-c", command])?;
        // The kernel's word counts: the repair may be there before one can look.
        self.witness.wait_for(&format!("{command} to do something"), mark, limit, |_| true)?;
        wait::until(&format!("everything to be as before {command:?}"), limit, || {
            Holdings::of(self.host.netns())?.ensure_as(&self.before)
        })
    }
}

/// Both ways, between the hosts' own overlay addresses.
fn all_reach_each_other(hosts: &[Host]) -> Result<()> {
    for from in hosts {
        for to in hosts {
            let target = to.subnet_env()?.base_address();
            from.ping_once(target)
                .with_context(|| format!("{} does not reach {}", from.name(), to.name()))?;
        }
    }
    Ok(())
}

#[test]
fn each_object_of_a_peer_deleted_or_altered_by_hand_is_back_within_a_second() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 3)?;
        let patient = Patient::new(&hosts[0])?;
        for damage in Target::of(&hosts[1])?.damages() {
            patient.recovers_from(&damage, OBJECT)?;
        }
        let own = hosts[0].subnet_env()?.base_address();
        patient.recovers_from(&format!("ip address del {own}/32 dev {DEVICE}"), OBJECT)?;
        all_reach_each_other(&hosts)?;

        let repairs = hosts[0].status()?["repairs"].clone();
        for kind in ["route", "neighbour", "fdb", "address"] {
            ensure!(repairs[kind].as_u64() >= Some(1), "no repair of kind {kind} is counted: {repairs}");
        }
        Ok(())
    })
}

#[test]
fn a_nexthop_object_deleted_or_altered_by_hand_is_back_with_its_route_within_a_second() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 3)?;
        let patient = Patient::new(&hosts[0])?;
        let (id, other) = (Target::of(&hosts[1])?.next_hop(&patient.before)?, Target::of(&hosts[2])?.base);
        patient.recovers_from(&format!("ip nexthop del id {id}"), OBJECT)?;
        let altered = format!("ip nexthop replace id {id} via {other} dev {DEVICE} onlink proto 102");
        patient.recovers_from(&altered, OBJECT)?;
        patient.recovers_from("ip nexthop flush", OBJECT)?;
        all_reach_each_other(&hosts)?;
        let repairs = hosts[0].status()?["repairs"].clone();
        ensure!(repairs["nexthop"].as_u64() >= Some(1), "no repair of a next hop is counted: {repairs}");
        Ok(())
    })
}

#[test]
fn a_device_deleted_renamed_or_altered_by_hand_is_back_with_its_mac_and_all_peers() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 3)?;
        let patient = Patient::new(&hosts[0])?;
        let mac = hosts[0].vtep_mac()?;
        for damage in device_damages() {
            patient.recovers_from(&damage, DEVICE_LIMIT)?;
            assert_eq!(hosts[0].vtep_mac()?, mac, "after {damage}");
            ensure!(hosts[0].ip("link show dev elsewhere").is_err(), "there are two devices after {damage}");
            all_reach_each_other(&hosts).with_context(|| format!("after {damage}"))?;
        }
        let repairs = hosts[0].status()?["repairs"].clone();
        ensure!(repairs["link"].as_u64() >= Some(1), "no repair of a link is counted: {repairs}");
        Ok(())
    })
}

/// `ip route flush` asks the kernel for routes by next hop object and by gateway at once, which it refuses.
fn every_route_deleted() -> String {
    format!("for subnet in $(ip route show dev {DEVICE} | cut -d ' ' -f 1); do ip route del $subnet; done")
}

#[test]
fn all_routes_flushed_are_back_within_a_second() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 3)?;
        let patient = Patient::new(&hosts[0])?;
        patient.recovers_from(&every_route_deleted(), OBJECT)?;
        all_reach_each_other(&hosts)
    })
}

#[test]
fn an_external_interface_that_goes_down_and_up_costs_no_peer() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 2)?;
        let patient = Patient::new(&hosts[0])?;
        // By hand, and as a cable does it: the other end is on the underlay, under the host's name.
        for (place, device) in [(hosts[0].netns().place(), "eth0"), (lab.underlay().place(), hosts[0].name())]
        {
            for state in ["down", "up"] {
                place.run("ip", ["link", "set", device, state])?;
            }
            wait::until("everything to be as before the flap", DEVICE_LIMIT, || {
                Holdings::of(hosts[0].netns())?.ensure_as(&patient.before)
            })?;
            wait::until("the hosts to reach each other", RULES, || all_reach_each_other(&hosts))?;
        }
        Ok(())
    })
}

#[test]
fn the_mtu_follows_that_of_the_external_interface() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 2)?;
        for (outer, inner) in [(1400, 1350), (1500, 1450)] {
            hosts[0].ip(&format!("link set eth0 mtu {outer}"))?;
            wait::until(&format!("an MTU of {inner}"), RULES, || {
                let link = hosts[0].ip(&format!("link show dev {DEVICE}"))?;
                ensure!(link.contains(&format!("mtu {inner} ")), "the device: {link}");
                let told = hosts[0].subnet_env()?.mtu;
                ensure!(told == inner, "subnet.env: {told}");
                Ok(())
            })?;
            all_reach_each_other(&hosts)?;
        }
        Ok(())
    })
}

#[test]
fn packet_filter_rules_that_somebody_flushed_are_back_exactly_once() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 2)?;
        let ends = ends_of(&hosts)?;
        let before = rules(hosts[0].place())?;
        let jumps = |rules: &[String]| rules.iter().filter(|rule| rule.contains("-j FLAN-FORWARD")).count();
        ensure!(jumps(&before) == 1, "not one jump: {before:#?}");
        wait_until_reached(&ends[1], &ends[0], RULES)?;

        for damage in [
            "nft flush ruleset",
            "iptables -w -F",
            "iptables -w -P FORWARD DROP",
            "nft delete table inet flan",
        ] {
            hosts[0].run("sh", &["-c", damage])?;
            wait::until(&format!("the rules to be as before {damage:?}"), RULES, || {
                let now = rules(hosts[0].place())?;
                ensure!(now == before, "there is\n{}", now.join("\n"));
                Ok(())
            })?;
            wait_until_reached(&ends[1], &ends[0], RULES).with_context(|| format!("after {damage}"))?;
        }
        wait::while_holds("the rules are there once", RULES, || {
            let now = rules(hosts[0].place())?;
            ensure!(now == before, "there is\n{}", now.join("\n"));
            Ok(())
        })
    })
}

#[test]
fn after_damage_in_any_order_everything_is_as_before() -> Result<()> {
    let seed = chance::seed_from(SEED_VARIABLE)?;
    println!("make scenarios DAMAGE_SEED={seed} does this again");
    let mut chance = Chance::of_seed(seed);
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 3)?;
        let patient = Patient::new(&hosts[0])?;
        let own = hosts[0].subnet_env()?.base_address();
        let mut damages = vec![
            format!("ip address del {own}/32 dev {DEVICE}"),
            every_route_deleted(),
            "ip link set eth0 down; ip link set eth0 up".to_owned(),
        ];
        damages.extend(device_damages());
        for peer in &hosts[1..] {
            let target = Target::of(peer)?;
            damages.extend(target.damages());
            // Where the kernel has none, routes hold their gateways themselves.
            damages.extend(target.next_hop(&patient.before).ok().map(|id| format!("ip nexthop del id {id}")));
        }
        let damages: Vec<&str> = damages.iter().map(String::as_str).collect();
        for number in 1..=EVENTS {
            let damage = chance.pick(&damages);
            println!("{number}: {damage}");
            patient
                .recovers_from(damage, CHANCE_LIMIT)
                .with_context(|| format!("event {number}, seed {seed}"))?;
        }
        all_reach_each_other(&hosts)
    })
}
