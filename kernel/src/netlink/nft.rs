//! The nftables table `inet flan-peers`: who may send us packets of the overlay, as sets, and the rules that look there.
//!
//! It is ours alone. Every [`Source`] is an element of one of its sets, every [`Check`] a rule with the check's text as
//! its comment. `nft list table inet flan-peers` shows both.

mod expression;
mod message;

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;

pub(super) use self::message::Request;
use self::message::{Answer, Message};
use super::socket::Socket;
use super::wire::Frame;
use crate::change::{Change, Fact};
use crate::diff::Operation;
use crate::source::{Check, Source};
use crate::state::State;
use crate::{FailedOperation, KernelError};

/// The group that hears of every change of nftables (`NFNLGRP_NFTABLES`).
pub(super) const GROUP: u32 = 7;

/// Operations in one transaction: the request of each must fit into the send buffer.
const MOST_AT_ONCE: usize = 1024;

/// A kind of element, one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set {
    name: &'static str,
    ipv6: bool,
    /// Addresses in a key.
    addresses: u8,
}

const PEERS: [Set; 2] = sets("peers", "peers6", 1);
const INNER: [Set; 2] = sets("inner", "inner6", 2);
const PLAIN: [Set; 2] = sets("plain", "plain6", 1);

const fn sets(ipv4: &'static str, ipv6: &'static str, addresses: u8) -> [Set; 2] {
    [Set { name: ipv4, ipv6: false, addresses }, Set { name: ipv6, ipv6: true, addresses }]
}

impl Set {
    fn all() -> impl Iterator<Item = Self> {
        [PEERS, INNER, PLAIN].into_iter().flatten()
    }

    fn of(source: &Source) -> Self {
        let both = match source {
            Source::Peer(_) => PEERS,
            Source::Inner { .. } => INNER,
            Source::Plain(_) => PLAIN,
        };
        both[usize::from(source.is_ipv6())]
    }

    fn named(name: &[u8]) -> Option<Self> {
        Self::all().find(|set| set.name.as_bytes() == name)
    }

    /// Bytes of an address.
    fn width(self) -> usize {
        if self.ipv6 { 16 } else { 4 }
    }

    /// What an element with this key is.
    fn source(self, key: &[u8]) -> Option<Source> {
        if key.len() != self.width() * usize::from(self.addresses) {
            return None;
        }
        let (first, second) = key.split_at(self.width());
        let first = super::entry::ip(first)?;
        match self.name {
            "peers" | "peers6" => Some(Source::Peer(first)),
            "plain" | "plain6" => Some(Source::Plain(first)),
            _ => Some(Source::Inner { peer: first, subnet: super::entry::ip(second)? }),
        }
    }
}

/// The key of the element that stands for a source.
fn key(source: &Source) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    let mut push = |address: &IpAddr| match address {
        IpAddr::V4(address) => key.extend(address.octets()),
        IpAddr::V6(address) => key.extend(address.octets()),
    };
    match source {
        Source::Peer(address) | Source::Plain(address) => push(address),
        Source::Inner { peer, subnet } => {
            push(peer);
            push(subnet);
        }
    }
    key
}

/// A chain with our rules.
#[derive(Debug, Clone, Copy)]
struct Chain {
    name: &'static str,
    /// `NF_INET_*`.
    hook: u32,
    priority: i32,
}

/// Datagrams for this host, before the kernel unwraps them. Those of IPv4 are in one piece here; fragments of IPv6 are
/// joined later, unless connection tracking has joined them.
const ARRIVING: Chain = Chain { name: "arriving", hook: libc::NF_INET_LOCAL_IN as u32, priority: -10 };
/// Packets for this host or others, before anything is done with them.
const ENTERING: Chain = Chain { name: "entering", hook: libc::NF_INET_PRE_ROUTING as u32, priority: -310 };

impl Chain {
    fn of(check: &Check) -> Self {
        match check {
            Check::PlainSource(..) | Check::PlainDestination(..) => ENTERING,
            _ => ARRIVING,
        }
    }
}

/// A socket for what is asked here, in the current network namespace.
pub(super) fn socket() -> Result<Socket, KernelError> {
    Socket::open_for(NETLINK_NETFILTER)
}

/// Whether the kernel has nftables, and lets us use it.
pub(super) fn is_there() -> bool {
    let asked = socket().and_then(|mut socket| socket.one(message::generation().into(), |_| Ok(())));
    asked.inspect_err(|reason| tracing::debug!(%reason, "no nftables on this kernel")).is_ok()
}

/// Deletes the table with all that is in it. Answers whether it was there.
pub(super) fn delete_table() -> Result<bool, KernelError> {
    let mut socket = socket()?;
    match socket.transact(vec![message::delete_table()])?.into_iter().next() {
        None => Ok(true),
        Some((_, reason)) if reason.errno() == Some(libc::ENOENT) => Ok(false),
        Some((_, reason)) => Err(reason),
    }
}

/// Whether there is such a table.
pub(super) fn has_table() -> Result<bool, KernelError> {
    match socket()?.one(message::get_table().into(), |_| Ok(())) {
        Ok(()) => Ok(true),
        Err(reason) if reason.errno() == Some(libc::ENOENT) => Ok(false),
        Err(reason) => Err(reason),
    }
}

/// Reads what is in the table.
pub(super) fn read(socket: &mut Socket, state: &mut State) -> Result<(), KernelError> {
    let mut all = Vec::new();
    for set in Set::all() {
        let found = socket.dump(&message::dump_elements(set).into(), Vec::new, |found, body| {
            found.extend(message::elements(body).filter_map(|key| set.source(key)));
        });
        all.extend(if_there(found)?);
    }
    // Made of all at once, it is filled to the last place.
    all.sort_unstable();
    state.sources = all.into_iter().collect();
    for chain in [ARRIVING, ENTERING] {
        let found = socket.dump(&message::dump_rules(chain).into(), Vec::new, |found, body| {
            found.extend(message::rule(body));
        });
        state.checks.extend(if_there(found)?.into_iter().map(|rule| rule.check()));
    }
    Ok(())
}

/// Nothing, where the table, a set or a chain is not there.
fn if_there<T>(dumped: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match dumped {
        Err(reason) if reason.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        dumped => dumped,
    }
}

/// Whether an operation is one on the table.
pub(super) fn is_about(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::AddSource(_)
            | Operation::DeleteSource(_)
            | Operation::AddCheck(_)
            | Operation::DeleteCheck(_)
    )
}

/// Carries out operations, as many as can be at once, and answers those that failed.
pub(super) fn apply(operations: &[Operation]) -> Vec<FailedOperation> {
    let mut failed = Vec::new();
    let mut opened = socket();
    for chunk in operations.chunks(MOST_AT_ONCE) {
        let refused = match &mut opened {
            Ok(socket) => change(socket, chunk),
            Err(reason) => Err(reason.clone()),
        };
        let refused = refused.unwrap_or_else(|reason| {
            (0..chunk.len()).map(|number| (number, reason.clone())).collect::<Vec<_>>()
        });
        let named = |(number, reason): (usize, KernelError)| FailedOperation {
            operation: chunk[number].clone(),
            reason,
        };
        failed.extend(refused.into_iter().map(named));
    }
    failed
}

/// Carries out operations in one transaction, but for those that the kernel refuses, which are answered by number.
fn change(socket: &mut Socket, operations: &[Operation]) -> Result<Vec<(usize, KernelError)>, KernelError> {
    let mut refused = Vec::new();
    let mut left: Vec<(usize, Vec<Message>)> = Vec::with_capacity(operations.len());
    for (number, operation) in operations.iter().enumerate() {
        left.push((number, messages(socket, operation)?));
    }
    // The first time, the table may be missing.
    let mut frame: Vec<Message> = Vec::new();
    while !left.is_empty() {
        let owners = left.iter().flat_map(|(number, messages)| messages.iter().map(|_| *number));
        let owners: Vec<usize> = owners.collect();
        let all = frame.iter().chain(left.iter().flat_map(|(_, messages)| messages)).cloned().collect();
        let all: Vec<Message> = all;
        if all.is_empty() {
            break;
        }
        let refusals = socket.transact(all)?;
        if refusals.is_empty() {
            break;
        }
        let is_missing = |(_, reason): &(usize, KernelError)| reason.errno() == Some(libc::ENOENT);
        if frame.is_empty() && refusals.iter().any(is_missing) {
            frame = message::table_with_sets();
            continue;
        }
        // One refusal undoes all: the others are sent again without it.
        let before = left.len();
        for (place, reason) in refusals {
            // Something beside the operations is refused: none of them can be carried out.
            let Some(&owner) = place.checked_sub(frame.len()).and_then(|place| owners.get(place)) else {
                return Err(reason);
            };
            left.retain(|(number, _)| *number != owner);
            if !is_so_already(&operations[owner], &reason) {
                refused.push((owner, reason));
            }
        }
        if left.len() == before {
            return Err(KernelError::Message("nftables refused what was not asked".to_owned()));
        }
    }
    refused.sort_by_key(|(number, _)| *number);
    refused.dedup_by_key(|(number, _)| *number);
    Ok(refused)
}

fn is_so_already(operation: &Operation, reason: &KernelError) -> bool {
    let deletes = matches!(operation, Operation::DeleteSource(_) | Operation::DeleteCheck(_));
    deletes && reason.errno() == Some(libc::ENOENT)
}

/// What is sent for one operation.
fn messages(socket: &mut Socket, operation: &Operation) -> Result<Vec<Message>, KernelError> {
    Ok(match operation {
        Operation::AddSource(source) => vec![message::add_element(Set::of(source), &key(source))],
        Operation::DeleteSource(source) => vec![message::delete_element(Set::of(source), &key(source))],
        Operation::AddCheck(check) => match expression::rule(check) {
            Some(rule) => {
                let chain = Chain::of(check);
                vec![message::new_chain(chain), message::add_rule(chain, &check.to_string(), &rule)]
            }
            None => Vec::new(),
        },
        Operation::DeleteCheck(check) => handles(socket, check)?
            .into_iter()
            .map(|(chain, handle)| message::delete_rule(chain, handle))
            .collect(),
        _ => Vec::new(),
    })
}

/// The rules that are this check, by chain and handle.
fn handles(socket: &mut Socket, check: &Check) -> Result<Vec<(Chain, u64)>, KernelError> {
    let mut all = Vec::new();
    for chain in [ARRIVING, ENTERING] {
        let found = socket.dump(&message::dump_rules(chain).into(), Vec::new, |found, body| {
            found.extend(message::rule(body).filter(|rule| rule.check() == *check));
        });
        all.extend(if_there(found)?.into_iter().map(|rule| (chain, rule.handle)));
    }
    Ok(all)
}

/// What a notification says of our table.
pub(super) fn changes(frame: &Frame<'_>) -> Vec<Change> {
    match message::answer(frame) {
        Some(Answer::Elements { set, stand, keys }) => {
            let Some(set) = Set::named(set) else { return Vec::new() };
            let sources = keys.filter_map(|key| set.source(key));
            sources.map(|source| Change::Fact(Fact::Source(source, stand))).collect()
        }
        Some(Answer::Rule { rule, stands }) => vec![Change::Fact(Fact::Check(rule.check(), stands))],
        // What was in it went without a word.
        Some(Answer::Gone) => vec![Change::Unknown],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
