//! Resolves the numbers in a message, from memory or by asking the kernel.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::devices::Devices;
use super::message::Request;
use super::socket::Socket;
use crate::KernelError;
use crate::kind::link_name::LinkName;

/// The devices seen so far, and a socket to look up others.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    devices: &'a Mutex<Devices>,
    socket: Option<&'a mut Socket>,
}

impl<'a> Lookup<'a> {
    /// Creates a lookup that, without a socket, knows only remembered devices.
    pub(crate) fn new(devices: &'a Mutex<Devices>, socket: Option<&'a mut Socket>) -> Self {
        Self { devices, socket }
    }

    pub(crate) fn devices(&self) -> MutexGuard<'a, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the name of the device; `None` if it does not exist.
    pub(crate) fn name(&mut self, index: u32) -> Option<LinkName> {
        if let Some(name) = self.devices().name(index) {
            return Some(name);
        }
        let name = self.socket.as_mut()?.link_name(index).ok()??;
        self.devices().name_is(index, name);
        Some(name)
    }

    /// Returns the name of the device, if it is ours.
    pub(crate) fn ours(&mut self, index: u32) -> Option<LinkName> {
        let name = self.name(index)?;
        self.devices().is_ours(name).then_some(name)
    }

    /// Reads a table, and returns what `read` extracts from each entry.
    ///
    /// # Errors
    /// If the kernel does not answer, or there is no socket.
    pub(crate) fn dump<T>(
        &mut self,
        request: &Request,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        self.socket()?.dump(request, Vec::new, |found, body| found.extend(read(body)))
    }

    /// Looks up one object; `None` if it does not exist or `read` understands nothing of it.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub(crate) fn ask<T>(
        &mut self,
        request: Request,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, KernelError> {
        match self.socket()?.one(request, |frame| Ok(read(frame.body))) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            answer => answer,
        }
    }

    fn socket(&mut self) -> Result<&mut Socket, KernelError> {
        let socket = self.socket.as_deref_mut();
        socket.ok_or_else(|| KernelError::Socket("no socket for questions".to_owned()))
    }
}
