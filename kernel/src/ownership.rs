//! What in the kernel is ours.

use std::collections::BTreeSet;

use crate::kind::link_name::LinkName;

/// What in the kernel is ours: what [`snapshot`](crate::Kernel::snapshot) reads, and what a diff may change or delete.
///
/// Ours are: the VXLAN, TUN, IPIP and WireGuard devices and bridges named here, with their addresses, permanent neighbours and forwarding
/// entries; FOU ports for IPIP on one address of this host, with a port number named here; unicast routes in the main
/// table that lead into one of these devices, whoever made them (flannel's included), except those of protocol `kernel`;
/// and every route in the main table and every next hop object with [`ROUTE_PROTOCOL`](crate::ROUTE_PROTOCOL).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Device names.
    pub links: BTreeSet<LinkName>,
    /// UDP ports on which the kernel may decapsulate.
    pub fou_ports: BTreeSet<u16>,
    /// Whether the devices may be WireGuard devices of the kernel, with their keys and all of their peers.
    pub wireguard: bool,
    /// Whether to include the nftables tables `flan-peers`, with [`Sources`](crate::Sources) and
    /// [`Checks`](crate::Checks).
    pub senders: bool,
}

impl Ownership {
    /// Adds what is ours for another reason. Returns whether that is new.
    pub fn add(&mut self, other: &Self) -> bool {
        let before = self.clone();
        self.links.extend(&other.links);
        self.fou_ports.extend(&other.fou_ports);
        self.wireguard |= other.wireguard;
        self.senders |= other.senders;
        *self != before
    }
}
