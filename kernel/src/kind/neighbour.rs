//! Permanent neighbours on our devices: the MAC behind an on-link next hop.

use std::fmt;
use std::net::IpAddr;

use macaddr::MacAddr6;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::link_name::LinkName;
use super::{Edit, Kind, Name, Upheaval};
use crate::KernelError;
use crate::mac::Mac;
use crate::netlink::entry::RawNeighbour;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::{Request, dump_neighbours, family, link_layer_address, with_flags};
use crate::netlink::object::{NetlinkObject, Notification, Told};
use crate::netlink::reading::{Reading, without_family};
use crate::netlink::wire::Frame;

/// Permanent neighbours on our devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {}

/// The identity of a neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The neighbour's address.
    pub address: IpAddr,
    /// The device.
    pub link: LinkName,
}

impl Kind for Neighbours {
    type Key = Neighbour;
    type Value = MacAddr6;

    const NAME: Name = Name { short: "neighbour", one: "neighbour", many: "neighbours" };

    fn show(key: &Neighbour, mac: &MacAddr6, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{key} lladdr {}", Mac(mac))
    }

    fn device(key: &Neighbour, _: &MacAddr6) -> Option<LinkName> {
        Some(key.link)
    }

    fn survives(key: &Neighbour, _: &MacAddr6, upheaval: &Upheaval) -> bool {
        let Upheaval { anew, new_mac, goes_down, loses_ipv4, .. } = *upheaval;
        !(anew || new_mac || goes_down || loses_ipv4 && key.address.is_ipv4())
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}

impl NetlinkObject for Neighbours {
    const MESSAGES: &[u16] = &[libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH];

    fn request(edit: &Edit<Self>, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        let key = edit.key();
        let message = message(key.address, index(key.link)?, edit.outcome());
        Some(match edit {
            Edit::Delete { .. } => with_flags(RouteNetlinkMessage::DelNeighbour(message), NLM_F_REQUEST),
            _ => with_flags(
                RouteNetlinkMessage::NewNeighbour(message),
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE,
            ),
        })
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(Neighbour, MacAddr6)>, KernelError> {
        let mut all = Vec::new();
        for (index, link) in reading.ours() {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let of_family = |body: &[u8]| body.first().copied() == Some(u8::from(family));
                let request = dump_neighbours(family, index);
                let found = reading.socket.dump(&request, Vec::new, |found, body| {
                    let entry = RawNeighbour::read(body).filter(|raw| raw.index == index && of_family(body));
                    if let Some((address, Some(mac))) = entry.and_then(|raw| raw.neighbour()) {
                        found.push((Neighbour { link, address }, mac));
                    }
                });
                all.extend(without_family(found)?);
            }
        }
        Ok(all)
    }

    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        let Some(raw) = RawNeighbour::read(frame.body) else { return };
        let Some((address, mac)) = raw.neighbour() else { return };
        let Some(link) = lookup.ours(raw.index) else { return };
        let mac = mac.filter(|_| frame.kind == libc::RTM_NEWNEIGH);
        tell(Notification::Fact((Neighbour { link, address }, mac)));
    }
}

fn message(address: IpAddr, index: u32, mac: Option<&MacAddr6>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: family(address),
        ifindex: index,
        state: NeighbourState::Permanent,
        ..NeighbourHeader::default()
    };
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.extend(mac.map(link_layer_address));
    message
}
