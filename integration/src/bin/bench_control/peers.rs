//! Hosts that exist as leases alone, as flannel's vxlan backend would have written them.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use flan_integration::flannel::lease_value;
use flan_integration::store::PREFIX;
use flan_integration::witness::{KernelChange, Mac, Object};
use ipnetwork::IpNetwork;

/// The network config: room for 65,535 hosts. Agents choose from above all [`Peer`]s.
pub(crate) const NETWORK: &str =
    r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.254.0.0","Backend":{"Type":"vxlan"}}"#;

/// The most peers that may be there from the beginning.
pub(crate) const MOST: u32 = 50_000;

/// The peers that come while it is measured have numbers from here on.
const FIRST_VISITOR: u32 = 60_000;

/// Below them nothing may be measured: 10.254.0.0 is the first subnet that an agent may choose.
const END: u32 = 254 << 8;

/// A peer; all about it follows from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer(u32);

impl Peer {
    /// The peers that are there from the beginning.
    pub(crate) fn residents(count: u32) -> impl Iterator<Item = Peer> + Clone {
        (1..=count).map(Peer)
    }

    /// A peer that is not there from the beginning, counted from 0 and anew after some 5,000.
    pub(crate) fn visitor(number: u32) -> Peer {
        Peer(FIRST_VISITOR + number % (END - FIRST_VISITOR))
    }

    /// The base address of its subnet, which is its overlay address as well.
    pub(crate) fn base(self) -> Ipv4Addr {
        Ipv4Addr::from((10 << 24) + (self.0 << 8))
    }

    /// `10.0.1.0/24`.
    pub(crate) fn subnet(self) -> String {
        format!("{}/24", self.base())
    }

    /// Of its VXLAN device.
    pub(crate) fn mac(self) -> Mac {
        self.mac_of_generation(0)
    }

    /// Another one for each generation.
    pub(crate) fn mac_of_generation(self, generation: u8) -> Mac {
        let [_, high, middle, low] = self.0.to_be_bytes();
        [2, generation, 0, high, middle, low]
    }

    /// Its address on an underlay that nobody else is on.
    pub(crate) fn public_ip(self) -> Ipv4Addr {
        Ipv4Addr::from((172 << 24) + (16 << 16) + self.0)
    }

    /// The key of its lease.
    pub(crate) fn key(self) -> String {
        self.key_below(PREFIX)
    }

    /// The key of its lease in the network of this etcd prefix.
    pub(crate) fn key_below(self, prefix: &str) -> String {
        format!("{prefix}/subnets/{}-24", self.base())
    }

    /// The value of its lease.
    pub(crate) fn value(self) -> String {
        self.value_with(self.mac())
    }

    /// The value of its lease with another MAC.
    pub(crate) fn value_with(self, mac: Mac) -> String {
        lease_value(self.public_ip(), &text(mac))
    }
}

/// As it is written: `02:00:00:00:00:01`.
pub(crate) fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The base address of a /24 of the overlay that a route is for.
pub(crate) fn base_of_route(destination: &IpNetwork) -> Option<Ipv4Addr> {
    match destination {
        IpNetwork::V4(network) if network.prefix() == 24 && network.ip().octets()[0] == 10 => {
            Some(network.ip())
        }
        _ => None,
    }
}

/// The peers of which the kernel has told route, neighbour and FDB entry, and has not taken them back.
#[derive(Debug, Default)]
pub(crate) struct Programmed {
    routes: HashSet<Ipv4Addr>,
    neighbours: HashSet<Ipv4Addr>,
    fdb: HashSet<Mac>,
}

impl Programmed {
    /// Nothing, or all that is there for these peers.
    pub(crate) fn of(peers: impl Iterator<Item = Peer> + Clone) -> Programmed {
        Programmed {
            routes: peers.clone().map(Peer::base).collect(),
            neighbours: peers.clone().map(Peer::base).collect(),
            fdb: peers.map(Peer::mac).collect(),
        }
    }

    /// Takes note of a change.
    pub(crate) fn follow(&mut self, change: &KernelChange) {
        match &change.object {
            Object::Route { destination, .. } => {
                if let Some(base) = base_of_route(destination) {
                    follow(&mut self.routes, base, change.gone);
                }
            }
            Object::Neighbour { address: Some(IpAddr::V4(address)), .. } if address.octets()[0] == 10 => {
                follow(&mut self.neighbours, *address, change.gone);
            }
            Object::Fdb { mac: Some(mac), to: Some(_), .. } => follow(&mut self.fdb, *mac, change.gone),
            _ => {}
        }
    }

    /// True if there are so many routes.
    pub(crate) fn routes_are(&self, count: u32) -> bool {
        self.routes.len() == count as usize
    }

    /// True if there are so many of each.
    pub(crate) fn are(&self, count: u32) -> bool {
        let all = count as usize;
        self.routes_are(count) && self.neighbours.len() == all && self.fdb.len() == all
    }
}

fn follow<T: Eq + std::hash::Hash>(set: &mut HashSet<T>, item: T, gone: bool) {
    if gone {
        set.remove(&item);
    } else {
        set.insert(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_peers_share_anything() {
        let peers: Vec<Peer> = Peer::residents(MOST).chain((0..5000).map(Peer::visitor)).collect();
        let distinct = |texts: Vec<String>| texts.into_iter().collect::<HashSet<_>>().len();
        assert_eq!(distinct(peers.iter().map(|peer| peer.key()).collect()), peers.len());
        assert_eq!(distinct(peers.iter().map(|peer| peer.public_ip().to_string()).collect()), peers.len());
        assert_eq!(distinct(peers.iter().map(|peer| text(peer.mac())).collect()), peers.len());
        assert!(peers.iter().all(|peer| peer.base() < Ipv4Addr::new(10, 254, 0, 0)));
    }

    #[test]
    fn a_peer_is_a_lease_of_flannels() {
        let peer = Peer(300);
        assert_eq!(
            (peer.subnet(), peer.key()),
            ("10.1.44.0/24".into(), format!("{PREFIX}/subnets/10.1.44.0-24"))
        );
        assert!(peer.value().contains(r#""PublicIP":"172.16.1.44""#), "{}", peer.value());
        assert!(peer.value().contains(r#""VtepMAC":"02:00:00:00:01:2c""#), "{}", peer.value());
    }
}
