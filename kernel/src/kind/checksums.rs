//! Devices for which the host completes checksums and segments before it encapsulates.
//!
//! Without this, a packet may leave as one of up to 64 KB whose checksum is still to be computed, for a network card to
//! finish. Virtual interfaces pass it on as it is. A kernel that decapsulates can read it, a program like flanneld
//! cannot.

use std::fmt;

use super::link_name::LinkName;
use super::{Changed, Edit, Kind, Name};
use crate::KernelError;
use crate::netlink::devices::Devices;
use crate::netlink::features;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::object::{NetlinkObject, Told};
use crate::netlink::reading::Reading;
use crate::netlink::socket::Socket;
use crate::netlink::wire::Frame;

/// Devices with complete checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {}

impl Kind for Checksums {
    type Key = LinkName;
    type Value = ();

    const NAME: Name =
        Name { short: "checksums", one: "device with checksums", many: "devices with checksums" };
    const CHANGED: Changed = Changed::ByDevice;

    fn show(link: &LinkName, (): &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{link}")
    }

    fn device(link: &LinkName, (): &()) -> Option<LinkName> {
        Some(*link)
    }
}

impl NetlinkObject for Checksums {
    const MESSAGES: &[u16] = &[];

    fn request(_: &Edit<Self>, _: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        None
    }

    fn change_device(edit: &Edit<Self>, socket: &mut Socket, _: &mut Devices) -> Result<bool, KernelError> {
        let link = *edit.key();
        let message = socket.link(link)?.ok_or(KernelError::NoSuchLink(link))?;
        features::set_offload(message.header.index, edit.is_deletion())?;
        Ok(false)
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(LinkName, ())>, KernelError> {
        let Some(ethtool) = &mut reading.ethtool else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for (index, link) in &reading.tunnels {
            if !features::offloads(ethtool, *index)? {
                all.push((*link, ()));
            }
        }
        Ok(all)
    }

    /// A change of a device's features is told as a change of the device.
    fn heard(_: &Frame<'_>, _: &mut Lookup<'_>, _: &mut Told<'_, Self>) {}
}
