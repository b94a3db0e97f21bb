//! Which peer a packet goes to: longest match over the peers' subnets, read by the data path without locks.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use flan_subnet_lease::{Family, Lease};
use ipnetwork::{IpNetwork, Ipv4Network};

/// Whom a packet goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    /// Underlay address.
    pub(super) address: Ipv4Addr,
    /// Whether packets leave for it in short bursts with pauses: it is none of ours, so its socket has the system's
    /// default buffer and is read datagram by datagram.
    pub(super) paced: bool,
}

/// Peers' subnets, replaced as a whole when leases change. Clones share one table.
#[derive(Clone, Default)]
pub struct ForwardingTable(Arc<ArcSwap<Routes>>);

/// One state of the table.
///
/// Where all subnets have one length, as a rule, a packet's peer is found by one index into a dense array; else by
/// binary search. Subnets do not overlap: the leases were checked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Routes {
    index: Index,
    /// Underlay addresses of all peers, sorted: whose datagrams are taken.
    sources: Vec<Ipv4Addr>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Index {
    /// Sorted by first address: the first and last address of each subnet, and its peer.
    #[default]
    Empty,
    Sorted(Vec<(u32, u32, Peer)>),
    /// From the subnet that begins at `first`, one slot for each subnet of `host_bits`.
    Dense {
        first: u32,
        host_bits: u32,
        peers: Vec<Option<Peer>>,
    },
}

/// Slots of a dense index at most: 12 MB.
const DENSE: usize = 1 << 21;

impl ForwardingTable {
    /// Replaces the table.
    pub fn replace(&self, routes: Routes) {
        self.0.store(Arc::new(routes));
    }

    /// The table of this moment, for one batch of packets.
    pub fn read(&self) -> arc_swap::Guard<Arc<Routes>> {
        self.0.load()
    }
}

impl Routes {
    /// The table for these peers. Those without IPv4 are left out: the wire carries IPv4.
    pub fn new(peers: &[&Lease]) -> Self {
        let mut routes: Vec<(Ipv4Network, Peer)> = peers.iter().filter_map(|peer| route(peer)).collect();
        routes.sort_unstable();
        let mut sources: Vec<Ipv4Addr> = routes.iter().map(|(_, peer)| peer.address).collect();
        sources.sort_unstable();
        sources.dedup();
        Self { index: Index::new(&routes), sources }
    }

    /// The peer behind an address.
    pub(super) fn peer(&self, destination: Ipv4Addr) -> Option<Peer> {
        let address = destination.to_bits();
        match &self.index {
            Index::Empty => None,
            Index::Dense { first, host_bits, peers } => {
                let slot = address.checked_sub(*first)? >> host_bits;
                *peers.get(slot as usize)?
            }
            Index::Sorted(ranges) => {
                let after = ranges.partition_point(|(first, _, _)| *first <= address);
                let (_, last, peer) = ranges.get(after.checked_sub(1)?)?;
                (address <= *last).then_some(*peer)
            }
        }
    }

    /// Whether an underlay address is a peer's.
    pub fn is_peer(&self, source: Ipv4Addr) -> bool {
        self.sources.binary_search(&source).is_ok()
    }
}

impl Index {
    fn new(routes: &[(Ipv4Network, Peer)]) -> Self {
        let (Some((first, _)), Some((last, _))) = (routes.first(), routes.last()) else { return Self::Empty };
        let host_bits = 32 - u32::from(first.prefix());
        let start = first.network().to_bits();
        let slots = (last.network().to_bits() - start).checked_shr(host_bits).unwrap_or(0) as usize + 1;
        let uniform = routes.iter().all(|(subnet, _)| subnet.prefix() == first.prefix());
        if !uniform || slots > DENSE || host_bits == 32 {
            let range = |(subnet, peer): &(Ipv4Network, Peer)| {
                (subnet.network().to_bits(), subnet.broadcast().to_bits(), *peer)
            };
            return Self::Sorted(routes.iter().map(range).collect());
        }
        let mut peers = vec![None; slots];
        for (subnet, peer) in routes {
            peers[((subnet.network().to_bits() - start) >> host_bits) as usize] = Some(*peer);
        }
        Self::Dense { first: start, host_bits, peers }
    }
}

fn route(peer: &Lease) -> Option<(Ipv4Network, Peer)> {
    match (peer.subnets.get(Family::V4)?, peer.attributes.public_ips.get(Family::V4)?) {
        (IpNetwork::V4(subnet), IpAddr::V4(address)) => {
            // Every fland that has a node id writes it into its lease, and no flanneld does.
            let paced = peer.attributes.node.id.is_none();
            Some((subnet, Peer { address: *address, paced }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples;

    fn lease(subnet: &str, ip: &str) -> Lease {
        samples::lease(subnet, &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#))
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    /// A peer without a node id in its lease.
    fn theirs(address: &str) -> Peer {
        Peer { address: ip(address), paced: true }
    }

    #[test]
    fn a_peer_with_a_node_id_gets_its_packets_as_fast_as_they_come() {
        let mut ours = lease("10.5.2.0/24", "192.168.64.12");
        ours.attributes.node.id = Some("5f1c".into());
        let flannels = lease("10.5.9.0/24", "192.168.64.19");
        let routes = Routes::new(&[&ours, &flannels]);
        assert_eq!(routes.peer(ip("10.5.2.1")), Some(Peer { address: ip("192.168.64.12"), paced: false }));
        assert_eq!(routes.peer(ip("10.5.9.1")), Some(theirs("192.168.64.19")));
    }

    #[test]
    fn a_packet_finds_its_peer_and_no_other() {
        let leases = [lease("10.5.2.0/24", "192.168.64.12"), lease("10.5.9.0/24", "192.168.64.19")];
        let routes = Routes::new(&leases.iter().collect::<Vec<_>>());
        assert!(matches!(routes.index, Index::Dense { .. }));
        assert_eq!(routes.peer(ip("10.5.2.255")), Some(theirs("192.168.64.12")));
        assert_eq!(routes.peer(ip("10.5.9.0")), Some(theirs("192.168.64.19")));
        for nobody in ["10.5.1.255", "10.5.3.0", "10.5.10.0", "0.0.0.0", "255.255.255.255"] {
            assert_eq!(routes.peer(ip(nobody)), None, "{nobody}");
        }
        assert!(routes.is_peer(ip("192.168.64.12")) && !routes.is_peer(ip("192.168.64.13")));
    }

    #[test]
    fn a_replaced_table_is_seen_by_every_reader() {
        let table = ForwardingTable::default();
        let reader = table.clone();
        table.replace(Routes::new(&[&lease("10.5.2.0/24", "192.168.64.12")]));
        assert_eq!(reader.read().peer(ip("10.5.2.7")), Some(theirs("192.168.64.12")));
        table.replace(Routes::default());
        assert_eq!(reader.read().peer(ip("10.5.2.7")), None);
    }

    proptest! {
        /// Against the plain way: look at every subnet.
        #[test]
        fn every_address_finds_what_a_plain_search_finds(
            blocks in proptest::collection::btree_map(0u32..64, 0u32..4, 0..20), mixed: bool, probe in 0u32..0x1_4000,
        ) {
            let leases: Vec<Lease> = blocks.iter().map(|(block, cut)| {
                let length = if mixed { 24 + cut } else { 24 };
                let base = Ipv4Addr::from_bits(0x0a05_0000 + block * 256);
                lease(&format!("{base}/{length}"), &Ipv4Addr::from_bits(0xc0a8_0001 + block).to_string())
            }).collect();
            let peers: Vec<&Lease> = leases.iter().collect();
            let address = Ipv4Addr::from_bits(0x0a05_0000 - 0x100 + probe);
            let plain = peers.iter().find_map(|peer| {
                let (subnet, peer) = route(peer)?;
                subnet.contains(address).then_some(peer)
            });
            prop_assert_eq!(Routes::new(&peers).peer(address), plain);
        }
    }
}
