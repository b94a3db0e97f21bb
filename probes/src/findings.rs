//! What people are told about the targets.

use std::time::Duration;

use tokio::time::Instant;

use crate::health::{Health, State};
use crate::moment::Moment;
use crate::target::{Target, Way};

/// Most targets in one text.
const SHOWN: usize = 5;
const LOSSY: &str = "more than one packet in ten is lost";

/// What is wrong with targets at present, a text for each kind, and how many there are of each state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Targets from which nothing comes back.
    pub unreachable: Named,
    /// Those that large packets do not reach.
    pub narrow: Named,
    /// Those that lose packets.
    pub lossy: Named,
    /// Those whose agent does not answer, although packets pass.
    pub agents: Named,
    /// Targets that answer.
    pub reachable: usize,
    /// Targets of which too little is known yet.
    pub unknown: usize,
    /// How many have ever answered, and how many of those do so no more.
    answered: (usize, usize),
    port: u16,
}

/// Targets of a kind: the first few by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    texts: Vec<String>,
    count: usize,
}

/// What is known of a target, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The peer's name.
    pub host: String,
    /// What to know first.
    pub state: State,
    /// Since when it stands; `None` before the first answer.
    pub since: Option<Duration>,
    /// Round trip of a small packet, smoothed.
    pub round_trip: Option<Duration>,
    /// Part of the last 32 small packets that was lost.
    pub loss_percent: Option<u32>,
    /// Largest packet in bytes that passes.
    pub mtu: Option<u16>,
    /// Time since anything came through the overlay.
    pub answered: Option<Duration>,
    /// Time since the agent answered.
    pub agent_answered: Option<Duration>,
    /// What carries its packets; `None` if they go unencapsulated.
    pub through: Option<String>,
    /// Whether an agent of ours runs there.
    pub has_agent: bool,
    /// What is wrong.
    pub reason: Option<String>,
}

impl Findings {
    pub(crate) fn new(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    pub(crate) fn add(&mut self, target: &Target, health: &Health, way: &Way) {
        let state = health.state();
        if health.was_reachable() && (health.answers_echoes() || state != State::Unreachable) {
            self.answered.0 += 1;
            self.answered.1 += usize::from(state == State::Unreachable);
        }
        let named = || format!("{}: {}", name(target), reason(target, health, way).unwrap_or_default());
        match state {
            State::Unknown => self.unknown += 1,
            State::Unreachable => self.unreachable.add(named),
            State::Reachable | State::Lossy | State::Narrow => self.reachable += 1,
        }
        if state == State::Narrow {
            self.narrow.add(named);
        }
        // A path may be both.
        if health.is_lossy() && matches!(state, State::Lossy | State::Narrow) {
            self.lossy.add(|| format!("{}: {LOSSY}", name(target)));
        }
        if health.is_agent_silent() {
            let port = self.port;
            self.agents.add(|| format!("{}: {}", name(target), silent(port)));
        }
    }

    /// Returns whether no target answers of those that did.
    pub fn are_all_lost(&self) -> bool {
        let (answered, lost) = self.answered;
        answered > 0 && answered == lost
    }
}

impl Named {
    fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.texts.len() < SHOWN {
            self.texts.push(text());
        }
    }

    /// Returns their number.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns one text about all; `None` if there are none.
    pub fn text(&self) -> Option<String> {
        // Without their number, which would make it another text at every report.
        let more = (self.count > self.texts.len()).then_some("and others: flanctl peers lists all");
        let texts: Vec<&str> = self.texts.iter().map(String::as_str).chain(more).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

impl Seen {
    pub(crate) fn new(target: &Target, health: &Health, way: &Way, port: u16, now: Instant) -> Self {
        let ago = |at: Option<Moment>| at.map(|at| at.ago(now));
        Self {
            host: target.host.clone(),
            state: health.state(),
            since: ago(health.since()),
            round_trip: health.round_trip(),
            loss_percent: health.loss_percent(),
            mtu: health.largest(way.mtu),
            answered: ago(health.answered()),
            agent_answered: ago(health.agent_answered()),
            through: target.carrier(way).map(str::to_owned),
            has_agent: target.has_agent,
            reason: wrong(target, health, way, port),
        }
    }
}

/// Returns what is wrong with a target or its agent.
pub(crate) fn wrong(target: &Target, health: &Health, way: &Way, port: u16) -> Option<String> {
    reason(target, health, way).or_else(|| health.is_agent_silent().then(|| silent(port)))
}

fn name(target: &Target) -> String {
    let Target { subnet, host, .. } = target;
    if host.is_empty() { subnet.to_string() } else { format!("{host} ({subnet})") }
}

/// Returns what is wrong on the way to a target.
fn reason(target: &Target, health: &Health, way: &Way) -> Option<String> {
    let mtu = way.mtu;
    match health.state() {
        State::Reachable | State::Unknown => None,
        State::Lossy => Some(LOSSY.to_owned()),
        State::Narrow => {
            let largest = health.largest(mtu)?;
            Some(format!(
                "packets of {mtu} bytes do not come back, those of up to {largest} do: a device on the way carries less than \
                 the interfaces of both hosts; mend it, or make their MTU smaller by {} bytes",
                mtu.saturating_sub(largest)
            ))
        }
        State::Unreachable => Some(unreachable(target, health, way)),
    }
}

fn unreachable(target: &Target, health: &Health, way: &Way) -> String {
    let Target { underlay, .. } = target;
    let (or, never) = match health.was_reachable() {
        true => ("", ""),
        false => (
            ", or does one there drop echo requests (ICMP) and fland's UDP port",
            ", or a firewall there drops echo requests (ICMP) and fland's UDP port",
        ),
    };
    if !target.is_encapsulated(way) {
        return format!("its address {underlay} does not answer: it is down or cut off{never}");
    }
    let through = target.carrier(way).unwrap_or("the route to its subnet");
    if health.does_underlay_answer() {
        return format!(
            "its underlay address {underlay} answers, but nothing comes back through {through}: does a firewall between the \
             hosts drop it{or}?"
        );
    }
    format!(
        "neither its underlay address {underlay} nor anything through {through} answers: it is down or cut off{never}"
    )
}

fn silent(port: u16) -> String {
    format!(
        "packets pass, but its fland does not answer on UDP {port}: it does not run, or a firewall there drops that port"
    )
}
