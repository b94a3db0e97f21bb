//! For tests: captured bytes in hexadecimal.

use netlink_packet_core::NLM_F_ACK;

use super::message::Request;

/// Decodes `hex`, two digits per byte.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// Returns a request as hexadecimal digits, with an acknowledgement requested, as iproute2 does.
pub(crate) fn hex(request: Request) -> String {
    let most = request.bytes();
    let mut bytes = Vec::new();
    request.emit(0, &mut bytes);
    assert!(bytes.len() <= most);
    bytes[6] |= NLM_F_ACK as u8;
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares with what iproute2 6.1 sent, its sequence number blanked.
#[track_caller]
pub(crate) fn assert_as_iproute2(ours: &str, theirs: &str) {
    let blanked = format!("{}00000000{}", &theirs[..16], &theirs[24..]);
    assert_eq!(ours, blanked);
}
