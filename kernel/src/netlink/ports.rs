//! Ends for containers: pairs of veth devices, of which one is a port of a bridge.

use macaddr::MacAddr6;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::link_message::delete_link;
use super::message::{dump_links_of_kind, link_message, with_flags};
use super::questions::link_entry;
use super::socket::Socket;
use crate::KernelError;
use crate::kind::link_name::LinkName;

/// A pair of veth devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The bridge.
    pub bridge: LinkName,
    /// The end on the host, which becomes a port of the bridge.
    pub host_end: LinkName,
    /// The end for the container, in this network namespace and down.
    pub container_end: LinkName,
    /// MAC of the container's end; the kernel chooses one if there is none.
    pub mac: Option<MacAddr6>,
    /// Largest packet of both ends, in bytes.
    pub mtu: u32,
}

/// Creates the pair. What an earlier attempt left is replaced.
///
/// # Errors
/// If the bridge does not exist, or the kernel refuses.
pub fn plug(port: &Port) -> Result<(), KernelError> {
    let mut socket = Socket::open()?;
    let bridge = socket.link(port.bridge)?.ok_or(KernelError::NoSuchLink(port.bridge))?.header.index;
    unplug_from(&mut socket, port.host_end)?;
    let mut peer = ends(port.container_end, port.mtu);
    peer.attributes.extend(port.mac.map(|mac| LinkAttribute::Address(mac.as_bytes().to_vec())));
    let mut message = ends(port.host_end, port.mtu);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend([
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    let create = RouteNetlinkMessage::NewLink(message);
    socket.change_one(with_flags(create, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL))?;
    // From now on, a bridge that is made anew finds its ports.
    let made = socket.link(port.host_end)?.ok_or(KernelError::NoSuchLink(port.host_end))?;
    set(&mut socket, made.header.index, LinkAttribute::IfAlias(port.bridge.to_string()))
}

/// Makes all ends that belong to a bridge its ports again.
pub(super) fn plug_again(socket: &mut Socket, name: LinkName, bridge: u32) -> Result<(), KernelError> {
    let alias = LinkAttribute::IfAlias(name.to_string());
    let ends = socket.dump(&dump_links_of_kind(InfoKind::Veth), Vec::new, |ends, body| {
        ends.extend(link_entry(body).filter(|link| link.attributes.contains(&alias)));
    })?;
    for end in ends {
        set(socket, end.header.index, LinkAttribute::Controller(bridge))?;
    }
    Ok(())
}

fn set(socket: &mut Socket, index: u32, attribute: LinkAttribute) -> Result<(), KernelError> {
    let mut message = link_message(index);
    message.attributes.push(attribute);
    socket.change_one(with_flags(RouteNetlinkMessage::SetLink(message), NLM_F_REQUEST))
}

/// Deletes a pair by its end on the host, wherever the other end is. Returns whether it existed.
///
/// # Errors
/// If the kernel refuses.
pub fn unplug(host_end: LinkName) -> Result<bool, KernelError> {
    unplug_from(&mut Socket::open()?, host_end)
}

/// Returns whether the other end is in another network namespace, where a container has it.
///
/// # Errors
/// If the kernel does not answer.
pub fn is_plugged(host_end: LinkName) -> Result<bool, KernelError> {
    let link = Socket::open()?.link(host_end)?;
    let is_namespace = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    Ok(link.is_some_and(|link| link.attributes.iter().any(is_namespace)))
}

fn unplug_from(socket: &mut Socket, host_end: LinkName) -> Result<bool, KernelError> {
    let Some(message) = socket.link(host_end)? else { return Ok(false) };
    socket.change_one(delete_link(message.header.index)).map(|()| true)
}

fn ends(name: LinkName, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_string()), LinkAttribute::Mtu(mtu)];
    message
}
