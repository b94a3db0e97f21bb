//! Header blocks of HTTP/2 (HPACK, RFC 7541): finds one field without decoding the others.

use std::ops::Range;

/// The replacement for a value that [`url_as_authority`] found: length and text. It is no longer than any URL, so it
/// fits the dynamic table wherever the original did.
pub(super) const ANY_AUTHORITY: &[u8] = b"\x04etcd";

/// Index of `:authority` in the static table.
const AUTHORITY: usize = 1;
const HTTP: &[u8] = b"http:";
/// `http:` in the Huffman code of appendix B: 29 bits.
const HTTP_ENCODED: [u8; 3] = [0x9d, 0x29, 0xae];
const LAST_BITS: (u8, u8) = (0xf8, 0xe0);
/// This bit of a string's length says that the string is Huffman-encoded.
const IS_ENCODED: u8 = 0x80;

/// Returns the bytes of the `:authority` value with its length, if the value is a URL. `None` also for an invalid
/// block.
pub(super) fn url_as_authority(block: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        // RFC 7541, 6: the first bits give the kind of the field.
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            _ => (4, true),
        };
        let (name, mut after) = integer(block, at, prefix)?;
        if is_literal {
            if name == 0 {
                after = string(block, after)?.1;
            }
            let (value, end) = string(block, after)?;
            let is_url = match block[after] & IS_ENCODED {
                0 => value.starts_with(HTTP),
                _ => {
                    let (mask, bits) = LAST_BITS;
                    value.starts_with(&HTTP_ENCODED) && value.get(3).is_some_and(|byte| byte & mask == bits)
                }
            };
            if name == AUTHORITY && is_url {
                return Some(after..end);
            }
            after = end;
        }
        at = after;
    }
    None
}

/// Returns the integer in the last `prefix` bits of a byte and what follows, and its end.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let largest = (1_usize << prefix) - 1;
    let mut number = usize::from(*block.get(at)?) & largest;
    if number < largest {
        return Some((number, at + 1));
    }
    // No number in a block needs more than three more bytes.
    for (place, byte) in block.get(at + 1..)?.iter().take(3).enumerate() {
        number += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((number, at + 2 + place));
        }
    }
    None
}

/// Returns a string without decoding, and its end.
fn string(block: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length)?;
    Some((block.get(start..end)?, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_behind_other_fields() {
        // A change of the table's size; an indexed field; literals with and without a name; a long value.
        let mut block =
            vec![0x3f, 0xe1, 0x1f, 0x83, 0x44, 2, b'/', b'a', 0x40, 1, b'x', 1, b'y', 0x0f, 0x2b, 127, 3];
        block.extend([b'v'; 130]);
        let start = block.len() + 1;
        block.extend(b"\x01\x08http://a\x82");
        assert_eq!(url_as_authority(&block), Some(start..start + 9));
    }

    #[test]
    fn other_values_and_other_fields_are_not() {
        assert_eq!(url_as_authority(b"\x41\x01a"), None);
        assert_eq!(url_as_authority(b"\x44\x08http://a"), None);
        // "httpd", and bytes of a URL that are marked as encoded.
        assert_eq!(url_as_authority(b"\x41\x84\x9d\x29\xae\x93"), None);
        assert_eq!(url_as_authority(b"\x41\x88http://a"), None);
        assert_eq!(url_as_authority(b""), None);
    }

    #[test]
    fn what_is_cut_off_is_no_block() {
        let whole = b"\x40\x01x\x01y\x41\x08http://a";
        for length in 0..whole.len() {
            assert_eq!(url_as_authority(&whole[..length]), None);
        }
        assert_eq!(url_as_authority(&[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f]), None);
    }
}
