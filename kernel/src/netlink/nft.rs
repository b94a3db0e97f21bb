//! The nftables tables `ip flan-peers` and `ip6 flan-peers`: who may send us packets of the overlay, as sets, and the rules
//! that look there. In one table `inet` each rule would have to ask for the family of each packet.
//!
//! They are ours alone. Every [`Source`] is an element of one of their sets, every [`Check`] a rule with the check's text as
//! its comment. `nft list table ip flan-peers` shows both.

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

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SetKind {
    Peers,
    Inner,
    Plain,
}

/// A set, in the table of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set {
    kind: SetKind,
    ipv6: bool,
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

    /// Addresses in a key.
    fn addresses(self) -> usize {
        match self {
            Self::Peers | Self::Plain => 1,
            Self::Inner => 2,
        }
    }
}

impl Set {
    fn all() -> impl Iterator<Item = Self> {
        [false, true].into_iter().flat_map(|ipv6| SetKind::ALL.map(|kind| Self { kind, ipv6 }))
    }

    fn of(source: &Source) -> Self {
        let kind = match source {
            Source::Peer(_) => SetKind::Peers,
            Source::Inner { .. } => SetKind::Inner,
            Source::Plain(_) => SetKind::Plain,
        };
        Self { kind, ipv6: source.is_ipv6() }
    }

    /// The set in which a check looks, if it looks in one.
    fn of_check(check: &Check) -> Option<Self> {
        let kind = match check {
            Check::Shortcut { .. } | Check::Peers(_) | Check::PeersPieces(_) => SetKind::Peers,
            Check::InnerSource(..) => SetKind::Inner,
            Check::PlainSource(..) => SetKind::Plain,
            _ => return None,
        };
        Some(Self { kind, ipv6: check.is_ipv6() })
    }

    fn key_bytes(self) -> usize {
        self.kind.addresses() * if self.ipv6 { 16 } else { 4 }
    }

    /// What an element with this key is.
    fn source(self, key: &[u8]) -> Option<Source> {
        if key.len() != self.key_bytes() {
            return None;
        }
        let (first, second) = key.split_at(key.len() / self.kind.addresses());
        let first = super::entry::ip(first)?;
        Some(match self.kind {
            SetKind::Peers => Source::Peer(first),
            SetKind::Plain => Source::Plain(first),
            SetKind::Inner => Source::Inner { peer: first, subnet: super::entry::ip(second)? },
        })
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

/// Where packets are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChainKind {
    /// Datagrams for this host, before the kernel takes out what they carry. Those of IPv4 are in one piece; fragments of
    /// IPv6 are joined later, unless connection tracking has joined them.
    Arriving,
    /// Packets for this host or others, before anything is done with them.
    Entering,
}

/// A chain with our rules, in the table of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chain {
    kind: ChainKind,
    ipv6: bool,
}

impl ChainKind {
    fn name(self) -> &'static str {
        match self {
            Self::Arriving => "arriving",
            Self::Entering => "entering",
        }
    }

    /// `NF_INET_*`.
    fn hook(self) -> u32 {
        match self {
            Self::Arriving => libc::NF_INET_LOCAL_IN as u32,
            Self::Entering => libc::NF_INET_PRE_ROUTING as u32,
        }
    }

    fn priority(self) -> i32 {
        match self {
            Self::Arriving => libc::NF_IP_PRI_FILTER - 10,
            Self::Entering => libc::NF_IP_PRI_RAW - 10,
        }
    }
}

impl Chain {
    fn all() -> impl Iterator<Item = Self> {
        let kinds = [ChainKind::Arriving, ChainKind::Entering];
        [false, true].into_iter().flat_map(move |ipv6| kinds.map(|kind| Self { kind, ipv6 }))
    }

    fn of(check: &Check) -> Self {
        let kind = match check {
            Check::PlainSource(..) | Check::PlainDestination(..) => ChainKind::Entering,
            _ => ChainKind::Arriving,
        };
        Self { kind, ipv6: check.is_ipv6() }
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

/// Deletes the tables with all that is in them. Answers whether there was one.
pub(super) fn delete_tables() -> Result<bool, KernelError> {
    let mut socket = socket()?;
    let mut deleted = false;
    for ipv6 in [false, true] {
        match socket.transact(vec![message::delete_table(ipv6)])?.into_iter().next() {
            None => deleted = true,
            Some((_, reason)) if reason.errno() == Some(libc::ENOENT) => {}
            Some((_, reason)) => return Err(reason),
        }
    }
    Ok(deleted)
}

/// Whether there is such a table.
pub(super) fn has_table() -> Result<bool, KernelError> {
    let mut socket = socket()?;
    let mut is_there = |ipv6| match socket.one(message::get_table(ipv6).into(), |_| Ok(())) {
        Ok(()) => Ok(true),
        Err(reason) if reason.errno() == Some(libc::ENOENT) => Ok(false),
        Err(reason) => Err(reason),
    };
    Ok(is_there(false)? || is_there(true)?)
}

/// Reads what is in the tables.
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
    for chain in Chain::all() {
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

/// Whether an operation is one on the tables.
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
    // The first time, what they stand in may be missing.
    let mut frame: Vec<Message> = Vec::new();
    let mut is_anew = false;
    while !left.is_empty() {
        let owners = left.iter().flat_map(|(number, messages)| messages.iter().map(|_| *number));
        let owners: Vec<usize> = owners.collect();
        let all = frame.iter().chain(left.iter().flat_map(|(_, messages)| messages)).cloned();
        let all: Vec<Message> = all.collect();
        if all.is_empty() {
            break;
        }
        let refusals = socket.transact(all)?;
        if refusals.is_empty() {
            break;
        }
        let is_missing = |(_, reason): &(usize, KernelError)| reason.errno() == Some(libc::ENOENT);
        if frame.is_empty() && refusals.iter().any(is_missing) {
            frame = what_holds(operations);
            continue;
        }
        // Somebody else's, under the name that is ours alone.
        let is_another = |(_, reason): &(usize, KernelError)| {
            matches!(reason.errno(), Some(libc::EEXIST | libc::EINVAL | libc::EOPNOTSUPP))
        };
        if !is_anew && refusals.iter().any(is_another) {
            tracing::warn!("the nftables table flan-peers is not as we make it; it is made anew");
            is_anew = true;
            delete_tables()?;
            frame = what_holds(operations);
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

/// What makes the tables and sets that operations need, wherever they are not there.
fn what_holds(operations: &[Operation]) -> Vec<Message> {
    let mut sets: Vec<Set> = Vec::new();
    for operation in operations {
        let set = match operation {
            Operation::AddSource(source) => Some(Set::of(source)),
            Operation::AddCheck(check) => Set::of_check(check),
            _ => None,
        };
        sets.extend(set.filter(|set| !sets.contains(set)));
    }
    let families = [false, true].into_iter().filter(|ipv6| {
        operations.iter().any(|operation| match operation {
            Operation::AddSource(source) => source.is_ipv6() == *ipv6,
            Operation::AddCheck(check) => check.is_ipv6() == *ipv6,
            _ => false,
        })
    });
    families.map(message::new_table).chain(sets.into_iter().zip(1..).map(message::new_set)).collect()
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
                let first = matches!(check, Check::Shortcut { .. });
                let rule = message::add_rule(chain, first, &check.to_string(), &rule);
                vec![message::new_chain(chain), rule]
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
    for chain in Chain::all() {
        let found = socket.dump(&message::dump_rules(chain).into(), Vec::new, |found, body| {
            found.extend(message::rule(body).filter(|rule| rule.check() == *check));
        });
        all.extend(if_there(found)?.into_iter().map(|rule| (chain, rule.handle)));
    }
    Ok(all)
}

/// What a notification says of our tables.
pub(super) fn changes(frame: &Frame<'_>) -> Vec<Change> {
    match message::answer(frame) {
        Some(Answer::Elements { set, stand, keys }) => {
            let sources = keys.filter_map(|key| set.source(key));
            sources.map(|source| Change::Fact(Fact::Source(source, stand))).collect()
        }
        Some(Answer::Rule { rule, stands }) => vec![Change::Fact(Fact::Check(rule.check(), stands))],
        Some(Answer::Gone) => vec![Change::SendersGone],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
