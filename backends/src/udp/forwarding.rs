//! Which peer a packet goes to: the peers' subnets, read by the data path without locks, and changed peer by peer.

use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr};

use flan_subnet_lease::{Family, Lease, PeerChange};
use foldhash::HashMap;
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::userspace::twin::{Changing, Reader, Twin};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) address: Ipv4Addr,
    /// Whether packets for it leave in short bursts with pauses: it does not run flan, so its socket has the system's
    /// default buffer and is read datagram by datagram.
    pub(super) paced: bool,
}

/// The peers, as seen by the writer.
#[derive(Default)]
pub struct ForwardingTable(Twin<Routes, Route>);

/// The table, as seen by the threads of a data path.
pub(super) type ForwardingReader = Reader<Routes>;

/// One state of the table. Subnets do not overlap: the leases were checked.
#[derive(Debug, Clone, Default)]
pub(super) struct Routes {
    /// By [`key`].
    peers: HashMap<u64, Peer>,
    /// The masks of the subnets, usually one, with the number of subnets for each.
    masks: Vec<(u32, usize)>,
    /// Underlay addresses of the peers, whose datagrams are accepted, with the number of subnets of each.
    sources: HashMap<Ipv4Addr, usize>,
}

/// A subnet and its peer, or `None` if it was removed.
type Route = (Ipv4Network, Option<Peer>);

impl ForwardingTable {
    /// Applies changes of peers. Ignores peers without IPv4, because the wire format carries only IPv4.
    pub fn change(&mut self, changes: &[PeerChange]) {
        let gone = changes.iter().filter_map(|change| Some((route(change.before.as_ref()?)?.0, None)));
        let here = changes.iter().filter_map(|change| route(change.after.as_ref()?));
        self.0.change(gone.chain(here).collect());
    }

    /// Replaces all peers.
    pub fn replace<'a>(&mut self, peers: impl Iterator<Item = &'a Lease>) {
        let mut routes = Routes::default();
        peers.filter_map(route).for_each(|route| routes.apply(&route));
        self.0.replace(routes);
    }

    pub(super) fn reader(&self) -> ForwardingReader {
        self.0.reader()
    }
}

impl Routes {
    /// Returns the peer of an address.
    pub(super) fn peer(&self, destination: Ipv4Addr) -> Option<Peer> {
        self.masks.iter().find_map(|&(mask, _)| self.peers.get(&key(destination, mask))).copied()
    }

    /// Returns whether an underlay address belongs to a peer.
    pub(super) fn is_peer(&self, source: Ipv4Addr) -> bool {
        self.sources.contains_key(&source)
    }
}

impl Changing<Route> for Routes {
    fn apply(&mut self, &(subnet, peer): &Route) {
        let mask = subnet.mask().to_bits();
        let key = key(subnet.network(), mask);
        let before = match peer {
            Some(peer) => self.peers.insert(key, peer),
            None => self.peers.remove(&key),
        };
        match self.masks.iter_mut().find(|(other, _)| *other == mask) {
            Some((_, subnets)) => {
                *subnets = *subnets + usize::from(peer.is_some()) - usize::from(before.is_some());
            }
            None => self.masks.extend(peer.map(|_| (mask, 1))),
        }
        self.masks.retain(|(_, subnets)| *subnets > 0);
        if let Some(peer) = peer {
            *self.sources.entry(peer.address).or_default() += 1;
        }
        if let Some(Entry::Occupied(mut subnets)) = before.map(|before| self.sources.entry(before.address)) {
            *subnets.get_mut() -= 1;
            if *subnets.get() == 0 {
                subnets.remove();
            }
        }
    }
}

/// Returns the key of the subnet with this mask that contains an address: its first address and the mask.
fn key(address: Ipv4Addr, mask: u32) -> u64 {
    u64::from(address.to_bits() & mask) << 32 | u64::from(mask)
}

fn route(peer: &Lease) -> Option<Route> {
    match (peer.subnets.get(Family::V4)?, peer.attributes.public_ips.get(Family::V4)?) {
        (IpNetwork::V4(subnet), IpAddr::V4(address)) => {
            // Every fland with a node id writes it into its lease; flanneld never does.
            let paced = peer.attributes.node.id.is_none();
            Some((subnet, Some(Peer { address: *address, paced })))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::samples;

    fn lease(subnet: &str, ip: &str) -> Lease {
        samples::lease(subnet, &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#))
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    /// Returns a peer without a node id in its lease.
    fn theirs(address: &str) -> Peer {
        Peer { address: ip(address), paced: true }
    }

    fn table(leases: &[Lease]) -> ForwardingTable {
        let mut table = ForwardingTable::default();
        table.replace(leases.iter());
        table
    }

    fn change(before: Option<Lease>, after: Option<Lease>) -> PeerChange {
        PeerChange { before: before.map(Arc::new), after: after.map(Arc::new) }
    }

    #[test]
    fn a_peer_with_a_node_id_gets_its_packets_as_fast_as_they_come() {
        let mut ours = lease("10.5.2.0/24", "192.168.64.12");
        ours.attributes.node.id = Some("5f1c".into());
        let routes = table(&[ours, lease("10.5.9.0/24", "192.168.64.19")]).reader().read();
        assert_eq!(routes.peer(ip("10.5.2.1")), Some(Peer { address: ip("192.168.64.12"), paced: false }));
        assert_eq!(routes.peer(ip("10.5.9.1")), Some(theirs("192.168.64.19")));
    }

    #[test]
    fn a_packet_finds_its_peer_and_no_other() {
        let leases = [lease("10.5.2.0/24", "192.168.64.12"), lease("10.5.9.0/24", "192.168.64.19")];
        let routes = table(&leases).reader().read();
        assert_eq!(routes.peer(ip("10.5.2.255")), Some(theirs("192.168.64.12")));
        assert_eq!(routes.peer(ip("10.5.9.0")), Some(theirs("192.168.64.19")));
        for nobody in ["10.5.1.255", "10.5.3.0", "10.5.10.0", "0.0.0.0", "255.255.255.255"] {
            assert_eq!(routes.peer(ip(nobody)), None, "{nobody}");
        }
        assert!(routes.is_peer(ip("192.168.64.12")) && !routes.is_peer(ip("192.168.64.13")));
    }

    #[test]
    fn a_change_is_seen_by_every_reader_from_its_next_batch_on() {
        let mut table = ForwardingTable::default();
        let reader = table.reader();
        let one = lease("10.5.2.0/24", "192.168.64.12");
        table.change(&[change(None, Some(one.clone()))]);
        let batch = reader.read();
        table.change(&[change(Some(one.clone()), Some(lease("10.5.2.0/24", "192.168.64.13")))]);
        table.change(&[change(Some(lease("10.5.2.0/24", "192.168.64.13")), None)]);
        assert_eq!(batch.peer(ip("10.5.2.7")), Some(theirs("192.168.64.12")));
        assert_eq!(reader.read().peer(ip("10.5.2.7")), None);
        assert!(!reader.read().is_peer(ip("192.168.64.12")));
    }

    #[test]
    fn a_subnet_that_goes_over_to_another_lease_stays_whatever_the_order() {
        let (before, after) = (lease("10.5.2.0/24", "192.168.64.12"), lease("10.5.2.0/24", "192.168.64.13"));
        let changes = [change(None, Some(after)), change(Some(before.clone()), None)];
        for changes in [changes.clone(), [changes[1].clone(), changes[0].clone()]] {
            let mut table = table(std::slice::from_ref(&before));
            table.change(&changes);
            assert_eq!(table.reader().read().peer(ip("10.5.2.7")), Some(theirs("192.168.64.13")));
        }
    }

    #[test]
    fn no_change_copies_the_table_while_nobody_reads_it() {
        let mut table = table(&[lease("10.5.2.0/24", "192.168.64.12")]);
        let reader = table.reader();
        let mut places = HashSet::new();
        for number in 0..100 {
            table.change(&[change(None, Some(lease(&format!("10.6.{number}.0/24"), "192.168.64.13")))]);
            places.insert(Arc::as_ptr(&reader.read()));
        }
        assert_eq!(places.len(), 2);
    }

    proptest! {
        /// Compares with the naive way: search every subnet.
        #[test]
        fn every_address_finds_what_a_plain_search_finds(
            steps in proptest::collection::vec((0u32..16, proptest::option::of(0u32..4)), 0..40),
            mixed: bool, probe in 0u32..0x1400, reading in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let mut table = ForwardingTable::default();
            let reader = table.reader();
            let mut leases: BTreeMap<u32, Lease> = BTreeMap::new();
            let mut batches = Vec::new();
            for ((block, host), reads) in steps.into_iter().zip(reading) {
                let length = if mixed { 24 + block % 4 } else { 24 };
                let subnet = format!("{}/{length}", Ipv4Addr::from_bits(0x0a05_0000 + block * 256));
                let after = host.map(|host| lease(&subnet, &Ipv4Addr::from_bits(0xc0a8_0001 + host).to_string()));
                let before = match after.clone() {
                    Some(after) => leases.insert(block, after),
                    None => leases.remove(&block),
                };
                table.change(&[change(before, after)]);
                batches.extend(reads.then(|| reader.read()));
            }
            let address = Ipv4Addr::from_bits(0x0a05_0000 - 0x100 + probe);
            let plain = leases.values().find_map(|peer| {
                let (subnet, peer) = route(peer)?;
                subnet.contains(address).then_some(peer)?
            });
            let routes = reader.read();
            prop_assert_eq!(routes.peer(address), plain);
            for host in 0..4 {
                let source = Ipv4Addr::from_bits(0xc0a8_0001 + host);
                let mut peers = leases.values().filter_map(|peer| route(peer)?.1);
                prop_assert_eq!(routes.is_peer(source), peers.any(|peer| peer.address == source));
            }
        }
    }
}
