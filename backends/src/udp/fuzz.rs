//! The data path's parsers of untrusted bytes, for the targets in `fuzz/`: with owned values, where the data path
//! borrows. The targets judge the results. Compiled only with `--cfg fuzzing`.

use std::net::Ipv4Addr;

use crate::userspace::coalescing::{Coalescer, Merging, Write};
use crate::userspace::icmp::{self, Reason};
use crate::userspace::packet::Hop;
use crate::userspace::segmentation::Segments;

/// Cuts packets from the TUN. Reuses its memory.
#[derive(Debug, Default)]
pub struct Splitter(Segments);

impl Splitter {
    /// Returns the wire packets of `packet`, a virtio-net header and an IP packet, and may change it. `None` if
    /// refused.
    pub fn split(&mut self, packet: &mut [u8]) -> Option<Vec<Vec<u8>>> {
        let split = self.0.split(packet).ok()?;
        Some(split.segments().map(|(headers, payload)| [headers, payload].concat()).collect())
    }
}

/// Merges packets from the wire. Reuses its memory.
#[derive(Debug)]
pub struct Merger(Coalescer);

/// The outcome for the packets of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// For each packet, whether it was accepted.
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
    /// How many received packets it claims to carry.
    pub count: usize,
    /// The number of pieces of the payload.
    pub pieces: usize,
}

impl Merger {
    /// Creates a merger for these protocols.
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self(Coalescer::new(Merging { mtu: Some(1472), tcp, udp, hop: Hop::Counts, checks: true }))
    }

    /// Takes `packets` as one batch, and leaves them as forwarded, or unchanged if refused.
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

/// Returns the ICMP errors that `from` sends for `packet`: no peer has its destination, its time to live expired, it is
/// larger than `mtu` bytes.
pub fn icmp_errors(packet: &[u8], from: Ipv4Addr, mtu: u16) -> [Option<Vec<u8>>; 3] {
    [Reason::NoPeer, Reason::TtlExpired, Reason::TooBig(mtu)].map(|reason| icmp::error(packet, from, reason))
}
