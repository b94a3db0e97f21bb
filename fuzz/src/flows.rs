//! How the bytes of the coalescing target become packets. A fuzzer guesses no checksums and counts no sequence numbers,
//! so that it may ask for both.
//!
//! The first byte says what is merged. Then follow packets, each begun by a byte of the bits below:
//!
//! | the packet is | what follows |
//! | --- | --- |
//! | given | its length, two bytes; itself |
//! | given, and sealed (`SEALED`): lengths and checksums made right | the same |
//! | the next of its flow after an earlier one (`NEXT`), sealed | with `OLDER`, how much earlier; with `LENGTH`, that of its payload, two bytes; with `EDIT`, a place and what is changed there before it is sealed |
//!
//! With `DAMAGE`, a place and what is changed there once it is sealed. With `TRAILER`, more bytes than the packet has.

use crate::packet::{Layout, TCP, double_word, put, seal, word};

const MERGE_TCP: u8 = 1;
const MERGE_UDP: u8 = 2;

const SEALED: u8 = 0x01;
const NEXT: u8 = 0x02;
const LENGTH: u8 = 0x04;
const EDIT: u8 = 0x08;
const DAMAGE: u8 = 0x10;
const TRAILER: u8 = 0x20;
/// The IPv4 identification stays as it was.
const SAME_ID: u8 = 0x40;
const OLDER: u8 = 0x80;

/// More is cut off: more packets than fit a write several times, and more bytes than fit twice.
const MOST_PACKETS: usize = 200;
const MOST_BYTES: usize = 150_000;
const LONGEST_PAYLOAD: usize = 9000;

/// One batch.
pub struct Case {
    pub merge_tcp: bool,
    pub merge_udp: bool,
    pub packets: Vec<Vec<u8>>,
}

impl Case {
    /// `None` for no bytes at all.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        let merging = input.byte()?;
        let mut packets = Vec::new();
        let mut len = 0;
        while packets.len() < MOST_PACKETS
            && len < MOST_BYTES
            && let Some(packet) = input.packet(&packets)
        {
            len += packet.len();
            packets.push(packet);
        }
        Some(Self { merge_tcp: merging & MERGE_TCP != 0, merge_udp: merging & MERGE_UDP != 0, packets })
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// The next packet after `earlier` ones.
    fn packet(&mut self, earlier: &[Vec<u8>]) -> Option<Vec<u8>> {
        let what = self.byte()?;
        let mut packet = match earlier.len().checked_sub(1) {
            Some(last) if what & NEXT != 0 => {
                let back = if what & OLDER != 0 { usize::from(self.byte()?) } else { 0 };
                let len = if what & LENGTH != 0 { Some(usize::from(self.word()?)) } else { None };
                let before = &earlier[last - back % earlier.len()];
                let mut packet = following(before, len, what & SAME_ID != 0, earlier.len() as u8);
                self.change(what & EDIT, &mut packet)?;
                seal(&mut packet);
                packet
            }
            _ => {
                let len = usize::from(self.word()?).min(self.0.len());
                let (packet, rest) = self.0.split_at(len);
                self.0 = rest;
                let mut packet = packet.to_vec();
                if what & SEALED != 0 {
                    seal(&mut packet);
                }
                packet
            }
        };
        self.change(what & DAMAGE, &mut packet)?;
        if what & TRAILER != 0 {
            packet.extend([0; 6]);
        }
        Some(packet)
    }

    fn change(&mut self, wanted: u8, packet: &mut [u8]) -> Option<()> {
        if wanted != 0 {
            let (at, by) = (self.byte()?, self.byte()?);
            if let Some(byte) = packet.get_mut(usize::from(at)) {
                *byte ^= by;
            }
        }
        Some(())
    }
}

/// What the sender of `before` sends next: `len` bytes of payload, by default as many, each of them `fill`.
fn following(before: &[u8], len: Option<usize>, same_id: bool, fill: u8) -> Vec<u8> {
    let mut packet = before.to_vec();
    let Some(layout) = Layout::of(before) else { return packet };
    let Some(headers_len) = layout.headers_len(before) else { return packet };
    let sent = layout.len - headers_len;
    packet.truncate(headers_len);
    packet.resize(headers_len + len.unwrap_or(sent).min(LONGEST_PAYLOAD), fill);
    if layout.is_ipv4 && !same_id {
        put(&mut packet, 4, word(before, 4).wrapping_add(1));
    }
    if layout.protocol == TCP {
        let at = layout.header_len + 4;
        let sequence = double_word(before, at).wrapping_add(sent as u32);
        packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
    }
    packet
}
