//! A witness of every change in a namespace's kernel, with the moment of each: an rtnetlink socket that only listens.
//! [`crate::monitor`] tells in words; this one costs little enough to be asked for times. See rtnetlink(7).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ipnetwork::IpNetwork;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::netns::Netns;
use crate::wait;

/// Bytes that the kernel may queue for the witness: hundreds of thousands of notifications.
const QUEUE: usize = 256 << 20;

/// Bytes of one notification at most.
const LARGEST: usize = 32 << 10;

/// How long the thread may outlive its owner.
const PAUSE: Duration = Duration::from_millis(100);

/// Notifications handed over at once.
const BATCH: usize = 256;

/// RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE and NEXTHOP.
const GROUPS: [u32; 7] = [1, 3, 5, 7, 9, 11, 32];

/// A 48-bit link-layer address.
pub type Mac = [u8; 6];

/// Something that the kernel holds, as far as one is told from another here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Object {
    /// A device.
    Link {
        /// Of the device.
        index: u32,
    },
    /// An address of a device.
    Address {
        /// Of the device.
        index: u32,
        /// The address.
        address: Option<IpAddr>,
    },
    /// A neighbour on a device.
    Neighbour {
        /// Of the device.
        index: u32,
        /// Its address.
        address: Option<IpAddr>,
        /// Its link-layer address.
        mac: Option<Mac>,
    },
    /// An entry of a device's forwarding table.
    Fdb {
        /// Of the device.
        index: u32,
        /// Which destination it is for.
        mac: Option<Mac>,
        /// The underlay address that it sends to.
        to: Option<IpAddr>,
    },
    /// A route.
    Route {
        /// Of the device that it leads into, where the route names one.
        index: Option<u32>,
        /// Which packets it is for.
        destination: IpNetwork,
    },
    /// A nexthop object.
    NextHop {
        /// Its id.
        id: u32,
    },
}

/// What the kernel has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelChange {
    /// When it was told.
    pub at: Instant,
    /// The object is no more; else it is new or has another form.
    pub gone: bool,
    /// What has changed.
    pub object: Object,
}

/// A place among the changes, to look at those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(usize);

/// Records changes from its start until it is dropped.
#[derive(Debug)]
pub struct Witness {
    record: Arc<Record>,
}

#[derive(Debug, Default)]
struct Record {
    seen: Mutex<Seen>,
    more: Condvar,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    changes: Vec<KernelChange>,
    /// Why the record is not complete.
    trouble: Option<String>,
}

impl Witness {
    /// Starts recording in this namespace; on return nothing is missed any more.
    pub fn start(netns: &Netns) -> Result<Witness> {
        let record = Arc::new(Record::default());
        let (netns, for_thread) = (netns.clone(), Arc::clone(&record));
        let (tell, told) = mpsc::channel();
        thread::spawn(move || match listen(&netns) {
            Ok(socket) => {
                let _ = tell.send(Ok(()));
                keep_record(&socket, &for_thread);
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        });
        told.recv().context("the witness's thread has ended")??;
        Ok(Witness { record })
    }

    /// The place after all changes that were told so far.
    pub fn mark(&self) -> Mark {
        Mark(self.seen().changes.len())
    }

    /// The changes after `mark`. An error if the kernel could not tell all.
    pub fn since(&self, mark: Mark) -> Result<Vec<KernelChange>> {
        let seen = self.seen();
        seen.complete()?;
        Ok(seen.changes[mark.0..].to_vec())
    }

    /// Waits for a change after `mark` of which `is_meant` is true, and returns when it was told. `is_meant` is asked
    /// once about each change, in their order, so it may count.
    pub fn wait_for(
        &self,
        what: &str,
        mark: Mark,
        limit: Duration,
        mut is_meant: impl FnMut(&KernelChange) -> bool,
    ) -> Result<Instant> {
        let started = Instant::now();
        let mut next = mark.0;
        loop {
            let seen = self.seen();
            let seen = if seen.changes.len() == next && seen.trouble.is_none() {
                let waited = self.record.more.wait_timeout(seen, PAUSE);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                seen
            };
            let fresh = seen.changes[next..].to_vec();
            let complete = seen.complete();
            drop(seen);
            next += fresh.len();
            if let Some(change) = fresh.iter().find(|change| is_meant(change)) {
                return Ok(change.at);
            }
            complete?;
            wait::ensure_not_interrupted()?;
            ensure!(
                started.elapsed() < limit,
                "waited {limit:?} for {what}; of {} changes none was it",
                next - mark.0
            );
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.record.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.record.ended.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn complete(&self) -> Result<()> {
        match &self.trouble {
            None => Ok(()),
            Some(trouble) => Err(anyhow!("the witness has not seen everything: {trouble}")),
        }
    }
}

impl Object {
    /// The device that it belongs to, where it belongs to one.
    pub fn index(&self) -> Option<u32> {
        match *self {
            Object::Link { index }
            | Object::Address { index, .. }
            | Object::Neighbour { index, .. }
            | Object::Fdb { index, .. } => Some(index),
            Object::Route { index, .. } => index,
            Object::NextHop { .. } => None,
        }
    }
}

/// How many of them there are of each kind, for messages: `3 routes, 1 neighbour`.
pub fn summary(changes: &[KernelChange]) -> String {
    let count = |kind: &str, is_kind: fn(&Object) -> bool| {
        let of_kind: Vec<_> = changes.iter().filter(|change| is_kind(&change.object)).collect();
        let objects: HashSet<_> = of_kind.iter().map(|change| change.object).collect();
        (!of_kind.is_empty()).then(|| format!("{} of {} {kind}", of_kind.len(), objects.len()))
    };
    let counts = [
        count("links", |object| matches!(object, Object::Link { .. })),
        count("addresses", |object| matches!(object, Object::Address { .. })),
        count("neighbours", |object| matches!(object, Object::Neighbour { .. })),
        count("FDB entries", |object| matches!(object, Object::Fdb { .. })),
        count("routes", |object| matches!(object, Object::Route { .. })),
        count("next hops", |object| matches!(object, Object::NextHop { .. })),
    ];
    let counts: Vec<_> = counts.into_iter().flatten().collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

/// A socket in the namespace, which the calling thread enters for good.
fn listen(netns: &Netns) -> Result<OwnedFd> {
    netns.enter()?;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .context("cannot open a netlink socket")?;
    set_socket_recv_buffer_size_force(&socket, QUEUE).context("cannot enlarge the socket's queue")?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PAUSE))?;
    let groups = GROUPS.iter().fold(0, |bits, group| bits | 1 << (group - 1));
    bind(&socket, &SocketAddrNetlink::new(0, groups)).context("cannot subscribe to rtnetlink's groups")?;
    Ok(socket)
}

/// Until the owner is gone, or the socket fails.
fn keep_record(socket: &OwnedFd, record: &Record) {
    let mut buffer = vec![0; LARGEST];
    let mut batch = Vec::with_capacity(BATCH);
    while !record.ended.load(Ordering::Relaxed) {
        let mut trouble = None;
        // The first one is waited for; those that are there already come with it.
        let mut flags = RecvFlags::empty();
        while batch.len() < BATCH {
            match recv(socket, &mut buffer[..], flags) {
                Ok((length, _)) => collect(&buffer[..length], Instant::now(), &mut batch),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => {
                    trouble = Some(error.to_string());
                    break;
                }
            }
            flags = RecvFlags::DONTWAIT;
        }
        if batch.is_empty() && trouble.is_none() {
            continue;
        }
        let mut seen = record.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.changes.append(&mut batch);
        let failed = trouble.is_some();
        seen.trouble = seen.trouble.take().or(trouble);
        drop(seen);
        record.more.notify_all();
        if failed {
            return;
        }
    }
}

/// The changes that a datagram tells of. What is none of the objects here is left out.
fn collect(mut datagram: &[u8], at: Instant, changes: &mut Vec<KernelChange>) {
    const HEADER: usize = 16;
    while let (Some(length), Some(kind)) = (u32_at(datagram, 0), u16_at(datagram, 4)) {
        let length = length as usize;
        let Some(body) = datagram.get(HEADER..length) else { return };
        if let Some((gone, object)) = object(kind, body) {
            changes.push(KernelChange { at, gone, object });
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// From a message's type (linux/rtnetlink.h) and body: whether the object is gone, and which it is.
fn object(kind: u16, body: &[u8]) -> Option<(bool, Object)> {
    const AF_BRIDGE: u8 = 7;
    let family = *body.first()?;
    let object = match kind {
        16 | 17 => Object::Link { index: u32_at(body, 4)? },
        20 | 21 => Object::Address {
            index: u32_at(body, 4)?,
            // IFA_ADDRESS
            address: attribute(body, 8, 1).and_then(address),
        },
        28 | 29 => {
            // NDA_DST and NDA_LLADDR
            let (to, mac) = (attribute(body, 12, 1).and_then(address), attribute(body, 12, 2));
            let (index, mac) = (u32_at(body, 4)?, mac.and_then(|mac| mac.try_into().ok()));
            if family == AF_BRIDGE {
                Object::Fdb { index, mac, to }
            } else {
                Object::Neighbour { index, address: to, mac }
            }
        }
        24 | 25 => {
            let any = if family == 2 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            // RTA_DST and RTA_OIF
            let base = attribute(body, 12, 1).and_then(address).unwrap_or(any);
            Object::Route {
                index: attribute(body, 12, 4).and_then(|index| u32_at(index, 0)),
                destination: IpNetwork::new(base, *body.get(1)?).ok()?,
            }
        }
        // NHA_ID
        104 | 105 => Object::NextHop { id: u32_at(attribute(body, 8, 1)?, 0)? },
        _ => return None,
    };
    Some((kind % 2 == 1, object))
}

/// The value of an attribute behind a fixed part of `skip` bytes.
fn attribute(body: &[u8], skip: usize, wanted: u16) -> Option<&[u8]> {
    // The two highest bits are flags: nested, in network order.
    const TYPE: u16 = 0x3fff;
    let mut rest = body.get(skip..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let value = rest.get(4..length)?;
        if kind & TYPE == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = fixed.to_vec();
        for (number, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap();
            body.extend(length.to_ne_bytes().into_iter().chain(number.to_ne_bytes()));
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut message = [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &[0; 10]].concat();
        message.extend(body);
        message
    }

    fn objects(datagram: &[u8]) -> Vec<(bool, Object)> {
        let mut changes = Vec::new();
        collect(datagram, Instant::now(), &mut changes);
        changes.into_iter().map(|change| (change.gone, change.object)).collect()
    }

    #[test]
    fn a_route_is_told_by_its_destination_and_device() {
        let route = message(
            24,
            &[2, 24, 0, 0, 254, 102, 0, 1, 0, 0, 0, 0],
            &[(15, &254u32.to_ne_bytes()), (1, &[10, 5, 3, 0]), (4, &7u32.to_ne_bytes())],
        );
        let destination = "10.5.3.0/24".parse().unwrap();
        assert_eq!(objects(&route), [(false, Object::Route { index: Some(7), destination })]);
    }

    #[test]
    fn several_messages_of_one_datagram_are_told_in_order() {
        let mac = [2, 0, 0, 0, 0, 9];
        let fixed =
            |family: u8| [&[family, 0, 0, 0], 7u32.to_ne_bytes().as_slice(), &[0x80, 0, 0, 0]].concat();
        let neighbour = message(28, &fixed(2), &[(1, &[10, 5, 3, 0]), (2, &mac)]);
        let fdb = message(29, &fixed(7), &[(2, &mac), (1, &[192, 168, 64, 12])]);
        let next_hop = message(105, &[2, 0, 102, 0, 0, 0, 0, 0], &[(1, &0x0a05_0300u32.to_ne_bytes())]);
        let (address, to) = ("10.5.3.0".parse().ok(), "192.168.64.12".parse().ok());
        assert_eq!(
            objects(&[neighbour, fdb, next_hop].concat()),
            [
                (false, Object::Neighbour { index: 7, address, mac: Some(mac) }),
                (true, Object::Fdb { index: 7, mac: Some(mac), to }),
                (true, Object::NextHop { id: 0x0a05_0300 }),
            ]
        );
    }

    #[test]
    fn what_is_cut_off_or_unknown_tells_nothing() {
        let rule = message(32, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
        assert_eq!(objects(&rule), []);
        let route = message(24, &[2, 24, 0, 0, 254, 102, 0, 1, 0, 0, 0, 0], &[(1, &[10, 5, 3, 0])]);
        assert_eq!(objects(&route[..route.len() - 1]), []);
        assert_eq!(objects(&[]), []);
    }
}
