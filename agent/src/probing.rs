//! Probes of the peers: what they find becomes problems and figures of the status.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use flan_agent_api::{Code, Peer, PeerHealth, PeerState, ProbeSource, Probed};
use flan_probes::{Findings, Named, Prober, Seen, Settings, State, Way};

use crate::status::SharedNetwork;

/// Starts the probes. What they find goes to this status.
pub(crate) fn start(settings: Settings, status: SharedNetwork) -> Prober {
    Prober::start(settings, move |findings| tell(findings, &status))
}

fn tell(findings: Option<&Findings>, status: &SharedNetwork) {
    let named = |kind: fn(&Findings) -> &Named| findings.and_then(|findings| kind(findings).text());
    for (code, text) in [
        (Code::PeerUnreachable, named(|findings| &findings.unreachable)),
        (Code::PeerMtu, named(|findings| &findings.narrow)),
        (Code::PeerLoss, named(|findings| &findings.lossy)),
        (Code::PeerAgent, named(|findings| &findings.agents)),
    ] {
        status.report(code, text);
    }
    let probed = findings.map(|findings| Probed {
        reachable: findings.reachable,
        unreachable: findings.unreachable.count(),
        unknown: findings.unknown,
        all_lost: findings.are_all_lost(),
    });
    status.update(|status| status.probed = probed);
}

/// Returns whence and how peers are probed, if they are.
pub(crate) fn source(prober: &Prober) -> Option<ProbeSource> {
    let Settings { port, .. } = prober.settings();
    let Way { mtu, overlay, underlay, .. } = prober.way()?;
    let strings = |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect();
    Some(ProbeSource { overlay: strings(overlay), underlay: strings(underlay), mtu, port })
}

/// Adds what is known of them to peers.
pub(crate) fn add(peers: &mut [Peer], prober: &Prober) {
    let is_probing = prober.settings().rate > 0;
    let seen: HashMap<String, Seen> =
        prober.view().seen().into_iter().map(|(subnet, seen)| (subnet.to_string(), seen)).collect();
    for peer in peers {
        let of_subnets: Vec<&Seen> = peer.subnets.iter().filter_map(|subnet| seen.get(subnet)).collect();
        peer.health = combined(&of_subnets).map(|health| match is_probing {
            true => health,
            false => PeerHealth { state: PeerState::NotProbed, ..health },
        });
    }
}

/// Of a peer with two subnets, the packets are as good as those of the worse, and the agent answers by either.
fn combined(seen: &[&Seen]) -> Option<PeerHealth> {
    let worst = seen.iter().max_by_key(|seen| seen.state)?;
    let reason = worst.reason.as_ref().or(seen.iter().find_map(|seen| seen.reason.as_ref()));
    let latest = |time: fn(&Seen) -> Option<Duration>| seen.iter().filter_map(|seen| time(seen)).min();
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    Some(PeerHealth {
        state: match worst.state {
            State::Reachable => PeerState::Reachable,
            State::Unknown => PeerState::Unknown,
            State::Lossy => PeerState::Lossy,
            State::Narrow => PeerState::Narrow,
            State::Unreachable => PeerState::Unreachable,
        },
        since_seconds: seconds(worst.since),
        round_trip_microseconds: worst.round_trip.map(|time| time.as_micros() as u64),
        loss_percent: worst.loss_percent,
        mtu: worst.mtu,
        answered_seconds: seconds(latest(|seen| seen.answered)),
        agent_answered_seconds: seconds(latest(|seen| seen.agent_answered)),
        through: worst.through.clone(),
        has_agent: worst.has_agent,
        reason: reason.cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_of_two_families_is_as_good_as_the_worse_and_alive_if_either_answers() {
        let seen = |state, agent_answered| Seen {
            host: "h2".to_owned(),
            state,
            since: None,
            round_trip: Some(Duration::from_micros(700)),
            loss_percent: Some(0),
            mtu: Some(1450),
            answered: Some(Duration::from_secs(1)),
            agent_answered,
            through: None,
            has_agent: true,
            reason: None,
        };
        let second = Some(Duration::from_secs(1));
        let (good, bad) = (seen(State::Reachable, second), seen(State::Unreachable, None));
        for both in [[&good, &bad], [&bad, &good]] {
            let health = combined(&both).unwrap();
            assert_eq!((health.state, health.agent_answered_seconds), (PeerState::Unreachable, Some(1)));
            assert_eq!(health.round_trip_microseconds, Some(700));
        }
        assert_eq!(combined(&[]), None);
    }
}
