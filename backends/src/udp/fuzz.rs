//! The data path's readers of foreign bytes, as the targets in `fuzz/` call them: with owned values, where the data path
//! borrows. What comes out is judged there. Compiled with `--cfg fuzzing` alone.

use std::net::Ipv4Addr;

use super::coalescing::{Coalescer, Merging, Write};
use super::icmp::{self, Reason};
use super::segmentation::Segments;

/// Cuts packets from the TUN. Its memory is used again for each.
#[derive(Debug, Default)]
pub struct Splitter(Segments);

impl Splitter {
    /// The wire packets of `packet`, a virtio-net header and an IP packet, which may be changed. `None` where it is
    /// refused.
    pub fn split(&mut self, packet: &mut [u8]) -> Option<Vec<Vec<u8>>> {
        let split = self.0.split(packet).ok()?;
        Some(split.segments().map(|(headers, payload)| [headers, payload].concat()).collect())
    }
}

/// Merges packets from the wire. Its memory is used again for each batch.
#[derive(Debug)]
pub struct Merger(Coalescer);

/// What became of the packets of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Of each packet, whether it was taken.
    pub taken: Vec<bool>,
    /// The writes to the TUN.
    pub writes: Vec<Written>,
}

/// One write to the TUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The virtio-net header.
    pub header: [u8; 10],
    /// The IP packet.
    pub packet: Vec<u8>,
    /// How many received packets it is said to carry.
    pub count: usize,
    /// In how many pieces the payload came.
    pub pieces: usize,
}

impl Merger {
    /// Merges the protocols named.
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self(Coalescer::new(Merging { tcp, udp }))
    }

    /// Takes `packets` as one batch, and leaves them as they are then forwarded, or as they were where refused.
    pub fn merge(&mut self, packets: &mut [Vec<u8>]) -> Merged {
        let mut batch = self.0.batch();
        let taken = packets.iter_mut().map(|packet| batch.push(packet).is_ok()).collect();
        let writes = batch.writes().map(|write| Written::copy(&write)).collect();
        Merged { taken, writes }
    }
}

impl Written {
    fn copy(write: &Write<'_>) -> Self {
        let mut packet = write.headers.to_vec();
        for piece in write.payload() {
            packet.extend(piece);
        }
        let (count, pieces) = (write.count, write.payload().count());
        Self { header: write.header.to_bytes(), packet, count, pieces }
    }
}

/// The ICMP errors that `from` sends for `packet`: no peer has its destination, its time to live has run out, it is
/// larger than `mtu` bytes.
pub fn icmp_errors(packet: &[u8], from: Ipv4Addr, mtu: u16) -> [Option<Vec<u8>>; 3] {
    [Reason::NoPeer, Reason::TtlExpired, Reason::TooBig(mtu)].map(|reason| icmp::error(packet, from, reason))
}
