//! What lies behind the numbers in a message: remembered, or else asked for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::devices::Devices;
use super::socket::Socket;
use crate::state::{LinkName, NextHopId};

/// The devices that were heard of, and a socket to ask for others.
#[derive(Debug)]
pub(super) struct Lookup<'a> {
    devices: &'a Mutex<Devices>,
    socket: Option<&'a mut Socket>,
}

impl<'a> Lookup<'a> {
    /// Without a socket, only what is remembered is known.
    pub(super) fn new(devices: &'a Mutex<Devices>, socket: Option<&'a mut Socket>) -> Self {
        Self { devices, socket }
    }

    /// What is remembered.
    pub(super) fn devices(&self) -> MutexGuard<'a, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the device is called; `None` if there is none.
    pub(super) fn name(&mut self, index: u32) -> Option<LinkName> {
        if let Some(name) = self.devices().name(index) {
            return Some(name);
        }
        let name = self.socket.as_mut()?.link_name(index).ok()??;
        self.devices().name_is(index, name);
        Some(name)
    }

    /// What the device is called, if it is ours.
    pub(super) fn ours(&mut self, index: u32) -> Option<LinkName> {
        let name = self.name(index)?;
        self.devices().is_ours(name).then_some(name)
    }

    /// The index of the device that a next hop object leads to.
    pub(super) fn next_hop_index(&mut self, id: NextHopId) -> Option<u32> {
        self.socket.as_mut()?.next_hop(id).ok()??.index
    }
}
