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
    let address: Option<IpAddr> = name.parse().ok();
    if let Some(address) = address {
        let holder =
            peers.iter().find_map(|peer| Some((peer, subnets(peer).find(|one| one.contains(address))?)));
        if let Some((peer, subnet)) = holder {
            let container = (address != subnet.network()).then_some(address);
            return found(peer, subnet, container).map(Some);
        }
    }
    let is_meant = |peer: &&Peer| {
        let is_at = |ip: &String| address.is_some() && ip.parse().ok() == address;
        peer.host.as_deref() == Some(name)
            || peer.public_ips.iter().any(is_at)
            || peer.subnets.iter().any(|one| one == name)
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

/// Finds a container by its name or address, in all networks of the store.
pub(super) async fn container(store: &Store, peers: &[Peer], name: &str) -> Result<Found, Failure> {
    let mut all: Vec<Container> = store.containers().list().await?.readable().cloned().collect();
    for network in store.networks().await?.all {
        all.extend(store.network(&network.name).containers().list().await?.readable().cloned());
    }
    choose(&all, peers, name)
}

/// Chooses the container that is meant.
fn choose(all: &[Container], peers: &[Peer], name: &str) -> Result<Found, Failure> {
    let address: Option<IpAddr> = name.parse().ok();
    let is_meant = |container: &&Container| {
        container.name == name || address.is_some_and(|address| container.addresses.contains(&address))
    };
    let meant: Vec<&Container> = all.iter().filter(is_meant).collect();
    let fails = |why: &str| Err(Failure::new(Kind::NotFound, format!("{name} {why}")));
    let Some(container) = meant.first() else {
        return fails(
            "is no peer of this host and no container in the store: flanctl peers lists hosts, and flanctl network inspect \
             lists containers",
        );
    };
    if meant.iter().any(|other| (&other.host, &other.node_id) != (&container.host, &container.node_id)) {
        return fails("is the name of containers on several hosts: name an address");
    }
    let Some(address) = address.or(container.addresses.first().copied()).filter(|ip| !ip.is_loopback())
    else {
        return fails("has no address in the store");
    };
    let mut hosts = peers.iter().filter(|peer| peer.host.is_some() && peer.host == container.host);
    let Some(peer) = hosts.next() else {
        let host = container.host.as_deref().unwrap_or("a host without a name");
        return fails(&format!("is on {}, which is this host or no peer of it", printable(host)));
    };
    if hosts.next().is_some() {
        return fails("is on a host whose name another one has, too");
    }
    let subnet = subnets(peer).next().ok_or_else(|| unprobed(peer))?;
    found(peer, subnet, Some(address))
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
            ("FD00:64::3", "10.5.3.0/24", None),
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
    fn a_container_is_found_by_its_name_or_address_if_it_is_one() {
        let container = |name: &str, host: Option<&str>, address: &[&str]| Container {
            endpoint: "e".to_owned(),
            name: name.to_owned(),
            aliases: Vec::new(),
            host: host.map(str::to_owned),
            node_id: None,
            addresses: address.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let all = [
            container("web", Some("h2"), &["10.9.1.2"]),
            container("db", Some("h2"), &[]),
            container("bad", Some("h2"), &["127.0.0.1"]),
            container("many", Some("h2"), &["10.9.1.3"]),
            container("many", Some("h3"), &["10.9.2.3"]),
            container("ours", Some("h1"), &["10.9.3.3"]),
            container("nameless", None, &["10.9.3.4"]),
        ];
        let peers = [peer(2, "h2"), peer(3, "h3")];
        for name in ["web", "10.9.1.2"] {
            let found = choose(&all, &peers, name).unwrap();
            assert_eq!((found.container, &*found.target.host), (Some("10.9.1.2".parse().unwrap()), "h2"));
        }
        for (name, why) in [
            ("nobody", "no container in the store"),
            ("db", "has no address"),
            ("bad", "has no address"),
            ("many", "several hosts"),
            ("ours", "is on h1, which is this host"),
            ("nameless", "a host without a name"),
        ] {
            let failure = choose(&all, &peers, name).unwrap_err().to_string();
            assert!(failure.contains(why), "{failure}");
        }
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
