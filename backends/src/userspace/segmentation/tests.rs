use proptest::prelude::*;

use super::super::packet::samples::{Sample, is_right, noise, samples};
use super::*;

fn packets(split: &Split<'_>) -> Vec<Vec<u8>> {
    split.segments().map(|(headers, payload)| [headers, payload].concat()).collect()
}

/// Bytes of each wire packet but the last.
fn segment_size(split: &Split<'_>) -> usize {
    split.header_len + split.payload_size
}

/// Bytes of all wire packets.
fn len(split: &Split<'_>) -> usize {
    split.segments().map(|(headers, payload)| headers.len() + payload.len()).sum()
}

/// Returns the result of a `change` to a super-packet's virtio-net header.
fn refusal(sample: &Sample, change: impl FnOnce(&mut VnetHeader)) -> Option<SplitError> {
    let mut packet = sample.super_packet(100);
    let mut header = VnetHeader::parse(&packet).unwrap();
    change(&mut header);
    packet[..VnetHeader::LEN].copy_from_slice(&header.to_bytes());
    let before = packet.clone();
    let refused = Segments::new(Hop::Counts).split(&mut packet).err();
    assert!(refused.is_none() || packet == before, "a refused packet was changed");
    refused
}

#[test]
fn a_super_packet_becomes_segments_with_fin_and_psh_on_the_last_and_cwr_on_the_first() {
    let sample = Sample { flags: 0x99, ..Sample::new(false, TCP, &noise(250, 1)) };
    let mut packet = sample.super_packet(100);
    packet[1] |= VnetHeader::GSO_ECN;
    let mut segments = Segments::new(Hop::Counts);
    let split = segments.split(&mut packet).unwrap();
    assert_eq!((split.segments().len(), segment_size(&split), len(&split)), (3, 140, 370));
    let flags: Vec<u8> = packets(&split).iter().map(|packet| packet[33]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
}

#[test]
fn a_udp_checksum_that_comes_to_zero_is_sent_as_ones() {
    for is_ipv6 in [false, true] {
        // The last two bytes are chosen so that the sum comes out as 0xffff.
        let mut sample = Sample::new(is_ipv6, UDP, &[0; 10]);
        let bytes = sample.bytes();
        let at = sample.ip_header_len() + 6;
        sample.payload[8..].copy_from_slice(&bytes[at..at + 2]);
        assert_eq!(sample.bytes()[at..at + 2], [0xff, 0xff]);
        let mut whole = sample.super_packet(10);
        whole[1] = VnetHeader::GSO_NONE;
        for mut packet in [sample.super_packet(10), whole] {
            assert_eq!(
                packets(&Segments::new(Hop::Counts).split(&mut packet).unwrap()),
                [sample.after(1).bytes()]
            );
        }
    }
}

#[test]
fn a_super_packet_without_payload_is_one_segment() {
    let sample = Sample::new(true, TCP, b"");
    assert_eq!(
        packets(&Segments::new(Hop::Counts).split(&mut sample.super_packet(100)).unwrap()),
        [sample.after(1).bytes()]
    );
}

#[test]
fn what_the_kernel_never_sends_is_refused() {
    let sample = Sample::new(false, TCP, &[0; 300]);
    assert_eq!(refusal(&sample, |_| {}), None);
    assert_eq!(refusal(&sample, |header| header.gso_size = 0), Some(SplitError::GsoSize));
    assert_eq!(refusal(&sample, |header| header.gso_type = 3), Some(SplitError::GsoType));
    assert_eq!(refusal(&sample, |header| header.gso_type = 0x80), Some(SplitError::GsoType));
    assert_eq!(refusal(&sample, |header| header.gso_type = 4), Some(SplitError::GsoHeaders));
    assert_eq!(refusal(&sample, |header| header.gso_type = 5), Some(SplitError::Length));
    assert_eq!(refusal(&sample, |header| header.flags = 0), Some(SplitError::GsoHeaders));
    assert_eq!(refusal(&sample, |header| header.csum_start = 24), Some(SplitError::GsoHeaders));
    assert_eq!(refusal(&sample, |header| header.csum_offset = 6), Some(SplitError::GsoHeaders));
    assert_eq!(refusal(&sample, |header| header.hdr_len = 341), Some(SplitError::GsoHeaders));
    assert_eq!(refusal(&Sample { ttl: 1, ..sample.clone() }, |_| {}), Some(SplitError::TtlExpired));
    for flags in [0x12, 0x14] {
        assert_eq!(refusal(&Sample { flags, ..sample.clone() }, |_| {}), Some(SplitError::GsoHeaders));
    }
    let tiny = Sample::new(false, UDP, &[0; 3000]);
    assert_eq!(refusal(&tiny, |header| header.gso_size = 1), Some(SplitError::GsoSize));
}

#[test]
fn a_place_for_the_checksum_outside_the_payload_is_refused() {
    let sample = Sample::new(false, TCP, &[0; 10]);
    for (csum_start, csum_offset, refused) in [
        (20, 16, None),
        (20, 28, None),
        (20, 30, Some(SplitError::ChecksumPlace)),
        (20, 17, Some(SplitError::ChecksumPlace)),
        (18, 16, Some(SplitError::ChecksumPlace)),
        (65_535, 65_534, Some(SplitError::ChecksumPlace)),
    ] {
        let place = |header: &mut VnetHeader| {
            *header = VnetHeader { gso_type: VnetHeader::GSO_NONE, csum_start, csum_offset, ..*header };
        };
        assert_eq!(refusal(&sample, place), refused, "{csum_start} {csum_offset}");
    }
}

#[test]
fn a_fragment_is_forwarded_but_neither_cut_nor_summed() {
    let sample = Sample::new(false, UDP, &[0; 300]);
    let fragment = |gso_type, flags| {
        let mut packet = sample.super_packet(100);
        (packet[0], packet[1]) = (flags, gso_type);
        packet[VnetHeader::LEN + 6] = 0x20;
        Segments::new(Hop::Counts).split(&mut packet).map(|split| split.segments().len())
    };
    assert_eq!(fragment(VnetHeader::GSO_NONE, 0), Ok(1));
    assert_eq!(fragment(VnetHeader::GSO_NONE, VnetHeader::NEEDS_CSUM), Err(SplitError::Fragment));
    assert_eq!(fragment(VnetHeader::GSO_UDP_L4, VnetHeader::NEEDS_CSUM), Err(SplitError::GsoHeaders));
}

#[test]
fn the_memory_for_headers_is_used_again() {
    let mut segments = Segments::new(Hop::Counts);
    let sample = Sample::new(false, TCP, &[0; 60_000]);
    segments.split(&mut sample.super_packet(500)).unwrap();
    let (memory, capacity) = (segments.headers.as_ptr(), segments.headers.capacity());
    segments.split(&mut sample.super_packet(1400)).unwrap();
    segments.split(&mut sample.super_packet(500)).unwrap();
    assert_eq!((segments.headers.as_ptr(), segments.headers.capacity()), (memory, capacity));
}

proptest! {
    #[test]
    fn a_split_makes_the_packets_that_the_sender_would_have_made(
        sample in samples(1..20_000),
        size in 32..3000_u16,
        longer_hint in 0..100_u16,
    ) {
        let mut packet = sample.super_packet(size);
        let hint = (sample.header_len() + usize::from(longer_hint)).min(packet.len() - VnetHeader::LEN) as u16;
        packet[2..4].copy_from_slice(&hint.to_ne_bytes());
        let mut segments = Segments::new(Hop::Counts);
        let split = segments.split(&mut packet).unwrap();
        let wanted: Vec<Vec<u8>> = sample.after(1).cut(size.into()).iter().map(Sample::bytes).collect();
        let made = packets(&split);
        prop_assert!(made.iter().all(|packet| is_right(packet)));
        let (last, others) = made.split_last().unwrap();
        prop_assert!(others.iter().all(|packet| packet.len() == segment_size(&split)));
        prop_assert!(last.len() <= segment_size(&split));
        prop_assert_eq!(len(&split), made.iter().map(Vec::len).sum::<usize>());
        prop_assert_eq!(made, wanted);
    }

    #[test]
    fn a_packet_that_fits_is_completed_in_place(sample in samples(0..2000), offloaded: bool) {
        let mut packet = if offloaded {
            let mut packet = sample.super_packet(1);
            packet[1] = VnetHeader::GSO_NONE;
            packet
        } else {
            [&VnetHeader::default().to_bytes()[..], &sample.bytes()].concat()
        };
        let mut segments = Segments::new(Hop::Counts);
        let split = segments.split(&mut packet).unwrap();
        prop_assert_eq!(packets(&split), [sample.after(1).bytes()]);
        prop_assert_eq!(segment_size(&split), len(&split));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut packet = bytes.clone();
        let refused = Segments::new(Hop::Counts).split(&mut packet).is_err();
        prop_assert!(!refused || packet == bytes);
    }

    #[test]
    fn a_damaged_super_packet_is_refused_untouched_or_cut_whole(
        sample in samples(0..3000),
        size in 1..100_u16,
        damage in proptest::collection::vec((0..90_usize, any::<u8>()), 1..4),
        cut in 0..4_usize,
    ) {
        let mut packet = sample.super_packet(size);
        for (at, byte) in damage {
            let at = at % packet.len();
            packet[at] = byte;
        }
        packet.truncate(packet.len() - cut);
        let before = packet.clone();
        let mut segments = Segments::new(Hop::Counts);
        match segments.split(&mut packet) {
            Ok(split) => {
                let len: usize = split.segments().map(|(_, payload)| payload.len()).sum();
                prop_assert_eq!(len, split.payload.len());
                for packet in packets(&split) {
                    prop_assert_eq!(Ip::parse(&packet).map(|ip| ip.packet_len()), Some(packet.len()));
                }
            }
            Err(_) => prop_assert_eq!(packet, before),
        }
    }
}
