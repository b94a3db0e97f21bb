//! Chains of any packet filter as plain values, and the fate of a packet that enters one.
//!
//! Some matches cannot be evaluated from outside: a mark, a rate, an ipset. A rule with such a match counts as a
//! deliberate decision about us if it names something of ours, and is skipped otherwise. If only the sender's address
//! is open, because a firewall lists its peers one by one, an accept is assumed to cover our peers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use crate::kind::link_name::LinkName;

/// The chains of one table by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) owner: Owner,
    pub(super) chains: BTreeMap<String, Chain>,
}

/// The program, and the name that it uses, to list and change a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// `nft`, with the table's family and name.
    Nft { family: String, table: String },
    /// `iptables`, `ip6tables-legacy` or similar.
    Iptables { program: &'static str, ipv6: bool, table: &'static str },
}

impl Owner {
    /// Returns whether packets of this family enter its chains.
    pub(super) fn sees(&self, ipv6: bool) -> bool {
        match self {
            Self::Nft { family, .. } => family == "inet" || (family == "ip6") == ipv6,
            Self::Iptables { ipv6: its, .. } => *its == ipv6,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Where the kernel enters it; `None` for a chain that is only jumped to.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) hook: Hook,
    pub(super) priority: i64,
    pub(super) drops: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    Prerouting,
    Input,
    Forward,
    Postrouting,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// All of them must hold.
    pub(super) tests: Vec<Test>,
    pub(super) verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Reject,
    Return,
    Jump(String),
    Goto(String),
    Masquerade,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) what: What,
    pub(super) negated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The device on which the packet arrived.
    In(Vec<Pattern>),
    /// The device on which it leaves.
    Out(Vec<Pattern>),
    Source(Vec<Addresses>),
    /// Sources that cannot be determined from here, such as those in an ipset.
    SomeSources,
    Destination(Vec<Addresses>),
    Ipv6(bool),
    /// Names or numbers as listed.
    Protocol(Vec<String>),
    DestinationPort(Vec<RangeInclusive<u16>>),
    /// States of connection tracking, in lower case.
    State(Vec<String>),
    ForThisHost,
    /// Never holds for our packets, such as having been translated.
    Never,
    /// At least one group holds; all tests of that group must hold.
    OneOf(Vec<Vec<Test>>),
    Unknown,
}

/// The name of a device, or a prefix of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) text: String,
    pub(super) is_prefix: bool,
}

/// Addresses of one family, first to last.
pub(super) type Addresses = RangeInclusive<IpAddr>;

pub(super) fn addresses(network: IpNetwork) -> Addresses {
    network.network()..=network.broadcast()
}

impl Pattern {
    /// Parses a pattern; a final `wildcard` matches any rest.
    pub(super) fn new(text: &str, wildcard: char) -> Self {
        match text.strip_suffix(wildcard) {
            Some(start) => Self { text: start.to_owned(), is_prefix: true },
            None => Self { text: text.to_owned(), is_prefix: false },
        }
    }

    fn matches(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl Test {
    pub(super) fn new(what: What) -> Self {
        Self { what, negated: false }
    }

    pub(super) fn unless(what: What, negated: bool) -> Self {
        Self { what, negated }
    }
}

/// A kind of packet of ours: what all such packets have in common.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) ipv6: bool,
    pub(super) enters: Device,
    pub(super) leaves: Device,
    pub(super) source: Sender,
    pub(super) destination: Addresses,
    /// The destination port of a UDP datagram; `None` for a packet of any protocol.
    pub(super) udp_port: Option<u16>,
    pub(super) for_this_host: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    None,
    /// A device that we made: a rule that names it knows about us.
    Ours(LinkName),
    Named(LinkName),
    /// A bridge without an address, or unknown to us.
    SomeBridge,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sender {
    Within(Addresses),
    /// Hosts that are mostly in one network with `own`, but have other addresses, outside the `overlay` networks.
    Like {
        own: IpAddr,
        overlay: Vec<Addresses>,
    },
}

/// The fate of a packet in a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    Dropped,
    Rejected,
    Masqueraded,
}

/// Whether a test holds, and whether it names something of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    holds: Holds,
    ours: bool,
}

/// Ordered so that a conjunction of tests has the greatest of their results, and a disjunction the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    Yes,
    /// Holds for some senders, as far as can be seen; nothing else is open.
    ForSomeSenders,
    Unknown,
    No,
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl From<Option<bool>> for Holds {
    fn from(holds: Option<bool>) -> Self {
        holds.map_or(Self::Unknown, Self::from)
    }
}

impl Holds {
    fn negated(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            open => open,
        }
    }
}

/// The kernel allows 16 nested jumps.
const DEEPEST: usize = 20;

impl Table {
    /// Returns the fate of `packet` in the base chain of that name.
    pub(super) fn fate(&self, chain: &str, packet: &Packet) -> Fate {
        let policy_drops = self.chains.get(chain).and_then(|chain| chain.base).is_some_and(|base| base.drops);
        let policy = if policy_drops { Fate::Dropped } else { Fate::Passes };
        self.walk(chain, packet, 0).unwrap_or(policy)
    }

    /// Returns the addresses for which some rule drops packets unless they arrive by `bridge`.
    pub(super) fn closed_but_from(&self, bridge: LinkName) -> impl Iterator<Item = &Addresses> {
        let drops = |rule: &&Rule| matches!(rule.verdict, Verdict::Drop | Verdict::Reject);
        let rules = self.chains.values().flat_map(|chain| &chain.rules).filter(drops);
        let closed = rules.filter(move |rule| {
            let is_bridge = |pattern: &Pattern| pattern.matches(bridge.as_str());
            let excepts = |test: &Test| matches!(&test.what, What::In(names) if names.iter().any(is_bridge));
            rule.tests.iter().any(|test| test.negated && excepts(test))
        });
        closed.flat_map(|rule| &rule.tests).flat_map(|test| match &test.what {
            What::Destination(ranges) if !test.negated => ranges.as_slice(),
            _ => &[],
        })
    }

    /// Returns `None` if the packet reaches the end of the chain.
    fn walk(&self, chain: &str, packet: &Packet, depth: usize) -> Option<Fate> {
        let chain = self.chains.get(chain).filter(|_| depth < DEEPEST)?;
        // A rule that cannot be decided may already have moved the packet to another chain.
        let mut doubtful = false;
        for rule in &chain.rules {
            let Answer { holds, ours } = all(&rule.tests, packet);
            if holds == Holds::No {
                continue;
            }
            let surely = holds == Holds::Yes;
            // A firewall that admits hosts by address means the peers.
            let lets_pass = surely || ours || holds == Holds::ForSomeSenders;
            let fate = match &rule.verdict {
                Verdict::Accept => lets_pass.then_some(Fate::Passes),
                Verdict::Drop => surely.then_some(Fate::Dropped),
                Verdict::Reject => surely.then_some(Fate::Rejected),
                Verdict::Masquerade => surely.then_some(Fate::Masqueraded),
                Verdict::Return if surely => return None,
                Verdict::Return => {
                    doubtful = true;
                    None
                }
                Verdict::Jump(target) | Verdict::Goto(target) => {
                    let fate = self.walk(target, packet, depth + 1);
                    if surely && fate.is_none() && matches!(rule.verdict, Verdict::Goto(_)) {
                        return None;
                    }
                    fate.filter(|fate| surely || (lets_pass && *fate == Fate::Passes))
                }
            };
            match fate {
                Some(Fate::Dropped | Fate::Rejected | Fate::Masqueraded) if doubtful => return None,
                None => {}
                fate => return fate,
            }
        }
        None
    }
}

fn all(tests: &[Test], packet: &Packet) -> Answer {
    let answers = tests.iter().map(|test| test.answer(packet));
    answers.fold(Answer { holds: Holds::Yes, ours: false }, |sum, answer| Answer {
        holds: sum.holds.max(answer.holds),
        ours: sum.ours | answer.ours,
    })
}

impl Test {
    fn answer(&self, packet: &Packet) -> Answer {
        let Answer { holds, ours } = self.what.answer(packet);
        Answer { holds: if self.negated { holds.negated() } else { holds }, ours: ours && !self.negated }
    }
}

impl What {
    fn answer(&self, packet: &Packet) -> Answer {
        let plain = |holds: Option<bool>| Answer { holds: holds.into(), ours: false };
        match self {
            Self::In(patterns) => device(packet.enters, packet.leaves, patterns),
            Self::Out(patterns) => device(packet.leaves, packet.enters, patterns),
            Self::Source(ranges) => match &packet.source {
                Sender::Within(addresses) => within(addresses, ranges),
                Sender::Like { own, overlay } => Answer { holds: peers(*own, overlay, ranges), ours: false },
            },
            Self::SomeSources => Answer {
                holds: match packet.source {
                    Sender::Within(_) => Holds::Unknown,
                    Sender::Like { .. } => Holds::ForSomeSenders,
                },
                ours: false,
            },
            Self::Destination(ranges) => within(&packet.destination, ranges),
            Self::Ipv6(ipv6) => plain(Some(packet.ipv6 == *ipv6)),
            Self::Protocol(names) => plain(
                packet
                    .udp_port
                    .map(|_| names.iter().any(|name| matches!(name.as_str(), "udp" | "17" | "all"))),
            ),
            Self::DestinationPort(ranges) => {
                let holds = packet.udp_port.map(|port| ranges.iter().any(|range| range.contains(&port)));
                Answer { holds: holds.into(), ours: holds == Some(true) }
            }
            // Connections start with a packet of no known state.
            Self::State(states) => plain(Some(states.iter().any(|state| state == "new"))),
            Self::ForThisHost => plain(Some(packet.for_this_host)),
            Self::Never => plain(Some(false)),
            Self::OneOf(groups) => one_of(groups, packet),
            Self::Unknown => plain(None),
        }
    }
}

fn one_of(groups: &[Vec<Test>], packet: &Packet) -> Answer {
    let answers = groups.iter().map(|tests| all(tests, packet));
    answers.fold(Answer { holds: Holds::No, ours: false }, |sum, answer| Answer {
        holds: sum.holds.min(answer.holds),
        ours: sum.ours | (answer.ours && answer.holds != Holds::No),
    })
}

fn device(device: Device, other: Device, patterns: &[Pattern]) -> Answer {
    let matching = |name: LinkName| patterns.iter().find(|pattern| pattern.matches(name.as_str()));
    match device {
        Device::None => Answer { holds: Holds::No, ours: false },
        Device::Named(name) => Answer { holds: matching(name).is_some().into(), ours: false },
        Device::Ours(name) => {
            let found = matching(name);
            Answer { holds: found.is_some().into(), ours: found.is_some_and(|found| !found.text.is_empty()) }
        }
        Device::SomeBridge => {
            let is_other = |pattern: &Pattern| {
                pattern.text == "lo"
                    || matches!(other, Device::Named(name) | Device::Ours(name) if pattern.text == name.as_str())
            };
            let holds = if patterns.iter().all(is_other) { Holds::No } else { Holds::Unknown };
            Answer { holds, ours: false }
        }
    }
}

/// Finds out whether all, some or none of `addresses` are in one of `ranges`.
fn within(addresses: &Addresses, ranges: &[Addresses]) -> Answer {
    let (first, last) = (addresses.start(), addresses.end());
    let is_everything = |range: &Addresses| match (range.start(), range.end()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => first.is_unspecified() && last.is_broadcast(),
        (first, _) => first.is_unspecified(),
    };
    if let Some(around) = ranges.iter().find(|range| range.contains(first) && range.contains(last)) {
        return Answer { holds: Holds::Yes, ours: !is_everything(around) };
    }
    let meets = |range: &Addresses| {
        range.start().is_ipv4() == first.is_ipv4() && range.start() <= last && first <= range.end()
    };
    // One container or peer is not all of them: Docker admits packets for a published port.
    Answer { holds: if ranges.iter().any(meets) { Holds::Unknown } else { Holds::No }, ours: false }
}

/// Finds out whether peers of a host with the address `own` send from `ranges`.
fn peers(own: IpAddr, overlay: &[Addresses], ranges: &[Addresses]) -> Holds {
    // Our own address alone says nothing about peers: rules against forged senders name it.
    if ranges.iter().any(|range| range.contains(&own) && range.start() != range.end()) {
        return Holds::Yes;
    }
    let never_peers = |range: &Addresses| {
        let within = |around: &Addresses| around.contains(range.start()) && around.contains(range.end());
        range.start().is_ipv4() != own.is_ipv4()
            || range.start().is_loopback()
            || range.contains(&own)
            || overlay.iter().any(within)
    };
    if ranges.iter().all(never_peers) { Holds::No } else { Holds::ForSomeSenders }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet {
            ipv6: false,
            enters: Device::Ours("flannel.1".parse().unwrap()),
            leaves: Device::SomeBridge,
            source: Sender::Within(addresses("10.5.0.0/16".parse().unwrap())),
            destination: addresses("10.5.52.0/24".parse().unwrap()),
            udp_port: None,
            for_this_host: false,
        }
    }

    fn network(text: &str) -> Vec<Addresses> {
        vec![addresses(text.parse().unwrap())]
    }

    fn enters(text: &str) -> What {
        What::In(vec![Pattern::new(text, '*')])
    }

    fn rule(tests: Vec<What>, verdict: Verdict) -> Rule {
        Rule { tests: tests.into_iter().map(Test::new).collect(), verdict }
    }

    /// Returns the fate of the packet in a chain of these rules whose policy drops, with a second chain `sub`.
    fn fate(rules: Vec<Rule>, sub: Vec<Rule>) -> Fate {
        let base = Base { hook: Hook::Forward, priority: 0, drops: true };
        let owner = Owner::Nft { family: "inet".into(), table: "mine".into() };
        let chains = [
            ("forward".to_owned(), Chain { base: Some(base), rules }),
            ("sub".to_owned(), Chain { base: None, rules: sub }),
        ];
        Table { owner, chains: chains.into() }.fate("forward", &packet())
    }

    #[test]
    fn only_what_surely_holds_or_names_ours_lets_a_packet_pass() {
        let accepts = |tests| fate(vec![rule(tests, Verdict::Accept)], vec![]) == Fate::Passes;
        assert!(accepts(vec![]));
        assert!(accepts(vec![enters("flannel.1")]));
        assert!(accepts(vec![enters("fl*")]));
        assert!(!accepts(vec![enters("eth0")]));
        assert!(accepts(vec![What::Source(network("10.0.0.0/8"))]));
        assert!(!accepts(vec![What::Source(network("10.6.0.0/16"))]));
        assert!(!accepts(vec![What::State(vec!["established".into(), "related".into()])]));
        assert!(!accepts(vec![What::Protocol(vec!["icmp".into()])]), "some packets only");
        assert!(!accepts(vec![What::Unknown]));
        // A rule that knows about us admits some of our packets.
        assert!(accepts(vec![enters("flannel.1"), What::Protocol(vec!["tcp".into()])]));
        assert!(accepts(vec![What::Source(network("10.5.0.0/16")), What::Unknown]));
        // As Docker does for a published port.
        let container = What::Destination(network("10.5.52.7/32"));
        assert!(!accepts(vec![container, What::Protocol(vec!["tcp".into()])]));
    }

    #[test]
    fn a_drop_counts_only_where_it_is_sure() {
        let drops = |tests| {
            let rules = vec![rule(tests, Verdict::Drop), rule(vec![], Verdict::Accept)];
            fate(rules, vec![]) == Fate::Dropped
        };
        assert!(drops(vec![]));
        assert!(drops(vec![enters("flannel.1")]));
        assert!(!drops(vec![What::State(vec!["invalid".into()])]));
        assert!(!drops(vec![What::Unknown]));
        assert!(!drops(vec![What::Destination(network("10.5.52.7/32"))]), "one container only");
    }

    /// Returns which of the peers that reach this host at 192.168.64.11 the sources cover.
    fn from(ranges: &[&str]) -> Holds {
        let overlay = vec![addresses("10.5.0.0/16".parse().unwrap())];
        let source = Sender::Like { own: "192.168.64.11".parse().unwrap(), overlay };
        let ranges = ranges.iter().flat_map(|text| network(text)).collect();
        What::Source(ranges).answer(&Packet { source, ..packet() }).holds
    }

    #[test]
    fn peers_are_in_one_network_with_this_host_or_listed_one_by_one() {
        assert_eq!(from(&["0.0.0.0/0"]), Holds::Yes);
        assert_eq!(from(&["192.168.64.0/24"]), Holds::Yes);
        assert_eq!(from(&["192.168.88.4/32", "192.168.88.5/32"]), Holds::ForSomeSenders);
        assert_eq!(from(&["192.168.64.11/32", "192.168.64.12/32"]), Holds::ForSomeSenders);
        assert_eq!(from(&["192.168.64.11/32"]), Holds::No, "only this host has that");
        assert_eq!(from(&["127.0.0.0/8", "10.5.0.0/16", "10.5.52.0/24", "fd00::/8"]), Holds::No);
        assert_eq!(from(&[]), Holds::No);
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        let jump = |verdict: fn(String) -> Verdict| rule(vec![], verdict("sub".into()));
        let after = || rule(vec![], Verdict::Accept);
        assert_eq!(fate(vec![jump(Verdict::Jump), after()], vec![]), Fate::Passes);
        assert_eq!(fate(vec![jump(Verdict::Goto), after()], vec![]), Fate::Dropped);
        let reject = || vec![rule(vec![], Verdict::Reject)];
        assert_eq!(fate(vec![jump(Verdict::Jump), after()], reject()), Fate::Rejected);
        let leads_on = rule(vec![What::Unknown], Verdict::Goto("sub".into()));
        assert_eq!(fate(vec![leads_on, after()], reject()), Fate::Passes);
    }

    #[test]
    fn what_follows_a_doubtful_return_is_doubtful() {
        let sub = vec![rule(vec![What::Unknown], Verdict::Return), rule(vec![], Verdict::Drop)];
        let rules = vec![rule(vec![], Verdict::Jump("sub".into())), rule(vec![], Verdict::Accept)];
        assert_eq!(fate(rules, sub), Fate::Passes);
    }

    #[test]
    fn a_chain_that_leads_to_itself_ends() {
        let turn = || vec![rule(vec![], Verdict::Jump("sub".into()))];
        assert_eq!(fate(turn(), turn()), Fate::Dropped);
    }

    #[test]
    fn negation_turns_what_is_known_and_names_nothing() {
        let not = |what| Test::unless(what, true).answer(&packet());
        assert_eq!(not(enters("flannel.1")), Answer { holds: Holds::No, ours: false });
        assert_eq!(not(enters("eth0")), Answer { holds: Holds::Yes, ours: false });
        assert_eq!(not(What::Unknown).holds, Holds::Unknown);
    }

    #[test]
    fn an_unknown_bridge_is_neither_loopback_nor_the_device_on_the_other_side() {
        let leaves = |text| What::Out(vec![Pattern::new(text, '+')]).answer(&packet()).holds;
        assert_eq!(leaves("lo"), Holds::No);
        assert_eq!(leaves("flannel.1"), Holds::No);
        assert_eq!(leaves("docker0"), Holds::Unknown);
    }

    #[test]
    fn one_of_several_groups_is_enough() {
        let group = |what| vec![Test::new(what)];
        let answer = |groups| What::OneOf(groups).answer(&packet()).holds;
        assert_eq!(answer(vec![group(What::Never), group(enters("flannel.1"))]), Holds::Yes);
        assert_eq!(answer(vec![group(What::Never), group(What::Unknown)]), Holds::Unknown);
        assert_eq!(answer(vec![group(What::Never)]), Holds::No);
    }
}
