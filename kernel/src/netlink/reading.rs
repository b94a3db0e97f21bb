//! One reading of everything that is ours, kind by kind.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::devices::Devices;
use super::socket::Socket;
use crate::KernelError;
use crate::kind::gateway::NextHopId;
use crate::kind::link::LinkKind;
use crate::kind::link_name::LinkName;

/// What a reading has and knows so far. Devices are read first, next hop objects before routes.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) socket: &'a mut Socket,
    /// The socket to ask for nftables, if they are to be read.
    pub(crate) nftables: Option<&'a mut Socket>,
    devices: &'a Mutex<Devices>,
    /// The names that our devices have.
    pub(crate) wanted: Vec<LinkName>,
    /// The devices that next hop objects of anybody lead to.
    pub(crate) next_hops: BTreeMap<NextHopId, u32>,
    /// Our devices that are there, by index.
    pub(crate) ours: BTreeMap<u32, LinkName>,
    /// Device names by index, asked for when first needed.
    names: BTreeMap<u32, LinkName>,
}

impl<'a> Reading<'a> {
    /// One in which nothing was read yet.
    pub(crate) fn new(
        socket: &'a mut Socket,
        nftables: Option<&'a mut Socket>,
        devices: &'a Mutex<Devices>,
        wanted: Vec<LinkName>,
    ) -> Self {
        let (next_hops, ours, names) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { socket, nftables, devices, wanted, next_hops, ours, names }
    }

    /// Notes a device of ours that is there.
    pub(crate) fn is_there(&mut self, name: LinkName, index: u32, kind: &LinkKind) {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).stands(name, index, kind.clone());
        self.ours.insert(index, name);
        self.names.insert(index, name);
    }

    /// Our devices that are there.
    pub(crate) fn ours(&self) -> Vec<(u32, LinkName)> {
        self.ours.iter().map(|(index, name)| (*index, *name)).collect()
    }

    /// Whether the device is ours.
    pub(crate) fn is_ours(&self, index: u32) -> bool {
        self.ours.contains_key(&index)
    }

    /// The name of a device, if there is one.
    pub(crate) fn find(&mut self, index: u32) -> Result<Option<LinkName>, KernelError> {
        if let Some(&name) = self.names.get(&index) {
            return Ok(Some(name));
        }
        let Some(name) = self.socket.link_name(index)? else { return Ok(None) };
        self.names.insert(index, name);
        Ok(Some(name))
    }

    /// The name of a device that something leads to, so that it was there a moment ago.
    pub(crate) fn must_find(&mut self, index: u32) -> Result<LinkName, KernelError> {
        self.find(index)?.ok_or(KernelError::Errno(libc::ENODEV))
    }
}

/// An empty table where the kernel has no such family, or no such table yet: it makes IPv4's main table for the
/// first route in it.
pub(crate) fn without_family<T>(dumped: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match dumped {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        dumped => dumped,
    }
}
