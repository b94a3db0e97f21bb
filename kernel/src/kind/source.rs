//! Allowed senders of overlay packets: elements of the sets in the nftables tables `flan-peers`.

use std::fmt;
use std::net::IpAddr;

use super::link_name::LinkName;
use super::{Changed, Edit, Kind, Name};
use crate::KernelError;
use crate::netlink::entry;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::nft::{self, Answer, Part, Set, SetKind};
use crate::netlink::object::{NetlinkObject, Notification, Told};
use crate::netlink::reading::Reading;
use crate::netlink::socket::Socket;
use crate::netlink::wire::Frame;
use crate::source::Source;

/// Allowed senders of overlay packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {}

impl Kind for Sources {
    type Key = Source;
    type Value = ();

    const NAME: Name = Name { short: "sender", one: "sender", many: "senders" };
    const CHANGED: Changed = Changed::ByNftables;

    fn show(source: &Source, (): &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{source}")
    }
}

impl NetlinkObject for Sources {
    const MESSAGES: &[u16] = nft::TYPES;

    fn request(_: &Edit<Self>, _: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        None
    }

    fn transaction(edit: &Edit<Self>, _: &mut Socket) -> Result<Part, KernelError> {
        let source = edit.key();
        let (set, key) = (set_of(source), element(source));
        Ok(if edit.is_deletion() {
            Part { changes: vec![nft::delete_element(set, &key)], is_deletion: true, ..Part::default() }
        } else {
            let changes = vec![nft::add_element(set, &key)];
            Part { changes, ipv6: Some(set.ipv6), set: Some(set), ..Part::default() }
        })
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(Source, ())>, KernelError> {
        let Some(socket) = &mut reading.nftables else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for set in Set::all() {
            all.extend(nft::elements(socket, set, |key| Some((source(set, key)?, ())))?);
        }
        Ok(all)
    }

    fn heard(frame: &Frame<'_>, _: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        if let Some(Answer::Elements { set, stand, keys }) = nft::answer(frame) {
            for source in keys.filter_map(|key| source(set, key)) {
                tell(Notification::Fact((source, stand.then_some(()))));
            }
        }
    }
}

fn set_of(source: &Source) -> Set {
    let kind = match source {
        Source::Peer(_) => SetKind::Peers,
        Source::Inner { .. } => SetKind::Inner,
        Source::Plain(_) => SetKind::Plain,
    };
    Set { kind, ipv6: source.is_ipv6() }
}

/// Returns the key of the element for a source.
fn element(source: &Source) -> Vec<u8> {
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

/// Returns the source of an element with this key.
fn source(set: Set, key: &[u8]) -> Option<Source> {
    if key.len() != set.key_bytes() {
        return None;
    }
    let (first, second) = key.split_at(key.len() / set.kind.addresses());
    let first = entry::ip(first)?;
    Some(match set.kind {
        SetKind::Peers => Source::Peer(first),
        SetKind::Plain => Source::Plain(first),
        SetKind::Inner => Source::Inner { peer: first, subnet: entry::ip(second)? },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::netlink::wire::Frames;

    #[test]
    fn a_source_is_known_by_its_key() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for source in [
            Source::Peer(ip("192.168.64.12")),
            Source::Peer(ip("fd64::12")),
            Source::Inner { peer: ip("192.168.64.12"), subnet: ip("10.5.2.0") },
            Source::Inner { peer: ip("fd64::12"), subnet: ip("fd00:5:0:2::") },
            Source::Plain(ip("10.5.2.0")),
            Source::Plain(ip("fd00:5:0:2::")),
        ] {
            let set = set_of(&source);
            assert_eq!(self::source(set, &element(&source)), Some(source));
            assert_eq!(self::source(set, &element(&source)[1..]), None, "a key of another length");
        }
    }

    #[test]
    fn a_notification_of_elements_is_read() {
        let source = Source::Peer("192.168.64.12".parse().unwrap());
        for (message, stands) in [
            (nft::add_element(set_of(&source), &element(&source)), true),
            (nft::delete_element(set_of(&source), &element(&source)), false),
        ] {
            let mut bytes = Vec::new();
            message.emit(1, &mut bytes);
            let frame = Frames(&bytes).next().unwrap().unwrap();
            let (devices, mut told) = (Mutex::default(), Vec::new());
            Sources::heard(&frame, &mut Lookup::new(&devices, None), &mut |change| told.push(change));
            assert_eq!(told, [Notification::Fact((source, stands.then_some(())))]);
        }
    }
}
