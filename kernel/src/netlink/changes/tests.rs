use std::sync::Mutex;

use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::Ownership;
use crate::kind::address::Address;
use crate::kind::fdb::FdbEntry;
use crate::kind::gateway::{NextHopId, ROUTE_PROTOCOL};
use crate::kind::link_name::LinkName;
use crate::kind::neighbour::Neighbour;
use crate::kind::next_hop::NextHop;
use crate::kind::route::{Route, RouteKey, RouteTarget};
use crate::kinds::Fact;
use crate::netlink::devices::Devices;
use crate::netlink::test_bytes::bytes;

const ID: NextHopId = NextHopId(168_100_608);

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// flannel.1 has index 4, eth0 index 3.
fn devices() -> Mutex<Devices> {
    let mut devices = Devices::default();
    devices.set_ours(&Ownership {
        links: [name("flannel.1")].into(),
        senders: false,
        ..Ownership::default()
    });
    devices.name_is(4, name("flannel.1"));
    devices.name_is(3, name("eth0"));
    Mutex::new(devices)
}

fn heard_by(devices: &Mutex<Devices>, datagram: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    read(datagram, &mut Lookup::new(devices, None), &mut changes);
    changes
}

/// Returns the changes from the notification in `hex`.
fn heard(hex: &str) -> Vec<Change> {
    heard_by(&devices(), &bytes(hex))
}

fn key() -> RouteKey {
    RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 }
}

fn next_hop() -> NextHop {
    let (gateway, link) = ("10.5.3.0".parse().unwrap(), name("flannel.1"));
    NextHop { gateway, link, onlink: true, protocol: ROUTE_PROTOCOL }
}

// All notifications are from Linux 6.18, where iproute2 created and deleted one peer.

const NEXT_HOP: &str =
    "3000000068000506b977026b7c55000002fd660004000000080001000003050a0800050004000000080006000a050300";
const ROUTE: &str = "4400000018000006b977026b8855000002180000fe6600010400000008000f00fe000000080001000a050300\
                     08001e000003050a080005000a0503000800040004000000";
const FDB: &str = "440000001c00000000000000000000000700000004000000c00002010a0002000a0000000003000008000100c0a80003\
                   1400030000000000000000000000000000000000";

#[test]
fn a_next_hop_comes_and_goes() {
    assert_eq!(heard(NEXT_HOP), [Change::Fact(Fact::NextHop(ID, Some(next_hop())))]);
    let gone = NEXT_HOP.replacen("68000506", "69000500", 1);
    assert_eq!(heard(&gone), [Change::Fact(Fact::NextHop(ID, None))]);
}

#[test]
fn a_next_hop_of_another_counts_if_it_may_have_taken_the_place_of_ours() {
    let by_zebra = |flags: &str, index: &str| {
        heard(
            &NEXT_HOP
                .replacen("68000506", &format!("6800{flags}"), 1)
                .replacen("02fd66", "02fd0b", 1)
                .replacen("0800050004", &format!("08000500{index}"), 1),
        )
    };
    assert_eq!(by_zebra("0506", "03"), []);
    assert_eq!(by_zebra("0505", "03"), [Change::Fact(Fact::NextHop(ID, None))]);
    let into_ours = NextHop { protocol: 11, ..next_hop() };
    assert_eq!(by_zebra("0506", "04"), [Change::Fact(Fact::NextHop(ID, Some(into_ours)))]);
}

#[test]
fn a_route_comes_and_goes() {
    let target = RouteTarget::NextHop { id: ID, link: name("flannel.1") };
    let route = Route { target, protocol: ROUTE_PROTOCOL };
    assert_eq!(heard(ROUTE), [Change::Fact(Fact::Route(key(), Some(route)))]);
    let gone = ROUTE.replacen("18000006", "19000000", 1);
    assert_eq!(heard(&gone), [Change::Fact(Fact::Route(key(), None))]);
}

/// Returns a route of another program, via eth0: `flags` of its message, and its protocol.
fn anothers(flags: &str, protocol: &str) -> Vec<Change> {
    heard(
        &ROUTE
            .replacen("1800 0006".replace(' ', "").as_str(), &format!("1800{flags}"), 1)
            .replacen("fe66", &format!("fe{protocol}"), 1)
            .replacen("0800040004", "0800040003", 1),
    )
}

#[test]
fn a_route_of_another_counts_if_it_may_have_taken_the_place_of_ours() {
    let none = [Change::Fact(Fact::Route(key(), None))];
    assert_eq!(anothers("0006", "04"), [], "created where none was");
    assert_eq!(anothers("0001", "04"), none, "replaced");
    assert_eq!(anothers("0004", "04"), none, "put before it");
    assert_eq!(anothers("000c", "04"), [], "put behind it");
    let ours = anothers("0006", "66");
    assert!(matches!(ours[..], [Change::Fact(Fact::Route(_, Some(_)))]), "{ours:?}");
    assert_eq!(anothers("000c", "66"), [Change::Unknown], "ours behind another");
}

#[test]
fn a_default_route_is_told_of() {
    // default via 10.5.3.0 dev eth0, metric 0.
    let default = "3c00000018000006b977026b8855000002000000fe0400010000000008000f00fe000000\
                   080005000a0503000800040003000000"
        .replacen("3c000000", "34000000", 1);
    assert_eq!(heard(&default), [Change::DefaultRoute]);
    assert_eq!(heard(&default.replacen("08000f00fe", "08000f0064", 1)), [], "of another table");
}

#[test]
fn a_neighbour_comes_and_goes_and_what_is_not_permanent_is_none() {
    let new = "4c0000001c000000000000008f550000020000000400000080000001080001000a0503000a0002000a00000000030000\
               08000400000000001400030000000000000000000000000001000000";
    let neighbour = Neighbour { link: name("flannel.1"), address: "10.5.3.0".parse().unwrap() };
    let mac = macaddr::MacAddr6::new(10, 0, 0, 0, 0, 3);
    assert_eq!(heard(new), [Change::Fact(Fact::Neighbour(neighbour, Some(mac)))]);
    let none = [Change::Fact(Fact::Neighbour(neighbour, None))];
    assert_eq!(heard(&new.replacen("0400000080", "0400000002", 1)), none, "reachable");
    // ip neigh del: first it fails, then it disappears.
    let failed = "400000001c00000000000000cf550000020000000400000020000001080001000a0503000800040000000000\
                  1400030010000000100000001000000001000000";
    assert_eq!(heard(failed), none);
    assert_eq!(heard(&failed.replacen("1c00", "1d00", 1)), none);
    assert_eq!(heard(&new.replacen("0200000004", "0200000003", 1)), [], "on eth0");
}

#[test]
fn a_forwarding_entry_comes_and_goes() {
    let mac = macaddr::MacAddr6::new(10, 0, 0, 0, 0, 3);
    let entry = FdbEntry { link: name("flannel.1"), mac };
    let destination = Some("192.168.0.3".parse().unwrap());
    assert_eq!(heard(FDB), [Change::Fact(Fact::Fdb(entry, destination))]);
    let none = [Change::Fact(Fact::Fdb(entry, None))];
    assert_eq!(heard(&FDB.replacen("1c00", "1d00", 1)), none);
    assert_eq!(heard(&FDB.replacen("04000000c0", "0400000002", 1)), none, "learned in its place");
}

#[test]
fn an_address_is_a_fact_on_ours_and_news_elsewhere() {
    let new = "5400000014000000b977026b915500000220800004000000080001000a050100080002000a0501000e000300666c616e\
               6e656c2e31000000080008008000000014000600ffffffffffffffff002c2500002c2500";
    let address = Address { link: name("flannel.1"), address: "10.5.1.0/32".parse().unwrap() };
    assert_eq!(heard(new), [Change::Fact(Fact::Address(address, Some(())))]);
    assert_eq!(heard(&new.replacen("1400", "1500", 1)), [Change::Fact(Fact::Address(address, None))]);
    assert_eq!(
        heard(&new.replacen("02208000 04".replace(' ', "").as_str(), "0220800003", 1)),
        [Change::HostAddress(name("eth0"))]
    );
    let link_local = "500000001500000000000000000000000a40c0fd0400000014000100fe800000000000007cb692fffe080046\
                      14000600ffffffffffffffffec2b2500ec2b250008000800c000000005000b0003000000";
    assert_eq!(heard(link_local), [], "as in a snapshot");
}

/// Returns a message about a device with this index and name.
fn about_link(kind: u16, family: u8, index: u32, link: &str) -> Vec<u8> {
    let mut name = [0; 16];
    name[..link.len()].copy_from_slice(link.as_bytes());
    let mut message = vec![0; 52];
    message[0..4].copy_from_slice(&52u32.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[16] = family;
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    message[32..34].copy_from_slice(&20u16.to_ne_bytes());
    message[34..36].copy_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
    message[36..52].copy_from_slice(&name);
    message
}

#[test]
fn a_device_is_told_of_unless_it_is_about_its_place_in_a_bridge() {
    let heard = |family| heard_by(&devices(), &about_link(libc::RTM_NEWLINK, family, 9, "veth0"));
    assert_eq!(heard(0), [Change::Link(name("veth0"))]);
    assert_eq!(heard(libc::AF_BRIDGE as u8), []);
}

#[test]
fn one_of_ours_that_is_renamed_is_missing_under_its_name_and_what_is_on_it_is_not_ours() {
    let devices = devices();
    let renamed = heard_by(&devices, &about_link(libc::RTM_NEWLINK, 0, 4, "mine"));
    assert_eq!(renamed, [Change::Link(name("flannel.1")), Change::Link(name("mine"))]);
    assert_eq!(heard_by(&devices, &bytes(FDB)), []);
    let back = heard_by(&devices, &about_link(libc::RTM_NEWLINK, 0, 4, "flannel.1"));
    assert_eq!(back, [Change::Link(name("flannel.1"))]);
    assert_eq!(heard_by(&devices, &bytes(FDB)).len(), 1);
    let gone = heard_by(&devices, &about_link(libc::RTM_DELLINK, 0, 4, "flannel.1"));
    assert_eq!(gone, [Change::Link(name("flannel.1"))]);
    assert_eq!(heard_by(&devices, &bytes(FDB)), []);
}

#[test]
fn what_is_not_understood_may_mean_anything() {
    assert_eq!(heard(&NEXT_HOP[..60]), [Change::Unknown]);
}

#[tokio::test]
async fn without_news_there_is_nothing_to_hear_and_waiting_can_be_given_up() {
    let mut changes = Changes::listen().unwrap();
    changes.hear(&mut Lookup::new(&devices(), None));
    changes.take();
    let _ = changes.wait().now_or_never();
    changes.ears.truncate(1);
    changes.ears[0].socket = None;
    changes.ears[0].reopen_at = Instant::now();
    changes.wait().await;
    assert_eq!(changes.take(), [Change::Unknown], "what happened meanwhile, nobody knows");
    assert!(changes.ears[0].socket.is_some());
}

proptest! {
    #[test]
    fn any_bytes_are_heard_without_panic(
        kind in prop::sample::select(vec![16u16, 17, 20, 21, 24, 25, 28, 29, 104, 105]),
        flags in any::<u16>(),
        body in prop::collection::vec(any::<u8>(), 0..96),
    ) {
        let mut message = vec![0; 16];
        message[0..4].copy_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[6..8].copy_from_slice(&flags.to_ne_bytes());
        message.extend(body);
        heard_by(&devices(), &message);
    }
}
