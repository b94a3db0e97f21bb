//! Whom to probe next, what to send, and what became of it: pure, with the time as an argument.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use rand::RngExt;
use tokio::time::Instant;

use crate::findings::{Findings, Seen};
use crate::health::{Answers, Health, SMALL, State};
use crate::leg::Answer;
use crate::target::{Target, Way};

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// A probe that is concluded so long after its time does not count: this host stood still, not the network.
const STOOD_STILL: Duration = Duration::from_millis(500);
/// Shortest time in which all targets are probed once.
const ROUND: Duration = Duration::from_secs(2);
/// New targets at once that are probed before their turn.
const FEW: usize = 20;
/// Delay before a target whose state is about to change is probed again.
const SOON: Duration = Duration::from_secs(1);

/// What a packet tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Underlay,
    Overlay,
    Full,
    Agent,
    /// The size at this place.
    Size(usize),
}

/// A packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    /// What its answer repeats.
    pub(crate) nonce: u64,
    /// An address of this host; `None` if the route decides.
    pub(crate) from: Option<IpAddr>,
    pub(crate) to: IpAddr,
    /// The size of an ICMP echo in bytes with its IP header; `None` for a question to the agent.
    pub(crate) echo: Option<u16>,
}

/// All targets, and what is known of each.
#[derive(Debug)]
pub(crate) struct Watch {
    way: Option<Way>,
    targets: BTreeMap<IpNetwork, Watched>,
    /// The addresses that agents of targets ask from.
    known: HashMap<IpAddr, IpNetwork>,
    pace: Option<Pace>,
    in_flight: Vec<InFlight>,
    counts: Counts,
}

/// Packets of probes since the start, sent and lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    underlay: (u64, u64),
    overlay: (u64, u64),
    full: (u64, u64),
    agent: (u64, u64),
}

impl Counts {
    /// Returns them by the name of the part of the way: sent and lost.
    pub fn by_leg(&self) -> [(&'static str, (u64, u64)); 4] {
        let Self { underlay, overlay, full, agent } = *self;
        [("underlay", underlay), ("overlay", overlay), ("full", full), ("agent", agent)]
    }

    fn add(&mut self, answers: &Answers) {
        let Answers { underlay, overlay, full, agent, .. } = *answers;
        let Self { underlay: of_underlay, overlay: of_overlay, full: of_full, agent: of_agent } = self;
        let legs = [(underlay, of_underlay), (overlay, of_overlay), (full, of_full), (agent, of_agent)];
        for (answer, (sent, lost)) in legs {
            *sent += u64::from(answer != Answer::NotAsked);
            *lost += u64::from(answer == Answer::Lost);
        }
    }
}

#[derive(Debug)]
struct Watched {
    target: Target,
    health: Health,
}

/// When the next probe is due, and of whom.
#[derive(Debug)]
struct Pace {
    /// Shortest time between two probes.
    gap: Duration,
    /// Probed in this order, again and again, from `at` on.
    order: Vec<IpNetwork>,
    at: usize,
    /// When the next of them is due.
    next: Instant,
    /// To be probed before their turn, at most every other time.
    soon: VecDeque<(Instant, IpNetwork)>,
    was_soon: bool,
    /// No probe before this time.
    free: Instant,
}

#[derive(Debug)]
struct InFlight {
    subnet: IpNetwork,
    /// Its packets, each with a number of its own, so that the answer to one proves no other.
    packets: Vec<(u64, Part)>,
    sent: Instant,
    answers: Answers,
}

impl Watch {
    /// Creates a watch of nobody. `rate` is the number of probes a second; with 0 there are none.
    pub(crate) fn new(rate: u16, now: Instant) -> Self {
        let pace = (rate > 0).then(|| Pace {
            gap: Duration::from_secs(1) / u32::from(rate),
            order: Vec::new(),
            at: 0,
            next: now,
            soon: VecDeque::new(),
            was_soon: false,
            free: now,
        });
        Self {
            way: None,
            targets: BTreeMap::new(),
            known: HashMap::new(),
            pace,
            in_flight: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Replaces the targets. What is known of those that stay as they were is kept.
    pub(crate) fn targets_are(&mut self, way: Way, targets: Vec<Target>, now: Instant) {
        if self.way.as_ref() != Some(&way) {
            self.targets.clear();
            self.in_flight.clear();
        }
        let (mut before, mut changed) = (std::mem::take(&mut self.targets), HashSet::new());
        let watched = targets.into_iter().map(|target| {
            let subnet = target.subnet;
            let kept = before.remove(&subnet).filter(|before| before.target == target);
            let watched = kept.unwrap_or_else(|| {
                changed.insert(subnet);
                Watched { target, health: Health::default() }
            });
            (subnet, watched)
        });
        // A map that is made at once takes half the room of one that grew.
        self.targets = watched.collect();
        let known = |(subnet, watched): (&IpNetwork, &Watched)| (watched.target.through(&way).1, *subnet);
        self.known = self.targets.iter().map(known).collect();
        self.way = Some(way);
        let targets = &self.targets;
        // An answer to what was sent to the address before says nothing.
        self.in_flight
            .retain(|probe| targets.contains_key(&probe.subnet) && !changed.contains(&probe.subnet));
        if let Some(pace) = &mut self.pace {
            pace.targets_are(targets, now);
        }
    }

    /// Forgets all targets.
    pub(crate) fn clear(&mut self, now: Instant) {
        let Self { way, targets, known, pace, in_flight, .. } = self;
        *way = None;
        targets.clear();
        known.clear();
        in_flight.clear();
        if let Some(pace) = pace {
            pace.targets_are(targets, now);
        }
    }

    /// Handles a question from this address. Returns whether it is that of a target's agent: nobody else makes this host
    /// send. A target that is alive is probed soon, if it seemed not to be.
    pub(crate) fn asked_by(&mut self, address: IpAddr, now: Instant) -> bool {
        let Some(subnet) = self.known.get(&address) else { return false };
        let is_lost = self.targets.get(subnet).is_some_and(|one| one.health.state() == State::Unreachable);
        if let Some(pace) = self.pace.as_mut().filter(|_| is_lost) {
            pace.soon(*subnet, now);
        }
        true
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn way(&self) -> Option<&Way> {
        self.way.as_ref()
    }

    /// Returns when [`time_passed`](Self::time_passed) has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        let answers = self.in_flight.iter().map(|probe| probe.sent + PATIENCE);
        answers.chain(self.pace.as_ref().and_then(Pace::due)).min()
    }

    /// Concludes probes whose time is over, and returns the packets of the next one, if it is due.
    pub(crate) fn time_passed(&mut self, now: Instant) -> Vec<Packet> {
        for at in (0..self.in_flight.len()).rev() {
            if self.in_flight[at].sent + PATIENCE <= now {
                let probe = self.in_flight.swap_remove(at);
                self.conclude(probe, now);
            }
        }
        let Some(subnet) = self.pace.as_mut().and_then(|pace| pace.next(now)) else { return Vec::new() };
        self.begin(subnet, now)
    }

    fn begin(&mut self, subnet: IpNetwork, now: Instant) -> Vec<Packet> {
        let (Some(way), Some(Watched { target, health })) = (&self.way, self.targets.get(&subnet)) else {
            return Vec::new();
        };
        // Two at once would say the same of one moment.
        if self.in_flight.iter().any(|probe| probe.subnet == subnet) {
            return Vec::new();
        }
        let (from, to) = target.through(way);
        let sizes = health.sizes();
        let mut parts = vec![
            (Part::Underlay, way.underlay(target.underlay), target.underlay, Some(SMALL)),
            (Part::Overlay, from, to, Some(SMALL)),
            (Part::Full, from, to, Some(way.mtu)),
        ];
        parts.extend(target.has_agent.then_some((Part::Agent, from, to, None)));
        parts.extend(sizes.iter().enumerate().map(|(at, size)| (Part::Size(at), from, to, Some(*size))));
        let parts: Vec<(Part, Packet)> = parts
            .into_iter()
            .map(|(part, from, to, echo)| (part, Packet { nonce: rand::rng().random(), from, to, echo }))
            .collect();
        let answers = Answers {
            underlay: Answer::Lost,
            overlay: Answer::Lost,
            full: Answer::Lost,
            agent: if target.has_agent { Answer::Lost } else { Answer::NotAsked },
            sizes: sizes.into_iter().map(|size| (size, false)).collect(),
        };
        let packets = parts.iter().map(|(part, packet)| (packet.nonce, *part)).collect();
        self.in_flight.push(InFlight { subnet, packets, sent: now, answers });
        parts.into_iter().map(|(_, packet)| packet).collect()
    }

    /// Handles the answer to a packet.
    pub(crate) fn answered(&mut self, nonce: u64, now: Instant) {
        let Some((at, part)) = self.find(nonce) else { return };
        let probe = &mut self.in_flight[at];
        probe.answers.set(part, Answer::After(now - probe.sent));
        if probe.answers.is_complete() {
            let probe = self.in_flight.swap_remove(at);
            self.conclude(probe, now);
        }
    }

    /// Handles a packet that this host could not send: it says nothing about the target.
    pub(crate) fn not_sent(&mut self, nonce: u64) {
        if let Some((at, part)) = self.find(nonce) {
            self.in_flight[at].answers.set(part, Answer::NotAsked);
        }
    }

    fn find(&self, nonce: u64) -> Option<(usize, Part)> {
        self.in_flight.iter().enumerate().find_map(|(at, probe)| {
            let (_, part) = probe.packets.iter().find(|(known, _)| *known == nonce)?;
            Some((at, *part))
        })
    }

    fn conclude(&mut self, probe: InFlight, now: Instant) {
        let InFlight { subnet, sent, answers, .. } = probe;
        let (Some(way), Some(watched)) = (&self.way, self.targets.get_mut(&subnet)) else { return };
        if now < sent + PATIENCE + STOOD_STILL {
            self.counts.add(&answers);
            watched.health.saw(&answers, way.mtu, now);
        }
        if let Some(pace) = &mut self.pace
            && !watched.health.is_settled()
        {
            pace.soon(subnet, sent + SOON);
        }
    }

    /// Returns what people should know now; `None` while nobody is probed.
    pub(crate) fn findings(&self, port: u16) -> Option<Findings> {
        let way = self.way.as_ref()?;
        let mut findings = Findings::new(port);
        for Watched { target, health } in self.targets.values() {
            findings.add(target, health, way);
        }
        Some(findings)
    }

    /// Returns what is known of each target.
    pub(crate) fn seen(&self, port: u16, now: Instant) -> Vec<(IpNetwork, Seen)> {
        let Some(way) = &self.way else { return Vec::new() };
        let seen = |(subnet, Watched { target, health }): (&IpNetwork, &Watched)| {
            (*subnet, Seen::new(target, health, way, port, now))
        };
        self.targets.iter().map(seen).collect()
    }
}

impl Pace {
    fn targets_are(&mut self, targets: &BTreeMap<IpNetwork, Watched>, now: Instant) {
        let known: HashSet<IpNetwork> = self.order.iter().copied().collect();
        self.order.retain(|subnet| targets.contains_key(subnet));
        self.soon.retain(|(_, subnet)| targets.contains_key(subnet));
        let new: Vec<IpNetwork> = targets.keys().filter(|subnet| !known.contains(subnet)).copied().collect();
        for subnet in &new {
            // At a random place, so that hosts do not all probe the same peer at once.
            self.order.push(*subnet);
            let (last, at) = (self.order.len() - 1, rand::rng().random_range(0..self.order.len()));
            self.order.swap(last, at);
        }
        // Of more, each has its turn, and those that are about to fail do not wait for them.
        self.soon.extend(new.into_iter().take(FEW).map(|subnet| (now + SOON, subnet)));
    }

    fn soon(&mut self, subnet: IpNetwork, at: Instant) {
        if !self.soon.iter().any(|(_, waiting)| *waiting == subnet) {
            self.soon.push_back((at, subnet));
        }
    }

    fn due(&self) -> Option<Instant> {
        let soon = self.soon.front().map(|(at, _)| *at);
        let next = (!self.order.is_empty()).then_some(self.next);
        Some(soon.into_iter().chain(next).min()?.max(self.free))
    }

    /// Returns the target to probe now, if it is time.
    fn next(&mut self, now: Instant) -> Option<IpNetwork> {
        if self.due()? > now {
            return None;
        }
        let is_soon = self.soon.front().is_some_and(|(at, _)| *at <= now);
        let is_turn = !self.order.is_empty() && self.next <= now;
        self.free = now + self.gap;
        self.was_soon = is_soon && !(is_turn && self.was_soon);
        if self.was_soon {
            return self.soon.pop_front().map(|(_, subnet)| subnet);
        }
        let each = (ROUND / self.order.len() as u32).max(self.gap);
        self.next = now + each.mul_f64(rand::rng().random_range(0.75..1.25));
        self.at = (self.at + 1) % self.order.len();
        Some(self.order[self.at])
    }
}

impl Answers {
    fn set(&mut self, part: Part, answer: Answer) {
        match part {
            Part::Underlay => self.underlay = answer,
            Part::Overlay => self.overlay = answer,
            Part::Full => self.full = answer,
            Part::Agent => self.agent = answer,
            Part::Size(at) => match answer {
                Answer::After(_) => {
                    if let Some((_, passed)) = self.sizes.get_mut(at) {
                        *passed = true;
                    }
                }
                // Without one of its sizes, a step of the search says nothing.
                Answer::NotAsked | Answer::Lost => self.sizes.clear(),
            },
        }
    }

    fn is_complete(&self) -> bool {
        let legs = [self.underlay, self.overlay, self.full, self.agent];
        legs.iter().all(|answer| *answer != Answer::Lost) && self.sizes.iter().all(|(_, passed)| *passed)
    }
}

#[cfg(test)]
mod tests;
