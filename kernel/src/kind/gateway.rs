//! Where a next hop leads: what routes and next hop objects have in common.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::link_name::LinkName;

/// `rtm_protocol` of every route that we make, and `nh_protocol` of every next hop object (`rtnetlink(7)`): how a restarted
/// agent knows its own.
///
/// Not assigned in iproute2's `rt_protos`; `ip route` shows it as `proto 102`.
pub const ROUTE_PROTOCOL: u8 = 102;

/// The identity of a next hop object: for one of ours, the IPv4 address of its gateway as a number, so that it is the
/// same after every start and no two of ours can meet. `10.5.2.0` is `168100352`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHopId(pub u32);

impl From<Ipv4Addr> for NextHopId {
    fn from(gateway: Ipv4Addr) -> Self {
        Self(gateway.to_bits())
    }
}

impl fmt::Display for NextHopId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.0)
    }
}

/// A gateway on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// The device.
    pub link: LinkName,
    /// Take it for reachable on the device although no route says so.
    pub onlink: bool,
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "via {} dev {}{}", self.address, self.link, if self.onlink { " onlink" } else { "" })
    }
}
