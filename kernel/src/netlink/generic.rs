//! Generic netlink: families of requests that are known by name (`linux/genetlink.h`).

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::message::Request;
use super::raw::{RawRequest, attribute};
use super::socket::Socket;
use super::wire::{Attributes, u16_at};
use crate::KernelError;

/// Bytes of a `struct genlmsghdr`.
const FIXED_BYTES: usize = 4;

/// `GENL_ID_CTRL`, the family that knows all others.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// A socket for one family.
#[derive(Debug)]
pub(crate) struct Generic {
    socket: Socket,
    family: u16,
}

impl Generic {
    /// Opens a socket in the current network namespace. `None` if this kernel lacks the family.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub(crate) fn open(name: &str) -> Result<Option<Self>, KernelError> {
        let mut socket = Socket::open_for(NETLINK_GENERIC)?;
        let mut body = vec![GET_FAMILY, 1, 0, 0];
        attribute(&mut body, FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
        let question = RawRequest { kind: CONTROL, flags: NLM_F_REQUEST, body };
        let asked = socket.one(Request::Raw(question), |frame| {
            Ok(attributes(frame.body).find(FAMILY_ID).and_then(|id| u16_at(id, 0)))
        });
        match asked {
            Ok(Some(family)) => Ok(Some(Self { socket, family })),
            Ok(None) => Err(KernelError::Message(format!("generic netlink family {name} has no number"))),
            Err(reason) if reason.errno() == Some(libc::ENOENT) => Ok(None),
            Err(reason) => Err(reason),
        }
    }

    /// Sends a change.
    ///
    /// # Errors
    /// If the kernel refuses or does not answer.
    pub(crate) fn change(&mut self, command: u8, attributes: &[u8]) -> Result<(), KernelError> {
        let request = self.request(command, 0, attributes);
        self.socket.change_one(request)
    }

    /// Asks for one object, and passes the attributes of the answer to `read`.
    ///
    /// # Errors
    /// If the kernel refuses or does not answer.
    pub(crate) fn one<T>(
        &mut self,
        command: u8,
        attributes: &[u8],
        read: impl FnOnce(Attributes<'_>) -> T,
    ) -> Result<T, KernelError> {
        let request = self.request(command, 0, attributes);
        self.socket.one(request, |frame| Ok(read(self::attributes(frame.body))))
    }

    /// Asks for all objects, and returns what `read` makes of the attributes of each.
    ///
    /// # Errors
    /// If the kernel refuses or does not answer.
    pub(crate) fn dump<T>(
        &mut self,
        command: u8,
        read: impl Fn(Attributes<'_>) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let request = self.request(command, NLM_F_DUMP, &[]);
        self.socket.dump(&request, Vec::new, |found, body| found.extend(read(attributes(body))))
    }

    /// Asks for all objects that `attributes` name, and returns what `read` makes of the body of each answer.
    ///
    /// # Errors
    /// If the kernel refuses or does not answer.
    pub(crate) fn dump_about<T>(
        &mut self,
        command: u8,
        attributes: &[u8],
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let request = self.request(command, NLM_F_DUMP, attributes);
        self.socket.dump(&request, Vec::new, |found, body| {
            found.extend(read(body.get(FIXED_BYTES..).unwrap_or_default()));
        })
    }

    /// Returns the socket, for requests in batches.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    pub(super) fn request(&self, command: u8, flags: u16, attributes: &[u8]) -> Request {
        let body = [&[command, 1, 0, 0], attributes].concat();
        Request::Raw(RawRequest { kind: self.family, flags: NLM_F_REQUEST | flags, body })
    }
}

fn attributes(body: &[u8]) -> Attributes<'_> {
    Attributes::behind(body, FIXED_BYTES)
}
