//! Which packets may pass in either direction, and what happens to the others.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;

use crate::udp::forwarding::{Peer, Routes};
use crate::userspace::counters::{Counters, add};
use crate::userspace::icmp::Reason;
use crate::userspace::packet::Ip;

/// Why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed,
    NoPeer,
    TtlExpired,
    ForeignSource,
    StrictSource,
}

impl Refusal {
    /// Counts so many packets, and returns what their sender must be told.
    pub(super) fn count(self, counters: &Counters, packets: usize) -> Option<Reason> {
        let (counter, reason) = match self {
            Self::Malformed => (&counters.dropped_malformed, None),
            Self::NoPeer => (&counters.dropped_no_peer, Some(Reason::NoPeer)),
            Self::TtlExpired => (&counters.dropped_ttl, Some(Reason::TtlExpired)),
            Self::ForeignSource => (&counters.dropped_foreign_source, None),
            Self::StrictSource => (&counters.dropped_strict_source, None),
        };
        add(counter, packets);
        reason
    }
}

/// Returns the peer to which a packet of the device goes. Does not change the packet, because an error quotes it.
pub(super) fn outbound(routes: &Routes, packet: &[u8]) -> Result<Peer, Refusal> {
    let ip = Ip::parse(packet).ok_or(Refusal::Malformed)?;
    let IpAddr::V4(destination) = ip.destination() else { return Err(Refusal::Malformed) };
    let peer = routes.peer(destination).ok_or(Refusal::NoPeer)?;
    if ip.ttl() <= 1 { Err(Refusal::TtlExpired) } else { Ok(peer) }
}

/// Checks a packet that arrived from the peer at `outer`. `strict` is this host's subnet, if the packet must be for it and
/// come from that of the peer.
pub(super) fn inbound(
    routes: &Routes,
    outer: Ipv4Addr,
    packet: &[u8],
    strict: Option<Ipv4Network>,
) -> Result<(), Refusal> {
    let ip = Ip::parse(packet).ok_or(Refusal::Malformed)?;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (ip.source(), ip.destination()) else {
        return Err(Refusal::Malformed);
    };
    let is_of_peer = || routes.peer(source).is_some_and(|peer| peer.address == outer);
    match strict {
        Some(own) if !is_of_peer() || !own.contains(destination) => Err(Refusal::StrictSource),
        _ => Ok(()),
    }
}
