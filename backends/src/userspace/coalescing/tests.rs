use proptest::prelude::*;

use super::super::packet::samples::{Sample, is_right, noise, samples};
use super::super::segmentation::Segments;
use super::*;

const BOTH: Merging = Merging { mtu: Some(1472), tcp: true, udp: true, hop: Hop::Counts, checks: true };

/// One write, concatenated.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    header: VnetHeader,
    count: usize,
    packet: Vec<u8>,
}

/// Passes `packets` to a coalescer as one batch.
fn written(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Written> {
    let mut lowered = packets.to_vec();
    for packet in &mut lowered {
        decrement_ttl(packet);
    }
    let mut packets = packets.to_vec();
    let mut batch = coalescer.batch();
    for packet in &mut packets {
        batch.push(packet).unwrap();
    }
    let write = |write: Write<'_>| {
        assert_eq!(write.packets().count(), write.count);
        // A merged write that the device refuses is repeated as these packets.
        assert!(write.packets().all(|packet| lowered.iter().any(|lowered| lowered == packet)));
        let packet = write.payload().fold(write.headers.to_vec(), |packet, piece| [&packet, piece].concat());
        Written { header: write.header, count: write.count, packet }
    };
    batch.writes().map(write).collect()
}

fn counts(samples: &[Sample]) -> Vec<usize> {
    let packets: Vec<Vec<u8>> = samples.iter().map(Sample::bytes).collect();
    written(&mut Coalescer::new(BOTH), &packets).iter().map(|write| write.count).collect()
}

/// Returns what the network stack, as the other end, makes of a write.
fn split_again(write: &Written) -> Vec<Vec<u8>> {
    let mut packet = [&write.header.to_bytes()[..], &write.packet].concat();
    let mut segments = Segments::new(Hop::Counts);
    let split = segments.split(&mut packet).unwrap();
    split.segments().map(|(headers, payload)| [headers, payload].concat()).collect()
}

/// Returns three segments that merge, each with 100 bytes.
fn three(is_ipv6: bool, protocol: u8) -> Vec<Sample> {
    Sample::new(is_ipv6, protocol, &noise(300, 1)).cut(100)
}

#[test]
fn neighbouring_segments_become_one_write_with_the_headers_that_the_kernel_wants() {
    for (is_ipv6, protocol) in [(false, TCP), (true, TCP), (false, UDP), (true, UDP)] {
        let sample = Sample {
            tcp_options: vec![1; 12],
            flags: 0x18,
            ..Sample::new(is_ipv6, protocol, &noise(1250, 1))
        };
        let packets: Vec<Vec<u8>> = sample.cut(100).iter().map(Sample::bytes).collect();
        let writes = written(&mut Coalescer::new(BOTH), &packets);
        assert_eq!(writes.len(), 1);
        assert_eq!(writes[0].count, 13);
        let wanted = sample.after(1).super_packet(100);
        assert_eq!(writes[0].header, VnetHeader::parse(&wanted).unwrap());
        assert_eq!(writes[0].packet, wanted[VnetHeader::LEN..]);
    }
}

#[test]
fn only_what_is_asked_for_is_merged() {
    for (merging, protocol, wanted) in [
        (Merging { mtu: Some(1472), tcp: false, udp: true, hop: Hop::Counts, checks: true }, TCP, 3),
        (Merging { mtu: Some(1472), tcp: false, udp: true, hop: Hop::Counts, checks: true }, UDP, 1),
        (Merging { mtu: Some(1472), tcp: true, udp: false, hop: Hop::Counts, checks: true }, UDP, 3),
    ] {
        let packets: Vec<Vec<u8>> = three(false, protocol).iter().map(Sample::bytes).collect();
        assert_eq!(written(&mut Coalescer::new(merging), &packets).len(), wanted);
    }
}

#[test]
fn a_segment_that_differs_in_any_field_is_not_merged() {
    type Edit = fn(&mut Sample);
    let changes: [(&str, Edit); 13] = [
        ("time to live", |sample| sample.ttl -= 1),
        ("ECN", |sample| sample.tos = 3),
        ("DF", |sample| sample.dont_fragment = true),
        ("id", |sample| sample.id += 1),
        ("IP options", |sample| sample.ip_options = vec![1; 4]),
        ("sequence", |sample| sample.sequence += 1),
        ("acknowledgement", |sample| sample.acknowledgement += 1),
        ("window", |sample| sample.window += 1),
        ("TCP options", |sample| sample.tcp_options = vec![1; 4]),
        ("FIN", |sample| sample.flags |= 1),
        ("CWR", |sample| sample.flags |= 0x80),
        ("length", |sample| sample.payload.push(0)),
        ("flow", |sample| sample.flow += 1),
    ];
    for (name, change) in changes {
        let mut samples = three(false, TCP);
        change(&mut samples[2]);
        assert_eq!(counts(&samples), [2, 1], "{name}");
    }
}

#[test]
fn neither_an_empty_segment_nor_a_datagram_without_checksum_is_merged() {
    let acknowledgement = Sample::new(false, TCP, b"");
    assert_eq!(counts(&[acknowledgement.clone(), acknowledgement]), [1, 1]);

    let mut packets: Vec<Vec<u8>> = three(false, UDP).iter().map(Sample::bytes).collect();
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(written(&mut Coalescer::new(BOTH), &packets).len(), 3);
}

#[test]
fn a_push_or_a_short_segment_ends_a_merge() {
    let mut samples = Sample::new(false, TCP, &noise(600, 1)).cut(100);
    samples[2].flags |= TcpSegment::PSH;
    assert_eq!(counts(&samples), [3, 3]);

    let sample = Sample::new(false, TCP, &noise(350, 1));
    let next = Sample {
        sequence: sample.sequence.wrapping_add(350),
        id: sample.id.wrapping_add(4),
        ..sample.clone()
    };
    assert_eq!(counts(&[sample.cut(100), next.cut(100)].concat()), [4, 4]);
}

#[test]
fn a_write_holds_no_more_segments_and_bytes_than_allowed() {
    assert_eq!(counts(&Sample::new(false, TCP, &noise(6500, 1)).cut(100)), [64, 1]);
    for (is_ipv6, header_len) in [(false, 40), (true, 60)] {
        let sample = Sample::new(is_ipv6, TCP, &noise(60_000, 1));
        let most = (MAX_PACKET - header_len) / 8900;
        assert_eq!(
            counts(&[sample.cut(8900), sample.cut(8900)].concat())[0],
            60_000_usize.div_ceil(8900).min(most)
        );
    }
}

#[test]
fn a_fragment_keeps_all_others_from_overtaking_it() {
    let mut packets: Vec<Vec<u8>> = three(false, TCP).iter().map(Sample::bytes).collect();
    let mut fragment = Sample::new(false, UDP, &[0; 80]).bytes();
    fragment[6] = 0x20;
    packets.insert(2, fragment);
    let writes = written(&mut Coalescer::new(BOTH), &packets);
    assert_eq!(writes.iter().map(|write| write.count).collect::<Vec<_>>(), [2, 1, 1]);
}

#[test]
fn a_ping_between_segments_ends_no_merge() {
    let mut packets: Vec<Vec<u8>> = three(false, TCP).iter().map(Sample::bytes).collect();
    let mut ping = Sample::new(false, UDP, &[0; 80]).bytes();
    ping[9] = 1;
    packets.insert(2, ping);
    let writes = written(&mut Coalescer::new(BOTH), &packets);
    assert_eq!(writes.iter().map(|write| write.count).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn where_hops_do_not_count_the_time_to_live_stays_and_a_last_hop_is_no_end() {
    let mut packet = Sample { ttl: 1, ..Sample::new(true, TCP, b"abc") }.bytes();
    let (before, mut nothing) = (packet.clone(), vec![0x60, 0, 0]);
    let mut coalescer = Coalescer::new(Merging { hop: Hop::IsFree, ..BOTH });
    let mut batch = coalescer.batch();
    assert_eq!(batch.push(&mut packet), Ok(()));
    assert_eq!(batch.push(&mut nothing), Err((PushError::NotIp, &mut [0x60, 0, 0][..])));
    assert_eq!(batch.writes().map(|write| write.headers.to_vec()).collect::<Vec<_>>(), [before]);
}

#[test]
fn where_the_wire_proves_that_nothing_changed_a_wrong_checksum_stops_no_merge() {
    for protocol in [TCP, UDP] {
        let mut packets: Vec<Vec<u8>> = three(false, protocol).iter().map(Sample::bytes).collect();
        *packets[1].last_mut().unwrap() ^= 1;
        let unchecked = Merging { checks: false, ..BOTH };
        let count = |merging| written(&mut Coalescer::new(merging), &packets).len();
        assert_eq!((count(unchecked), count(BOTH)), (1, 3));
        // That of the IP header is still checked.
        packets[1][10] ^= 1;
        assert_eq!(written(&mut Coalescer::new(unchecked), &packets).len(), 3);
    }
}

#[test]
fn a_packet_at_the_end_of_its_life_and_one_that_is_none_are_handed_back() {
    let mut expired = Sample { ttl: 1, ..Sample::new(false, TCP, b"abc") }.bytes();
    let (mut copy, mut nothing) = (expired.clone(), vec![0x45, 0, 0]);
    let mut coalescer = Coalescer::new(BOTH);
    let mut batch = coalescer.batch();
    assert_eq!(batch.push(&mut expired), Err((PushError::TtlExpired, &mut copy[..])));
    assert_eq!(batch.push(&mut nothing), Err((PushError::NotIp, &mut [0x45, 0, 0][..])));
    assert_eq!(batch.writes().len(), 0);
}

#[test]
fn the_memory_of_a_batch_is_used_for_the_next() {
    let packets: Vec<Vec<u8>> = three(true, TCP).iter().map(Sample::bytes).collect();
    let mut coalescer = Coalescer::new(BOTH);
    let memory = |coalescer: &Coalescer| {
        let Coalescer { headers, groups, segments, .. } = coalescer;
        (headers.as_ptr(), groups.as_ptr().addr(), segments.as_ptr().addr(), segments.capacity())
    };
    written(&mut coalescer, &packets);
    let first = memory(&coalescer);
    written(&mut coalescer, &packets);
    assert_eq!(memory(&coalescer), first);
    assert!(first.3 >= 3);
}

/// Packets of one flow that could break a merge, and what was done to them.
#[derive(Debug, Clone)]
enum Event {
    Data { len: usize, pushed: bool },
    Acknowledge,
    Window,
    Finish,
    Gap,
    Corrupt { at: usize },
    Trailer,
}

fn events() -> impl Strategy<Value = Event> {
    let len = prop_oneof![6 => Just(100_usize), 1 => 1..300_usize];
    prop_oneof![
        12 => (len, proptest::bool::weighted(0.1)).prop_map(|(len, pushed)| Event::Data { len, pushed }),
        1 => Just(Event::Acknowledge),
        1 => Just(Event::Window),
        1 => Just(Event::Finish),
        1 => Just(Event::Gap),
        1 => (0..1000_usize).prop_map(|at| Event::Corrupt { at }),
        1 => Just(Event::Trailer),
    ]
}

/// Returns the packets that `events` make of a flow that begins with `sample`.
fn flow(mut sample: Sample, events: &[Event]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let (mut len, mut flags) = (100, sample.flags);
        match event {
            Event::Data { len: wanted, pushed } => {
                len = *wanted;
                flags |= if *pushed { TcpSegment::PSH } else { 0 };
            }
            Event::Acknowledge => {
                sample.acknowledgement = sample.acknowledgement.wrapping_add(1);
                len = 0;
            }
            Event::Window => sample.window = sample.window.wrapping_add(1),
            Event::Finish => flags |= TcpSegment::FIN,
            Event::Gap => sample.sequence = sample.sequence.wrapping_add(100),
            Event::Corrupt { .. } | Event::Trailer => {}
        }
        sample.payload = noise(len, index as u64);
        let mut packet = Sample { flags, ..sample.clone() }.bytes();
        match event {
            // Anything from the TCP or UDP checksum on, except header lengths.
            Event::Corrupt { at } => {
                let from = sample.ip_header_len() + if sample.protocol == TCP { 14 } else { 6 };
                let at = from + at % (packet.len() - from);
                packet[at] ^= 0x55;
            }
            Event::Trailer => packet.extend([0; 6]),
            _ => {}
        }
        packets.push(packet);
        sample.sequence = sample.sequence.wrapping_add(len as u32);
        sample.id = sample.id.wrapping_add(1);
    }
    packets
}

/// Returns what distinguishes the flows of one case.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    let ip = Ip::parse(packet).unwrap();
    [ip.addresses(), &[ip.protocol()]].concat()
}

/// Returns where the checksum of TCP or UDP is.
fn checksum_at(packet: &[u8]) -> usize {
    let ip = Ip::parse(packet).unwrap();
    ip.header_len() + if ip.protocol() == TCP { 16 } else { 6 }
}

/// Returns whether a packet without a trailer has the sum of its pseudo-header for a checksum, as a complete one may by
/// chance.
fn looks_unfinished(packet: &[u8]) -> bool {
    let ip = Ip::parse(packet).unwrap();
    let checksum = match ip.protocol() {
        TCP => TcpSegment::parse(ip.payload()).unwrap().checksum(),
        _ => UdpDatagram::parse(ip.payload()).unwrap().checksum(),
    };
    ip.packet_len() == packet.len() && checksum == ip.pseudo_header(ip.payload().len() as u16).fold()
}

proptest! {
    #[test]
    fn merging_and_splitting_gives_each_flow_byte_for_byte_in_order(
        flows in proptest::collection::vec((samples(0..1), proptest::collection::vec(events(), 1..60), any::<bool>()), 1..5),
        turns in proptest::collection::vec((0..5_usize, 1..9_usize), 1..60),
    ) {
        let count = flows.len();
        let mut queues: Vec<_> = flows
            .into_iter()
            .enumerate()
            .map(|(index, (mut sample, events, plain))| {
                sample.flow = index as u8;
                if plain {
                    sample.flags = TcpSegment::ACK;
                    sample.ip_options.clear();
                }
                flow(sample, &events).into_iter()
            })
            .collect();
        let mut packets = Vec::new();
        for (turn, burst) in turns {
            packets.extend(queues[turn % count].by_ref().take(burst));
        }

        let writes = written(&mut Coalescer::new(BOTH), &packets);
        prop_assert_eq!(writes.iter().map(|write| write.count).sum::<usize>(), packets.len());
        let mut left: Vec<Vec<u8>> = packets;
        for packet in &mut left {
            decrement_ttl(packet);
        }
        for write in &writes {
            let finished = write.header != VnetHeader::default();
            // One that looks unfinished by chance, and is right, may stay as it is.
            match write.count {
                1 if finished => prop_assert!(looks_unfinished(&write.packet)),
                1 => prop_assert!(!looks_unfinished(&write.packet) || is_right(&write.packet)),
                _ => prop_assert!(finished),
            }
            let restored = if finished { split_again(write) } else { vec![write.packet.clone()] };
            prop_assert_eq!(restored.len(), write.count);
            for packet in restored {
                // This must be the next one of its flow.
                let at = left.iter().position(|other| flow_of(other) == flow_of(&packet)).unwrap();
                let mut sent = left.remove(at);
                if finished {
                    decrement_ttl(&mut sent);
                    prop_assert!(is_right(&packet));
                }
                // A damaged one that looks unfinished is finished alone, as nobody can tell: only its checksum is another.
                if finished && !is_right(&sent) {
                    prop_assert_eq!(write.count, 1);
                    let at = checksum_at(&sent);
                    sent[at..at + 2].copy_from_slice(&packet[at..at + 2]);
                }
                prop_assert_eq!(packet, sent);
            }
        }
    }

    #[test]
    fn splitting_and_merging_gives_the_super_packet(sample in samples(1..20_000), size in 320..3000_u16) {
        let flags = TcpSegment::ACK | sample.flags & TcpSegment::PSH;
        let sample = Sample { flags, ip_options: Vec::new(), ..sample };
        let mut tun = sample.super_packet(size);
        let mut segments = Segments::new(Hop::Counts);
        let split = segments.split(&mut tun).unwrap();
        let packets: Vec<Vec<u8>> = split.segments().map(|(headers, payload)| [headers, payload].concat()).collect();
        let writes = written(&mut Coalescer::new(BOTH), &packets);
        prop_assert_eq!(writes.len(), 1);
        let wanted = sample.after(2).super_packet(size);
        if packets.len() == 1 {
            prop_assert_eq!(&writes[0].packet, &sample.after(2).bytes());
        } else {
            prop_assert_eq!(writes[0].header, VnetHeader::parse(&wanted).unwrap());
            prop_assert_eq!(&writes[0].packet, &wanted[VnetHeader::LEN..]);
        }
    }

    #[test]
    fn a_wrong_checksum_passes_as_it_came(is_ipv6: bool, is_tcp: bool, which in 0..3_usize, at in 0..1000_usize, wrong in 1..=255_u8) {
        let mut packets: Vec<Vec<u8>> =
            three(is_ipv6, if is_tcp { TCP } else { UDP }).iter().map(Sample::bytes).collect();
        let from = if is_ipv6 { 40 } else { 20 } + if is_tcp { 20 } else { 8 };
        packets[which][from + at % 100] ^= wrong;
        let mut sent = packets[which].clone();
        decrement_ttl(&mut sent);
        let writes = written(&mut Coalescer::new(BOTH), &packets);
        let plain = Written { header: VnetHeader::default(), count: 1, packet: sent };
        prop_assert!(writes.contains(&plain));
        prop_assert_eq!(writes.len(), if which == 1 { 3 } else { 2 });
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..150), 1..9),
        whole in proptest::collection::vec(any::<bool>(), 9),
        damage in proptest::collection::vec((0..60_usize, any::<u8>()), 9),
    ) {
        let mut packets = three(false, TCP).iter().map(Sample::bytes).collect::<Vec<_>>();
        packets.extend(bytes.into_iter().zip(whole).map(|(mut bytes, whole)| {
            if whole && bytes.len() >= 20 {
                let len = bytes.len() as u8;
                bytes[..4].copy_from_slice(&[0x45, 0, 0, len]);
            }
            bytes
        }));
        for (packet, (at, byte)) in packets.iter_mut().zip(damage) {
            if let Some(field) = packet.get_mut(at) {
                *field = byte;
            }
        }
        let mut coalescer = Coalescer::new(BOTH);
        let mut batch = coalescer.batch();
        let taken = packets.iter_mut().filter_map(|packet| batch.push(packet).ok()).count();
        prop_assert_eq!(batch.writes().map(|write| write.count).sum::<usize>(), taken);
    }
}
