//! Next hop objects (`ip nexthop`, kernel 5.3 and later), which routes refer to. A route that names one has a constant
//! cost, however many gateways there are. For an IPv4 route without one, the kernel searches all other next hops.
//!
//! netlink-packet-route lacks their messages (`linux/nexthop.h`).

use std::fmt::{self, Write};
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};

use super::gateway::{Gateway, NextHopId, ROUTE_PROTOCOL};
use super::link_name::LinkName;
use super::{Edit, Kind, Name, Upheaval};
use crate::KernelError;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::object::{InTheWay, NetlinkObject, Notification, Told};
use crate::netlink::raw::{RawRequest, attribute};
use crate::netlink::reading::Reading;
use crate::netlink::wire::{Attributes, Frame, u32_at};
use crate::netlink::words;

/// Next hop objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHops {}

/// A next hop object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The gateway.
    pub gateway: IpAddr,
    /// The device.
    pub link: LinkName,
    /// Treat the gateway as reachable on the device although no route says so.
    pub onlink: bool,
    /// `nh_protocol`: [`ROUTE_PROTOCOL`] in wanted objects; any value in a snapshot.
    pub protocol: u8,
}

impl NextHop {
    fn leads_to(&self) -> Gateway {
        Gateway { address: self.gateway, link: self.link, onlink: self.onlink }
    }
}

impl Kind for NextHops {
    type Key = NextHopId;
    type Value = NextHop;

    const NAME: Name = Name { short: "nexthop", one: "next hop", many: "next hops" };
    const ADD_OVERWRITES: bool = false;
    const TAKES_OTHERS_ALONG: bool = true;
    const NEEDS_DEVICE_UP: bool = true;

    fn show(id: &NextHopId, next_hop: &NextHop, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{id} {next_hop}")
    }

    fn is_marked(next_hop: &NextHop) -> bool {
        next_hop.protocol == ROUTE_PROTOCOL
    }

    fn device(_: &NextHopId, next_hop: &NextHop) -> Option<LinkName> {
        Some(next_hop.link)
    }

    fn survives(_: &NextHopId, _: &NextHop, upheaval: &Upheaval) -> bool {
        !upheaval.anew && !upheaval.is_down
    }

    fn as_next_hop(id: &NextHopId, next_hop: &NextHop) -> Option<(NextHopId, Gateway)> {
        Some((*id, next_hop.leads_to()))
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.leads_to())?;
        if self.protocol == ROUTE_PROTOCOL { Ok(()) } else { write!(f, " proto {}", self.protocol) }
    }
}

/// `RTM_NEWNEXTHOP`: creates or replaces one, or reports one.
const NEW: u16 = 104;
/// `RTM_DELNEXTHOP`: deletes one, or reports its deletion.
const DELETE: u16 = 105;
/// `RTM_GETNEXTHOP`: requests one or all.
const GET: u16 = 106;
/// `RTNLGRP_NEXTHOP`, the multicast group that reports them.
pub(crate) const GROUP: u32 = 32;

/// Bytes of a `struct nhmsg`.
const FIXED_BYTES: usize = 8;

const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

const RTNH_F_ONLINK: u32 = 4;

impl NetlinkObject for NextHops {
    const MESSAGES: &[u16] = &[NEW, DELETE];

    fn request(edit: &Edit<Self>, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        let id = Some(*edit.key());
        Some(match edit {
            Edit::Add { value, .. } => {
                request(NEW, NLM_F_CREATE | NLM_F_EXCL, id, Some((value, index(value.link)?)))
            }
            // Without NLM_F_CREATE: if our object is gone, there is nothing to replace.
            Edit::Replace { value, .. } => request(NEW, NLM_F_REPLACE, id, Some((value, index(value.link)?))),
            Edit::Delete { .. } => request(DELETE, 0, id, None),
        })
    }

    fn in_the_way(
        edits: &[&Edit<Self>],
        lookup: &mut Lookup<'_>,
    ) -> Result<Vec<Option<InTheWay>>, KernelError> {
        let mut found = Vec::new();
        for edit in edits {
            let standing = lookup.ask(get(*edit.key()), Shown::read)?;
            found.push(
                standing
                    .filter(|shown| !shown.is_ours_by(lookup))
                    .map(|shown| InTheWay::Taken(in_words(&shown, |index| lookup.name(index)))),
            );
        }
        Ok(found)
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(NextHopId, NextHop)>, KernelError> {
        let found = reading.socket.dump(&request(GET, NLM_F_DUMP, None, None), Vec::new, |found, body| {
            found.extend(Shown::read(body));
        });
        let found: Vec<Shown> = match found {
            // A kernel before 5.3.
            Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Vec::new(),
            found => found?,
        };
        // Routes of ours may name next hop objects of any program.
        reading.next_hops = found.iter().filter_map(|shown| Some((shown.id, shown.index?))).collect();
        let mut ours = Vec::new();
        for shown in found {
            let on_ours = shown.index.is_some_and(|index| reading.is_ours(index));
            if shown.is_ours(on_ours)
                && let Shown { id, protocol, index: Some(index), gateway: Some(gateway), onlink } = shown
            {
                let link = reading.must_find(index)?;
                ours.push((id, NextHop { gateway, link, onlink, protocol }));
            }
        }
        Ok(ours)
    }

    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>) {
        let Some(shown) = Shown::read(frame.body) else { return };
        if frame.kind == NEW && shown.is_ours_by(lookup) {
            let Shown { id, protocol, index: Some(index), gateway: Some(gateway), onlink } = shown else {
                return;
            };
            let Some(link) = lookup.name(index) else { return };
            return tell(Notification::Fact((id, Some(NextHop { gateway, link, onlink, protocol }))));
        }
        // An object that is not ours may have replaced ours, or may have blocked one.
        if frame.kind == DELETE || frame.flags & NLM_F_REPLACE != 0 {
            tell(Notification::Fact((shown.id, None)));
        }
    }
}

/// Describes a next hop object of another program: `nexthop id 168100608 via 192.168.64.1 dev eth0 proto zebra`.
fn in_words(shown: &Shown, name: impl FnMut(u32) -> Option<LinkName>) -> String {
    let mut text = format!("nexthop {}", shown.id);
    if let Some(gateway) = shown.gateway {
        let _ = write!(text, " via {gateway}");
    }
    words::device(&mut text, shown.index, name);
    let _ = write!(text, " proto {}", words::protocol(shown.protocol));
    text
}

/// Returns the index of the device that it leads to.
pub(crate) fn index_of(id: NextHopId, lookup: &mut Lookup<'_>) -> Option<u32> {
    lookup.ask(get(id), Shown::read).ok()??.index
}

/// Returns whether the kernel supports next hop objects.
///
/// # Errors
/// If it does not answer.
pub(crate) fn are_known(lookup: &mut Lookup<'_>) -> Result<bool, KernelError> {
    // Whether this id exists does not matter; what counts is that the kernel understands the request.
    match lookup.ask(get(NextHopId(u32::MAX)), Shown::read) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Requests one object.
fn get(id: NextHopId) -> Request {
    request(GET, 0, Some(id), None)
}

/// Returns a request about one next hop object or all, with its wanted value and the index of its device.
fn request(kind: u16, flags: u16, id: Option<NextHopId>, next_hop: Option<(&NextHop, u32)>) -> Request {
    let (family, protocol, bits) = match next_hop {
        Some((next_hop, _)) => (
            if next_hop.gateway.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 },
            next_hop.protocol,
            if next_hop.onlink { RTNH_F_ONLINK } else { 0 },
        ),
        None => (libc::AF_UNSPEC as u8, 0, 0),
    };
    let mut body = Vec::with_capacity(FIXED_BYTES + 8 + 20 + 8);
    body.extend([family, 0, protocol, 0]);
    body.extend(bits.to_ne_bytes());
    if let Some(id) = id {
        attribute(&mut body, NHA_ID, &id.0.to_ne_bytes());
    }
    if let Some((next_hop, index)) = next_hop {
        match next_hop.gateway {
            IpAddr::V4(ip) => attribute(&mut body, NHA_GATEWAY, &ip.octets()),
            IpAddr::V6(ip) => attribute(&mut body, NHA_GATEWAY, &ip.octets()),
        }
        attribute(&mut body, NHA_OIF, &index.to_ne_bytes());
    }
    Request::Raw(RawRequest { kind, flags: NLM_F_REQUEST | flags, body })
}

/// A next hop object as the kernel reports it, with its device by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    id: NextHopId,
    /// `nh_protocol`.
    protocol: u8,
    /// The device; a group or a blackhole has none.
    index: Option<u32>,
    /// The gateway; `None` if only the device is named.
    gateway: Option<IpAddr>,
    onlink: bool,
}

impl Shown {
    /// Reads the body of a [`NEW`] or [`DELETE`] message.
    fn read(body: &[u8]) -> Option<Self> {
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
                NHA_GATEWAY => shown.gateway = crate::netlink::entry::ip(value),
                _ => {}
            }
        }
        (shown.id.0 != 0).then_some(shown)
    }

    fn is_ours_by(&self, lookup: &mut Lookup<'_>) -> bool {
        self.is_ours(self.index.is_some_and(|index| lookup.ours(index).is_some()))
    }

    /// Implements [`Ownership`](crate::Ownership) for an object on a device that is ours or not.
    fn is_ours(&self, on_ours: bool) -> bool {
        // Whatever its protocol number, we make none without a gateway.
        self.gateway.is_some() && self.index.is_some() && (on_ours || self.protocol == ROUTE_PROTOCOL)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_ACK;
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::test_bytes::bytes;
    use crate::netlink::wire::Frames;

    const ID: NextHopId = NextHopId(168_100_608);
    /// The sequence number in the captured iproute2 messages.
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
        let request =
            |flags| request(NEW, NLM_F_ACK | NLM_F_CREATE | flags, Some(ID), Some((&next_hop(), 4)));
        // ip nexthop add id 168100608 via 10.5.3.0 dev flannel.1 onlink proto 102
        assert_eq!(
            emitted(request(NLM_F_EXCL)),
            bytes(
                "3000000068000506b977026b00000000020066000400000008000100000305\
                   0a080006000a0503000800050004000000"
            )
        );
        // ip nexthop replace id 168100608 via 10.5.3.0 dev flannel.1 onlink proto 102
        assert_eq!(
            emitted(request(NLM_F_REPLACE)),
            bytes(
                "3000000068000505b977026b00000000020066000400000008000100000305\
                   0a080006000a0503000800050004000000"
            )
        );
    }

    #[test]
    fn a_next_hop_is_deleted_as_by_ip_nexthop() {
        // ip nexthop del id 168100608
        assert_eq!(
            emitted(request(DELETE, NLM_F_ACK, Some(ID), None)),
            bytes("2000000069000500b977026b000000000000000000000000080001000003050a")
        );
    }

    #[test]
    fn all_are_asked_for_as_by_ip_nexthop() {
        // ip nexthop show, which sends a buffer longer than the message.
        assert_eq!(
            emitted(request(GET, NLM_F_DUMP, None, None)),
            bytes("180000006a000103b977026b000000000000000000000000")
        );
    }

    #[test]
    fn what_the_kernel_shows_is_read() {
        // From a dump on Linux 6.18.
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

    #[test]
    fn a_next_hop_is_shown_as_by_ip_nexthop() {
        let name = |index| (index == 2).then(|| "eth0".parse().unwrap());
        let gateway = Some("192.168.64.1".parse().unwrap());
        let shown = Shown { id: NextHopId(5), protocol: 11, index: Some(2), gateway, onlink: false };
        assert_eq!(in_words(&shown, name), "nexthop id 5 via 192.168.64.1 dev eth0 proto zebra");
        let group = Shown { index: None, gateway: None, ..shown };
        assert_eq!(in_words(&group, name), "nexthop id 5 proto zebra");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Shown::read(&bytes);
        }
    }
}
