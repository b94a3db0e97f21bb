//! What is probed: the peers of this host, and how packets reach them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// One subnet of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The subnet, which is its key.
    pub subnet: IpNetwork,
    /// The peer's name, for people.
    pub host: String,
    /// The address that its lease names.
    pub underlay: IpAddr,
    /// Whether packets for it go unencapsulated, unlike others.
    pub is_direct: bool,
    /// Whether an agent of ours runs there, which answers [messages](crate::Message).
    pub has_agent: bool,
}

/// How packets leave this host for all targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// For people: `VXLAN (UDP 8472)`. `None` if packets go unencapsulated.
    pub encapsulation: Option<String>,
    /// The largest packet in bytes that containers may send.
    pub mtu: u16,
    /// This host's addresses on the overlay, at most one of each family: the first of its subnet, as flannel has it on its
    /// device. Peers have the like. Empty if packets go unencapsulated.
    pub overlay: Vec<IpAddr>,
    /// This host's addresses on the underlay, at most one of each family.
    pub underlay: Vec<IpAddr>,
}

impl Way {
    /// Returns this host's overlay address of the family of `like`.
    pub(crate) fn overlay(&self, like: IpAddr) -> Option<IpAddr> {
        of_family(&self.overlay, like)
    }

    /// Returns this host's underlay address of the family of `like`.
    pub(crate) fn underlay(&self, like: IpAddr) -> Option<IpAddr> {
        of_family(&self.underlay, like)
    }
}

impl Target {
    /// Returns where packets through the overlay go: from our address there to the peer's. Without one, from underlay
    /// address to underlay address: the hosts themselves have no address that packets of containers have.
    pub(crate) fn through(&self, way: &Way) -> (Option<IpAddr>, IpAddr) {
        let first = self.subnet.network();
        match way.overlay(first) {
            Some(own) => (Some(own), first),
            None => (way.underlay(self.underlay), self.underlay),
        }
    }

    /// Returns what carries its packets; `None` if they go unencapsulated.
    pub(crate) fn carrier<'a>(&self, way: &'a Way) -> Option<&'a str> {
        way.encapsulation.as_deref().filter(|_| !self.is_direct)
    }

    /// Returns whether packets through the overlay differ from those to the underlay address.
    pub(crate) fn is_encapsulated(&self, way: &Way) -> bool {
        way.overlay(self.subnet.network()).is_some()
    }
}

fn of_family(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
}
