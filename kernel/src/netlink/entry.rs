//! Messages about addresses, neighbours, forwarding entries, routes and devices, read in place: a table may have a
//! hundred thousand entries, and each change is reported again.
//!
//! [`snapshot`](super::snapshot) and [`changes`](super::changes) both read messages through here, so that they agree on
//! what is ours. Devices are given by index.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::wire::{Attributes, u16_at, u32_at};
use crate::KernelError;
use crate::kind::link_name::LinkName;

/// Reads an address and the index of its device. `None` for a link-local IPv6 address, which the kernel makes itself.
pub(crate) fn address(body: &[u8]) -> Option<(u32, IpNetwork)> {
    let (index, ip) = any_address(body)?;
    let by_itself = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if by_itself { None } else { Some((index, IpNetwork::new(ip, *body.get(1)?).ok()?)) }
}

/// Returns the index of the device in a message about an address.
pub(crate) fn address_index(body: &[u8]) -> Option<u32> {
    u32_at(body, 4)
}

fn any_address(body: &[u8]) -> Option<(u32, IpAddr)> {
    const FIXED_BYTES: usize = 8;
    let attributes = Attributes::behind(body, FIXED_BYTES);
    // Our end: on a point-to-point link `IFA_ADDRESS` is the other one.
    let value = attributes.clone().find(libc::IFA_LOCAL).or_else(|| attributes.find(libc::IFA_ADDRESS))?;
    Some((address_index(body)?, ip(value)?))
}

/// A neighbour or, with `AF_BRIDGE`, a forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawNeighbour {
    pub(crate) index: u32,
    pub(crate) of: NeighbourTable,
    permanent: bool,
    ip: Option<IpAddr>,
    mac: Option<MacAddr6>,
    /// Whether the device's driver wrote it. Up to Linux 6.12, the kernel repeats each change of a forwarding entry in
    /// a second message of its own (`rtnl_fdb_notify` in `net/core/rtnetlink.c`), which lacks the destination.
    by_driver: bool,
}

/// The table of a [`RawNeighbour`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NeighbourTable {
    /// Neighbours: the MACs behind addresses of one family.
    Ip,
    /// The device's own forwarding entries, not those of a bridge above it.
    Fdb,
}

impl RawNeighbour {
    /// Reads the body of a message. `None` for a table in which we have nothing.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        const FIXED_BYTES: usize = 12;
        let family = i32::from(*body.first()?);
        let flags = *body.get(10)?;
        let of = match family {
            libc::AF_BRIDGE if flags & libc::NTF_SELF != 0 => NeighbourTable::Fdb,
            libc::AF_INET | libc::AF_INET6 if flags & libc::NTF_PROXY == 0 => NeighbourTable::Ip,
            _ => return None,
        };
        // The states are bits, and `bridge(8)` sets another one too.
        let permanent = u16_at(body, 8)? & libc::NUD_PERMANENT != 0;
        let mut entry =
            Self { index: u32_at(body, 4)?, of, permanent, ip: None, mac: None, by_driver: false };
        for (kind, value) in Attributes::behind(body, FIXED_BYTES) {
            match kind {
                libc::NDA_DST => entry.ip = ip(value),
                libc::NDA_LLADDR => entry.mac = mac(value),
                libc::NDA_CACHEINFO => entry.by_driver = true,
                _ => {}
            }
        }
        Some(entry)
    }

    /// Returns the address of a neighbour, and its MAC if the entry is permanent.
    pub(crate) fn neighbour(&self) -> Option<(IpAddr, Option<MacAddr6>)> {
        (self.of == NeighbourTable::Ip).then_some(())?;
        Some((self.ip?, self.mac.filter(|_| self.permanent)))
    }

    /// Returns the MAC of a forwarding entry, and its destination if the entry is permanent. Learned entries are not
    /// ours to delete, and a permanent entry replaces them. `None` for the default destination, for groups, and for the
    /// kernel's second message about a change.
    pub(crate) fn fdb(&self) -> Option<(MacAddr6, Option<IpAddr>)> {
        (self.of == NeighbourTable::Fdb && self.by_driver).then_some(())?;
        let mac = self.mac.filter(|mac| !mac.is_nil() && mac.is_unicast())?;
        Some((mac, self.ip.filter(|_| self.permanent)))
    }
}

/// Returns the index and name in a message about a device. `None` if it is about the device as a port of a bridge.
pub(crate) fn link(body: &[u8]) -> Option<(u32, LinkName)> {
    const FIXED_BYTES: usize = 16;
    if i32::from(*body.first()?) == libc::AF_BRIDGE {
        return None;
    }
    let name = Attributes::behind(body, FIXED_BYTES).find(libc::IFLA_IFNAME)?;
    let name = std::str::from_utf8(name).ok()?.trim_end_matches('\0').parse().ok()?;
    Some((u32_at(body, 4)?, name))
}

/// Returns the name of a device.
pub(crate) fn link_name(message: &LinkMessage) -> Result<LinkName, KernelError> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })
        .ok_or_else(|| KernelError::Message(format!("device {} has no name", message.header.index)))?
        .parse()
        .map_err(|error| KernelError::Message(format!("device {}: {error}", message.header.index)))
}

/// Reads an address; its length determines the family.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|&octets| octets.into()),
        16 => value.first_chunk::<16>().map(|&octets| octets.into()),
        _ => None,
    }
}

/// Reads a MAC of six bytes.
pub(crate) fn mac(value: &[u8]) -> Option<MacAddr6> {
    <[u8; 6]>::try_from(value).ok().map(MacAddr6::from)
}

#[cfg(test)]
mod tests;
