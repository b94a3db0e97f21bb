//! Finds what somebody means by a host, a subnet, an address or a container.

use std::net::IpAddr;

use flan_agent_api::Peer;
use flan_probes::Target;
use flan_subnet_lease::{Container, Store, printable};
use ipnetwork::IpNetwork;

use crate::failure::{Failure, Kind};

/// What to probe.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) target: Target,
    /// The container behind it that was meant.
    pub(super) container: Option<IpAddr>,
    /// What carries packets to it.
    pub(super) through: Option<String>,
}

/// Finds a host by its name or its address on the underlay, one of its subnets, or an address in one.
pub(super) fn among_peers(peers: &[Peer], name: &str) -> Result<Option<Found>, Failure> {
    if let Ok(address) = name.parse::<IpAddr>() {
        let holder =
            peers.iter().find_map(|peer| Some((peer, subnets(peer).find(|one| one.contains(address))?)));
        if let Some((peer, subnet)) = holder {
            let container = (address != subnet.network()).then_some(address);
            return found(peer, subnet, container).map(Some);
        }
    }
    let is_meant = |peer: &&Peer| {
        peer.host.as_deref() == Some(name)
            || peer.public_ips.iter().chain(&peer.subnets).any(|one| one == name)
    };
    let mut meant = peers.iter().filter(is_meant);
    let Some(peer) = meant.next() else { return Ok(None) };
    if meant.next().is_some() {
        let text = format!("several hosts are called {name}: name a subnet, as flanctl peers lists them");
        return Err(Failure::new(Kind::Usage, text));
    }
    let mut all = subnets(peer);
    let subnet = all.find(|subnet| subnet.to_string() == name).or_else(|| subnets(peer).next());
    subnet.map(|subnet| found(peer, subnet, None)).transpose()
}

/// Finds a container by its name, in all networks of the store.
pub(super) async fn container(store: &Store, peers: &[Peer], name: &str) -> Result<Found, Failure> {
    let mut named: Vec<Container> = store.containers().list().await?.readable().cloned().collect();
    for network in store.networks().await?.all {
        named.extend(store.network(&network.name).containers().list().await?.readable().cloned());
    }
    named.retain(|container| container.name == name);
    let Some(container) = named.first() else {
        let text = format!(
            "{name} is no peer of this host and no container in the store: flanctl peers lists hosts, flanctl network inspect \
             containers"
        );
        return Err(Failure::new(Kind::NotFound, text));
    };
    let host = container.host.as_deref().unwrap_or_default();
    let peer = peers.iter().find(|peer| peer.host.as_deref() == Some(host));
    let Some(peer) = peer.filter(|_| named.iter().all(|other| other.host == container.host)) else {
        let text = format!("{name} is on this host, on several, or on {}, which is no peer", printable(host));
        return Err(Failure::new(Kind::NotFound, text));
    };
    let subnet = subnets(peer).next().ok_or_else(|| unprobed(peer))?;
    found(peer, subnet, container.addresses.first().copied())
}

fn subnets(peer: &Peer) -> impl Iterator<Item = IpNetwork> {
    peer.subnets.iter().filter_map(|subnet| subnet.parse().ok())
}

fn found(peer: &Peer, subnet: IpNetwork, container: Option<IpAddr>) -> Result<Found, Failure> {
    let health = peer.health.as_ref().ok_or_else(|| unprobed(peer))?;
    let of_family = |ip: &IpAddr| ip.is_ipv4() == subnet.is_ipv4();
    let addresses: Vec<IpAddr> = peer.public_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let underlay = addresses.iter().find(|ip| of_family(ip)).or(addresses.first());
    let target = Target {
        subnet,
        host: peer.host.clone().unwrap_or_default(),
        underlay: *underlay.ok_or_else(|| unprobed(peer))?,
        is_direct: health.through.is_none(),
        has_agent: health.has_agent,
    };
    Ok(Found { target, container, through: health.through.clone() })
}

fn unprobed(peer: &Peer) -> Failure {
    let why = peer.unreachable.as_deref().unwrap_or("its lease has just come; try again");
    Failure::new(Kind::Other, format!("no packets are sent to {}: {why}", peer.subnets.join(",")))
}

#[cfg(test)]
mod tests {
    use flan_agent_api::PeerHealth;

    use super::*;

    fn peer(last: u8, host: &str) -> Peer {
        Peer {
            subnets: vec![format!("10.5.{last}.0/24"), format!("fd00:5:0:{last}::/64")],
            public_ips: vec![format!("192.168.64.{last}"), format!("fd00:64::{last}")],
            host: Some(host.to_owned()),
            health: Some(PeerHealth { has_agent: true, ..PeerHealth::default() }),
            ..Peer::default()
        }
    }

    #[test]
    fn a_host_is_found_by_all_that_people_call_it() {
        let peers = [peer(2, "h2"), peer(3, "h3")];
        for (name, subnet, container) in [
            ("h3", "10.5.3.0/24", None),
            ("192.168.64.3", "10.5.3.0/24", None),
            ("fd00:5:0:3::/64", "fd00:5:0:3::/64", None),
            ("10.5.3.7", "10.5.3.0/24", Some("10.5.3.7")),
            ("10.5.3.0", "10.5.3.0/24", None),
            ("fd00:5:0:3::9", "fd00:5:0:3::/64", Some("fd00:5:0:3::9")),
        ] {
            let found = among_peers(&peers, name).unwrap().unwrap();
            assert_eq!(found.target.subnet.to_string(), subnet, "{name}");
            assert_eq!(found.container, container.map(|ip| ip.parse().unwrap()), "{name}");
            assert_eq!(found.target.underlay.is_ipv4(), subnet.starts_with("10."), "{name}");
        }
        assert_eq!(among_peers(&peers, "h4").unwrap(), None);
    }

    #[test]
    fn two_hosts_of_one_name_are_told_apart_by_their_subnets() {
        let peers = [peer(2, "web"), peer(3, "web")];
        assert!(among_peers(&peers, "web").unwrap_err().to_string().contains("several"));
        assert!(among_peers(&peers, "10.5.3.0/24").unwrap().is_some());
    }

    #[test]
    fn a_peer_that_gets_no_packets_is_told_with_the_reason() {
        let away = Peer { unreachable: Some("no way".to_owned()), health: None, ..peer(2, "h2") };
        assert!(among_peers(&[away], "h2").unwrap_err().to_string().ends_with("no way"));
    }
}
