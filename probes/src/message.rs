//! The datagram with which one agent asks whether another one runs, and its reply.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0-3 | `flan` |
//! | 4 | version, 1 |
//! | 5 | 1 for a request, 2 for a reply |
//! | 6-7 | zero |
//! | 8-15 | a number that the reply repeats |
//!
//! A reply is as long as its request, so that nobody can use an agent to send more than they send themselves.

/// Bytes of a message.
pub const MESSAGE_BYTES: usize = 16;

const NAME: [u8; 4] = *b"flan";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// One datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A question.
    Request(u64),
    /// The answer to the request with this number.
    Reply(u64),
}

impl Message {
    /// Returns the message as it is sent.
    pub fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, number) = match self {
            Self::Request(number) => (REQUEST, number),
            Self::Reply(number) => (REPLY, number),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..4].copy_from_slice(&NAME);
        bytes[4] = VERSION;
        bytes[5] = kind;
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    /// Reads a datagram; `None` if it is no message of this version.
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let bytes: &[u8; MESSAGE_BYTES] = datagram.try_into().ok()?;
        let [_, _, _, _, version, kind, 0, 0, number @ ..] = *bytes else { return None };
        let number = u64::from_be_bytes(number);
        match kind {
            _ if !bytes.starts_with(&NAME) || version != VERSION => None,
            REQUEST => Some(Self::Request(number)),
            REPLY => Some(Self::Reply(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_has_this_form() {
        let bytes = Message::Request(0x0102_0304_0506_0708).encode();
        assert_eq!(bytes, *b"flan\x01\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_sent(number: u64, is_reply: bool) {
            let message = if is_reply { Message::Reply(number) } else { Message::Request(number) };
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }

        #[test]
        fn whatever_arrives_is_a_message_or_ignored(
            datagram in prop::collection::vec(any::<u8>(), 0..40),
            at in 0..MESSAGE_BYTES,
            byte: u8,
        ) {
            prop_assert_eq!(Message::decode(&datagram).map(|message| message.encode().to_vec()).filter(|sent| *sent != datagram), None);
            let mut damaged = Message::Request(7).encode();
            damaged[at] = byte;
            prop_assert!(Message::decode(&damaged).is_none_or(|message| message.encode() == damaged));
        }
    }
}
