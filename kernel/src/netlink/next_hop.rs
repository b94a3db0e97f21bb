//! Next hop objects as netlink messages (`linux/nexthop.h`), which netlink-packet-route does not know.

use std::net::IpAddr;

use super::wire::{Attributes, HEADER_BYTES, u32_at};
use crate::state::{NextHop, NextHopId, ROUTE_PROTOCOL};

/// `RTM_NEWNEXTHOP`: makes or replaces one, or says that there is one.
pub(super) const NEW: u16 = 104;
/// `RTM_DELNEXTHOP`: deletes one, or says that it went.
pub(super) const DELETE: u16 = 105;
/// `RTM_GETNEXTHOP`: asks for one or for all.
pub(super) const GET: u16 = 106;
/// `RTNLGRP_NEXTHOP`, the group that hears of them.
pub(super) const GROUP: u32 = 32;

/// Bytes of a `struct nhmsg`.
const FIXED_BYTES: usize = 8;

const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

const RTNH_F_ONLINK: u32 = 4;

/// A request about one next hop object, or about all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// [`NEW`], [`DELETE`] or [`GET`].
    pub(super) kind: u16,
    /// `NLM_F_*`.
    pub(super) flags: u16,
    /// Which; `None` for all.
    pub(super) id: Option<NextHopId>,
    /// What it shall be, and the index of its device.
    pub(super) next_hop: Option<(NextHop, u32)>,
}

impl Request {
    /// Writes the message to the end of `buffer`.
    pub(super) fn emit(&self, sequence: u32, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        let (family, protocol, flags) = match &self.next_hop {
            Some((next_hop, _)) => (
                if next_hop.gateway.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 },
                next_hop.protocol,
                if next_hop.onlink { RTNH_F_ONLINK } else { 0 },
            ),
            None => (libc::AF_UNSPEC as u8, 0, 0),
        };
        // Its length is known in the end, and the kernel knows from whom it is.
        buffer.extend([0; 4]);
        buffer.extend(self.kind.to_ne_bytes());
        buffer.extend(self.flags.to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        buffer.extend([0; 4]);
        buffer.extend([family, 0, protocol, 0]);
        buffer.extend(flags.to_ne_bytes());
        if let Some(id) = self.id {
            attribute(buffer, NHA_ID, &id.0.to_ne_bytes());
        }
        if let Some((next_hop, index)) = &self.next_hop {
            match next_hop.gateway {
                IpAddr::V4(ip) => attribute(buffer, NHA_GATEWAY, &ip.octets()),
                IpAddr::V6(ip) => attribute(buffer, NHA_GATEWAY, &ip.octets()),
            }
            attribute(buffer, NHA_OIF, &index.to_ne_bytes());
        }
        let length = (buffer.len() - start) as u32;
        buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes of the longest that there can be: with an IPv6 gateway.
    pub(super) const MOST_BYTES: usize = HEADER_BYTES + FIXED_BYTES + 8 + 20 + 8;
}

/// All values that we send have a multiple of four bytes, and so need no padding.
fn attribute(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    buffer.extend((value.len() as u16 + 4).to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
}

/// A next hop object as the kernel shows it, its device by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) id: NextHopId,
    /// `nh_protocol`.
    pub(super) protocol: u8,
    /// The device; a group and a black hole have none.
    pub(super) index: Option<u32>,
    /// The gateway; none where the device alone is named.
    pub(super) gateway: Option<IpAddr>,
    pub(super) onlink: bool,
}

impl Shown {
    /// Reads the body of a message of type [`NEW`] or [`DELETE`].
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let mut shown = Self {
            id: NextHopId(0),
            protocol: *body.get(2)?,
            index: None,
            gateway: None,
            onlink: u32_at(body, 4)? & RTNH_F_ONLINK != 0,
        };
        for (kind, value) in Attributes::behind(body, FIXED_BYTES) {
            match kind {
                NHA_ID => shown.id = NextHopId(u32_at(value, 0)?),
                NHA_OIF => shown.index = u32_at(value, 0),
                NHA_GATEWAY => shown.gateway = super::entry::ip(value),
                _ => {}
            }
        }
        (shown.id.0 != 0).then_some(shown)
    }

    /// As [`Ownership`](crate::Ownership) says, on a device that is ours or not.
    pub(super) fn is_ours(&self, on_ours: bool) -> bool {
        // One without a gateway we never make, whoever's number it bears.
        self.gateway.is_some() && self.index.is_some() && (on_ours || self.protocol == ROUTE_PROTOCOL)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::test_bytes::bytes;
    use crate::netlink::wire::Frames;

    const ID: NextHopId = NextHopId(168_100_608);
    /// The sequence number with which iproute2 was heard.
    const SEQUENCE: u32 = 0x6b02_77b9;

    fn next_hop() -> NextHop {
        NextHop {
            gateway: "10.5.3.0".parse().unwrap(),
            link: "flannel.1".parse().unwrap(),
            onlink: true,
            protocol: ROUTE_PROTOCOL,
        }
    }

    fn emitted(request: Request) -> Vec<u8> {
        let mut buffer = Vec::new();
        request.emit(SEQUENCE, &mut buffer);
        buffer
    }

    #[test]
    fn a_next_hop_is_made_as_by_ip_nexthop() {
        let request = |flags| Request { kind: NEW, flags, id: Some(ID), next_hop: Some((next_hop(), 4)) };
        // ip nexthop add id 168100608 via 10.5.3.0 dev flannel.1 onlink proto 102
        assert_eq!(
            emitted(request(NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)),
            bytes(
                "3000000068000506b977026b00000000020066000400000008000100000305\
                   0a080006000a0503000800050004000000"
            )
        );
        // ip nexthop replace id 168100608 via 10.5.3.0 dev flannel.1 onlink proto 102
        assert_eq!(
            emitted(request(NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)),
            bytes(
                "3000000068000505b977026b00000000020066000400000008000100000305\
                   0a080006000a0503000800050004000000"
            )
        );
    }

    #[test]
    fn a_next_hop_is_deleted_as_by_ip_nexthop() {
        // ip nexthop del id 168100608
        let request =
            Request { kind: DELETE, flags: NLM_F_REQUEST | NLM_F_ACK, id: Some(ID), next_hop: None };
        assert_eq!(
            emitted(request),
            bytes("2000000069000500b977026b000000000000000000000000080001000003050a")
        );
    }

    #[test]
    fn all_are_asked_for_as_by_ip_nexthop() {
        // ip nexthop show, which sends a buffer that is longer than the message.
        let request = Request { kind: GET, flags: NLM_F_REQUEST | NLM_F_DUMP, id: None, next_hop: None };
        assert_eq!(emitted(request), bytes("180000006a000103b977026b000000000000000000000000"));
    }

    #[test]
    fn the_longest_is_as_long_as_it_says() {
        let next_hop = NextHop { gateway: "fd00::1".parse().unwrap(), ..next_hop() };
        let request = Request { kind: NEW, flags: 0, id: Some(ID), next_hop: Some((next_hop, 4)) };
        assert_eq!(emitted(request).len(), Request::MOST_BYTES);
    }

    #[test]
    fn what_the_kernel_shows_is_read() {
        // Of a dump on Linux 6.18.
        let shown = bytes(
            "3000000068000200010000009455000002fd660004000000080001000003050a0800050004000000080006000a050300",
        );
        let frame = Frames(&shown).next().unwrap().unwrap();
        let found = Shown::read(frame.body).unwrap();
        let gateway = Some("10.5.3.0".parse().unwrap());
        assert_eq!(found, Shown { id: ID, protocol: 102, index: Some(4), gateway, onlink: true });
        assert!(found.is_ours(false));
        assert!(!Shown { protocol: 4, ..found }.is_ours(false));
        assert!(Shown { protocol: 4, ..found }.is_ours(true));
        assert!(!Shown { gateway: None, ..found }.is_ours(true), "none that we would make");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Shown::read(&bytes);
        }
    }
}
