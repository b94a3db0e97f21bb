//! Where a next hop leads: the common part of routes and next hop objects.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::link_name::LinkName;

/// `rtm_protocol` of every route and `nh_protocol` of every next hop object that we make (`rtnetlink(7)`). A restarted
/// agent recognises its objects by it.
///
/// Not assigned in iproute2's `rt_protos`; `ip route` shows it as `proto 102`.
pub const ROUTE_PROTOCOL: u8 = 102;

/// The identity of a next hop object. Ours use the IPv4 address of the gateway as a number, so that the id is the same
/// after every start and two of ours never collide. `10.5.2.0` is `168100352`.
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
    /// Treat the gateway as reachable on the device although no route says so.
    pub onlink: bool,
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "via {} dev {}{}", self.address, self.link, if self.onlink { " onlink" } else { "" })
    }
}
