//! Notifications from the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::lookup::Lookup;
use super::nft;
use super::socket::{self, socket_error};
use super::wire::Frames;
use crate::KernelError;
use crate::kind::next_hop;
use crate::kinds::{Change, heard};

const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    next_hop::GROUP,
];

/// Pause before a broken socket is reopened.
const REOPEN: Duration = Duration::from_secs(1);

/// Requested bytes of kernel memory for unread notifications: about ten thousand of them.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// Most notifications per read, so that a flood of them leaves time for other work.
const MOST_AT_ONCE: usize = 16 * 1024;

/// The notification sockets, and the changes that nobody has fetched yet.
#[derive(Debug)]
pub(super) struct Changes {
    ears: Vec<Ear>,
    buffer: Vec<u8>,
    heard: Vec<Change>,
}

/// A socket for the notifications of one netlink protocol.
#[derive(Debug)]
struct Ear {
    open: fn() -> io::Result<netlink_sys::Socket>,
    /// `None` after it broke, until it is reopened.
    socket: Option<netlink_sys::Socket>,
    reopen_at: Instant,
}

impl Changes {
    /// Opens the sockets in the current network namespace. Must be called in a tokio runtime.
    pub(super) fn listen() -> Result<Self, KernelError> {
        let mut ears = vec![Ear::open(open_for_routes).map_err(socket_error)?];
        if nft::is_there() {
            ears.push(Ear::open(open_for_nftables).map_err(socket_error)?);
        }
        Ok(Self { ears, buffer: Vec::with_capacity(socket::RECEIVE_BYTES), heard: Vec::new() })
    }

    /// Reads what is queued, without waiting.
    pub(super) fn hear(&mut self, lookup: &mut Lookup<'_>) {
        for ear in &mut self.ears {
            ear.hear(&mut self.buffer, lookup, &mut self.heard);
        }
    }

    /// Returns all changes not yet fetched.
    pub(super) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.heard)
    }

    /// Waits until there may be something to read. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        let ears = self.ears.iter_mut().map(|ear| Box::pin(ear.wait()));
        let (reopened, _, _) = futures::future::select_all(ears).await;
        if reopened {
            // What happened meanwhile is unknown.
            self.heard.push(Change::Unknown);
        }
    }
}

impl Ear {
    fn open(open: fn() -> io::Result<netlink_sys::Socket>) -> io::Result<Self> {
        Ok(Self { open, socket: Some(open()?), reopen_at: Instant::now() })
    }

    fn hear(&mut self, buffer: &mut Vec<u8>, lookup: &mut Lookup<'_>, heard: &mut Vec<Change>) {
        let Some(socket) = &self.socket else { return };
        for _ in 0..MOST_AT_ONCE {
            match socket::receive(socket, buffer) {
                Ok(()) => read(buffer, lookup, heard),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    lookup.devices().forget_names();
                    heard.push(Change::Unknown);
                }
                Err(error) => return self.broke(&error),
            }
        }
    }

    /// Returns whether it was reopened. Cancel-safe.
    async fn wait(&mut self) -> bool {
        if let Some(socket) = &self.socket {
            if let Err(error) = readable(socket.as_fd()).await {
                self.broke(&error);
            }
            return false;
        }
        tokio::time::sleep_until(self.reopen_at).await;
        match (self.open)() {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => {
                tracing::warn!(%error, "cannot open the netlink socket for changes, trying again");
                self.reopen_at = Instant::now() + REOPEN;
            }
        }
        self.socket.is_some()
    }

    fn broke(&mut self, error: &io::Error) {
        tracing::warn!(%error, "the netlink socket for changes broke");
        self.socket = None;
        self.reopen_at = Instant::now() + REOPEN;
    }
}

fn open_for_routes() -> io::Result<netlink_sys::Socket> {
    let socket = open(NETLINK_ROUTE)?;
    for group in GROUPS {
        match socket.add_membership(group) {
            // A kernel without next hop objects has no such group.
            Err(error) if group == next_hop::GROUP => {
                tracing::debug!(%error, "no next hop objects on this kernel");
            }
            joined => joined?,
        }
    }
    Ok(socket)
}

fn open_for_nftables() -> io::Result<netlink_sys::Socket> {
    let socket = open(NETLINK_NETFILTER)?;
    socket.add_membership(nft::GROUP)?;
    Ok(socket)
}

fn open(protocol: isize) -> io::Result<netlink_sys::Socket> {
    let socket = socket::open(protocol)?;
    socket.set_non_blocking(true)?;
    socket::raise_receive_buffer(&socket, QUEUE_BYTES);
    Ok(socket)
}

/// Waits until the socket is readable. It is registered with tokio only during the wait: otherwise each of the many
/// notifications about our own operations would wake a thread for nothing.
async fn readable(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for as long as `AsyncFd` holds it, so nobody closes it before.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(io::Error::from)?.readable().await.map(drop)
}

/// Reads the notifications in one datagram.
fn read(datagram: &[u8], lookup: &mut Lookup<'_>, changes: &mut Vec<Change>) {
    for frame in Frames(datagram) {
        match frame {
            Ok(frame) => heard(&frame, lookup, changes),
            Err(error) => {
                tracing::warn!(%error, "a notification was not understood");
                changes.push(Change::Unknown);
            }
        }
    }
}

#[cfg(test)]
mod tests;
