//! One key of the store as kept here, whatever its author wrote.

use std::hash::{DefaultHasher, Hash, Hasher};

/// One key below `<prefix>/subnets/`. Its author may be anybody: etcd accepts keys and values of up to 1.5 MB, so only
/// what a lease can be is kept whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of the key. A key that is not text, or has more than 256 bytes, is replaced by its beginning with
    /// a U+FFFD, its size and a number that keeps it distinct.
    pub key: String,
    /// The value, cut one byte past [`Entry::MOST_BYTES`] if it is longer.
    pub value: Vec<u8>,
    /// Store revision at which the key was created.
    pub create_revision: i64,
    /// Store revision of the last write.
    pub mod_revision: i64,
    /// The etcd lease that keeps the key alive.
    pub etcd_lease: Option<i64>,
}

impl Entry {
    /// Most bytes of a value; a larger one is not a lease.
    pub const MOST_BYTES: usize = 8192;
}

/// Returns the last part of a key, and a value, as an [`Entry`] keeps them. Only with `--cfg fuzzing`.
#[cfg(fuzzing)]
pub fn kept(key: &[u8], value: Vec<u8>) -> (String, Vec<u8>) {
    (name(key), bounded(value))
}

/// Cuts a value one byte past what a lease can have, so that its excess still shows.
pub(crate) fn bounded(mut value: Vec<u8>) -> Vec<u8> {
    if value.len() > Entry::MOST_BYTES {
        value.truncate(Entry::MOST_BYTES + 1);
        value.shrink_to_fit();
    }
    value
}

/// Most bytes of a key that is kept whole. The longest that names subnets has 62.
const MOST_IN_KEY: usize = 256;
/// Bytes to keep of any other key.
const HEAD_OF_KEY: usize = 64;

/// Returns a key as text, distinct for each key. A key that cannot be a lease's contains a U+FFFD and is cut.
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
        // A lease both in full and when only its beginning is read.
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
        // Text that can be typed is unchanged.
        for whole in ["10.5.3.0-24", "h1\u{1b}[2J\n", &"k".repeat(MOST_IN_KEY)] {
            assert_eq!(name(whole.as_bytes()), whole);
        }
    }
}
