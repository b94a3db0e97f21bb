//! For tests: bytes as they were listened to, in hexadecimal.

use netlink_packet_core::NLM_F_ACK;

use super::message::Request;

/// The bytes that `hex` shows, two digits each.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A request as hexadecimal digits, acknowledged as iproute2 has every request.
pub(crate) fn hex(request: Request) -> String {
    let most = request.bytes();
    let mut bytes = Vec::new();
    request.emit(0, &mut bytes);
    assert!(bytes.len() <= most);
    bytes[6] |= NLM_F_ACK as u8;
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What iproute2 6.1 sent, its sequence number blanked.
#[track_caller]
pub(crate) fn assert_as_iproute2(ours: &str, theirs: &str) {
    let blanked = format!("{}00000000{}", &theirs[..16], &theirs[24..]);
    assert_eq!(ours, blanked);
}
