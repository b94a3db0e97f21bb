//! Hearing of changes from the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::entry::{self, NeighbourTable, RawNeighbour, RawRoute, RawTarget};
use super::lookup::Lookup;
use super::next_hop::{self, Shown};
use super::nft;
use super::socket::{self, socket_error};
use super::wire::{Frame, Frames};
use crate::KernelError;
use crate::change::{Change, Fact};
use crate::state::{Address, FdbEntry, Neighbour, NextHop, Route, RouteTarget};

const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    next_hop::GROUP,
];

/// Pause before the socket is opened again after it broke.
const REOPEN: Duration = Duration::from_secs(1);

/// Bytes of kernel memory that notifications may take until we read them, asked for: about ten thousand of them.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// Most notifications that are read in one go, so that a flood of them leaves time for other things.
const MOST_AT_ONCE: usize = 16 * 1024;

/// Sockets that hear what changes, and what they have heard. Changes that nobody has asked for yet wait.
#[derive(Debug)]
pub(super) struct Changes {
    ears: Vec<Ear>,
    buffer: Vec<u8>,
    heard: Vec<Change>,
}

/// A socket for what one part of the kernel tells.
#[derive(Debug)]
struct Ear {
    open: fn() -> io::Result<netlink_sys::Socket>,
    /// `None` after it broke, until it is time for another.
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

    /// Reads what lies ready, without waiting.
    pub(super) fn hear(&mut self, lookup: &mut Lookup<'_>) {
        for ear in &mut self.ears {
            ear.hear(&mut self.buffer, lookup, &mut self.heard);
        }
    }

    /// All that was heard and not taken yet.
    pub(super) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.heard)
    }

    /// Waits until there may be something to hear. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        let ears = self.ears.iter_mut().map(|ear| Box::pin(ear.wait()));
        let (reopened, _, _) = futures::future::select_all(ears).await;
        if reopened {
            // What happened meanwhile, nobody knows.
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

    /// Answers whether it was opened anew. Cancel-safe.
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
                tracing::warn!(%error, "no changes are heard of");
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

/// Waits until something lies there. Tokio knows of the socket only meanwhile: else each of the many notifications of
/// what we do ourselves would wake a thread that has nothing to do.
async fn readable(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for as long as `AsyncFd` has it, so that nobody closes it before.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(io::Error::from)?.readable().await.map(drop)
}

/// Reads the notifications of one datagram.
fn read(datagram: &[u8], lookup: &mut Lookup<'_>, changes: &mut Vec<Change>) {
    for frame in Frames(datagram) {
        match frame {
            Ok(frame) => read_one(&frame, lookup, changes),
            Err(error) => {
                tracing::warn!(%error, "a notification was not understood");
                changes.push(Change::Unknown);
            }
        }
    }
}

fn read_one(frame: &Frame<'_>, lookup: &mut Lookup<'_>, changes: &mut Vec<Change>) {
    match frame.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => link(frame, lookup, changes),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => changes.extend(address(frame, lookup)),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            changes.extend(neighbour(frame, lookup).map(Change::Fact));
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route(frame, lookup, changes),
        next_hop::NEW | next_hop::DELETE => {
            changes.extend(next_hop_object(frame, lookup).map(Change::Fact));
        }
        _ => changes.extend(nft::changes(frame)),
    }
}

fn link(frame: &Frame<'_>, lookup: &mut Lookup<'_>, changes: &mut Vec<Change>) {
    let Some((index, name)) = entry::link(frame.body) else { return };
    let mut devices = lookup.devices();
    let before = if frame.kind == libc::RTM_NEWLINK {
        devices.name_is(index, name)
    } else {
        devices.is_gone(index).filter(|before| *before != name)
    };
    // One of ours that was renamed is missing from now on.
    changes.extend(before.filter(|before| devices.is_ours(*before)).map(Change::Link));
    changes.push(Change::Link(name));
}

fn address(frame: &Frame<'_>, lookup: &mut Lookup<'_>) -> Option<Change> {
    let name = lookup.name(entry::address_index(frame.body)?)?;
    if !lookup.devices().is_ours(name) {
        return Some(Change::HostAddress(name));
    }
    let (_, address) = entry::address(frame.body)?;
    let stands = frame.kind == libc::RTM_NEWADDR;
    Some(Change::Fact(Fact::Address(Address { link: name, address }, stands)))
}

fn neighbour(frame: &Frame<'_>, lookup: &mut Lookup<'_>) -> Option<Fact> {
    let found = RawNeighbour::read(frame.body)?;
    let link = lookup.ours(found.index)?;
    let stands = frame.kind == libc::RTM_NEWNEIGH;
    match found.of {
        NeighbourTable::Ip => {
            let (address, mac) = found.neighbour()?;
            Some(Fact::Neighbour(Neighbour { link, address }, mac.filter(|_| stands)))
        }
        NeighbourTable::Fdb => {
            let (mac, ip) = found.fdb()?;
            Some(Fact::Fdb(FdbEntry { link, mac }, ip.filter(|_| stands)))
        }
    }
}

fn next_hop_object(frame: &Frame<'_>, lookup: &mut Lookup<'_>) -> Option<Fact> {
    let shown = Shown::read(frame.body)?;
    let on_ours = shown.index.is_some_and(|index| lookup.ours(index).is_some());
    let ours = shown.is_ours(on_ours);
    if frame.kind == next_hop::NEW && ours {
        let Shown { id, protocol, index: Some(index), gateway: Some(gateway), onlink } = shown else {
            return None;
        };
        let link = lookup.name(index)?;
        return Some(Fact::NextHop(id, Some(NextHop { gateway, link, onlink, protocol })));
    }
    // One that is not ours may have taken the place of one that was, or have been in its way.
    let free = frame.kind == next_hop::DELETE || frame.flags & NLM_F_REPLACE != 0;
    free.then_some(Fact::NextHop(shown.id, None))
}

fn route(frame: &Frame<'_>, lookup: &mut Lookup<'_>, changes: &mut Vec<Change>) {
    let Some(mut route) = RawRoute::read(frame.body) else { return };
    if let RawTarget::NextHop { id, index: index @ None } = &mut route.target {
        *index = lookup.next_hop_index(*id);
    }
    // The default route decides which interface is the external one.
    if route.is_default() {
        changes.push(Change::DefaultRoute);
    }
    let on_ours = match route.target {
        RawTarget::Device { index, .. } | RawTarget::NextHop { index: Some(index), .. } => {
            lookup.ours(index).is_some()
        }
        _ => false,
    };
    let ours = route.is_ours(on_ours);
    if frame.kind == libc::RTM_DELROUTE {
        // One that was not ours may have been in the way of one that is to be.
        changes.push(Change::Fact(Fact::Route(route.key, None)));
        return;
    }
    // Behind another of the same key: which of them counts is not said.
    let is_second = frame.flags & NLM_F_APPEND != 0
        && (ours || (route.target == RawTarget::Several && !route.is_by_kernel()));
    if is_second {
        changes.push(Change::Unknown);
    } else if ours {
        let Some(target) = target(&route, lookup) else { return };
        let protocol = route.protocol;
        changes.push(Change::Fact(Fact::Route(route.key, Some(Route { target, protocol }))));
    } else if frame.flags & NLM_F_REPLACE != 0 || frame.flags & (NLM_F_EXCL | NLM_F_APPEND) == 0 {
        // It may have taken the place of one of ours, or stand before it.
        changes.push(Change::Fact(Fact::Route(route.key, None)));
    }
}

fn target(route: &RawRoute, lookup: &mut Lookup<'_>) -> Option<RouteTarget> {
    match route.target {
        RawTarget::Blackhole => Some(RouteTarget::Blackhole),
        RawTarget::Device { index, gateway, onlink } => {
            let link = lookup.name(index)?;
            Some(match gateway {
                Some(gateway) => RouteTarget::Via { gateway, link, onlink },
                None => RouteTarget::Link(link),
            })
        }
        RawTarget::NextHop { id, index } => Some(RouteTarget::NextHop { id, link: lookup.name(index?)? }),
        RawTarget::Several | RawTarget::Other(_) => None,
    }
}

#[cfg(test)]
mod tests;
