//! The Internet checksum (RFC 1071): sums that add up across slices, and updates after a small change (RFC 1624).

/// A one's complement sum of 16-bit words, not folded yet.
///
/// It is kept in host order and swapped when folded: the sum is the same in either order (RFC 1071, 2 B), and whole
/// machine words can be added that way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::default().bytes(bytes)
    }

    /// Returns the sum of the pseudo-header before a transport header: RFC 9293, 3.1 for IPv4 and RFC 8200, 8.1 for
    /// IPv6, which have the same sum. `addresses` are source and destination as in the IP header, `length` is in bytes,
    /// transport header included.
    pub(crate) fn pseudo_header(addresses: &[u8], protocol: u8, length: u16) -> Self {
        Self::of(addresses).word(u16::from(protocol)).word(length)
    }

    /// Adds `bytes`, which are at an even offset in what is summed. A final odd byte counts as if a zero followed, so
    /// only the last slice may be odd.
    #[must_use]
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let (vectors, rest) = bytes.as_chunks::<{ 4 * LANES }>();
        let mut sum = if vectors.is_empty() { 0 } else { sum_of(vectors) };
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        Self(self.0 + (sum >> 32) + (sum & 0xffff_ffff))
    }

    /// Adds a word by value (of its two bytes in network order).
    #[must_use]
    pub(crate) fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Adds a double word by value.
    #[must_use]
    pub(crate) fn double_word(self, word: u32) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Returns the sum in 16 bits: 0xffff over a whole message with a correct checksum. Zero only if every addend was.
    pub(crate) fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::from_be(sum as u16)
    }

    /// Returns the value of the checksum field, which was zero or excluded from the sum.
    pub(crate) fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Returns whether this sum over a whole message, including its checksum field, shows that it is intact.
    pub(crate) fn is_intact(self) -> bool {
        self.fold() == 0xffff
    }
}

/// Double words that are added at a time.
const LANES: usize = 8;

/// Sums double words in memory order.
///
/// Separate lanes let the compiler turn each round into a few vector additions, as wide as the processor supports. A
/// lane takes 2^32 rounds.
#[multiversion::multiversion(targets("x86_64+avx2"))]
fn sum_of(vectors: &[[u8; 4 * LANES]]) -> u64 {
    let mut lanes = [0_u64; LANES];
    for vector in vectors {
        let (words, _) = vector.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    lanes.iter().sum()
}

/// Returns the checksum after one word of the message changed from `old` to `new`: RFC 1624, equation 3. A wrong
/// checksum stays wrong by the same amount.
pub(crate) fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum >> 16) + (sum & 0xffff);
    !((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn slow_checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), !0xddf2);
    }

    #[test]
    fn a_message_of_zeros_and_one_of_ones_are_told_apart() {
        assert_eq!(Sum::of(&[0; 100]).fold(), 0);
        assert_eq!(Sum::of(&[0xff; 65_536]).fold(), 0xffff);
        assert!(!Sum::default().is_intact());
    }

    proptest! {
        #[test]
        fn it_is_what_the_plain_way_gives(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&bytes).checksum(), slow_checksum(&bytes));
        }

        #[test]
        fn parts_at_even_offsets_add_up(bytes in proptest::collection::vec(any::<u8>(), 4..300), at in any::<usize>()) {
            let at = (at % bytes.len()) & !1;
            prop_assert_eq!(Sum::of(&bytes[..at]).bytes(&bytes[at..]).fold(), Sum::of(&bytes).fold());
        }

        #[test]
        fn words_count_as_their_bytes_do(first: u16, second: u32) {
            let bytes = [&first.to_be_bytes()[..], &second.to_be_bytes()].concat();
            prop_assert_eq!(Sum::default().word(first).double_word(second).fold(), Sum::of(&bytes).fold());
        }

        #[test]
        fn an_update_is_as_good_as_summing_anew(mut words in proptest::collection::vec(any::<u16>(), 10), at in 0..9_usize, new: u16) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
            words[9] = 0;
            words[9] = slow_checksum(&bytes(&words));
            words[9] = update(words[9], words[at], new);
            words[at] = new;
            // All zeros has no valid checksum of zero; equation 3 gives 0xffff or 0, and both count as correct.
            prop_assert!(Sum::of(&bytes(&words)).is_intact() || words.iter().all(|word| *word == 0));
        }
    }
}
