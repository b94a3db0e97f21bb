//! Messages on their way to the wire.

use std::net::SocketAddr;
use std::ops::Range;

use boringtun::noise::{Tunn, TunnResult};

/// Bytes that encryption adds to a packet: header (16) and tag (16).
pub(super) const OVERHEAD: usize = 32;
/// Bytes of the largest message that is no packet: the first of a handshake.
pub(super) const LARGEST_HANDSHAKE: usize = 148;
/// Packets grow to a multiple of this, so that their length says less.
const PADDING: usize = 16;
/// The type of a message with a packet, its first byte.
pub(super) const DATA: u8 = 4;

/// Messages, one after the other in one buffer, which is used again.
#[derive(Default)]
pub(super) struct Wire {
    bytes: Vec<u8>,
    used: usize,
    messages: Vec<(SocketAddr, Range<usize>)>,
    /// The packet to encrypt, in one piece.
    packet: Vec<u8>,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It leaves as a message of so many bytes.
    Packet(usize),
    /// It waits. A handshake of so many bytes may leave.
    Waits(usize),
}

impl Wire {
    /// Forgets all messages.
    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.messages.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns the messages in order, with their destinations.
    pub(super) fn messages(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.messages.iter().map(|(to, range)| (*to, &self.bytes[range.clone()]))
    }

    /// Adds the message, if any, that `write` makes in a buffer of at least `room` bytes. Returns its length.
    pub(super) fn add(
        &mut self,
        to: SocketAddr,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> usize {
        let length = write(free(&mut self.bytes, self.used, room));
        self.take(to, length)
    }

    /// Adds what `tunn` makes of a packet in two pieces, padded, but not beyond `mtu`.
    pub(super) fn encrypt(
        &mut self,
        to: SocketAddr,
        tunn: &mut Tunn,
        [headers, payload]: [&[u8]; 2],
        mtu: usize,
    ) -> Sent {
        let length = headers.len() + payload.len();
        self.packet.clear();
        self.packet.extend_from_slice(headers);
        self.packet.extend_from_slice(payload);
        self.packet.resize(length.next_multiple_of(PADDING).min(mtu.max(length)), 0);
        let room = free(&mut self.bytes, self.used, self.packet.len() + OVERHEAD);
        match tunn.encapsulate(&self.packet, room) {
            TunnResult::WriteToNetwork(message) => {
                let (kind, length) = (message[0], message.len());
                self.take(to, length);
                if kind == DATA { Sent::Packet(length) } else { Sent::Waits(length) }
            }
            _ => Sent::Waits(0),
        }
    }

    fn take(&mut self, to: SocketAddr, length: usize) -> usize {
        if length > 0 {
            self.messages.push((to, self.used..self.used + length));
            self.used += length;
        }
        length
    }
}

/// Returns the unused part of a buffer: at least `room` bytes, and enough for any handshake.
fn free(bytes: &mut Vec<u8>, used: usize, room: usize) -> &mut [u8] {
    let needed = used + room.max(LARGEST_HANDSHAKE);
    if bytes.len() < needed {
        bytes.resize(needed.next_power_of_two(), 0);
    }
    &mut bytes[used..needed]
}
