//! One agent in a network namespace: two would undo each other's work.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The abstract name that says so. The kernel frees it when the process ends, however it does.
const NAME: &[u8] = b"flan-agent";

/// Keeps agents from starting in this network namespace, for as long as it lives.
#[derive(Debug)]
pub struct OnlyAgent {
    _socket: UnixDatagram,
}

impl OnlyAgent {
    /// Takes the place of the only agent; `None` if it is taken.
    ///
    /// # Errors
    /// If the kernel refuses the socket for another reason.
    pub fn claim() -> io::Result<Option<Self>> {
        match UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(NAME)?) {
            Ok(socket) => Ok(Some(Self { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}
