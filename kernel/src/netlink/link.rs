//! Operations on devices: each takes several steps, and the next one needs what the last one gave.

use netlink_packet_route::link::InfoKind;

use super::devices::Devices;
use super::holder;
use super::message;
use super::questions::link_entry;
use super::snapshot::{device, link_name};
use super::socket::{Socket, breaks_socket};
use crate::KernelError;
use crate::diff::{LinkChange, Operation};
use crate::state::{Link, LinkKind, LinkName, Vxlan};
use crate::tun::{self, TunMode};

/// Carries out an operation on a device; any other is refused. Says whether one of ours that had been renamed had to go
/// for it, with everything on it.
pub(super) fn change(
    socket: &mut Socket,
    devices: &mut Devices,
    operation: &Operation,
) -> Result<bool, KernelError> {
    match operation {
        Operation::CreateLink { name, link } => {
            let underlay = underlay(socket, &link.kind)?;
            let renamed = delete_renamed(socket, devices, *name)?;
            create_on(socket, devices, *name, link, underlay)?;
            Ok(renamed)
        }
        Operation::ReplaceLink { name, link, .. } => {
            // Asked for before anything is taken away: without it there would be no device at all.
            let underlay = underlay(socket, &link.kind)?;
            delete(socket, *name)?;
            create_on(socket, devices, *name, link, underlay)?;
            Ok(false)
        }
        Operation::UpdateLink { name, change } => update(socket, devices, *name, change).map(|()| false),
        Operation::DeleteLink { name } => delete(socket, *name).map(|()| false),
        other => Err(KernelError::Message(format!("not about a device: {other}"))),
    }
}

/// Deletes the device that is to have the name, if somebody has given it another one: with it there, the new one could
/// not have its VNI or its addresses.
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
    tracing::warn!(device = %found, "our device {name} was renamed; it is deleted and made anew");
    socket.change_one(message::delete_link(known.index))?;
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
            match socket.change_one(message::create_vxlan(name, link, vxlan, underlay)) {
                // Made before, and then not brought up.
                Err(error) if is_there(&error) && stands(socket, name, link, vxlan, underlay)? => {}
                made => made.map_err(|error| or_who_has_it(socket, name, vxlan, error))?,
            }
            vxlan.local.is_some_and(|ip| ip.is_ipv6())
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
        match socket.change_one(message::without_link_local(index)) {
            Err(error) if breaks_socket(&error) => return Err(error),
            // A kernel without IPv6 makes no such address anyway; on any other it is in nobody's way.
            Err(error) => tracing::debug!(%name, %error, "the device may get a link-local address"),
            Ok(()) => {}
        }
    }
    let change = LinkChange {
        mtu: matches!(link.kind, LinkKind::Tun { .. }).then_some(link.mtu),
        up: link.up.then_some(true),
        mac: None,
    };
    if change != LinkChange::default() {
        socket
            .change_one(message::update_link(index, &change))
            .map_err(|error| or_who_has_the_port(socket, devices, link, error))?;
    }
    Ok(())
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
        .change_one(message::update_link(message.header.index, change))
        .map_err(|error| or_who_has_the_port(socket, devices, &link, error))
}

fn delete(socket: &mut Socket, name: LinkName) -> Result<(), KernelError> {
    let Some(index) = index(socket, name)? else { return Ok(()) };
    socket.change_one(message::delete_link(index))
}

/// The index of our device of that name. One of a kind that we do not make is not ours, whatever its name.
fn index(socket: &mut Socket, name: LinkName) -> Result<Option<u32>, KernelError> {
    let Some(message) = socket.link(name)? else { return Ok(None) };
    device(name, &message)?;
    Ok(Some(message.header.index))
}

fn is_there(error: &KernelError) -> bool {
    error.errno() == Some(libc::EEXIST)
}

/// Whether there is just this device, up or not.
fn stands(
    socket: &mut Socket,
    name: LinkName,
    link: &Link,
    vxlan: &Vxlan,
    underlay: Option<u32>,
) -> Result<bool, KernelError> {
    let Some(message) = socket.link(name)? else { return Ok(false) };
    let Ok((found, found_underlay)) = device(name, &message) else { return Ok(false) };
    let LinkKind::Vxlan(found_vxlan) = found.kind else { return Ok(false) };
    let same = Vxlan { underlay: vxlan.underlay, ..found_vxlan } == *vxlan && found_underlay == underlay;
    Ok(same && (link.mac.is_none() || found.mac == link.mac))
}

/// Of an error that says that an address is in use, which only the port of a VXLAN device can be: who has it.
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

/// Of an error that says that something is there already: which other device has the VNI and the port.
fn or_who_has_it(socket: &mut Socket, name: LinkName, vxlan: &Vxlan, error: KernelError) -> KernelError {
    if !is_there(&error) {
        return error;
    }
    let holder = socket.dump(
        &message::dump_links_of_kind(InfoKind::Vxlan),
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
