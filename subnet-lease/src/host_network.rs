//! The host's own networks, which the host and its containers must still reach.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// A network that this host has an address in or a route to, outside of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// The network, or an address of the host with the network's prefix length.
    pub network: IpNetwork,
    /// Where it is: `on eth1`, `via 192.168.64.1 dev eth0`.
    pub place: String,
    /// The next hop of a route.
    pub gateway: Option<IpAddr>,
}

impl fmt::Display for HostNetwork {
    /// Formats it as `172.26.0.0/16 on eth1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.network.network(), self.network.prefix(), self.place)
    }
}
