//! Requests that netlink-packet-route does not know, written byte by byte.

use super::wire::HEADER_BYTES;

/// A request that is not numbered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawRequest {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `NLM_F_*`.
    pub(crate) flags: u16,
    /// What follows the header.
    pub(crate) body: Vec<u8>,
}

impl RawRequest {
    /// The same with these flags as well.
    pub(crate) fn with_flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// Writes the message to the end of `buffer`.
    pub(crate) fn emit(&self, sequence: u32, buffer: &mut Vec<u8>) {
        buffer.extend((self.bytes() as u32).to_ne_bytes());
        buffer.extend(self.kind.to_ne_bytes());
        buffer.extend(self.flags.to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        // The kernel knows from whom it is.
        buffer.extend([0; 4]);
        buffer.extend(&self.body);
    }

    /// Bytes of the message.
    pub(crate) fn bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }
}

/// Writes an attribute, and fills it up to four bytes.
pub(crate) fn attribute(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    buffer.extend((value.len() as u16 + 4).to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}
