//! One reading of everything that is ours, kind by kind.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::devices::Devices;
use super::socket::Socket;
use crate::KernelError;
use crate::kind::gateway::NextHopId;
use crate::kind::link::LinkKind;
use crate::kind::link_name::LinkName;

/// The state of a reading. Devices come first, and next hop objects before routes.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) socket: &'a mut Socket,
    /// The nftables socket, if nftables are to be read.
    pub(crate) nftables: Option<&'a mut Socket>,
    devices: &'a Mutex<Devices>,
    /// The names that our devices should have.
    pub(crate) wanted: Vec<LinkName>,
    /// The devices that next hop objects lead to, whoever made these.
    pub(crate) next_hops: BTreeMap<NextHopId, u32>,
    /// Our devices that exist, by index.
    pub(crate) ours: BTreeMap<u32, LinkName>,
    /// Device names by index, looked up when first needed.
    names: BTreeMap<u32, LinkName>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(
        socket: &'a mut Socket,
        nftables: Option<&'a mut Socket>,
        devices: &'a Mutex<Devices>,
        wanted: Vec<LinkName>,
    ) -> Self {
        let (next_hops, ours, names) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { socket, nftables, devices, wanted, next_hops, ours, names }
    }

    /// Records a device of ours that exists.
    pub(crate) fn is_there(&mut self, name: LinkName, index: u32, kind: &LinkKind) {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).stands(name, index, kind.clone());
        self.ours.insert(index, name);
        self.names.insert(index, name);
    }

    /// Returns our devices that exist.
    pub(crate) fn ours(&self) -> Vec<(u32, LinkName)> {
        self.ours.iter().map(|(index, name)| (*index, *name)).collect()
    }

    pub(crate) fn is_ours(&self, index: u32) -> bool {
        self.ours.contains_key(&index)
    }

    /// Returns the name of a device, if it exists.
    pub(crate) fn find(&mut self, index: u32) -> Result<Option<LinkName>, KernelError> {
        if let Some(&name) = self.names.get(&index) {
            return Ok(Some(name));
        }
        let Some(name) = self.socket.link_name(index)? else { return Ok(None) };
        self.names.insert(index, name);
        Ok(Some(name))
    }

    /// Returns the name of a device that something leads to, so it existed a moment ago.
    pub(crate) fn must_find(&mut self, index: u32) -> Result<LinkName, KernelError> {
        self.find(index)?.ok_or(KernelError::Errno(libc::ENODEV))
    }
}

/// Returns an empty table if the kernel lacks the family or table: it creates IPv4's main table with its first route.
pub(crate) fn without_family<T>(dumped: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match dumped {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        dumped => dumped,
    }
}
