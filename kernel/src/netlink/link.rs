//! Operations on devices. Each takes several steps, and each step needs the result of the last.

use netlink_packet_route::link::InfoKind;

use super::devices::Devices;
use super::entry::{self, link_name};
use super::holder;
use super::link_message::{
    create_bridge, create_ipip, create_vxlan, create_wireguard, delete_link, device, update_link,
    without_link_local,
};
use super::lookup::Lookup;
use super::message::{Request, dump_links_of_kind};
use super::object::{NetlinkObject, Notification, Told};
use super::ports;
use super::questions::link_entry;
use super::reading::Reading;
use super::socket::{Socket, breaks_socket};
use super::wire::Frame;
use crate::KernelError;
use crate::kind::Edit;
use crate::kind::link::{Link, LinkChange, LinkKind, Links, Vxlan};
use crate::kind::link_name::LinkName;
use crate::sysctl;
use crate::tun::{self, TunMode};

impl NetlinkObject for Links {
    const MESSAGES: &[u16] = &[libc::RTM_NEWLINK, libc::RTM_DELLINK];

    fn request(_: &Edit<Self>, _: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        None
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(LinkName, Box<Link>)>, KernelError> {
        let mut links = Vec::new();
        for name in reading.wanted.clone() {
            let Some(message) = reading.socket.link(name)? else { continue };
            let (mut link, underlay) = device(name, &message)?;
            if let (LinkKind::Vxlan(vxlan), Some(index)) = (&mut link.kind, underlay) {
                vxlan.underlay = reading.find(index)?;
            }
            reading.is_there(name, message.header.index, &link.kind);
            links.push((name, Box::new(link)));
        }
        Ok(links)
    }

    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        let Some((index, name)) = entry::link(frame.body) else { return };
        let mut devices = lookup.devices();
        let before = if frame.kind == libc::RTM_NEWLINK {
            devices.name_is(index, name)
        } else {
            devices.is_gone(index).filter(|before| *before != name)
        };
        // One of ours was renamed and is missing now.
        if let Some(before) = before.filter(|before| devices.is_ours(*before)) {
            tell(Notification::Link(before));
        }
        tell(Notification::Link(name));
    }

    fn change_device(
        edit: &Edit<Self>,
        socket: &mut Socket,
        devices: &mut Devices,
    ) -> Result<bool, KernelError> {
        match edit {
            Edit::Add { key, value } => {
                let underlay = underlay(socket, &value.kind)?;
                let renamed = delete_renamed(socket, devices, *key)?;
                create_on(socket, devices, *key, value, underlay)?;
                Ok(renamed)
            }
            Edit::Replace { key, held, value } if value.differs_for_good(held).is_some() => {
                // Looked up before anything is deleted: without the underlay there would be no device at all.
                let underlay = underlay(socket, &value.kind)?;
                delete(socket, *key)?;
                create_on(socket, devices, *key, value, underlay)?;
                Ok(false)
            }
            Edit::Replace { key, held, value } => {
                update(socket, devices, *key, &LinkChange::between(held, value)).map(|()| false)
            }
            Edit::Delete { key, .. } => delete(socket, *key).map(|()| false),
        }
    }
}

/// Deletes the device if somebody has renamed it: its replacement could not have its VNI or its addresses.
fn delete_renamed(socket: &mut Socket, devices: &Devices, name: LinkName) -> Result<bool, KernelError> {
    let Some(known) = devices.known(name) else { return Ok(false) };
    let Some(message) = socket.link_by_index(known.index)? else { return Ok(false) };
    let found = link_name(&message)?;
    let is_another = found == name
        || devices.is_ours(found)
        || !device(found, &message).is_ok_and(|(link, _)| known.is_of(&link.kind));
    if is_another {
        return Ok(false);
    }
    tracing::warn!(device = %found, "somebody renamed our device {name}; deleting it, to create it again");
    socket.change_one(delete_link(known.index))?;
    Ok(true)
}

fn create_on(
    socket: &mut Socket,
    devices: &mut Devices,
    name: LinkName,
    link: &Link,
    underlay: Option<u32>,
) -> Result<(), KernelError> {
    let over_ipv6 = match &link.kind {
        LinkKind::Vxlan(vxlan) => {
            match socket.change_one(create_vxlan(name, link, vxlan, underlay)) {
                // Created before, but not brought up.
                Err(error) if is_there(&error) && stands(socket, name, link, underlay)? => {}
                made => made.map_err(|error| or_who_has_it(socket, name, vxlan, error))?,
            }
            vxlan.local.is_some_and(|ip| ip.is_ipv6())
        }
        LinkKind::Ipip(ipip) => {
            match socket.change_one(create_ipip(name, link, ipip)) {
                Err(error) if is_there(&error) && stands(socket, name, link, None)? => {}
                made => made?,
            }
            false
        }
        LinkKind::Wireguard | LinkKind::Bridge => {
            let is_bridge = link.kind == LinkKind::Bridge;
            let create = if is_bridge { create_bridge(name, link) } else { create_wireguard(name, link) };
            match socket.change_one(create) {
                Err(error) if is_there(&error) && stands(socket, name, link, None)? => {}
                made => made?,
            }
            if is_bridge && let Err(reason) = sysctl::ignore_routers(name) {
                tracing::debug!(%name, %reason, "the kernel has no IPv6 that would believe in routers");
            }
            // Without an address of the link, the kernel asks for no neighbours of IPv6 containers (`ndisc_send_ns`).
            is_bridge
        }
        LinkKind::Tun { vnet_header } => {
            tun::create(name, TunMode { vnet_header: *vnet_header, ..TunMode::PLAIN })
                .map_err(|error| KernelError::Message(error.to_string()))?;
            false
        }
    };
    let index = index(socket, name)?.ok_or(KernelError::NoSuchLink(name))?;
    devices.stands(name, index, link.kind.clone());
    if !over_ipv6 {
        match socket.change_one(without_link_local(index)) {
            Err(error) if breaks_socket(&error) => return Err(error),
            // A kernel without IPv6 makes no such address, and elsewhere it does no harm.
            Err(error) => tracing::debug!(%name, %error, "the device may get a link-local address"),
            Ok(()) => {}
        }
    }
    let change = LinkChange {
        // A bridge whose MTU nobody has changed follows its ports.
        mtu: matches!(link.kind, LinkKind::Tun { .. } | LinkKind::Bridge).then_some(link.mtu),
        up: link.up.then_some(true),
        mac: None,
    };
    if change != LinkChange::default() {
        socket
            .change_one(update_link(index, &change))
            .map_err(|error| or_who_has_the_port(socket, devices, link, error))?;
    }
    if link.kind == LinkKind::Bridge { ports::plug_again(socket, name, index) } else { Ok(()) }
}

fn underlay(socket: &mut Socket, kind: &LinkKind) -> Result<Option<u32>, KernelError> {
    let LinkKind::Vxlan(Vxlan { underlay: Some(name), .. }) = kind else { return Ok(None) };
    let message = socket.link(*name)?.ok_or(KernelError::NoSuchLink(*name))?;
    Ok(Some(message.header.index))
}

fn update(
    socket: &mut Socket,
    devices: &Devices,
    name: LinkName,
    change: &LinkChange,
) -> Result<(), KernelError> {
    let message = socket.link(name)?.ok_or(KernelError::NoSuchLink(name))?;
    let (link, _) = device(name, &message)?;
    socket
        .change_one(update_link(message.header.index, change))
        .map_err(|error| or_who_has_the_port(socket, devices, &link, error))
}

fn delete(socket: &mut Socket, name: LinkName) -> Result<(), KernelError> {
    let Some(index) = index(socket, name)? else { return Ok(()) };
    socket.change_one(delete_link(index))
}

/// Returns the index of our device of that name. A device of a kind that we never make is not ours, whatever its name.
fn index(socket: &mut Socket, name: LinkName) -> Result<Option<u32>, KernelError> {
    let Some(message) = socket.link(name)? else { return Ok(None) };
    device(name, &message)?;
    Ok(Some(message.header.index))
}

fn is_there(error: &KernelError) -> bool {
    error.errno() == Some(libc::EEXIST)
}

/// Returns whether exactly this device exists, up or down.
fn stands(
    socket: &mut Socket,
    name: LinkName,
    link: &Link,
    underlay: Option<u32>,
) -> Result<bool, KernelError> {
    let Some(message) = socket.link(name)? else { return Ok(false) };
    let Ok((mut found, found_underlay)) = device(name, &message) else { return Ok(false) };
    if let (LinkKind::Vxlan(found), LinkKind::Vxlan(wanted)) = (&mut found.kind, &link.kind) {
        found.underlay = wanted.underlay;
    }
    let same = found.kind == link.kind && found_underlay == underlay;
    Ok(same && (link.mac.is_none() || found.mac == link.mac))
}

/// Turns EADDRINUSE, which only the port of a VXLAN device can cause, into who uses the port.
fn or_who_has_the_port(
    socket: &mut Socket,
    devices: &Devices,
    link: &Link,
    error: KernelError,
) -> KernelError {
    match &link.kind {
        LinkKind::Vxlan(Vxlan { port, .. }) if error.errno() == Some(libc::EADDRINUSE) => {
            let holder = holder::holder_of_port(socket, *port, |name| devices.is_ours(name));
            KernelError::PortTaken { port: *port, holder }
        }
        _ => error,
    }
}

/// Turns EEXIST into the device that already holds the VNI and port.
fn or_who_has_it(socket: &mut Socket, name: LinkName, vxlan: &Vxlan, error: KernelError) -> KernelError {
    if !is_there(&error) {
        return error;
    }
    let holder = socket.dump(
        &dump_links_of_kind(InfoKind::Vxlan),
        || None,
        |holder, body| {
            let Some(message) = link_entry(body) else { return };
            let Ok(other) = link_name(&message) else { return };
            let kind = device(other, &message).map(|(link, _)| link.kind);
            if let Ok(LinkKind::Vxlan(found)) = kind
                && other != name
                && (found.vni, found.port) == (vxlan.vni, vxlan.port)
            {
                *holder = Some(other);
            }
        },
    );
    match holder {
        Ok(Some(other)) => {
            KernelError::Taken(format!("device {other} has VNI {} and port {}", vxlan.vni, vxlan.port))
        }
        _ => error,
    }
}
