//! What one send call sends.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use super::raw::{Control, MAX_SLICES, Name, empty_header};

/// Most bytes of payload in one datagram or one segmented send over IPv4: 65,535 less the IP and UDP headers.
pub const MAX_PAYLOAD_BYTES: usize = 65_507;

/// Most bytes of payload in a segmented send that leaves an Ethernet device unsplit. One more exceeds the usual
/// `gso_max_size` of 65,536 bytes, and the kernel segments in software, which is many times slower
/// (`gso_features_check` in `net/core/dev.c`).
pub const MAX_GSO_BYTES: usize = 65_493;

/// Most segments in one send (`UDP_MAX_SEGMENTS` before Linux 6.9, which allows 128).
pub const MAX_SEGMENTS: usize = 64;

/// Most datagrams that [`UdpSocket::send_many`](super::UdpSocket::send_many) sends in one call.
pub const MAX_MESSAGES: usize = 64;

/// One message for [`UdpSocket::send_many`](super::UdpSocket::send_many).
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The destination, of the socket's own family.
    pub to: SocketAddr,
    /// The payload, gathered from at most [`MAX_SLICES`].
    pub slices: &'a [IoSlice<'a>],
    /// Cut the payload into at most [`MAX_SEGMENTS`] datagrams of this many bytes, the last one possibly shorter.
    /// `None` sends one datagram.
    pub segment_size: Option<u16>,
}

/// What sending a message needs besides its payload.
pub(super) struct Envelope {
    name: Name,
    name_bytes: libc::socklen_t,
    control: Control,
    control_bytes: usize,
}

impl Envelope {
    pub(super) fn new(message: &Message<'_>) -> Self {
        let (name, name_bytes) = Name::new(message.to);
        let (control, control_bytes) = match message.segment_size {
            Some(size) => (Control::segment(size), size_of::<Control>()),
            None => (Control::empty(), 0),
        };
        Self { name, name_bytes, control, control_bytes }
    }

    /// Returns a header that points into this envelope and to the slices of `message`.
    pub(super) fn header(&mut self, message: &Message<'_>) -> libc::msghdr {
        let mut header = empty_header();
        header.msg_name = (&raw mut self.name).cast();
        header.msg_namelen = self.name_bytes;
        // `IoSlice` has the layout of `struct iovec` (its documentation); sends only read through it.
        header.msg_iov = message.slices.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.slices.len() as _;
        if self.control_bytes > 0 {
            header.msg_control = (&raw mut self.control).cast();
            header.msg_controllen = self.control_bytes as _;
        }
        header
    }
}

/// Checks the number of slices: the kernel's `EMSGSIZE` for too many means something else here.
pub(super) fn check_slices(message: &Message<'_>) -> io::Result<()> {
    if message.slices.len() <= MAX_SLICES {
        return Ok(());
    }
    let text = format!("{} slices in a message; {MAX_SLICES} are possible", message.slices.len());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}
