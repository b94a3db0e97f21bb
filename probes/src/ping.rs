//! Probes one target a few times, for somebody who waits for the outcome.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use flan_kernel::echo::EchoSocket;
use rand::RngExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::health::{Answers, Health, SMALL};
use crate::leg::Answer;
use crate::search::Search;
use crate::sockets::{Agent, Heard, Sockets};
use crate::target::{Target, Way};
use crate::watch::{PATIENCE, Packet};

/// Most steps of the search for the largest size; without loss, six are enough.
const MOST_STEPS: usize = 20;
/// From so many packets on, lost ones are counted; and the part of them from which a path is lossy.
const COUNTED: usize = 10;
const LOSSY_PERCENT: usize = 10;

/// A kind of packet, and how many were answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// What was sent.
    pub leg: PingLeg,
    /// Where to.
    pub to: IpAddr,
    /// Why it could not be sent, if it could not.
    pub unsent: Option<String>,
    /// How many were sent.
    pub sent: usize,
    /// How long each answer took.
    pub answers: Vec<Duration>,
}

/// What can be sent to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PingLeg {
    /// An echo to the underlay address.
    Underlay,
    /// A small echo through the overlay.
    Overlay,
    /// An echo through the overlay of this size in bytes, the largest that containers may send.
    Full(u16),
    /// A question to the agent.
    Agent,
    /// A small echo to a container.
    Container,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Each kind of packet, in the order of [`PingLeg`].
    pub tallies: Vec<Tally>,
    /// What is wrong; `None` if packets pass as they should.
    pub reason: Option<String>,
    /// What else was not answered, and does not matter to packets.
    pub note: Option<String>,
}

/// Sends `count` packets of each kind, `interval` apart, each of which may take a second to be answered, and finds out
/// which sizes pass if the largest does not. `container` is an address behind the target.
///
/// # Errors
/// If the sockets cannot be opened: it needs `CAP_NET_RAW`.
pub async fn ping(
    way: &Way,
    target: &Target,
    container: Option<IpAddr>,
    port: u16,
    count: usize,
    interval: Duration,
) -> io::Result<Outcome> {
    let sockets = sockets(way, target, container)?;
    let (from, to) = target.through(way);
    let underlay = (PingLeg::Underlay, way.underlay(target.underlay), target.underlay);
    let mut legs = vec![underlay, (PingLeg::Overlay, from, to), (PingLeg::Full(way.mtu), from, to)];
    if target.has_agent {
        legs.push((PingLeg::Agent, from, to));
    }
    legs.extend(container.map(|address| (PingLeg::Container, None, address)));
    let mut tallies: Vec<Tally> = legs
        .iter()
        .map(|(leg, _, to)| Tally { leg: *leg, to: *to, unsent: None, sent: 0, answers: Vec::new() })
        .collect();
    for number in 0..count {
        let began = Instant::now();
        let packets: Vec<Packet> = legs
            .iter()
            .map(|(leg, from, to)| Packet {
                nonce: rand::rng().random(),
                from: *from,
                to: *to,
                echo: echo(*leg),
            })
            .collect();
        for (tally, answer) in tallies.iter_mut().zip(exchange(&sockets, &packets, port).await) {
            tally.sent += 1;
            match answer {
                Ok(answer) => tally.answers.extend(answer),
                Err(reason) => tally.unsent = Some(reason.to_string()),
            }
        }
        if number + 1 < count {
            sleep_until(began + interval).await;
        }
    }
    let mut search = Search::new(SMALL, way.mtu);
    let is_answered =
        |leg: PingLeg| tallies.iter().any(|tally| tally.leg == leg && !tally.answers.is_empty());
    let mut is_full_lost = !is_answered(PingLeg::Full(way.mtu));
    if is_answered(PingLeg::Overlay) && is_full_lost {
        for _ in 0..MOST_STEPS {
            let sizes = search.sizes();
            let packet = |size: &u16| Packet { nonce: rand::rng().random(), from, to, echo: Some(*size) };
            let packets: Vec<Packet> = sizes.iter().map(packet).collect();
            let answers = exchange(&sockets, &packets, port).await;
            let passed = answers.iter().map(|answer| matches!(answer, Ok(Some(_))));
            let seen: Vec<(u16, bool)> = sizes.into_iter().zip(passed).collect();
            search.saw(&seen);
            // Those before were lost by chance.
            is_full_lost = !seen.contains(&(way.mtu, true));
            if !is_full_lost || !search.is_under_way() {
                break;
            }
        }
    }
    let (reason, note) = judge(&tallies, is_full_lost, search, target, way, port);
    Ok(Outcome { tallies, reason, note })
}

fn echo(leg: PingLeg) -> Option<u16> {
    match leg {
        PingLeg::Underlay | PingLeg::Overlay | PingLeg::Container => Some(SMALL),
        PingLeg::Full(bytes) => Some(bytes),
        PingLeg::Agent => None,
    }
}

/// Opens what is needed for these addresses. Questions leave from a port of their own: the agent has its own.
fn sockets(way: &Way, target: &Target, container: Option<IpAddr>) -> io::Result<Sockets> {
    let (from, to) = target.through(way);
    let mut sockets = Sockets::default();
    for address in [Some(to), Some(target.underlay), container].into_iter().flatten() {
        let echo = &mut sockets.echo[usize::from(address.is_ipv6())];
        if echo.is_none() {
            *echo = Some(if address.is_ipv4() { EchoSocket::v4()? } else { EchoSocket::v6()? });
        }
    }
    if let Some(from) = from.filter(|_| target.has_agent) {
        sockets.agent[usize::from(to.is_ipv6())] = Some(Agent::bound(from, 0)?);
    }
    Ok(sockets)
}

/// Sends packets and waits for their answers. Returns for each how long its answer took, if one came, or why it could not
/// be sent.
async fn exchange(sockets: &Sockets, packets: &[Packet], port: u16) -> Vec<io::Result<Option<Duration>>> {
    let sent = Instant::now();
    let mut outcomes: Vec<io::Result<Option<Duration>>> =
        packets.iter().map(|packet| sockets.send(packet, port).map(|()| None)).collect();
    while outcomes.iter().any(|outcome| matches!(outcome, Ok(None))) {
        let Ok(heard) = timeout_at(sent + PATIENCE, sockets.receive()).await else { break };
        let Ok(Heard::Answer(nonce)) = heard else { continue };
        let at = packets.iter().position(|packet| packet.nonce == nonce);
        if let Some(outcome @ Ok(None)) = at.map(|at| &mut outcomes[at]) {
            *outcome = Ok(Some(sent.elapsed()));
        }
    }
    outcomes
}

/// Returns what is wrong, and what else was not answered.
fn judge(
    tallies: &[Tally],
    is_full_lost: bool,
    search: Search,
    target: &Target,
    way: &Way,
    port: u16,
) -> (Option<String>, Option<String>) {
    let of = |leg| {
        let tally = tallies.iter().find(|tally| tally.leg == leg);
        tally.map_or(Answer::NotAsked, |tally| {
            tally.answers.first().map_or(Answer::Lost, |time| Answer::After(*time))
        })
    };
    let (underlay, overlay, agent) = (of(PingLeg::Underlay), of(PingLeg::Overlay), of(PingLeg::Agent));
    let full = if is_full_lost { Answer::Lost } else { Answer::After(PATIENCE) };
    let answers = Answers { underlay, overlay, full, agent, sizes: Vec::new() };
    let health = Health::decided(&answers, search);
    if let Some(wrong) = crate::findings::wrong(target, &health, way, port) {
        return (Some(wrong), None);
    }
    if of(PingLeg::Container) == Answer::Lost {
        let wrong = "its host is reached, but the container does not answer: it does not run, drops echo requests, or is in a \
                     network that this host is not in";
        return (Some(wrong.to_owned()), None);
    }
    if overlay == Answer::Lost {
        return (None, Some("something drops echo requests, and other packets pass".to_owned()));
    }
    if is_full_lost {
        let wrong = format!("packets of {} bytes do not come back, and small ones do", way.mtu);
        return (Some(wrong), None);
    }
    let is_lossy = |tally: &&Tally| {
        let lost = tally.sent - tally.answers.len();
        tally.leg == PingLeg::Overlay && tally.sent >= COUNTED && lost * 100 > tally.sent * LOSSY_PERCENT
    };
    if let Some(tally) = tallies.iter().find(is_lossy) {
        let lost = tally.sent - tally.answers.len();
        return (Some(format!("{lost} of {} small packets were lost", tally.sent)), None);
    }
    let note = "its underlay address answers no echo requests, and packets pass all the same";
    (None, (underlay == Answer::Lost).then(|| note.to_owned()))
}
