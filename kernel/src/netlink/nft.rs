//! The nftables tables `ip flan-peers` and `ip6 flan-peers`: sets of allowed senders, and the rules that use them. In a
//! single `inet` table each rule would have to test the family of each packet.
//!
//! Only we use them. Every [`Source`](crate::Source) is an element of a set, and every [`Check`](crate::Check) a rule
//! with the check's text as its comment. `nft list table ip flan-peers` shows both.

mod expression;
mod message;

use netlink_packet_core::NLM_F_ACK;
use netlink_sys::protocols::NETLINK_NETFILTER;

pub(crate) use self::expression::rule as expressions;
#[cfg(test)]
pub(crate) use self::message::delete_table;
pub(crate) use self::message::{
    Answer, Rule, TYPES, add_element, add_rule, answer, delete_element, delete_rule, new_chain,
};
use super::message::Request;
use super::raw::RawRequest;
use super::socket::{Socket, breaks_socket, message_error};
use super::wire::{self, Frames};
use crate::KernelError;

/// The multicast group for all nftables changes (`NFNLGRP_NFTABLES`).
pub(super) const GROUP: u32 = 7;

/// Most operations in one transaction: it must fit into the send buffer.
const MOST_AT_ONCE: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetKind {
    Peers,
    Inner,
    Plain,
}

/// A set in the table of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) kind: SetKind,
    pub(crate) ipv6: bool,
}

impl SetKind {
    const ALL: [Self; 3] = [Self::Peers, Self::Inner, Self::Plain];

    fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Inner => "inner",
            Self::Plain => "plain",
        }
    }

    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    pub(crate) fn addresses(self) -> usize {
        match self {
            Self::Peers | Self::Plain => 1,
            Self::Inner => 2,
        }
    }
}

impl Set {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [false, true].into_iter().flat_map(|ipv6| SetKind::ALL.map(|kind| Self { kind, ipv6 }))
    }

    pub(crate) fn key_bytes(self) -> usize {
        self.kind.addresses() * if self.ipv6 { 16 } else { 4 }
    }
}

/// Where packets are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainKind {
    /// Datagrams for this host, before decapsulation. IPv4 is reassembled; IPv6 fragments are reassembled later, unless
    /// connection tracking has done so.
    Arriving,
    /// Packets for this host that need no datagram, before a rule of [`Arriving`](Self::Arriving) lets peers through.
    Bare,
    /// Packets for this host or others, before anything else happens to them.
    Entering,
}

/// A chain with our rules, in the table of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) kind: ChainKind,
    pub(crate) ipv6: bool,
}

impl ChainKind {
    fn name(self) -> &'static str {
        match self {
            Self::Arriving => "arriving",
            Self::Bare => "bare",
            Self::Entering => "entering",
        }
    }

    /// Returns the hook (`NF_INET_*`).
    fn hook(self) -> u32 {
        match self {
            Self::Arriving | Self::Bare => libc::NF_INET_LOCAL_IN as u32,
            Self::Entering => libc::NF_INET_PRE_ROUTING as u32,
        }
    }

    fn priority(self) -> i32 {
        match self {
            Self::Bare => libc::NF_IP_PRI_FILTER - 11,
            Self::Arriving => libc::NF_IP_PRI_FILTER - 10,
            Self::Entering => libc::NF_IP_PRI_RAW - 10,
        }
    }
}

impl Chain {
    fn all() -> impl Iterator<Item = Self> {
        let kinds = [ChainKind::Arriving, ChainKind::Bare, ChainKind::Entering];
        [false, true].into_iter().flat_map(move |ipv6| kinds.map(|kind| Self { kind, ipv6 }))
    }
}

/// Opens a socket for nftables in the current network namespace.
pub(super) fn socket() -> Result<Socket, KernelError> {
    Socket::open_for(NETLINK_NETFILTER)
}

/// Returns whether the kernel has nftables and we may use it.
pub(super) fn is_there() -> bool {
    let asked = socket().and_then(|mut socket| socket.one(Request::Raw(message::generation()), |_| Ok(())));
    asked.inspect_err(|reason| tracing::debug!(%reason, "no nftables on this kernel")).is_ok()
}

/// Deletes the tables with their contents. Returns whether one existed.
pub(super) fn delete_tables() -> Result<bool, KernelError> {
    let mut socket = socket()?;
    let mut deleted = false;
    for ipv6 in [false, true] {
        match transact(&mut socket, vec![message::delete_table(ipv6)])?.into_iter().next() {
            None => deleted = true,
            Some((_, reason)) if reason.errno() == Some(libc::ENOENT) => {}
            Some((_, reason)) => return Err(reason),
        }
    }
    Ok(deleted)
}

/// Returns whether one of the tables exists.
pub(super) fn has_table() -> Result<bool, KernelError> {
    let mut socket = socket()?;
    let mut is_there = |ipv6| match socket.one(Request::Raw(message::get_table(ipv6)), |_| Ok(())) {
        Ok(()) => Ok(true),
        Err(reason) if reason.errno() == Some(libc::ENOENT) => Ok(false),
        Err(reason) => Err(reason),
    };
    Ok(is_there(false)? || is_there(true)?)
}

/// Returns the elements of a set, with keys decoded by `read`.
pub(crate) fn elements<T>(
    socket: &mut Socket,
    set: Set,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, KernelError> {
    let found = socket.dump(&Request::Raw(message::dump_elements(set)), Vec::new, |found, body| {
        found.extend(message::elements(body).filter_map(&read));
    });
    if_there(found)
}

/// Returns all rules, each with its chain and handle.
pub(crate) fn rules(socket: &mut Socket) -> Result<Vec<(Chain, Rule)>, KernelError> {
    let mut all = Vec::new();
    for chain in Chain::all() {
        let found = socket.dump(&Request::Raw(message::dump_rules(chain)), Vec::new, |found, body| {
            found.extend(message::rule(body));
        });
        all.extend(if_there(found)?.into_iter().map(|rule| (chain, rule)));
    }
    Ok(all)
}

/// Treats a missing table, set or chain as empty.
fn if_there<T>(dumped: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match dumped {
        Err(reason) if reason.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        dumped => dumped,
    }
}

/// The changes for one operation, and what they require.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) changes: Vec<RawRequest>,
    /// Whether they delete something.
    pub(crate) is_deletion: bool,
    /// Whether they add a rule, which drops packets from everybody outside its set.
    pub(crate) is_rule: bool,
    /// The family of the table that they require.
    pub(crate) ipv6: Option<bool>,
    /// The set that they require.
    pub(crate) set: Option<Set>,
}

/// Carries out operations, as many at once as possible, and returns failures by number. `part` encodes each.
///
/// The socket stays open: closing one makes the kernel wait until everything deleted is really gone, 10 ms and more
/// (`nft_rcv_nl_event` in `net/netfilter/nf_tables_api.c`).
pub(super) fn apply(
    kept: &mut Option<Socket>,
    count: usize,
    part: impl Fn(usize, &mut Socket) -> Result<Part, KernelError>,
) -> Vec<(usize, KernelError)> {
    let mut failed = Vec::new();
    for first in (0..count).step_by(MOST_AT_ONCE) {
        let numbers = first..count.min(first + MOST_AT_ONCE);
        let opened = kept.take().map_or_else(socket, Ok);
        let refused = opened.and_then(|opened| {
            let socket = kept.insert(opened);
            let parts: Result<Vec<Part>, _> = numbers.clone().map(|number| part(number, socket)).collect();
            change(socket, &parts?)
        });
        match refused {
            Ok(refused) => {
                failed.extend(refused.into_iter().map(|(number, reason)| (first + number, reason)));
            }
            Err(reason) => {
                if breaks_socket(&reason) {
                    *kept = None;
                }
                failed.extend(numbers.map(|number| (number, reason.clone())));
            }
        }
    }
    failed
}

/// Carries out operations in one transaction, except those that the kernel refuses, which it returns by number.
fn change(socket: &mut Socket, parts: &[Part]) -> Result<Vec<(usize, KernelError)>, KernelError> {
    let mut refused = Vec::new();
    let mut left: Vec<usize> = (0..parts.len()).collect();
    // The first time, tables and sets may be missing.
    let mut frame: Vec<RawRequest> = Vec::new();
    let mut is_anew = false;
    while !left.is_empty() {
        let owners: Vec<usize> =
            left.iter().flat_map(|&number| parts[number].changes.iter().map(move |_| number)).collect();
        let changes = left.iter().flat_map(|&number| &parts[number].changes);
        let all: Vec<RawRequest> = frame.iter().chain(changes).cloned().collect();
        if all.is_empty() {
            break;
        }
        let refusals = transact(socket, all)?;
        if refusals.is_empty() {
            break;
        }
        let is_missing = |(_, reason): &(usize, KernelError)| reason.errno() == Some(libc::ENOENT);
        // Deletions alone need no table or set; where these are missing, there is nothing to delete.
        if frame.is_empty() && refusals.iter().any(is_missing) && !what_holds(parts).is_empty() {
            frame = what_holds(parts);
            continue;
        }
        // Somebody else uses the name that is reserved for us.
        let is_another = |(_, reason): &(usize, KernelError)| {
            matches!(reason.errno(), Some(libc::EEXIST | libc::EINVAL | libc::EOPNOTSUPP))
        };
        if !is_anew && refusals.iter().any(is_another) {
            tracing::warn!("the nftables table flan-peers is not as we make it; recreating it");
            is_anew = true;
            let reason = refusals.into_iter().next().map(|(_, reason)| reason);
            delete_tables()?;
            // All senders disappeared with the table, and they must be restored before the rules.
            if let Some(reason) = reason.filter(|_| parts.iter().any(|part| part.is_rule)) {
                return Err(reason);
            }
            frame = what_holds(parts);
            continue;
        }
        // One refusal reverts everything: send the others again without it.
        let before = left.len();
        for (place, reason) in refusals {
            // Something other than an operation was refused, so none of them can be carried out.
            let Some(&owner) = place.checked_sub(frame.len()).and_then(|place| owners.get(place)) else {
                return Err(reason);
            };
            left.retain(|number| *number != owner);
            if !(parts[owner].is_deletion && reason.errno() == Some(libc::ENOENT)) {
                refused.push((owner, reason));
            }
        }
        if left.len() == before {
            return Err(KernelError::Message("nftables refused a message that we did not send".to_owned()));
        }
    }
    refused.sort_by_key(|(number, _)| *number);
    refused.dedup_by_key(|(number, _)| *number);
    Ok(refused)
}

/// Returns the requests that create the tables and sets that operations need, if missing.
fn what_holds(parts: &[Part]) -> Vec<RawRequest> {
    let mut sets: Vec<Set> = Vec::new();
    for set in parts.iter().filter_map(|part| part.set) {
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    let families = [false, true].into_iter().filter(|ipv6| parts.iter().any(|part| part.ipv6 == Some(*ipv6)));
    families.map(message::new_table).chain(sets.into_iter().zip(1..).map(message::new_set)).collect()
}

/// Sends changes as one transaction. Returns which were refused, by position; then none has taken effect.
fn transact(socket: &mut Socket, changes: Vec<RawRequest>) -> Result<Vec<(usize, KernelError)>, KernelError> {
    let count = changes.len() as u32;
    let begin = socket.take_numbers(count + 2);
    let mut bytes = Vec::with_capacity(changes.iter().map(RawRequest::bytes).sum::<usize>() + 64);
    message::bracket(true).emit(begin, &mut bytes);
    for (change, number) in changes.into_iter().zip(1..) {
        // The kernel answers each failure, and always the last change.
        let flags = if number == count { NLM_F_ACK } else { 0 };
        change.with_flags(flags).emit(begin.wrapping_add(number), &mut bytes);
    }
    message::bracket(false).emit(begin.wrapping_add(count + 1), &mut bytes);
    socket.send(&bytes)?;
    let mut refusals = Vec::new();
    loop {
        for frame in Frames(socket.receive()?) {
            let frame = frame.map_err(message_error)?;
            let number = frame.sequence.wrapping_sub(begin);
            if frame.kind != wire::ERROR || number > count {
                continue;
            }
            match (number.checked_sub(1), wire::refusal(&frame).map_err(message_error)?) {
                (Some(place), Some(refusal)) => refusals.push((place as usize, refusal.into())),
                // The transaction as a whole.
                (None, Some(refusal)) => return Err(refusal.into()),
                (_, None) => {}
            }
            if number == count {
                return Ok(refusals);
            }
        }
    }
}

#[cfg(test)]
mod tests;
