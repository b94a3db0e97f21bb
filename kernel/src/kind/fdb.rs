//! Permanent forwarding entries on our VXLAN devices: the underlay address behind a MAC.

use std::fmt;
use std::net::IpAddr;

use macaddr::MacAddr6;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::link_name::LinkName;
use super::{Edit, Kind, Name};
use crate::KernelError;
use crate::mac::Mac;
use crate::netlink::entry::RawNeighbour;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::{Request, dump_neighbours, link_layer_address, with_flags};
use crate::netlink::object::{NetlinkObject, Notification, Told};
use crate::netlink::reading::Reading;
use crate::netlink::wire::Frame;

/// Permanent forwarding entries on our devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fdb {}

/// The identity of a forwarding entry: one MAC leads to one underlay address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The inner destination MAC.
    pub mac: MacAddr6,
    /// The VXLAN device.
    pub link: LinkName,
}

impl Kind for Fdb {
    type Key = FdbEntry;
    /// The underlay address that outer packets go to.
    type Value = IpAddr;

    const NAME: Name = Name { short: "fdb", one: "forwarding entry", many: "forwarding entries" };

    fn show(key: &FdbEntry, destination: &IpAddr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{key} dst {destination}")
    }

    fn device(key: &FdbEntry, _: &IpAddr) -> Option<LinkName> {
        Some(key.link)
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", Mac(&self.mac), self.link)
    }
}

impl NetlinkObject for Fdb {
    const MESSAGES: &[u16] = &[libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH];

    fn request(edit: &Edit<Self>, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        let key = edit.key();
        let message = message(&key.mac, index(key.link)?, edit.outcome());
        Some(match edit {
            Edit::Delete { .. } => with_flags(RouteNetlinkMessage::DelNeighbour(message), NLM_F_REQUEST),
            _ => with_flags(
                RouteNetlinkMessage::NewNeighbour(message),
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE,
            ),
        })
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(FdbEntry, IpAddr)>, KernelError> {
        let mut all = Vec::new();
        for (index, link) in reading.ours() {
            let request = dump_neighbours(AddressFamily::Bridge, index);
            all.extend(reading.socket.dump(&request, Vec::new, |found, body| {
                let entry = RawNeighbour::read(body).filter(|raw| raw.index == index);
                if let Some((mac, Some(destination))) = entry.and_then(|raw| raw.fdb()) {
                    found.push((FdbEntry { link, mac }, destination));
                }
            })?);
        }
        Ok(all)
    }

    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        let Some(raw) = RawNeighbour::read(frame.body) else { return };
        let Some((mac, destination)) = raw.fdb() else { return };
        let Some(link) = lookup.ours(raw.index) else { return };
        let destination = destination.filter(|_| frame.kind == libc::RTM_NEWNEIGH);
        tell(Notification::Fact((FdbEntry { link, mac }, destination)));
    }
}

/// Encodes an entry. A deletion names no destination, and so deletes all entries of the MAC.
fn message(mac: &MacAddr6, index: u32, destination: Option<&IpAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: AddressFamily::Bridge,
        ifindex: index,
        state: NeighbourState::Permanent,
        // In the device's own table, not in that of a bridge above it.
        flags: NeighbourFlags::Own,
        ..NeighbourHeader::default()
    };
    message.attributes.push(link_layer_address(mac));
    message.attributes.extend(destination.map(|ip| NeighbourAttribute::Destination((*ip).into())));
    message
}
