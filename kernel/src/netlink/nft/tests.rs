use super::*;
use crate::source::{Plain, Wire};

fn wire(ipv6: bool) -> Wire {
    Wire { ipv6, port: 8472, vni: Some(1) }
}

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
        let set = Set::of(&source);
        assert_eq!(SetKind::named(set.kind.name().as_bytes()), Some(set.kind));
        assert_eq!(set.source(&key(&source)), Some(source));
        assert_eq!(set.source(&key(&source)[1..]), None, "a key of another length");
    }
}

#[test]
fn a_notification_of_elements_is_read() {
    let source = Source::Peer("192.168.64.12".parse().unwrap());
    for (message, stands) in [
        (message::add_element(Set::of(&source), &key(&source)), true),
        (message::delete_element(Set::of(&source), &key(&source)), false),
    ] {
        let mut bytes = Vec::new();
        message.emit(1, &mut bytes);
        let frame = super::super::wire::Frames(&bytes).next().unwrap().unwrap();
        assert_eq!(changes(&frame), [Change::Fact(Fact::Source(source, stands))]);
    }
}

#[test]
fn a_rule_is_known_by_its_comment() {
    let plain = Plain { link: "eth0".parse().unwrap(), network: "10.5.0.0/16".parse().unwrap() };
    for check in [
        Check::Shortcut { ipv6: true },
        Check::Peers(wire(false)),
        Check::InnerSource(wire(true), 64),
        Check::PlainSource(plain, 24),
    ] {
        let expressions = expression::rule(&check).unwrap();
        let mut bytes = Vec::new();
        message::add_rule(Chain::of(&check), false, &check.to_string(), &expressions).emit(1, &mut bytes);
        let frame = super::super::wire::Frames(&bytes).next().unwrap().unwrap();
        // The kernel adds a handle to what it was sent.
        let body = [frame.body, &[12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7]].concat();
        assert_eq!(message::rule(&body).map(|rule| (rule.handle, rule.check())), Some((7, check)));
    }
}

#[test]
fn what_is_told_of_other_tables_is_not_ours() {
    let table = message::delete_table(true);
    let mut bytes = Vec::new();
    table.emit(1, &mut bytes);
    let told = |bytes: &[u8]| changes(&super::super::wire::Frames(bytes).next().unwrap().unwrap());
    assert_eq!(told(&bytes), [Change::SendersGone]);
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
            let _ = changes(&Frame { kind, flags: 0, sequence: 1, body });
            let kind = 0x0a00 | (kind & 0xf);
            let _ = changes(&Frame { kind, flags: 0, sequence: 1, body });
        }
    }
}
