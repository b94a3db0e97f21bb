//! Requests to the kernel, including those that several kinds of objects share. Pure.

use std::net::IpAddr;

use macaddr::MacAddr6;
use netlink_packet_core::{
    Emitable, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::raw::RawRequest;
use crate::kind::link_name::LinkName;

/// A message to the kernel, without a sequence number yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    /// A message that netlink-packet-route supports.
    Route(NetlinkMessage<RouteNetlinkMessage>),
    /// A message written byte by byte.
    Raw(RawRequest),
}

impl Request {
    /// Appends the message with its sequence number to `buffer`.
    pub(crate) fn emit(mut self, sequence: u32, buffer: &mut Vec<u8>) {
        match &mut self {
            Self::Route(message) => {
                message.header.sequence_number = sequence;
                message.finalize();
                let start = buffer.len();
                buffer.resize(start + message.buffer_len(), 0);
                message.emit(&mut buffer[start..]);
            }
            Self::Raw(request) => request.emit(sequence, buffer),
        }
    }

    /// Returns an upper bound for its length.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Route(message) => message.buffer_len(),
            Self::Raw(request) => request.bytes(),
        }
    }
}

pub(crate) fn get_link_by_name(name: LinkName) -> Request {
    let mut message = link_message(0);
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    with_flags(without_counters(message), NLM_F_REQUEST)
}

pub(crate) fn get_link_by_index(index: u32) -> Request {
    with_flags(without_counters(link_message(index)), NLM_F_REQUEST)
}

/// Requests all devices of a kind. Not every kernel filters: the answers may be of any kind.
pub(crate) fn dump_links_of_kind(kind: InfoKind) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    with_flags(without_counters(message), NLM_F_REQUEST | NLM_F_DUMP)
}

pub(crate) fn dump_links() -> Request {
    with_flags(without_counters(LinkMessage::default()), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Requests a device's neighbours of one family, or with `AF_BRIDGE` its forwarding entries.
pub(crate) fn dump_neighbours(family: AddressFamily, index: u32) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::IfIndex(index));
    with_flags(RouteNetlinkMessage::GetNeighbour(message), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Returns a request with these flags (`NLM_F_*`). The sender decides which changes are acknowledged.
pub(crate) fn with_flags(inner: RouteNetlinkMessage, flags: u16) -> Request {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    Request::Route(NetlinkMessage::new(header, NetlinkPayload::InnerMessage(inner)))
}

pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(crate) fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header = LinkHeader { index, ..LinkHeader::default() };
    message
}

fn without_counters(mut message: LinkMessage) -> RouteNetlinkMessage {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

pub(crate) fn link_layer_address(mac: &MacAddr6) -> NeighbourAttribute {
    NeighbourAttribute::LinkLayerAddress(mac.as_bytes().to_vec())
}
