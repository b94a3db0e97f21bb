//! One key of the store as it is kept here, whatever somebody wrote.

use std::hash::{DefaultHasher, Hash, Hasher};

/// One key below `<prefix>/subnets/`. Anybody may have written it: etcd takes keys and values of up to 1.5 MB, and what
/// no lease can be is not kept whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of the key. One that is no text, or has more than 256 bytes, is stood for by its beginning with a
    /// U+FFFD in it, its size and a number that tells it from others.
    pub key: String,
    /// The value; of one with more than [`Entry::MOST_BYTES`], only that many bytes and one.
    pub value: Vec<u8>,
    /// Store revision at which the key was created.
    pub create_revision: i64,
    /// Store revision of the last write.
    pub mod_revision: i64,
    /// The etcd lease that keeps the key alive.
    pub etcd_lease: Option<i64>,
}

impl Entry {
    /// Bytes of a value at most; what is larger is no lease.
    pub const MOST_BYTES: usize = 8192;
}

/// The last part of a key, and a value, as they are kept in an [`Entry`]. Compiled with `--cfg fuzzing` alone.
#[cfg(fuzzing)]
pub fn kept(key: &[u8], value: Vec<u8>) -> (String, Vec<u8>) {
    (name(key), bounded(value))
}

/// A value, of which no more is kept than a lease can have, and one byte that tells.
pub(crate) fn bounded(mut value: Vec<u8>) -> Vec<u8> {
    if value.len() > Entry::MOST_BYTES {
        value.truncate(Entry::MOST_BYTES + 1);
        value.shrink_to_fit();
    }
    value
}

/// Bytes of a key that is kept whole. The longest that names subnets has 62.
const MOST_IN_KEY: usize = 256;
/// Bytes that are kept of any other.
const HEAD_OF_KEY: usize = 64;

/// A key as text, a different one for each key. What is no key of a lease has a U+FFFD in it and is not kept whole.
pub(crate) fn name(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if text.len() <= MOST_IN_KEY => text.to_owned(),
        _ => {
            let mut number = DefaultHasher::new();
            key.hash(&mut number);
            let head = String::from_utf8_lossy(&key[..key.len().min(HEAD_OF_KEY)]);
            format!("{head}\u{fffd}... ({} bytes, number {:016x})", key.len(), number.finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LeaseAttributes;

    #[test]
    fn of_a_megabyte_that_can_be_no_lease_little_is_kept() {
        // A lease to anybody who reads all of it, and to anybody who reads its beginning.
        let padded = [br#"{"PublicIP":"192.168.64.11"}"#.as_slice(), &vec![b' '; 1 << 20]].concat();
        let kept = bounded(padded);
        assert!(kept.capacity() <= LeaseAttributes::MOST_BYTES + 1, "{}", kept.capacity());
        let error = LeaseAttributes::from_json(&kept).unwrap_err().to_string();
        assert_eq!(error, "unreadable value: it is larger than a lease, which has at most 8192 bytes");
    }

    #[test]
    fn a_key_of_a_megabyte_and_one_that_is_no_text_are_told_from_others_like_them() {
        let key = |last: u8| name(&[vec![b'A'; 1 << 20], vec![last]].concat());
        assert!(key(b'1').starts_with("AAAA") && key(b'1').len() < 150, "{}", key(b'1'));
        assert!(key(b'1').contains("A\u{fffd}... (1048577 bytes, number "), "{}", key(b'1'));
        assert_ne!(key(b'1'), key(b'2'));
        assert_eq!(key(b'1'), key(b'1'));
        assert_ne!(name(b"\xff"), name(b"\xfe"));
        // What can be typed is itself.
        for whole in ["10.5.3.0-24", "h1\u{1b}[2J\n", &"k".repeat(MOST_IN_KEY)] {
            assert_eq!(name(whole.as_bytes()), whole);
        }
    }
}
