//! The checks of senders against the allowed sources: rules in the nftables tables `flan-peers`.

use std::fmt;

use super::link_name::LinkName;
use super::{Changed, Edit, Kind, Name};
use crate::KernelError;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::nft::{self, Answer, Chain, ChainKind, Part, Set, SetKind};
use crate::netlink::object::{NetlinkObject, Notification, Told};
use crate::netlink::reading::Reading;
use crate::netlink::socket::Socket;
use crate::netlink::wire::Frame;
use crate::source::Check;

/// Rules that check senders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {}

impl Kind for Checks {
    type Key = Check;
    type Value = ();

    const NAME: Name = Name { short: "check", one: "check", many: "checks" };
    const CHANGED: Changed = Changed::ByNftables;

    fn show(check: &Check, (): &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{check}")
    }
}

impl NetlinkObject for Checks {
    const MESSAGES: &[u16] = nft::TYPES;

    fn request(_: &Edit<Self>, _: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        None
    }

    fn transaction(edit: &Edit<Self>, socket: &mut Socket) -> Result<Part, KernelError> {
        let check = edit.key();
        if edit.is_deletion() {
            let rules = nft::rules(socket)?.into_iter().filter(|(_, rule)| rule.check() == *check);
            let changes = rules.map(|(chain, rule)| nft::delete_rule(chain, rule.handle)).collect();
            return Ok(Part { changes, is_deletion: true, ..Part::default() });
        }
        let Some(expressions) = nft::expressions(check) else { return Ok(Part::default()) };
        let chain = chain_of(check);
        let first = matches!(check, Check::Shortcut { .. });
        let rule = nft::add_rule(chain, first, &check.to_string(), &expressions);
        let changes = vec![nft::new_chain(chain), rule];
        Ok(Part {
            changes,
            is_deletion: false,
            is_rule: true,
            ipv6: Some(check.is_ipv6()),
            set: set_of(check),
        })
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(Check, ())>, KernelError> {
        let Some(socket) = &mut reading.nftables else { return Ok(Vec::new()) };
        Ok(nft::rules(socket)?.into_iter().map(|(_, rule)| (rule.check(), ())).collect())
    }

    fn heard(frame: &Frame<'_>, _: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        match nft::answer(frame) {
            Some(Answer::Rule { rule, stands }) => {
                tell(Notification::Fact((rule.check(), stands.then_some(()))));
            }
            Some(Answer::Gone) => tell(Notification::SendersGone),
            _ => {}
        }
    }
}

fn chain_of(check: &Check) -> Chain {
    let kind = match check {
        Check::PlainSource(..) | Check::PlainDestination(..) => ChainKind::Entering,
        Check::RawIpip(_) => ChainKind::Bare,
        _ => ChainKind::Arriving,
    };
    Chain { kind, ipv6: check.is_ipv6() }
}

fn set_of(check: &Check) -> Option<Set> {
    let kind = match check {
        Check::Shortcut { .. } | Check::Peers(_) | Check::PeersPieces(_) => SetKind::Peers,
        Check::InnerSource(..) => SetKind::Inner,
        Check::PlainSource(..) => SetKind::Plain,
        _ => return None,
    };
    Some(Set { kind, ipv6: check.is_ipv6() })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::netlink::wire::Frames;
    use crate::source::{Plain, Wire};

    fn wire(ipv6: bool) -> Wire {
        Wire { ipv6, port: 8472, vni: Some(1) }
    }

    fn told(frame: &Frame<'_>) -> Vec<Notification<(Check, Option<()>)>> {
        let (devices, mut told) = (Mutex::default(), Vec::new());
        Checks::heard(frame, &mut Lookup::new(&devices, None), &mut |change| told.push(change));
        told
    }

    #[test]
    fn a_rule_is_known_by_its_comment() {
        let plain = Plain { link: "eth0".parse().unwrap(), network: "10.5.0.0/16".parse().unwrap() };
        for check in [
            Check::Shortcut { ipv6: true },
            Check::Peers(wire(false)),
            Check::InnerSource(wire(true), 64),
            Check::PlainSource(plain, 24),
            Check::RawIpip([192, 168, 64, 11].into()),
        ] {
            let expressions = nft::expressions(&check).unwrap();
            let mut bytes = Vec::new();
            nft::add_rule(chain_of(&check), false, &check.to_string(), &expressions).emit(1, &mut bytes);
            let frame = Frames(&bytes).next().unwrap().unwrap();
            // The kernel adds a handle to what it received.
            let body = [frame.body, &[12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7]].concat();
            assert_eq!(told(&Frame { body: &body, ..frame }), [Notification::Fact((check, Some(())))]);
        }
    }

    #[test]
    fn what_is_told_of_other_tables_is_not_ours() {
        let table = nft::delete_table(true);
        let mut bytes = Vec::new();
        table.emit(1, &mut bytes);
        let told = |bytes: &[u8]| told(&Frames(bytes).next().unwrap().unwrap());
        assert_eq!(told(&bytes), [Notification::SendersGone]);
        let name = bytes.windows(10).position(|name| name == b"flan-peers").unwrap();
        bytes[name] = b'p';
        assert_eq!(told(&bytes), []);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            kind in proptest::num::u16::ANY,
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..128),
        ) {
            let ours = [&[2, 0, 0, 0, 15, 0, 1, 0], b"flan-peers\0\0".as_slice(), &body].concat();
            for body in [&body, &ours] {
                let _ = told(&Frame { kind, flags: 0, sequence: 1, body });
                let kind = 0x0a00 | (kind & 0xf);
                let _ = told(&Frame { kind, flags: 0, sequence: 1, body });
            }
        }
    }
}
