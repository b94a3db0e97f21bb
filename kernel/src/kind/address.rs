//! Addresses on our devices, except link-local IPv6 addresses, which the kernel makes by itself.

use std::fmt;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
};

use super::link_name::LinkName;
use super::{Edit, Kind, Name, Upheaval};
use crate::KernelError;
use crate::netlink::entry;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::{Request, family, with_flags};
use crate::netlink::object::{NetlinkObject, Notification, Told};
use crate::netlink::reading::Reading;
use crate::netlink::wire::Frame;

/// Addresses on our devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {}

/// An address on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The address with its prefix length.
    pub address: IpNetwork,
    /// The device.
    pub link: LinkName,
}

impl Kind for Addresses {
    type Key = Address;
    type Value = ();

    const NAME: Name = Name { short: "address", one: "address", many: "addresses" };
    /// The last IPv4 address takes along the routes of its device that name no next hop object.
    const TAKES_OTHERS_ALONG: bool = true;
    const TELLS_OF_HOST: bool = true;

    fn show(key: &Address, (): &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{key}")
    }

    fn device(key: &Address, (): &()) -> Option<LinkName> {
        Some(key.link)
    }

    fn lets_ipv4_on(key: &Address) -> Option<LinkName> {
        key.address.is_ipv4().then_some(key.link)
    }

    fn survives(key: &Address, (): &(), upheaval: &Upheaval) -> bool {
        !(upheaval.anew || upheaval.goes_down && key.address.is_ipv6())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}

impl NetlinkObject for Addresses {
    const MESSAGES: &[u16] = &[libc::RTM_NEWADDR, libc::RTM_DELADDR];

    fn request(edit: &Edit<Self>, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        let key = edit.key();
        let message = message(key, index(key.link)?);
        Some(match edit {
            Edit::Delete { .. } => with_flags(RouteNetlinkMessage::DelAddress(message), NLM_F_REQUEST),
            _ => with_flags(
                RouteNetlinkMessage::NewAddress(message),
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL,
            ),
        })
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(Address, ())>, KernelError> {
        let mut all = Vec::new();
        for (index, link) in reading.ours() {
            let found = reading.socket.dump(&dump(index), Vec::new, |found, body| {
                let address = entry::address(body).filter(|(of, _)| *of == index);
                found.extend(address.map(|(_, address)| (Address { link, address }, ())));
            })?;
            all.extend(found);
        }
        Ok(all)
    }

    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        let Some(link) = entry::address_index(frame.body).and_then(|index| lookup.name(index)) else {
            return;
        };
        if !lookup.devices().is_ours(link) {
            return tell(Notification::HostAddress(link));
        }
        let Some((_, address)) = entry::address(frame.body) else { return };
        let is_there = frame.kind == libc::RTM_NEWADDR;
        tell(Notification::Fact((Address { link, address }, is_there.then_some(()))));
    }
}

/// Requests the addresses of one device, or with 0 of all.
pub(crate) fn dump(index: u32) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    with_flags(RouteNetlinkMessage::GetAddress(message), NLM_F_REQUEST | NLM_F_DUMP)
}

fn message(address: &Address, index: u32) -> AddressMessage {
    let ip = address.address.ip();
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: family(ip),
        prefix_len: address.address.prefix(),
        // Nobody else on the overlay can have it, and a tentative address could not be used at once.
        flags: if ip.is_ipv6() { AddressHeaderFlags::Nodad } else { AddressHeaderFlags::empty() },
        scope: AddressScope::Universe,
        index,
    };
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}
