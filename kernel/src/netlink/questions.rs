//! Questions to the kernel about single objects.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;

use super::entry::link_name;
use super::message::{self, Request};
use super::socket::Socket;
use super::wire::Frame;
use crate::KernelError;
use crate::kind::link_name::LinkName;

impl Socket {
    pub(crate) fn link(&mut self, name: LinkName) -> Result<Option<LinkMessage>, KernelError> {
        self.any_link(message::get_link_by_name(name))
    }

    pub(super) fn link_by_index(&mut self, index: u32) -> Result<Option<LinkMessage>, KernelError> {
        self.any_link(message::get_link_by_index(index))
    }

    pub(super) fn link_name(&mut self, index: u32) -> Result<Option<LinkName>, KernelError> {
        self.link_by_index(index)?.map(|message| link_name(&message)).transpose()
    }

    fn any_link(&mut self, request: Request) -> Result<Option<LinkMessage>, KernelError> {
        match self.one(request, read_link) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Reads a message about a device, with every attribute that netlink-packet-route knows.
fn read_link(frame: &Frame<'_>) -> Result<LinkMessage, KernelError> {
    let mut header = NetlinkHeader::default();
    header.message_type = frame.kind;
    match RouteNetlinkMessage::deserialize(&header, frame.body) {
        Ok(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        Ok(_) => Err(unexpected(frame.kind)),
        Err(error) => Err(KernelError::Message(format!("cannot read the message about a device: {error}"))),
    }
}

/// Applies [`read_link`] to an entry of a dump.
pub(super) fn link_entry(body: &[u8]) -> Option<LinkMessage> {
    read_link(&Frame { kind: libc::RTM_NEWLINK, flags: 0, sequence: 0, body }).ok()
}

fn unexpected(kind: u16) -> KernelError {
    KernelError::Message(format!("unexpected answer of type {kind}"))
}
