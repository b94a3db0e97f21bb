//! What WireGuard devices are told besides their peers (`wg show DEVICE`).

use std::fmt;

use flan_wireguard_keys::PrivateKey;

use super::link_name::LinkName;
use super::{Changed, Edit, Kind, Name};
use crate::KernelError;
use crate::netlink::devices::Devices;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::object::{NetlinkObject, Told};
use crate::netlink::reading::Reading;
use crate::netlink::socket::Socket;
use crate::netlink::wire::Frame;
use crate::netlink::{holder_of_port, wireguard};

/// Settings of WireGuard devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireguardDevices {}

/// The settings of a WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardDevice {
    /// This host's key.
    pub private_key: PrivateKey,
    /// UDP port for both families.
    pub port: u16,
}

impl Kind for WireguardDevices {
    type Key = LinkName;
    type Value = WireguardDevice;

    const NAME: Name = Name { short: "wireguard", one: "WireGuard setting", many: "WireGuard settings" };
    const CHANGED: Changed = Changed::ByDevice;

    fn show(link: &LinkName, device: &WireguardDevice, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{link} listen-port {} public-key {}", device.port, device.private_key.public())
    }

    fn device(link: &LinkName, _: &WireguardDevice) -> Option<LinkName> {
        Some(*link)
    }
}

impl NetlinkObject for WireguardDevices {
    const MESSAGES: &[u16] = &[];

    fn request(_: &Edit<Self>, _: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        None
    }

    /// A device keeps its settings until it is deleted, so there is nothing to do for a deletion.
    fn change_device(
        edit: &Edit<Self>,
        socket: &mut Socket,
        devices: &mut Devices,
    ) -> Result<bool, KernelError> {
        let Some(wanted) = edit.outcome() else { return Ok(false) };
        match wireguard::set_device(*edit.key(), wanted) {
            Err(reason) if reason.errno() == Some(libc::EADDRINUSE) => {
                let holder = holder_of_port(socket, wanted.port, |name| devices.is_ours(name));
                Err(KernelError::PortTaken { port: wanted.port, holder })
            }
            set => set.map(|()| false),
        }
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(LinkName, WireguardDevice)>, KernelError> {
        let mut all = Vec::new();
        for (name, found) in reading.wireguards()? {
            all.extend(found.device.clone().map(|device| (*name, device)));
        }
        Ok(all)
    }

    fn heard(_: &Frame<'_>, _: &mut Lookup<'_>, _: &mut Told<'_, Self>) {}
}
