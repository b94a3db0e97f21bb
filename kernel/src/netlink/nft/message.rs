//! Messages about nftables (`linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`).

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};

use super::{Chain, Set, SetKind};
use crate::netlink::raw::{RawRequest, attribute};
use crate::netlink::wire::{Attributes, Frame};
use crate::source::Check;

const TABLE: &str = "flan-peers";

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// Most elements of a set. This reserves 1 MiB of kernel memory from the start.
const MOST_ELEMENTS: u32 = 65_536;

/// Bytes of a `struct nfgenmsg`.
const FIXED_BYTES: usize = 4;

const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const DELETE_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;
const DELETE_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const DELETE_SET: u8 = 11;
const NEW_ELEMENT: u8 = 12;
const GET_ELEMENT: u8 = 13;
const DELETE_ELEMENT: u8 = 14;
const GET_GENERATION: u8 = 16;

/// The first attribute of every message is the table.
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_NUMBER: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DESCRIPTION: u16 = 9;
const NFTA_SET_SIZE: u16 = 1;
const NFTA_SET_ID: u16 = 10;
const NFTA_ELEMENTS_SET: u16 = 2;
const NFTA_ELEMENTS: u16 = 3;
const NFTA_ELEMENT_KEY: u16 = 1;
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_DATA_VALUE: u16 = 1;

/// `NFTNL_UDATA_RULE_COMMENT`: the type of a comment in libnftnl's user data.
const COMMENT: u8 = 0;

fn request(kind: u8, ipv6: bool, flags: u16, write: impl FnOnce(&mut Writer)) -> RawRequest {
    let mut writer = Writer(vec![family(ipv6), 0, 0, 0]);
    write(&mut writer);
    RawRequest { kind: message_type(kind), flags: NLM_F_REQUEST | flags, body: writer.0 }
}

/// Returns the `nlmsg_type` of a message about nftables.
const fn message_type(kind: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, kind])
}

/// Returns the message that begins or ends a transaction.
pub(in crate::netlink) fn bracket(begin: bool) -> RawRequest {
    /// `NFNL_MSG_BATCH_BEGIN`.
    const BEGIN: u16 = 0x10;
    let kind = if begin { BEGIN } else { BEGIN + 1 };
    RawRequest { kind, flags: NLM_F_REQUEST, body: vec![0, 0, 0, SUBSYSTEM] }
}

/// Writes attributes. nftables uses network order for numbers.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        attribute(&mut self.0, kind, value);
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(kind | libc::NLA_F_NESTED as u16, &inner.0);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Writes a value to compare with, or to look up.
    pub(super) fn data(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |data| data.bytes(NFTA_DATA_VALUE, value));
    }
}

/// Requests the generation id, to see whether nftables answers at all.
pub(super) fn generation() -> RawRequest {
    request(GET_GENERATION, false, 0, |_| {})
}

pub(super) fn get_table(ipv6: bool) -> RawRequest {
    request(GET_TABLE, ipv6, 0, |table| table.text(NFTA_TABLE, TABLE))
}

pub(crate) fn delete_table(ipv6: bool) -> RawRequest {
    request(DELETE_TABLE, ipv6, 0, |table| table.text(NFTA_TABLE, TABLE))
}

/// Creates the table of a family, if missing.
pub(super) fn new_table(ipv6: bool) -> RawRequest {
    request(NEW_TABLE, ipv6, NLM_F_CREATE, |table| table.text(NFTA_TABLE, TABLE))
}

/// Creates a set, if missing. Given its size in advance, the kernel chooses the faster of its hash tables.
pub(super) fn new_set((set, id): (Set, u32)) -> RawRequest {
    // How `nft` shows it: `ipv4_addr`, `ipv6_addr`, or a concatenation.
    const TYPE_BITS: u32 = 6;
    let address = if set.ipv6 { 8 } else { 7 };
    let shown = (1..set.kind.addresses()).fold(address, |shown, _| (shown << TYPE_BITS) | address);
    request(NEW_SET, set.ipv6, NLM_F_CREATE, |writer| {
        writer.text(NFTA_TABLE, TABLE);
        writer.text(NFTA_SET_NAME, set.kind.name());
        writer.number(NFTA_SET_KEY_TYPE, shown);
        writer.number(NFTA_SET_KEY_LEN, set.key_bytes() as u32);
        writer.nested(NFTA_SET_DESCRIPTION, |description| description.number(NFTA_SET_SIZE, MOST_ELEMENTS));
        // Unique within the transaction; nothing refers to it.
        writer.number(NFTA_SET_ID, id);
    })
}

/// Creates a chain, if missing.
pub(crate) fn new_chain(chain: Chain) -> RawRequest {
    request(NEW_CHAIN, chain.ipv6, NLM_F_CREATE, |writer| {
        writer.text(NFTA_TABLE, TABLE);
        writer.text(NFTA_CHAIN_NAME, chain.kind.name());
        writer.nested(NFTA_CHAIN_HOOK, |hook| {
            hook.number(NFTA_HOOK_NUMBER, chain.kind.hook());
            hook.number(NFTA_HOOK_PRIORITY, chain.kind.priority().cast_unsigned());
        });
        writer.text(NFTA_CHAIN_TYPE, "filter");
    })
}

pub(crate) fn add_element(set: Set, key: &[u8]) -> RawRequest {
    element(NEW_ELEMENT, NLM_F_CREATE, set, key)
}

pub(crate) fn delete_element(set: Set, key: &[u8]) -> RawRequest {
    element(DELETE_ELEMENT, 0, set, key)
}

fn element(kind: u8, flags: u16, set: Set, key: &[u8]) -> RawRequest {
    request(kind, set.ipv6, flags, |writer| {
        writer.text(NFTA_TABLE, TABLE);
        writer.text(NFTA_ELEMENTS_SET, set.kind.name());
        writer.nested(NFTA_ELEMENTS, |list| {
            list.nested(NFTA_LIST_ELEM, |element| element.data(NFTA_ELEMENT_KEY, key));
        });
    })
}

pub(super) fn dump_elements(set: Set) -> RawRequest {
    request(GET_ELEMENT, set.ipv6, NLM_F_DUMP, |writer| {
        writer.text(NFTA_TABLE, TABLE);
        writer.text(NFTA_ELEMENTS_SET, set.kind.name());
    })
}

/// Adds a rule with its comment, before or after all others.
pub(crate) fn add_rule(chain: Chain, first: bool, comment: &str, expressions: &[u8]) -> RawRequest {
    let place = if first { 0 } else { NLM_F_APPEND };
    request(NEW_RULE, chain.ipv6, NLM_F_CREATE | place, |writer| {
        writer.text(NFTA_TABLE, TABLE);
        writer.text(NFTA_RULE_CHAIN, chain.kind.name());
        writer.bytes(NFTA_RULE_EXPRESSIONS | libc::NLA_F_NESTED as u16, expressions);
        let text = [comment.as_bytes(), &[0]].concat();
        writer.bytes(NFTA_RULE_USERDATA, &[&[COMMENT, text.len() as u8], text.as_slice()].concat());
    })
}

pub(crate) fn delete_rule(chain: Chain, handle: u64) -> RawRequest {
    request(DELETE_RULE, chain.ipv6, 0, |writer| {
        writer.text(NFTA_TABLE, TABLE);
        writer.text(NFTA_RULE_CHAIN, chain.kind.name());
        writer.bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes());
    })
}

pub(super) fn dump_rules(chain: Chain) -> RawRequest {
    request(GET_RULE, chain.ipv6, NLM_F_DUMP, |writer| {
        writer.text(NFTA_TABLE, TABLE);
        writer.text(NFTA_RULE_CHAIN, chain.kind.name());
    })
}

/// A rule as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) handle: u64,
    comment: Option<String>,
}

impl Rule {
    /// Returns the check in its comment.
    pub(crate) fn check(&self) -> Check {
        let check = self.comment.as_ref().and_then(|comment| comment.parse().ok());
        check.unwrap_or(Check::Unknown(self.handle))
    }
}

/// A notification about our tables.
pub(crate) enum Answer<K> {
    /// Elements were added or deleted.
    Elements { set: Set, stand: bool, keys: K },
    /// A rule was added or deleted.
    Rule { rule: Rule, stands: bool },
    /// The table, or a part of it, was deleted.
    Gone,
}

/// `nlmsg_type` of the messages that [`answer`] understands.
pub(crate) const TYPES: &[u16] = &[
    message_type(NEW_ELEMENT),
    message_type(DELETE_ELEMENT),
    message_type(NEW_RULE),
    message_type(DELETE_RULE),
    message_type(DELETE_TABLE),
    message_type(DELETE_CHAIN),
    message_type(DELETE_SET),
];

/// Reads a notification. `None` if it is about something else.
pub(crate) fn answer<'a>(frame: &Frame<'a>) -> Option<Answer<impl Iterator<Item = &'a [u8]> + use<'a>>> {
    let [SUBSYSTEM, kind] = frame.kind.to_be_bytes() else { return None };
    if !is_ours(frame.body) {
        return None;
    }
    match kind {
        NEW_ELEMENT | DELETE_ELEMENT => Some(Answer::Elements {
            set: Set {
                kind: SetKind::named(name(frame.body, NFTA_ELEMENTS_SET)?)?,
                ipv6: is_ipv6(frame.body)?,
            },
            stand: kind == NEW_ELEMENT,
            keys: elements(frame.body),
        }),
        NEW_RULE | DELETE_RULE => {
            rule(frame.body).map(|rule| Answer::Rule { rule, stands: kind == NEW_RULE })
        }
        DELETE_TABLE | DELETE_CHAIN | DELETE_SET => Some(Answer::Gone),
        _ => None,
    }
}

/// Returns the keys in a message about elements.
pub(super) fn elements(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let list = attributes(body).find(NFTA_ELEMENTS).unwrap_or_default();
    Attributes(list).filter_map(|(_, element)| {
        let key = Attributes(element).find(NFTA_ELEMENT_KEY)?;
        Attributes(key).find(NFTA_DATA_VALUE)
    })
}

pub(super) fn rule(body: &[u8]) -> Option<Rule> {
    let handle = attributes(body).find(NFTA_RULE_HANDLE)?;
    let comment = attributes(body).find(NFTA_RULE_USERDATA).and_then(comment);
    Some(Rule { handle: u64::from_be_bytes(handle.try_into().ok()?), comment })
}

/// Returns the comment in libnftnl's user data: a type and a length, one byte each, before every value.
fn comment(mut kept: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = kept {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            return String::from_utf8(unterminated(value).to_vec()).ok();
        }
        kept = rest;
    }
    None
}

fn is_ours(body: &[u8]) -> bool {
    is_ipv6(body).is_some() && name(body, NFTA_TABLE) == Some(TABLE.as_bytes())
}

fn name(body: &[u8], attribute: u16) -> Option<&[u8]> {
    attributes(body).find(attribute).map(unterminated)
}

/// Returns the family of a message about `ip` or `ip6`.
fn is_ipv6(body: &[u8]) -> Option<bool> {
    let of = *body.first()?;
    [false, true].into_iter().find(|ipv6| family(*ipv6) == of)
}

fn family(ipv6: bool) -> u8 {
    if ipv6 { libc::NFPROTO_IPV6 as u8 } else { libc::NFPROTO_IPV4 as u8 }
}

fn attributes(body: &[u8]) -> Attributes<'_> {
    Attributes::behind(body, FIXED_BYTES)
}

fn unterminated(text: &[u8]) -> &[u8] {
    text.strip_suffix(&[0]).unwrap_or(text)
}
