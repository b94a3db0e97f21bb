use std::io::IoSlice;

use super::*;

use nix::poll::{PollFd, PollFlags, poll};

const ALL: UdpOptions = UdpOptions { gso: true, gro: true, shared: false, buffer_bytes: 1 << 20 };

fn loopback(options: UdpOptions) -> (UdpSocket, SocketAddr, UdpModes) {
    let (socket, modes) = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address, modes)
}

fn send(socket: &UdpSocket, to: SocketAddr, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    socket.send_many(&[Message { to, slices, segment_size: None }])
}

fn send_segments(
    socket: &UdpSocket,
    to: SocketAddr,
    slices: &[IoSlice<'_>],
    segment_size: u16,
) -> io::Result<usize> {
    socket.send_many(&[Message { to, slices, segment_size: Some(segment_size) }])
}

/// Returns all datagrams that arrive until `bytes` of payload have: source, payload, segment size.
fn receive_bytes(socket: &UdpSocket, bytes: usize) -> Vec<(SocketAddr, Vec<u8>, usize)> {
    let mut batch = ReceiveBatch::new(8);
    let mut all = Vec::new();
    while all.iter().map(|(_, bytes, _): &(_, Vec<u8>, _)| bytes.len()).sum::<usize>() < bytes {
        let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], 5_000_u16).unwrap();
        assert_eq!(ready, 1, "nothing more arrived within 5 s after {} datagrams", all.len());
        socket.receive(&mut batch).unwrap();
        all.extend(batch.datagrams().map(|d| (d.source, d.bytes.to_vec(), d.segment_size)));
    }
    all
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn a_segmented_send_arrives_as_single_datagrams() {
    let (sender, from, modes) = loopback(ALL);
    assert!(modes.gso);
    let (receiver, to, modes) = loopback(UdpOptions { gro: false, ..ALL });
    assert!(!modes.gro);
    let payload = payload(44 * 1400 - 100);
    // Slice boundaries do not have to match segment boundaries.
    let (head, tail) = payload.split_at(2_001);
    let slices = [IoSlice::new(head), IoSlice::new(tail)];
    assert_eq!(send_segments(&sender, to, &slices, 1400).unwrap(), 1);

    let received = receive_bytes(&receiver, payload.len());
    assert_eq!(received.len(), 44);
    for ((source, bytes, segment_size), expected) in received.iter().zip(payload.chunks(1400)) {
        assert_eq!((*source, bytes.as_slice(), *segment_size), (from, expected, expected.len()));
    }
}

#[test]
fn a_segmented_send_arrives_merged_with_its_segment_size() {
    let (sender, from, _) = loopback(ALL);
    let (receiver, to, modes) = loopback(ALL);
    assert!(modes.gro);
    let payload = payload(10 * 1400 + 7);
    send_segments(&sender, to, &[IoSlice::new(&payload)], 1400).unwrap();
    assert_eq!(receive_bytes(&receiver, payload.len()), [(from, payload, 1400)]);
}

#[test]
fn the_largest_segmented_send_stays_whole() {
    let (sender, from, _) = loopback(ALL);
    let (receiver, to, _) = loopback(ALL);
    let payload = payload(MAX_GSO_BYTES);
    let size = MAX_GSO_BYTES.div_ceil(MAX_SEGMENTS);
    send_segments(&sender, to, &[IoSlice::new(&payload)], size as u16).unwrap();
    assert_eq!(receive_bytes(&receiver, payload.len()), [(from, payload, size)]);
}

#[test]
fn the_largest_payload_arrives_in_whichever_pieces() {
    let (sender, _, _) = loopback(ALL);
    let (receiver, to, _) = loopback(ALL);
    let payload = payload(MAX_PAYLOAD_BYTES);
    send_segments(&sender, to, &[IoSlice::new(&payload)], 1_400).unwrap();
    let received: Vec<_> = receive_bytes(&receiver, payload.len()).into_iter().map(|(_, b, _)| b).collect();
    assert!(received.concat() == payload);
}

#[test]
fn a_batch_goes_to_two_destinations() {
    let (sender, from, _) = loopback(ALL);
    let (one, to_one, _) = loopback(ALL);
    let (two, to_two, _) = loopback(ALL);
    let merged = payload(3_000);
    let messages = [
        Message { to: to_one, slices: &[IoSlice::new(&merged)], segment_size: Some(1_000) },
        Message { to: to_two, slices: &[IoSlice::new(b"a"), IoSlice::new(b"bc")], segment_size: None },
        Message { to: to_one, slices: &[IoSlice::new(b"last")], segment_size: None },
    ];
    assert_eq!(sender.send_many(&messages).unwrap(), 3);
    assert_eq!(receive_bytes(&one, 3_004), [(from, merged, 1_000), (from, b"last".to_vec(), 4)]);
    assert_eq!(receive_bytes(&two, 3), [(from, b"abc".to_vec(), 3)]);
}

#[test]
fn a_batch_stops_at_the_message_that_fails_and_the_next_call_says_why() {
    let (sender, to, _) = loopback(ALL);
    let large = payload(MAX_PAYLOAD_BYTES + 1);
    let (small, large) = ([IoSlice::new(b"x")], [IoSlice::new(&large)]);
    let message = |slices| Message { to, slices, segment_size: None };
    let messages = [message(&small), message(&large), message(&small)];
    assert_eq!(sender.send_many(&messages).unwrap(), 1);
    assert!(is_too_big(&sender.send_many(&messages[1..]).unwrap_err()));
    assert_eq!(sender.send_many(&messages[2..]).unwrap(), 1);
    assert_eq!(sender.send_many(&[]).unwrap(), 0);
}

#[test]
fn a_batch_is_at_most_64_messages() {
    let (sender, to, _) = loopback(ALL);
    let slices = [IoSlice::new(b"x")];
    let messages = [Message { to, slices: &slices, segment_size: None }; MAX_MESSAGES + 1];
    assert_eq!(sender.send_many(&messages).unwrap(), MAX_MESSAGES);
}

#[test]
fn an_empty_datagram_has_a_segment_size_that_can_be_divided_by() {
    let (sender, to, _) = loopback(ALL);
    send(&sender, to, &[]).unwrap();
    send(&sender, to, &[IoSlice::new(b"end")]).unwrap();
    assert_eq!(receive_bytes(&sender, 3), [(to, vec![], 1), (to, b"end".to_vec(), 3)]);
}

#[test]
fn nothing_received_would_block_and_forgets_the_last_batch() {
    let (socket, to, _) = loopback(ALL);
    let mut batch = ReceiveBatch::new(2);
    send(&socket, to, &[IoSlice::new(b"x")]).unwrap();
    assert_eq!(socket.receive(&mut batch).unwrap(), 1);
    let error = socket.receive(&mut batch).unwrap_err();
    assert!(is_full(&error), "{error}");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(batch.datagrams().count(), 0);
}

#[test]
fn too_many_segments_are_refused_as_segmentation() {
    let (sender, to, _) = loopback(ALL);
    let error = send_segments(&sender, to, &[IoSlice::new(&payload(2_000))], 1).unwrap_err();
    assert!(is_gso_refused(&error), "{error}");
}

#[test]
fn too_many_slices_are_no_matter_of_size() {
    let (sender, to, _) = loopback(ALL);
    let slices = vec![IoSlice::new(b"x"); MAX_SLICES + 1];
    let error = send(&sender, to, &slices).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(!is_too_big(&error));
}

#[test]
fn errors_are_classified() {
    let errno = io::Error::from_raw_os_error;
    for refused in [libc::EIO, libc::EINVAL, libc::EOPNOTSUPP] {
        assert!(is_gso_refused(&errno(refused)));
    }
    assert!(is_too_big(&errno(libc::EMSGSIZE)));
    assert!(is_full(&errno(libc::EAGAIN)) && is_full(&errno(libc::ENOBUFS)));
    assert!(!is_full(&errno(libc::EMSGSIZE)) && !is_gso_refused(&errno(libc::EMSGSIZE)));
}

#[test]
fn buffers_are_raised_and_never_lowered() {
    let (_, _, modes) = loopback(UdpOptions { buffer_bytes: 1, ..ALL });
    assert!(modes.receive_buffer_bytes > 10_000 && modes.send_buffer_bytes > 10_000, "{modes:?}");
}

#[test]
fn a_batch_can_move_to_the_thread_that_uses_it() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&ReceiveBatch::new(1));
}

#[test]
fn datagrams_go_to_the_socket_of_the_processor_that_they_arrive_on() {
    let shared = UdpOptions { shared: true, ..ALL };
    let (first, address, _) = loopback(shared);
    let (second, _) = UdpSocket::bind(address, shared).unwrap();
    first.steer_by_processor(2).unwrap();
    // Over loopback a datagram arrives on the processor that sent it.
    let sent = std::thread::spawn(move || {
        crate::scheduling::stay_on_every(2, 0).unwrap();
        for _ in 0..20 {
            // By sender, the kernel's default, they would be spread.
            let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(b"x", address).unwrap();
        }
    });
    sent.join().unwrap();
    assert_eq!(receive_bytes(&first, 20).len(), 20);
    let mut batch = ReceiveBatch::new(1);
    assert_eq!(second.receive(&mut batch).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn large_datagrams_are_taken_few_at_a_time() {
    let (receiver, to, _) = loopback(UdpOptions { gro: false, ..ALL });
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut batch = ReceiveBatch::new(64);
    for _ in 0..2 {
        sender.send_to(&payload(60_000), to).unwrap();
    }
    assert_eq!(receiver.receive(&mut batch).unwrap(), 2);
    assert!(!batch.is_full());
    for _ in 0..5 {
        sender.send_to(&payload(60_000), to).unwrap();
    }
    assert_eq!(receiver.receive(&mut batch).unwrap(), 4);
    assert!(batch.is_full());
}

#[test]
fn a_socket_for_every_address_exchanges_segmented_sends_with_ipv4() {
    let (both, modes) = UdpSocket::bind("[::]:0".parse().unwrap(), ALL).unwrap();
    assert!(modes.gso && modes.gro);
    let port = both.local_addr().unwrap().port();
    let (four, four_at, _) = loopback(ALL);
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", four_at.port()).parse().unwrap();
    let payload = payload(10 * 1400 + 7);
    send_segments(&both, mapped, &[IoSlice::new(&payload)], 1400).unwrap();
    let from = ([127, 0, 0, 1], port).into();
    assert_eq!(receive_bytes(&four, payload.len()), [(from, payload.clone(), 1400)]);
    send_segments(&four, from, &[IoSlice::new(&payload)], 1400).unwrap();
    assert_eq!(receive_bytes(&both, payload.len()), [(mapped, payload, 1400)]);
}
