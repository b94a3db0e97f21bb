use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourCacheInfo, NeighbourFlags, NeighbourMessage,
};
use proptest::prelude::*;

use super::*;
use crate::netlink::test_bytes::bytes;
use crate::netlink::wire::Frames;

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// Returns the body of the message in `hex`.
fn body(hex: &str) -> Vec<u8> {
    Frames(&bytes(hex)).next().unwrap().unwrap().body.to_vec()
}

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn neighbour(
    family: AddressFamily,
    state: u16,
    flags: NeighbourFlags,
    attributes: Vec<NeighbourAttribute>,
) -> Option<RawNeighbour> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = 4;
    message.header.state = state.into();
    message.header.flags = flags;
    message.attributes = attributes;
    RawNeighbour::read(&emitted(&message))
}

#[test]
fn of_the_neighbours_the_permanent_ones_are_ours() {
    let attributes = || {
        vec![
            NeighbourAttribute::Destination(IpAddr::from([10, 5, 3, 0]).into()),
            NeighbourAttribute::LinkLayerAddress(vec![10, 0, 0, 0, 0, 3]),
        ]
    };
    let found = |state| neighbour(AddressFamily::Inet, state, NeighbourFlags::empty(), attributes()).unwrap();
    let ip: IpAddr = "10.5.3.0".parse().unwrap();
    assert_eq!(found(0x80).neighbour(), Some((ip, Some(MacAddr6::new(10, 0, 0, 0, 0, 3)))));
    assert_eq!(found(0x80).fdb(), None);
    for (state, what) in [(0x02, "reachable"), (0x40, "noarp"), (0x20, "failed")] {
        assert_eq!(found(state).neighbour(), Some((ip, None)), "{what}");
    }
    assert_eq!(neighbour(AddressFamily::Inet, 0x80, NeighbourFlags::Proxy, attributes()), None);
}

#[test]
fn of_the_forwarding_entries_the_permanent_ones_to_one_mac_are_ours() {
    let found = |state, mac: [u8; 6], ip: &[u8]| {
        let attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::Destination(NeighbourAddress::Other(ip.to_vec())),
            NeighbourAttribute::CacheInfo(NeighbourCacheInfo::parse(&[0; 16]).unwrap()),
        ];
        neighbour(AddressFamily::Bridge, state, NeighbourFlags::Own, attributes).unwrap().fdb()
    };
    let mac = [10, 0, 0, 0, 0, 3];
    let ipv4 = [192, 168, 0, 3];
    let want = Some((MacAddr6::from(mac), Some(IpAddr::from(ipv4))));
    assert_eq!(found(0x80, mac, &ipv4), want);
    assert_eq!(found(0xc0, mac, &ipv4), want, "as bridge(8) makes them");
    assert_eq!(found(0x80, mac, &[0xfd; 16]).unwrap().1, Some(IpAddr::from([0xfd; 16])));
    assert_eq!(found(0x02, mac, &ipv4), Some((MacAddr6::from(mac), None)), "learned");
    assert_eq!(found(0x80, [0; 6], &ipv4), None, "the default destination");
    assert_eq!(found(0x80, [1, 0, 0x5e, 0, 0, 1], &ipv4), None, "multicast");
    assert_eq!(
        neighbour(AddressFamily::Bridge, 0x80, NeighbourFlags::Controller, vec![]),
        None,
        "a bridge's"
    );
}

#[test]
fn what_an_old_kernel_repeats_about_a_forwarding_entry_says_nothing() {
    // Linux 6.1, after: bridge fdb add 02:00:00:00:00:01 dev flannel.1 dst 192.168.64.11
    let attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1])];
    let repeated = neighbour(AddressFamily::Bridge, 0x80, NeighbourFlags::Own, attributes).unwrap();
    assert_eq!(repeated.fdb(), None);
}

#[test]
fn neighbours_and_entries_are_read_as_the_kernel_shows_them() {
    let shown = body(
        "4c0000001c0022000100000094550000020000000400000080000001080001000a0503000a0002000a00000000030000\
         0800040000000000140003000c0000000c0000000c00000000000000",
    );
    let found = RawNeighbour::read(&shown).unwrap();
    let mac = MacAddr6::new(10, 0, 0, 0, 0, 3);
    assert_eq!(found.neighbour(), Some(("10.5.3.0".parse().unwrap(), Some(mac))));
    assert_eq!(found.index, 4);
    let shown = body(
        "440000001c00020001000000945500000700000004000000c00002010a0002000a0000000003000008000100c0a80003\
         14000300000000000c0000000c00000000000000",
    );
    let found = RawNeighbour::read(&shown).unwrap();
    assert_eq!(found.fdb(), Some((mac, Some("192.168.0.3".parse().unwrap()))));
}

#[test]
fn a_link_local_address_of_ipv6_is_the_kernels() {
    let ours = body(
        "5400000014000000b977026b915500000220800004000000080001000a050100080002000a0501000e000300666c616e\
         6e656c2e31000000080008008000000014000600ffffffffffffffff002c2500002c2500",
    );
    assert_eq!(address(&ours), Some((4, "10.5.1.0/32".parse().unwrap())));
    let by_itself = body(
        "500000001500000000000000000000000a40c0fd0400000014000100fe800000000000007cb692fffe08004614000600\
         ffffffffffffffffec2b2500ec2b250008000800c000000005000b0003000000",
    );
    assert_eq!(address(&by_itself), None);
    assert_eq!(address_index(&by_itself), Some(4));
}

#[test]
fn a_device_is_told_of_by_name_unless_it_is_about_its_place_in_a_bridge() {
    // The first attribute that Linux 6.18 sends for a renamed device.
    let mut renamed = bytes("00000100040000000210000041000000").to_vec();
    renamed.extend(bytes("0d00030072656e616d65643100000000"));
    assert_eq!(link(&renamed), Some((4, name("renamed1"))));
    renamed[0] = libc::AF_BRIDGE as u8;
    assert_eq!(link(&renamed), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..96), family in 0..12u8) {
        if let Some(first) = bytes.first_mut() {
            *first = family;
        }
        let _ = address(&bytes);
        let _ = link(&bytes);
        let _ = RawNeighbour::read(&bytes).map(|entry| (entry.neighbour(), entry.fdb()));
    }
}
