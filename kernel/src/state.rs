//! What the kernel holds, as plain values: the vocabulary of snapshot, plan and diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;

use crate::source::{Check, Source};

/// `rtm_protocol` of every route that we make (`rtnetlink(7)`): how a restarted agent knows its own routes.
///
/// Not assigned in iproute2's `rt_protos`; `ip route` shows it as `proto 102`.
pub const ROUTE_PROTOCOL: u8 = 102;

/// The part of the kernel's network state that the agent is responsible for, wanted or actual.
///
/// Every collection is keyed by what the kernel itself takes as identity, so that a state cannot contradict itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Devices by name.
    pub links: BTreeMap<LinkName, Link>,
    /// Addresses on those devices. Link-local IPv6 addresses, which the kernel makes by itself, are not listed.
    pub addresses: BTreeSet<Address>,
    /// Permanent neighbours on those devices: the MAC behind an on-link next hop.
    pub neighbours: BTreeMap<Neighbour, MacAddr6>,
    /// Permanent forwarding entries on those devices: the underlay address behind a MAC.
    pub fdb: BTreeMap<FdbEntry, IpAddr>,
    /// Next hop objects that routes refer to.
    pub next_hops: BTreeMap<NextHopId, NextHop>,
    /// Routes in the main table.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Who may send us packets of the overlay.
    pub sources: BTreeSet<Source>,
    /// What measures senders by these.
    pub checks: BTreeSet<Check>,
}

/// A device that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What kind of device it is, with what cannot be changed in place.
    pub kind: LinkKind,
    /// The device's own MAC; a TUN device has none.
    pub mac: Option<MacAddr6>,
    /// Largest IP packet in bytes that enters the device.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// The kinds of device that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// The kernel wraps packets (`ip -d link show type vxlan`).
    Vxlan(Vxlan),
    /// A program of ours wraps packets (`ip -d link show type tun`). It persists without the program.
    Tun {
        /// Packets are preceded by a virtio-net header, and may be larger than the MTU (`IFF_VNET_HDR`).
        vnet_header: bool,
    },
}

/// The settings of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port of the outer packets, sent to and listened on.
    pub port: u16,
    /// The device that carries the outer packets; `None` when the kernel chooses by route or the device is gone.
    pub underlay: Option<LinkName>,
    /// Source address of the outer packets.
    pub local: Option<IpAddr>,
    /// Whether the device learns MACs from what it receives.
    pub learning: bool,
    /// Whether group policy ids are carried (VXLAN-GBP).
    pub gbp: bool,
}

/// An address on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The address with its prefix length.
    pub address: IpNetwork,
    /// The device.
    pub link: LinkName,
}

/// The identity of a neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The neighbour's address.
    pub address: IpAddr,
    /// The device.
    pub link: LinkName,
}

/// The identity of a forwarding database entry: one MAC leads to one underlay address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The inner destination MAC.
    pub mac: MacAddr6,
    /// The VXLAN device.
    pub link: LinkName,
}

/// The identity of a next hop object: for one of ours, the IPv4 address of its gateway as a number, so that it is the
/// same after every start and no two of ours can meet. `10.5.2.0` is `168100352`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHopId(pub u32);

impl From<Ipv4Addr> for NextHopId {
    fn from(gateway: Ipv4Addr) -> Self {
        Self(gateway.to_bits())
    }
}

/// A next hop object (`ip nexthop`, kernel 5.3 and later). A route that names one costs the kernel the same however
/// many gateways there are; the next hop of an IPv4 route without one is looked for among all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The gateway.
    pub gateway: IpAddr,
    /// The device.
    pub link: LinkName,
    /// Take the gateway for reachable on the device although no route says so.
    pub onlink: bool,
    /// `nh_protocol`: [`ROUTE_PROTOCOL`] in what we want; in a snapshot, whatever is there.
    pub protocol: u8,
}

/// The identity of a route in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination network.
    pub destination: IpNetwork,
    /// Metric; lower wins. IPv4 uses 0 by default, IPv6 1024.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The next step.
    pub target: RouteTarget,
    /// `rtm_protocol`: [`ROUTE_PROTOCOL`] in what we want; in a snapshot, whatever is there.
    pub protocol: u8,
}

/// The next step of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTarget {
    /// To a next hop on a device.
    Via {
        /// The next hop.
        gateway: IpAddr,
        /// The device.
        link: LinkName,
        /// Take the next hop for reachable on the device although no route says so.
        onlink: bool,
    },
    /// To a next hop object.
    NextHop {
        /// The object.
        id: NextHopId,
        /// The device that it leads to.
        link: LinkName,
    },
    /// Straight out of a device.
    Link(LinkName),
    /// Dropped in silence.
    Blackhole,
}

impl RouteTarget {
    /// The device that packets leave by, if any.
    pub fn link(&self) -> Option<LinkName> {
        match *self {
            Self::Via { link, .. } | Self::NextHop { link, .. } | Self::Link(link) => Some(link),
            Self::Blackhole => None,
        }
    }
}

/// What in the kernel is ours: what [`snapshot`](crate::Kernel::snapshot) reads and a diff may change or delete.
///
/// Ours are: the VXLAN and TUN devices named here, with their addresses and permanent neighbours and forwarding entries;
/// unicast routes in the main table that lead into one of these devices, whoever made them (flannel's included) but
/// for those the kernel makes itself (protocol `kernel`); and every route in the main table and every next hop object with
/// [`ROUTE_PROTOCOL`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Device names.
    pub links: BTreeSet<LinkName>,
    /// Whether the nftables tables `flan-peers` are looked at, which hold [`State::sources`] and [`State::checks`].
    pub senders: bool,
}

/// The name of a network device: 1 to 15 bytes, no `/`, no `:`, no white space, not `.` or `..`
/// (`dev_valid_name` in the kernel's `net/core/dev.c`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    bytes: [u8; 15],
    length: u8,
}

/// A text that cannot name a network device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a network device: a name has 1 to 15 bytes without '/', ':' or white space")]
pub struct InvalidLinkName(pub String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl FromStr for LinkName {
    type Err = InvalidLinkName;

    fn from_str(text: &str) -> Result<Self, InvalidLinkName> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
            return Err(InvalidLinkName(text.to_owned()));
        }
        let mut bytes = [0; 15];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, length: text.len() as u8 })
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_keeps_its_text() {
        assert_eq!("flannel.1".parse::<LinkName>().unwrap().as_str(), "flannel.1");
        assert_eq!("flannel-v6.4095".parse::<LinkName>().unwrap().to_string(), "flannel-v6.4095");
    }

    #[test]
    fn a_text_that_the_kernel_refuses_is_no_link_name() {
        for text in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-bytes-xx", "a\0"] {
            assert_eq!(text.parse::<LinkName>(), Err(InvalidLinkName(text.to_owned())));
        }
    }
}
