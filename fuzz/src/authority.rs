//! Of what a client of the embedded store says, the server reads everything as it was said, but for an `:authority` that is
//! a URL: that is replaced.

use flan_embedded_store::fuzz::fixed;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that a server must read.
const LARGEST_FRAME: usize = 1 << 14;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;
/// What stands in for a URL, with its length.
const REPLACEMENT: &[u8] = b"\x04etcd";
/// A field that is `:authority`, as a literal: to be remembered, not to be, never to be.
const AUTHORITY: [u8; 3] = [0x41, 0x01, 0x11];

/// `bytes` are all that a client says.
pub fn check(bytes: &[u8]) {
    check_read(bytes);
    // Again as the fuzzer would have to guess it: what HTTP/2 begins with, and one request's header of these bytes.
    let length = (bytes.len() as u32).to_be_bytes();
    let frame = [&length[1..], &[HEADERS, END_HEADERS, 0, 0, 0, 1], bytes];
    check_read(&[PREFACE, &frame.concat()].concat());
}

fn check_read(bytes: &[u8]) {
    let (read, kept_back) = fixed([bytes], bytes.len() + 1);
    assert!(kept_back < FRAME_HEADER + LARGEST_FRAME, "{kept_back} bytes are kept back");
    for pieces in [1, 7, 1000] {
        let (in_pieces, kept_back) = fixed(bytes.chunks(pieces), pieces);
        assert_eq!(in_pieces, read, "read otherwise in pieces of {pieces}");
        assert!(kept_back < FRAME_HEADER + LARGEST_FRAME, "{kept_back} bytes are kept back");
    }

    let (Some(mut before), Some(mut after)) = (bytes.strip_prefix(PREFACE), read.strip_prefix(PREFACE))
    else {
        assert_eq!(read, bytes, "no HTTP/2, and changed");
        return;
    };
    while let Some(((header, payload), rest)) = frame(before) {
        let ((header_read, payload_read), rest_read) = frame(after).expect("a frame is lost");
        assert_eq!(header[3..], header_read[3..], "a frame has become another one");
        if payload != payload_read {
            let has_fields = header[3] == HEADERS && header[4] & END_HEADERS != 0;
            assert!(has_fields && payload.len() <= LARGEST_FRAME, "changed without need");
            check_fixed(payload, payload_read);
        }
        (before, after) = (rest, rest_read);
    }
    assert_eq!(before, after, "half a frame, and changed");
}

/// A frame's header and payload, and what follows.
fn frame(bytes: &[u8]) -> Option<((&[u8], &[u8]), &[u8])> {
    let (header, rest) = bytes.split_at_checked(FRAME_HEADER)?;
    let length = header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (payload, rest) = rest.split_at_checked(length)?;
    Some(((header, payload), rest))
}

/// Checks that the value of one `:authority`, and a URL, has made room for another.
fn check_fixed(before: &[u8], after: &[u8]) {
    assert!(after.len() <= before.len(), "it has become longer, and may not fit where it did");
    let is_replaced_at = |at: usize| {
        let removed = before.len() - (after.len() - REPLACEMENT.len());
        at > 0
            && before[..at] == after[..at]
            && after[at..].starts_with(REPLACEMENT)
            && before.get(at + removed..) == Some(&after[at + REPLACEMENT.len()..])
            && AUTHORITY.contains(&before[at - 1])
            && is_url(&before[at..at + removed])
    };
    assert!((0..after.len()).any(is_replaced_at), "{before:02x?} has become {after:02x?}");
}

/// Whether it is a string with its length, and begins with `http:` in either code.
fn is_url(string: &[u8]) -> bool {
    let (length, text) = match string {
        [first, text @ ..] if first & 0x7f < 0x7f => (usize::from(first & 0x7f), text),
        [_, rest @ ..] => {
            let more = rest.iter().take_while(|byte| **byte & 0x80 != 0).count();
            let Some(bytes) = rest.get(..=more) else { return false };
            let number = bytes.iter().rev().fold(0, |number, byte| number << 7 | usize::from(byte & 0x7f));
            (127 + number, &rest[more + 1..])
        }
        [] => return false,
    };
    let is_encoded = string[0] & 0x80 != 0;
    // 29 bits: 100111, 01001 twice, 101011 and 1011100 (RFC 7541, appendix B).
    let encoded = |text: &[u8]| {
        text.first_chunk().is_some_and(|bytes: &[u8; 4]| u32::from_be_bytes(*bytes) >> 3 == 0x9d29_aee0 >> 3)
    };
    length == text.len() && if is_encoded { encoded(text) } else { text.starts_with(b"http:") }
}
