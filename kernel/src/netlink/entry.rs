//! What the kernel tells of addresses, neighbours, forwarding entries, routes and devices, read in place: a table may
//! have a hundred thousand entries, and each of them is told of again when it changes.
//!
//! [`snapshot`](super::snapshot) and [`changes`](super::changes) read the same messages through here, so that they
//! agree on what is ours. Devices are named by index.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;

use super::wire::{Attributes, u16_at, u32_at};
use crate::state::{LinkName, NextHopId, ROUTE_PROTOCOL, RouteKey};

/// `rtm_protocol` of what the kernel makes itself (`RTPROT_KERNEL`).
const BY_KERNEL: u8 = libc::RTPROT_KERNEL;

/// The address in a message about one, and the index of its device. `None` for a link-local one of IPv6, which the
/// kernel makes by itself.
pub(super) fn address(body: &[u8]) -> Option<(u32, IpNetwork)> {
    let (index, ip) = any_address(body)?;
    let by_itself = matches!(ip, IpAddr::V6(ip) if is_link_local(ip));
    if by_itself { None } else { Some((index, IpNetwork::new(ip, *body.get(1)?).ok()?)) }
}

/// The index of the device that a message about an address names.
pub(super) fn address_index(body: &[u8]) -> Option<u32> {
    u32_at(body, 4)
}

fn any_address(body: &[u8]) -> Option<(u32, IpAddr)> {
    const FIXED_BYTES: usize = 8;
    let attributes = Attributes::behind(body, FIXED_BYTES);
    // This host's end: on a point-to-point link `IFA_ADDRESS` is the other one's.
    let value = attributes.clone().find(libc::IFA_LOCAL).or_else(|| attributes.find(libc::IFA_ADDRESS))?;
    Some((address_index(body)?, ip(value)?))
}

/// A neighbour or, with `AF_BRIDGE`, a forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawNeighbour {
    pub(super) index: u32,
    pub(super) of: NeighbourTable,
    permanent: bool,
    ip: Option<IpAddr>,
    mac: Option<MacAddr6>,
}

/// The table that a [`RawNeighbour`] stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NeighbourTable {
    /// Addresses of one family and the MACs behind them.
    Ip,
    /// The device's own forwarding entries, not those of a bridge above it.
    Fdb,
}

impl RawNeighbour {
    /// Reads the body of a message about one. `None` if it stands in a table that we have nothing in.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        const FIXED_BYTES: usize = 12;
        let family = i32::from(*body.first()?);
        let flags = *body.get(10)?;
        let of = match family {
            libc::AF_BRIDGE if flags & libc::NTF_SELF != 0 => NeighbourTable::Fdb,
            libc::AF_INET | libc::AF_INET6 if flags & libc::NTF_PROXY == 0 => NeighbourTable::Ip,
            _ => return None,
        };
        // The states are bits, and `bridge(8)` sets another one with it.
        let permanent = u16_at(body, 8)? & libc::NUD_PERMANENT != 0;
        let mut entry = Self { index: u32_at(body, 4)?, of, permanent, ip: None, mac: None };
        for (kind, value) in Attributes::behind(body, FIXED_BYTES) {
            match kind {
                libc::NDA_DST => entry.ip = ip(value),
                libc::NDA_LLADDR => entry.mac = mac(value),
                _ => {}
            }
        }
        Some(entry)
    }

    /// The address of a neighbour, and the MAC behind it if it is permanent.
    pub(super) fn neighbour(&self) -> Option<(IpAddr, Option<MacAddr6>)> {
        (self.of == NeighbourTable::Ip).then_some(())?;
        Some((self.ip?, self.mac.filter(|_| self.permanent)))
    }

    /// The MAC of a forwarding entry, and where it leads if it is permanent: what was learned is not ours to delete,
    /// and makes way for a permanent entry when one is set. `None` for the default destination and for groups.
    pub(super) fn fdb(&self) -> Option<(MacAddr6, Option<IpAddr>)> {
        (self.of == NeighbourTable::Fdb).then_some(())?;
        let mac = self.mac.filter(|mac| !mac.is_nil() && mac.is_unicast())?;
        Some((mac, self.ip.filter(|_| self.permanent)))
    }
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawRoute {
    pub(super) key: RouteKey,
    pub(super) protocol: u8,
    pub(super) target: RawTarget,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawTarget {
    Device {
        index: u32,
        gateway: Option<IpAddr>,
        onlink: bool,
    },
    /// To a next hop object; not every kernel says where that leads.
    NextHop {
        id: NextHopId,
        index: Option<u32>,
    },
    Blackhole,
    /// A unicast route with several next hops.
    Several,
    /// Anything else that we would not make, of this type (`RTN_*`).
    Other(u8),
}

impl RawRoute {
    /// Reads the body of a message about a route. `None` for a route of another table, for one that depends on
    /// anything but the destination, and for those that the kernel makes by the way for link-local addresses and groups.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        const FIXED_BYTES: usize = 12;
        const RTA_NH_ID: u16 = 30;
        const RTNH_F_ONLINK: u32 = 4;
        let &[family, length, source_length, tos, table, protocol, _, kind] = body.first_chunk()?;
        let flags = u32_at(body, 8)?;
        if source_length != 0 || tos != 0 || flags & libc::RTM_F_CLONED != 0 {
            return None;
        }
        let mut table = u32::from(table);
        let (mut destination, mut metric) = (None, 0);
        let (mut index, mut gateway, mut id, mut several) = (None, None, None, false);
        for (attribute, value) in Attributes::behind(body, FIXED_BYTES) {
            match attribute {
                libc::RTA_TABLE => table = u32_at(value, 0)?,
                libc::RTA_DST => destination = ip(value),
                libc::RTA_PRIORITY => metric = u32_at(value, 0)?,
                libc::RTA_OIF => index = u32_at(value, 0),
                libc::RTA_GATEWAY => gateway = ip(value),
                // Of another family than the destination; the family stands before it.
                libc::RTA_VIA => gateway = value.get(2..).and_then(ip),
                libc::RTA_MULTIPATH => several = true,
                RTA_NH_ID => id = u32_at(value, 0).map(NextHopId),
                _ => {}
            }
        }
        if table != u32::from(libc::RT_TABLE_MAIN) {
            return None;
        }
        let destination = destination.or(match i32::from(family) {
            libc::AF_INET => Some(IpAddr::from([0; 4])),
            libc::AF_INET6 => Some(IpAddr::from([0; 16])),
            _ => None,
        })?;
        if matches!(destination, IpAddr::V6(ip) if is_link_local(ip) || ip.is_multicast()) {
            return None;
        }
        let key = RouteKey { destination: IpNetwork::new(destination, length).ok()?, metric };
        let target = match (kind, id, index) {
            (libc::RTN_BLACKHOLE, None, _) => RawTarget::Blackhole,
            (libc::RTN_UNICAST, _, _) if several => RawTarget::Several,
            (libc::RTN_UNICAST, Some(id), index) => RawTarget::NextHop { id, index },
            (libc::RTN_UNICAST, None, Some(index)) => {
                RawTarget::Device { index, gateway, onlink: flags & RTNH_F_ONLINK != 0 }
            }
            _ => RawTarget::Other(kind),
        };
        Some(Self { key, protocol, target })
    }

    /// Whether it is one of those through which whatever has no route of its own goes.
    pub(super) fn is_default(&self) -> bool {
        self.key.destination.prefix() == 0
    }

    /// As [`Ownership`](crate::Ownership) says, for a route that leads into a device of ours or not.
    pub(super) fn is_ours(&self, on_ours: bool) -> bool {
        match self.target {
            RawTarget::Several | RawTarget::Other(_) => false,
            _ => self.protocol == ROUTE_PROTOCOL || (on_ours && !self.is_by_kernel()),
        }
    }

    /// Whether the kernel made it by itself, for an address.
    pub(super) fn is_by_kernel(&self) -> bool {
        self.protocol == BY_KERNEL
    }
}

/// `rtm_protocol` in the body of a message about a route.
pub(super) fn route_protocol(body: &[u8]) -> Option<u8> {
    body.get(5).copied()
}

/// The index and the name in a message about a device. `None` if it is about a device's place in a bridge.
pub(super) fn link(body: &[u8]) -> Option<(u32, LinkName)> {
    const FIXED_BYTES: usize = 16;
    if i32::from(*body.first()?) == libc::AF_BRIDGE {
        return None;
    }
    let name = Attributes::behind(body, FIXED_BYTES).find(libc::IFLA_IFNAME)?;
    let name = std::str::from_utf8(name).ok()?.trim_end_matches('\0').parse().ok()?;
    Some((u32_at(body, 4)?, name))
}

/// An address of either family, told by its length.
pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|&octets| octets.into()),
        16 => value.first_chunk::<16>().map(|&octets| octets.into()),
        _ => None,
    }
}

/// A MAC of six bytes.
pub(super) fn mac(value: &[u8]) -> Option<MacAddr6> {
    <[u8; 6]>::try_from(value).ok().map(MacAddr6::from)
}

/// `fe80::/10`.
fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests;
