//! Packets of one batch, as they were read from the device.

use std::io;

use super::endpoints::Endpoints;
use super::packet::{Hop, VnetHeader};
use super::segmentation::Segments;

/// Bytes to read before sending: few enough to stay in the processor's cache, and enough that the tail of one large
/// packet, which a single send does not take, leaves with the next.
const BATCH_BYTES: usize = 192 << 10;
/// Bytes of the largest packet, with its virtio-net header.
const BUFFER: usize = VnetHeader::LEN + 65_536;

/// Room for a batch of packets.
pub(crate) struct Slots(Vec<Slot>);

/// Room for one packet and its segments' headers.
pub(crate) struct Slot {
    buffer: Box<[u8]>,
    length: usize,
    segments: Segments,
}

impl Slots {
    /// Makes room for `count` packets.
    pub(crate) fn new(count: usize, hop: Hop) -> Self {
        let slot = || Slot { buffer: vec![0; BUFFER].into(), length: 0, segments: Segments::new(hop) };
        Self(std::iter::repeat_with(slot).take(count).collect())
    }

    /// Reads at most one batch. Returns its packets, and whether more may be queued. An error means that the device is
    /// gone.
    pub(crate) fn read(&mut self, endpoints: &Endpoints) -> io::Result<(&mut [Slot], bool)> {
        let (count, more) = self.fill(endpoints)?;
        Ok((&mut self.0[..count], more))
    }

    fn fill(&mut self, endpoints: &Endpoints) -> io::Result<(usize, bool)> {
        // In plain mode, put the packet where it would be with a header; the header says "nothing to do".
        let start = if endpoints.running.tun.vnet_header { 0 } else { VnetHeader::LEN };
        let mut bytes = 0;
        for (count, slot) in self.0.iter_mut().enumerate() {
            if bytes >= BATCH_BYTES {
                return Ok((count, true));
            }
            match endpoints.queue.read(&mut slot.buffer[start..]) {
                Ok(length) => slot.length = start + length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((count, false)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok((count, true)),
                Err(error) => return Err(error),
            }
            bytes += slot.length;
        }
        Ok((self.0.len(), true))
    }
}

impl Slot {
    /// Returns the packet after its virtio-net header, empty if it is shorter than that.
    pub(crate) fn inner(&self) -> &[u8] {
        self.buffer[..self.length].get(VnetHeader::LEN..).unwrap_or_default()
    }

    /// Returns the packet with its virtio-net header, and what cuts it.
    pub(crate) fn parts(&mut self) -> (&mut Segments, &mut [u8]) {
        (&mut self.segments, &mut self.buffer[..self.length])
    }
}
