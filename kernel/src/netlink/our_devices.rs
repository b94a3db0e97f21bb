//! Finds our devices by kind, for callers that do not know their names.

use netlink_packet_route::link::InfoKind;

use super::entry::link_name;
use super::link_message::{device, is_persistent};
use super::message;
use super::questions::link_entry;
use super::socket::Socket;
use crate::KernelError;
use crate::kind::link_name::LinkName;

/// Returns the names of all devices of the kinds that we make: VXLAN, IPIP and WireGuard devices, bridges,
/// and persistent TUN devices.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub fn devices_of_our_kinds() -> Result<Vec<LinkName>, KernelError> {
    let mut socket = Socket::open()?;
    let mut names = Vec::new();
    for kind in [InfoKind::Vxlan, InfoKind::Tun, InfoKind::IpIp, InfoKind::Wireguard, InfoKind::Bridge] {
        let found = socket.dump(&message::dump_links_of_kind(kind), Vec::new, |found, body| {
            let Some(message) = link_entry(body) else { return };
            // A TUN device that is not persistent belongs to the program that opened it.
            if let Ok(name) = link_name(&message)
                && device(name, &message).is_ok()
                && is_persistent(&message)
            {
                found.push(name);
            }
        })?;
        names.extend(found);
    }
    Ok(names)
}
