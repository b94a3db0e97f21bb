//! Probes of the peers: what they find becomes problems and figures of the status.

use std::collections::HashMap;
use std::net::IpAddr;

use flan_agent_api::{Code, Peer, PeerHealth, PeerState, ProbeSource, Probed};
use flan_probes::{Findings, Prober, Seen, Settings, State, Way};
use ipnetwork::IpNetwork;

use crate::status::SharedNetwork;

/// Starts the probes. What they find goes to this status.
pub(crate) fn start(settings: Settings, status: SharedNetwork) -> Prober {
    Prober::start(settings, move |findings| tell(findings, &status))
}

fn tell(findings: &Findings, status: &SharedNetwork) {
    let Findings { unreachable, narrow, lossy, agents, reachable, unknown, .. } = findings;
    let probed = Probed {
        reachable: *reachable,
        unreachable: unreachable.count(),
        unknown: *unknown,
        all_lost: findings.are_all_lost(),
    };
    status.update(|status| status.probed = Some(probed));
    for (code, named) in [
        (Code::PeerUnreachable, unreachable),
        (Code::PeerMtu, narrow),
        (Code::PeerLoss, lossy),
        (Code::PeerAgent, agents),
    ] {
        status.report(code, named.text());
    }
}

/// Returns whence and how peers are probed, if they are.
pub(crate) fn source(prober: &Prober) -> Option<ProbeSource> {
    let Settings { port, .. } = prober.settings();
    let Way { mtu, overlay, underlay, .. } = prober.way()?;
    let strings = |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect();
    Some(ProbeSource { overlay: strings(overlay), underlay: strings(underlay), mtu, port })
}

/// Adds what is known of them to peers: of a peer with two subnets, the worse.
pub(crate) fn add(peers: &mut [Peer], seen: Vec<(IpNetwork, Seen)>) {
    let seen: HashMap<String, Seen> =
        seen.into_iter().map(|(subnet, seen)| (subnet.to_string(), seen)).collect();
    for peer in peers {
        let of_subnets = peer.subnets.iter().filter_map(|subnet| seen.get(subnet));
        peer.health = of_subnets.max_by_key(|seen| seen.state).map(shown);
    }
}

fn shown(seen: &Seen) -> PeerHealth {
    let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs());
    PeerHealth {
        state: match seen.state {
            State::Reachable => PeerState::Reachable,
            State::Unknown => PeerState::Unknown,
            State::Lossy => PeerState::Lossy,
            State::Narrow => PeerState::Narrow,
            State::Unreachable => PeerState::Unreachable,
        },
        since_seconds: seconds(seen.since),
        round_trip_microseconds: seen.round_trip.map(|time| time.as_micros() as u64),
        loss_percent: seen.loss_percent,
        mtu: seen.mtu,
        answered_seconds: seconds(seen.answered),
        agent_answered_seconds: seconds(seen.agent_answered),
        through: seen.through.clone(),
        has_agent: seen.has_agent,
        reason: seen.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_peer_of_two_families_is_as_good_as_the_worse_of_both() {
        let seen = |state| Seen {
            host: "h2".to_owned(),
            state,
            since: None,
            round_trip: Some(Duration::from_micros(700)),
            loss_percent: Some(0),
            mtu: Some(1450),
            answered: Some(Duration::from_secs(1)),
            agent_answered: None,
            through: None,
            has_agent: true,
            reason: None,
        };
        let peer = |subnets: &[&str]| Peer {
            subnets: subnets.iter().map(ToString::to_string).collect(),
            ..Peer::default()
        };
        let mut peers = [peer(&["10.5.2.0/24", "fd00:5::/64"]), peer(&["10.5.3.0/24"])];
        let known = [("10.5.2.0/24", State::Reachable), ("fd00:5::/64", State::Unreachable)];
        add(&mut peers, known.map(|(subnet, state)| (subnet.parse().unwrap(), seen(state))).into());
        let health = peers[0].health.clone().unwrap();
        assert_eq!((health.state, health.round_trip_microseconds), (PeerState::Unreachable, Some(700)));
        assert_eq!(peers[1].health, None);
    }
}
