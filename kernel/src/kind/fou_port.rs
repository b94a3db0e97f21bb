//! UDP ports on which the kernel takes IPv4 packets out of datagrams (`ip fou`).

use std::fmt;
use std::net::Ipv4Addr;

use super::link_name::LinkName;
use super::{Changed, Edit, Kind, Name};
use crate::KernelError;
use crate::netlink::devices::Devices;
use crate::netlink::fou;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::object::{NetlinkObject, Told};
use crate::netlink::reading::Reading;
use crate::netlink::socket::Socket;
use crate::netlink::wire::Frame;
use crate::netlink::{Holder, holder_of_port};

/// UDP ports on which the kernel decapsulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FouPorts {}

/// A port for IPIP datagrams to one address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FouPort {
    /// The destination address of the datagrams.
    pub address: Ipv4Addr,
    /// Their destination port.
    pub port: u16,
}

impl Kind for FouPorts {
    type Key = FouPort;
    type Value = ();

    const NAME: Name = Name { short: "fou", one: "FOU port", many: "FOU ports" };
    const CHANGED: Changed = Changed::ByDevice;
    const ADD_OVERWRITES: bool = false;

    fn show(port: &FouPort, (): &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{port}")
    }

    fn fou_number(port: &FouPort) -> Option<u16> {
        Some(port.port)
    }
}

impl fmt::Display for FouPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} local {} ipproto 4", self.port, self.address)
    }
}

impl NetlinkObject for FouPorts {
    const MESSAGES: &[u16] = &[];

    fn request(_: &Edit<Self>, _: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        None
    }

    fn change_device(
        edit: &Edit<Self>,
        socket: &mut Socket,
        devices: &mut Devices,
    ) -> Result<bool, KernelError> {
        let port = edit.key();
        let Some(mut fou) = fou::socket()? else {
            // Where there is no FOU there is no port to delete.
            let lack = KernelError::Message("the kernel has no FOU: modprobe fou".to_owned());
            return if edit.is_deletion() { Ok(false) } else { Err(lack) };
        };
        let result = if edit.is_deletion() { fou::delete(&mut fou, port) } else { fou::add(&mut fou, port) };
        match result {
            Err(reason) if edit.is_deletion() && reason.errno() == Some(libc::EINVAL) => Ok(false),
            Err(reason) if reason.errno() == Some(libc::EALREADY) => Ok(false),
            Err(reason) if reason.errno() == Some(libc::EADDRINUSE) => {
                let found = fou::ports(&mut fou)?;
                if found.iter().any(|found| found.ours == Some(*port)) {
                    return Ok(false);
                }
                let other = found.into_iter().find(|found| found.port == port.port);
                let holder = other.map_or_else(
                    || holder_of_port(socket, port.port, |name| devices.is_ours(name)),
                    |found| Holder::Fou(found.shown),
                );
                Err(KernelError::PortTaken { port: port.port, holder })
            }
            result => result.map(|()| false),
        }
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(FouPort, ())>, KernelError> {
        if reading.fou_ports.is_empty() {
            return Ok(Vec::new());
        }
        let Some(fou) = &mut reading.fou else { return Ok(Vec::new()) };
        let ours = fou::ports(fou)?.into_iter().filter_map(|found| found.ours);
        Ok(ours.filter(|port| reading.fou_ports.contains(&port.port)).map(|port| (port, ())).collect())
    }

    fn heard(_: &Frame<'_>, _: &mut Lookup<'_>, _: &mut Told<'_, Self>) {}
}
