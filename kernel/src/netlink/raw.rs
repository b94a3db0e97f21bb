//! Requests that netlink-packet-route lacks, written byte by byte.

use super::wire::HEADER_BYTES;

/// A request without a sequence number yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawRequest {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `NLM_F_*`.
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

impl RawRequest {
    pub(crate) fn with_flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// Appends the message to `buffer`.
    pub(crate) fn emit(&self, sequence: u32, buffer: &mut Vec<u8>) {
        buffer.extend((self.bytes() as u32).to_ne_bytes());
        buffer.extend(self.kind.to_ne_bytes());
        buffer.extend(self.flags.to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        // The kernel knows the sender.
        buffer.extend([0; 4]);
        buffer.extend(&self.body);
    }

    pub(crate) fn bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }
}

/// Appends an attribute, padded to four bytes.
pub(crate) fn attribute(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    buffer.extend((value.len() as u16 + 4).to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}
