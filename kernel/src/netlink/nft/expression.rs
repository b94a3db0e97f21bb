//! Our rules as nftables expressions, which load values into registers, compare, and drop.

use std::net::IpAddr;

use super::SetKind;
use super::message::{NFTA_LIST_ELEM, Writer};
use crate::source::{Check, Plain, Wire};

/// The first four-byte register (`NFT_REG32_00`).
const REGISTER: u32 = 8;

/// Offsets in a VXLAN datagram from its UDP header on: 8 bytes of UDP, 8 of VXLAN (RFC 7348), 14 of Ethernet.
const VNI: u32 = 12;
const ETHERTYPE: u32 = 28;

/// Returns the offset of the inner IP header from the UDP header on.
fn inner_header(wire: &Wire) -> u32 {
    if wire.vni.is_some() { 30 } else { 8 }
}

/// Returns the offset of the source address in an IP header.
fn source_offset(ipv6: bool) -> u32 {
    if ipv6 { 8 } else { 12 }
}

fn destination_offset(ipv6: bool) -> u32 {
    source_offset(ipv6) + width(ipv6)
}

fn width(ipv6: bool) -> u32 {
    if ipv6 { 16 } else { 4 }
}

/// Returns the expressions of a check. `None` for one that is not ours.
pub(crate) fn rule(check: &Check) -> Option<Vec<u8>> {
    let mut rule = Expressions::default();
    match check {
        Check::Shortcut { ipv6 } => {
            rule.load(Base::Network, source_offset(*ipv6), width(*ipv6), 0);
            rule.is_in(SetKind::Peers);
            rule.decide(libc::NF_ACCEPT);
            return Some(rule.0.into_bytes());
        }
        Check::Peers(wire) => {
            rule.is_on(wire);
            rule.load(Base::Network, source_offset(wire.ipv6), width(wire.ipv6), 0);
            rule.is_not_in(SetKind::Peers);
        }
        Check::PeersPieces(wire) => {
            rule.is_on(wire);
            rule.is_in_pieces();
            rule.load(Base::Network, source_offset(wire.ipv6), width(wire.ipv6), 0);
            rule.is_not_in(SetKind::Peers);
        }
        Check::Whole(wire) => {
            rule.is_on(wire);
            rule.is_in_pieces();
        }
        Check::Carries(wire) => {
            let ethertype: u16 = if wire.ipv6 { 0x86dd } else { 0x0800 };
            rule.is_on(wire);
            rule.load(Base::Transport, ETHERTYPE, 2, 0);
            rule.differs(&ethertype.to_be_bytes());
        }
        Check::InnerSource(wire, prefix) => {
            let width = width(wire.ipv6);
            rule.is_on(wire);
            rule.load(Base::Network, source_offset(wire.ipv6), width, 0);
            rule.load(Base::Transport, inner_header(wire) + source_offset(wire.ipv6), width, width / 4);
            rule.mask(width / 4, wire.ipv6, *prefix);
            rule.is_not_in(SetKind::Inner);
        }
        Check::InnerDestination(wire, own) => {
            rule.is_on(wire);
            rule.load(
                Base::Transport,
                inner_header(wire) + destination_offset(wire.ipv6),
                width(wire.ipv6),
                0,
            );
            rule.mask(0, wire.ipv6, own.prefix());
            rule.differs(&octets(own.network()));
        }
        Check::PlainSource(plain, prefix) => {
            let ipv6 = plain.network.is_ipv6();
            rule.comes_plain(plain);
            rule.load(Base::Network, source_offset(ipv6), width(ipv6), 0);
            rule.mask(0, ipv6, *prefix);
            rule.is_not_in(SetKind::Plain);
        }
        Check::PlainDestination(plain, own) => {
            let ipv6 = plain.network.is_ipv6();
            rule.comes_plain(plain);
            rule.load(Base::Network, destination_offset(ipv6), width(ipv6), 0);
            rule.mask(0, ipv6, own.prefix());
            rule.differs(&octets(own.network()));
        }
        Check::RawIpip(local) => {
            rule.meta(Meta::Protocol);
            rule.equals(&[libc::IPPROTO_IPIP as u8]);
            rule.load(Base::Network, destination_offset(false), width(false), 0);
            rule.equals(&local.octets());
        }
        Check::Unknown(_) => return None,
    }
    rule.count();
    rule.decide(libc::NF_DROP);
    Some(rule.0.into_bytes())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What an offset is relative to (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy)]
enum Base {
    Network = 1,
    Transport = 2,
}

/// Packet metadata (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy)]
enum Meta {
    InterfaceName = 6,
    Protocol = 16,
}

/// A sequence of expressions. The first comparison that fails moves the packet to the next rule.
#[derive(Debug, Default)]
struct Expressions(Writer);

impl Expressions {
    /// Matches datagrams of a wire.
    fn is_on(&mut self, wire: &Wire) {
        self.meta(Meta::Protocol);
        self.equals(&[libc::IPPROTO_UDP as u8]);
        // The source port precedes it.
        self.load(Base::Transport, 2, 2, 0);
        self.equals(&wire.port.to_be_bytes());
        if let Some(vni) = wire.vni {
            self.load(Base::Transport, VNI, 3, 0);
            self.equals(&vni.to_be_bytes()[1..]);
        }
    }

    /// Matches packets that arrive from the overlay network on a device.
    fn comes_plain(&mut self, plain: &Plain) {
        let ipv6 = plain.network.is_ipv6();
        let mut name = [0; 16];
        name[..plain.link.as_str().len()].copy_from_slice(plain.link.as_str().as_bytes());
        self.meta(Meta::InterfaceName);
        self.equals(&name);
        self.load(Base::Network, source_offset(ipv6), width(ipv6), 0);
        self.mask(0, ipv6, plain.network.prefix());
        self.equals(&octets(plain.network.network()));
    }

    /// Matches IPv6 packets with a fragment header.
    fn is_in_pieces(&mut self) {
        /// `NFT_EXTHDR_F_PRESENT`: loads whether the header exists, not its contents.
        const PRESENT: u32 = 1;
        self.push("exthdr", |header| {
            header.number(1, REGISTER);
            header.bytes(2, &[libc::IPPROTO_FRAGMENT as u8]);
            header.number(3, 0);
            header.number(4, 1);
            header.number(5, PRESENT);
        });
        self.equals(&[1]);
    }

    fn meta(&mut self, key: Meta) {
        self.push("meta", |meta| {
            meta.number(2, key as u32);
            meta.number(1, REGISTER);
        });
    }

    /// Loads bytes of the packet into registers starting with `register`.
    fn load(&mut self, base: Base, offset: u32, length: u32, register: u32) {
        self.push("payload", |payload| {
            payload.number(1, REGISTER + register);
            payload.number(2, base as u32);
            payload.number(3, offset);
            payload.number(4, length);
        });
    }

    /// Masks the address in registers starting with `register` down to its network.
    fn mask(&mut self, register: u32, ipv6: bool, prefix: u8) {
        let bytes = usize::from(prefix) / 8;
        let mut mask = vec![0; width(ipv6) as usize];
        mask[..bytes].fill(0xff);
        if let Some(byte) = mask.get_mut(bytes) {
            *byte = !(0xff_u8 >> (prefix % 8));
        }
        let nothing = vec![0; mask.len()];
        self.push("bitwise", |bitwise| {
            bitwise.number(1, REGISTER + register);
            bitwise.number(2, REGISTER + register);
            bitwise.number(3, width(ipv6));
            bitwise.data(4, &mask);
            bitwise.data(5, &nothing);
        });
    }

    fn equals(&mut self, value: &[u8]) {
        self.compare(0, value);
    }

    fn differs(&mut self, value: &[u8]) {
        self.compare(1, value);
    }

    /// Compares with `NFT_CMP_EQ` or `NFT_CMP_NEQ`.
    fn compare(&mut self, how: u32, value: &[u8]) {
        self.push("cmp", |compare| {
            compare.number(1, REGISTER);
            compare.number(2, how);
            compare.data(3, value);
        });
    }

    fn is_in(&mut self, set: SetKind) {
        self.look_up(set, 0);
    }

    fn is_not_in(&mut self, set: SetKind) {
        /// `NFT_LOOKUP_F_INV`.
        const INVERTED: u32 = 1;
        self.look_up(set, INVERTED);
    }

    fn look_up(&mut self, set: SetKind, flags: u32) {
        self.push("lookup", |lookup| {
            lookup.text(1, set.name());
            lookup.number(2, REGISTER);
            lookup.number(5, flags);
        });
    }

    fn count(&mut self) {
        self.push("counter", |_| {});
    }

    /// Ends with `NF_ACCEPT` or `NF_DROP`.
    fn decide(&mut self, verdict: libc::c_int) {
        /// `NFT_REG_VERDICT`.
        const VERDICT: u32 = 0;
        self.push("immediate", |immediate| {
            immediate.number(1, VERDICT);
            immediate.nested(2, |data| data.nested(2, |code| code.number(1, verdict.cast_unsigned())));
        });
    }

    fn push(&mut self, name: &str, write: impl FnOnce(&mut Writer)) {
        self.0.nested(NFTA_LIST_ELEM, |expression| {
            expression.text(1, name);
            expression.nested(2, write);
        });
    }
}
