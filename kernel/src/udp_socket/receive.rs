//! What one receive call receives.

use std::net::SocketAddr;
use std::ptr;

use super::raw::{Control, MAX_SLICES, Name, empty_header};

/// Reusable buffers for [`UdpSocket::receive`](super::UdpSocket::receive).
#[derive(Debug)]
pub struct ReceiveBatch {
    /// Buffers of [`BUFFER_BYTES`] each. Memory that no datagram reaches is never touched, and costs nothing.
    storage: Box<[u8]>,
    slots: Box<[Slot]>,
    headers: Box<[libc::mmsghdr]>,
    filled: usize,
    /// Datagrams to request next time.
    wanted: usize,
    asked: usize,
}

// SAFETY: `prepare` writes the raw pointers in `slots` and `headers`, and only the kernel follows them, within the same
// `receive`, which has the batch exclusively, on any thread.
#[allow(unsafe_code)]
unsafe impl Send for ReceiveBatch {}

/// Every datagram fits, including merged ones.
const BUFFER_BYTES: usize = 65_536;

/// Target bytes per receive: they fit into a core's second-level cache with everything else.
const RECEIVE_BYTES: usize = 256 << 10;

/// A received datagram, or several from one sender that the kernel merged.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// The outer source.
    pub source: SocketAddr,
    /// The payloads, concatenated.
    pub bytes: &'a mut [u8],
    /// Bytes of each payload but the last, which may be shorter. Never 0; the length of `bytes` if nothing was merged.
    pub segment_size: usize,
}

/// What the kernel writes besides the payload of one received message.
#[derive(Debug, Clone, Copy)]
struct Slot {
    name: Name,
    control: Control,
    buffer: libc::iovec,
}

impl ReceiveBatch {
    /// Makes room for `datagrams` (1 to 1,024), each possibly merged from many: 64 KiB of address space each.
    pub fn new(datagrams: usize) -> Self {
        let datagrams = datagrams.clamp(1, MAX_SLICES);
        let buffer = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let slot = Slot { name: Name::EMPTY, control: Control::empty(), buffer };
        Self {
            storage: vec![0; datagrams * BUFFER_BYTES].into(),
            slots: vec![slot; datagrams].into(),
            headers: vec![libc::mmsghdr { msg_hdr: empty_header(), msg_len: 0 }; datagrams].into(),
            filled: 0,
            wanted: datagrams,
            asked: datagrams,
        }
    }

    /// Returns whether the last receive was full, so that more may be queued.
    pub fn is_full(&self) -> bool {
        self.filled == self.asked
    }

    /// Records how many were received, to request next time as many like these as make [`RECEIVE_BYTES`].
    pub(super) fn filled_with(&mut self, datagrams: usize) {
        self.filled = datagrams;
        let bytes: usize = self.headers[..self.filled].iter().map(|header| header.msg_len as usize).sum();
        let likely = (self.filled * RECEIVE_BYTES).checked_div(bytes).unwrap_or(usize::MAX);
        self.wanted = likely.clamp(1, self.slots.len());
    }

    /// Returns what the last receive brought, in order of arrival. Leaves out only what did not fit, which known
    /// kernels never cause.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let buffers = self.storage.chunks_exact_mut(BUFFER_BYTES);
        let filled = self.headers[..self.filled].iter().zip(&*self.slots);
        buffers.zip(filled).filter_map(|(buffer, (header, slot))| {
            let message = &header.msg_hdr;
            if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
                return None;
            }
            let bytes = buffer.get_mut(..header.msg_len as usize)?;
            let merged = slot.control.segment_size(message.msg_controllen as _);
            let segment_size = merged.unwrap_or(bytes.len()).max(1);
            Some(Datagram { source: slot.name.address(message.msg_namelen)?, bytes, segment_size })
        })
    }

    /// Points every header to its slot and buffer.
    pub(super) fn prepare(&mut self) -> &mut [libc::mmsghdr] {
        self.filled = 0;
        self.asked = self.wanted;
        let buffers = self.storage.chunks_exact_mut(BUFFER_BYTES);
        for ((header, slot), buffer) in self.headers.iter_mut().zip(&mut self.slots).zip(buffers) {
            slot.buffer = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER_BYTES };
            let message = &mut header.msg_hdr;
            message.msg_name = (&raw mut slot.name).cast();
            message.msg_namelen = size_of::<Name>() as libc::socklen_t;
            message.msg_iov = &raw mut slot.buffer;
            message.msg_iovlen = 1;
            message.msg_control = (&raw mut slot.control).cast();
            message.msg_controllen = size_of::<Control>() as _;
        }
        &mut self.headers[..self.wanted]
    }
}
