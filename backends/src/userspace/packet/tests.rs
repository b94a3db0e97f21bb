use proptest::prelude::*;

use super::samples::{Sample, is_right, samples};
use super::*;

#[test]
fn the_fields_of_an_ipv4_tcp_packet_are_read() {
    let sample =
        Sample { dont_fragment: true, tos: 3, tcp_options: vec![1; 12], ..Sample::new(false, TCP, b"abc") };
    let bytes = sample.bytes();
    let ip = Ip::parse(&bytes).unwrap();
    assert_eq!((ip.header_len(), ip.packet_len(), ip.protocol(), ip.ttl()), (20, bytes.len(), TCP, 64));
    assert_eq!(ip.source(), "10.5.1.1".parse::<IpAddr>().unwrap());
    assert_eq!(ip.destination(), "10.5.2.254".parse::<IpAddr>().unwrap());
    let Ip::V4(v4) = ip else { panic!("{ip:?}") };
    assert_eq!((v4.id(), v4.tos(), v4.dont_fragment(), v4.is_fragment()), (0xfffe, 3, true, false));
    assert!(v4.is_intact());

    let tcp = TcpSegment::parse(ip.payload()).unwrap();
    assert_eq!((tcp.ports(), tcp.sequence(), tcp.acknowledgement()), (0x8001_14fe, sample.sequence, 7));
    assert_eq!(
        (tcp.flags(), tcp.reserved(), tcp.window(), tcp.urgent_pointer()),
        (TcpSegment::ACK, 0, 512, 0)
    );
    assert_eq!((tcp.header_len(), tcp.options(), tcp.payload()), (32, &[1; 12][..], &b"abc"[..]));
}

#[test]
fn the_fields_of_an_ipv6_udp_packet_are_read() {
    let bytes = Sample { tos: 0xab, ..Sample::new(true, UDP, b"abc") }.bytes();
    let ip = Ip::parse(&bytes).unwrap();
    assert_eq!((ip.header_len(), ip.packet_len(), ip.protocol(), ip.ttl()), (40, 51, UDP, 64));
    assert_eq!(ip.source(), "fd00:5::1".parse::<IpAddr>().unwrap());
    assert_eq!(ip.destination(), "fd00:5::fe".parse::<IpAddr>().unwrap());
    let Ip::V6(v6) = ip else { panic!("{ip:?}") };
    assert_eq!(v6.class_and_flow(), 0x6ab5_1234);
    assert_eq!(UdpDatagram::parse(ip.payload()).unwrap().payload(), b"abc");
}

#[test]
fn a_packet_with_less_or_more_than_it_says_is_cut_off_or_refused() {
    for is_ipv6 in [false, true] {
        let mut bytes = Sample::new(is_ipv6, UDP, b"abc").bytes();
        let len = bytes.len();
        assert!(Ip::parse(&bytes[..len - 1]).is_none());
        bytes.push(0);
        let ip = Ip::parse(&bytes).unwrap();
        assert_eq!(ip.packet_len(), len);
        assert_eq!(UdpDatagram::parse(ip.payload()).unwrap().payload(), b"abc");
    }
}

#[test]
fn an_ipv4_header_shorter_than_20_bytes_or_longer_than_the_packet_is_refused() {
    let mut bytes = Sample::new(false, UDP, b"").bytes();
    for words in [0, 4, 8, 15] {
        bytes[0] = 0x40 | words;
        assert!(Ip::parse(&bytes).is_none(), "{words}");
    }
}

#[test]
fn a_time_to_live_of_one_or_none_expires() {
    for (is_ipv6, ttl) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut bytes = Sample { ttl, ..Sample::new(is_ipv6, UDP, b"abc") }.bytes();
        let before = bytes.clone();
        assert_eq!(decrement_ttl(&mut bytes), Ttl::Expired);
        assert_eq!(bytes, before);
    }
}

proptest! {
    #[test]
    fn a_forwarded_packet_is_one_with_a_smaller_time_to_live(sample in samples(0..100)) {
        let mut bytes = sample.bytes();
        prop_assert!(is_right(&bytes));
        prop_assert_eq!(decrement_ttl(&mut bytes), Ttl::Forward);
        prop_assert_eq!(bytes, sample.after(1).bytes());
    }

    #[test]
    fn a_wrong_header_checksum_stays_wrong(sample in samples(0..9), wrong in 1..0xffff_u16) {
        let sample = Sample { is_ipv6: false, ..sample };
        let mut bytes = sample.bytes();
        let checksum = u16_at(&bytes, 10) ^ wrong;
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        prop_assume!(!is_right(&bytes));
        prop_assert_eq!(decrement_ttl(&mut bytes), Ttl::Forward);
        prop_assert!(!is_right(&bytes));
    }

    #[test]
    fn a_virtio_net_header_is_read_as_it_was_written(bytes: [u8; VnetHeader::LEN]) {
        prop_assert_eq!(VnetHeader::parse(&bytes).unwrap().to_bytes(), bytes);
        prop_assert!(VnetHeader::parse(&bytes[1..]).is_none());
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 3..8_u8, length: bool) {
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | *first & 0x0f;
        }
        if length && bytes.len() >= 6 {
            let len = bytes.len() as u8;
            bytes[2..6].copy_from_slice(&[0, len, 0, len.saturating_sub(40)]);
        }
        for at in 0..bytes.len() {
            if let Some(tcp) = TcpSegment::parse(&bytes[at..]) {
                prop_assert_eq!(20 + tcp.options().len() + tcp.payload().len(), bytes.len() - at);
            }
            if let Some(udp) = UdpDatagram::parse(&bytes[at..]) {
                prop_assert_eq!(8 + udp.payload().len(), bytes.len() - at);
            }
        }
        if let Some(ip) = Ip::parse(&bytes) {
            prop_assert_eq!(ip.header_len() + ip.payload().len(), ip.packet_len());
            let _ = (ip.source(), ip.destination(), ip.ttl(), ip.pseudo_header(1).fold());
            if let Ip::V4(ip) = ip {
                let _ = ip.is_intact();
            }
        }
        decrement_ttl(&mut bytes);
    }
}
