//! `flanctl peers`: the peers of this host, as its agent reaches them.

use std::path::Path;
use std::time::Duration;

use flan_agent_api::{Peer, PeerHealth, PeerState, Peers};

use crate::agent;
use crate::args::Form;
use crate::failure::Failure;
use crate::output;
use crate::table::{self, or_dash, short};

/// Prints the peers.
pub(crate) async fn list(socket: &Path, form: Form, watch: bool) -> Result<(), Failure> {
    output::once_or_again(watch, async || {
        let peers: Peers = agent::get(socket, "/peers").await?;
        output::in_form(form, &peers, || match peers.peers.is_empty() {
            true => "no peers".to_owned(),
            false => render(&peers, form == Form::Wide),
        })
    })
    .await
}

fn render(peers: &Peers, wide: bool) -> String {
    let by_key = peers.peers.iter().any(|peer| peer.wireguard.is_some());
    let path = peers.path.as_ref().map_or_else(String::new, |path| format!(" ({path})"));
    let backend = format!("{}{path}", peers.backend);
    let mut header = vec!["SUBNET", "HOST", "PUBLIC IP", "BACKEND"];
    if by_key {
        header.extend(["ENDPOINT", "LATEST HANDSHAKE", "RECEIVED", "SENT"]);
    }
    if by_key && wide {
        header.push("PUBLIC KEY");
    }
    let are_probed = peers.peers.iter().filter_map(|peer| peer.health.as_ref()).any(is_probed);
    if are_probed {
        header.extend(["ROUND TRIP", "LOSS", "MTU", "SINCE"]);
    }
    header.push("STATE");
    table::plain(&header, peers.peers.iter().map(|peer| row(peer, &backend, (by_key, are_probed), wide)))
}

fn row(peer: &Peer, backend: &str, (by_key, are_probed): (bool, bool), wide: bool) -> Vec<String> {
    let mut row = vec![
        peer.subnets.join(","),
        or_dash(peer.host.as_deref()),
        or_dash(Some(&peer.public_ips.join(","))),
        backend.to_owned(),
    ];
    if by_key {
        let known = peer.wireguard.clone().unwrap_or_default();
        let ago = |seconds| format!("{} ago", short(Duration::from_secs(seconds)));
        row.extend([
            or_dash(known.endpoint.as_deref()),
            known.latest_handshake_seconds.map_or_else(|| "never".to_owned(), ago),
            bytes(known.received_bytes),
            bytes(known.sent_bytes),
        ]);
        if wide {
            row.push(known.public_key);
        }
    }
    if are_probed {
        let health = peer.health.clone().unwrap_or_default();
        let of = |text: Option<String>| or_dash(text.as_deref());
        row.extend([
            of(health.round_trip_microseconds.map(milliseconds)),
            of(health.loss_percent.map(|percent| format!("{percent} %"))),
            of(health.mtu.map(|mtu| mtu.to_string())),
            of(health.since_seconds.map(|seconds| short(Duration::from_secs(seconds)))),
        ]);
    }
    row.push(state(peer));
    row
}

fn is_probed(health: &PeerHealth) -> bool {
    health.state != PeerState::NotProbed
}

fn state(peer: &Peer) -> String {
    if let Some(reason) = &peer.unreachable {
        return format!("unreachable: {reason}");
    }
    let Some(health) = &peer.health else { return "not probed".to_owned() };
    let state = match health.state {
        PeerState::Reachable => "reachable",
        PeerState::Lossy => "lossy",
        PeerState::Narrow => "narrow",
        PeerState::Unreachable => "unreachable",
        PeerState::Unknown => "not known yet",
        PeerState::NotProbed => "not probed",
    };
    match &health.reason {
        Some(reason) => format!("{state}: {reason}"),
        None => state.to_owned(),
    }
}

/// Formats a time: `0.42 ms`.
fn milliseconds(microseconds: u64) -> String {
    format!("{:.2} ms", microseconds as f64 / 1000.0)
}

/// Formats a number of bytes: `148 B`, `1.5 KiB`.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use flan_agent_api::WireguardPeer;

    use super::*;

    #[test]
    fn what_wireguard_knows_stands_beside_each_peer() {
        let peer = |last: u8, wireguard: WireguardPeer| Peer {
            subnets: vec![format!("10.5.{last}.0/24")],
            public_ips: vec![format!("192.168.64.{last}")],
            host: Some(format!("h{last}")),
            unreachable: None,
            wireguard: Some(wireguard),
            health: None,
        };
        let known = WireguardPeer {
            public_key: "KEY=".to_owned(),
            endpoint: Some("192.168.64.2:51820".to_owned()),
            latest_handshake_seconds: Some(75),
            received_bytes: 1536,
            sent_bytes: 148,
        };
        let mut silent = peer(3, WireguardPeer::default());
        silent.unreachable = Some("no way".to_owned());
        let peers = Peers {
            backend: "wireguard".to_owned(),
            path: Some("kernel".to_owned()),
            peers: vec![peer(2, known), silent],
            ..Peers::default()
        };
        let lines: Vec<String> = render(&peers, true)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "SUBNET HOST PUBLIC IP BACKEND ENDPOINT LATEST HANDSHAKE RECEIVED SENT PUBLIC KEY STATE",
                "10.5.2.0/24 h2 192.168.64.2 wireguard (kernel) 192.168.64.2:51820 1m15s ago 1.5 KiB 148 B KEY= not probed",
                "10.5.3.0/24 h3 192.168.64.3 wireguard (kernel) - never 0 B 0 B unreachable: no way",
            ]
        );
    }

    #[test]
    fn what_probes_found_stands_beside_each_peer() {
        let peer = |last: u8, health| Peer {
            subnets: vec![format!("10.5.{last}.0/24")],
            public_ips: vec![format!("192.168.64.{last}")],
            host: Some(format!("h{last}")),
            unreachable: None,
            wireguard: None,
            health,
        };
        let good = PeerHealth {
            state: PeerState::Reachable,
            since_seconds: Some(75),
            round_trip_microseconds: Some(421),
            loss_percent: Some(0),
            mtu: Some(1450),
            ..PeerHealth::default()
        };
        let away = PeerHealth {
            state: PeerState::Unreachable,
            since_seconds: Some(4),
            loss_percent: Some(9),
            reason: Some("it is down".to_owned()),
            ..PeerHealth::default()
        };
        let peers = vec![peer(2, Some(good)), peer(3, Some(away)), peer(4, None)];
        let peers = Peers { backend: "vxlan".to_owned(), peers, ..Peers::default() };
        let lines: Vec<String> = render(&peers, false)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "SUBNET HOST PUBLIC IP BACKEND ROUND TRIP LOSS MTU SINCE STATE",
                "10.5.2.0/24 h2 192.168.64.2 vxlan 0.42 ms 0 % 1450 1m15s reachable",
                "10.5.3.0/24 h3 192.168.64.3 vxlan - 9 % - 4s unreachable: it is down",
                "10.5.4.0/24 h4 192.168.64.4 vxlan - - - - not probed",
            ]
        );
    }

    #[test]
    fn bytes_have_a_unit() {
        assert_eq!([1023, 1024, 1 << 40, 1 << 50].map(bytes), ["1023 B", "1.0 KiB", "1.0 TiB", "1024.0 TiB"]);
    }
}
