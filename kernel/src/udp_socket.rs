//! A UDP socket for the datapath: batched sends and receives, segmented and merged by the kernel.
//!
//! Everything is non-blocking and allocates nothing per call, which is why the two calls that move packets go to
//! libc: nix's `sendmmsg` and `recvmmsg` build vectors. Source: `udp(7)`, `sendmmsg(2)`, `recvmmsg(2)`,
//! `net/ipv4/udp.c`.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

/// Most bytes of payload in one datagram or one segmented send over IPv4: 65,535 less the IP and UDP headers.
pub const MAX_PAYLOAD_BYTES: usize = 65_507;

/// Most bytes of payload in a segmented send that leaves whole by a device with an Ethernet header. From one more
/// on, it is past the usual `gso_max_size` of 65,536 bytes, and the kernel cuts it in software, which is many times
/// as slow (`gso_features_check` in `net/core/dev.c`).
pub const MAX_GSO_BYTES: usize = 65_493;

/// Most segments in one send (`UDP_MAX_SEGMENTS` before Linux 6.9, which allows 128).
pub const MAX_SEGMENTS: usize = 64;

/// Most datagrams that [`UdpSocket::send_many`] hands over in one call.
pub const MAX_MESSAGES: usize = 64;

/// Most slices in one message (`UIO_MAXIOV` in `linux/uio.h`).
pub const MAX_SLICES: usize = 1024;

/// What to ask of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpOptions {
    /// Let the kernel cut sends into segments (`UDP_SEGMENT`, Linux 4.18 and later).
    pub gso: bool,
    /// Let the kernel merge what it receives (`UDP_GRO`, Linux 5.0 and later).
    pub gro: bool,
    /// Other sockets of ours may be bound to the same address: the kernel spreads arriving datagrams over them by
    /// sender, so that those of one sender stay in order (`SO_REUSEPORT`).
    pub shared: bool,
    /// Bytes that may wait in each direction, as for `SO_RCVBUF`: the kernel doubles it, for its own overhead counts.
    /// Beyond `net.core.rmem_max` and `wmem_max` only with `CAP_NET_ADMIN`.
    pub buffer_bytes: usize,
}

/// What of [`UdpOptions`] is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpModes {
    /// Sends may have a segment size.
    pub gso: bool,
    /// Received datagrams may be several, merged.
    pub gro: bool,
    /// `SO_SNDBUF` as the kernel has it, in bytes: twice what was asked for, if that was granted.
    pub send_buffer_bytes: usize,
    /// `SO_RCVBUF`, likewise.
    pub receive_buffer_bytes: usize,
}

impl fmt::Display for UdpModes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.gso, self.gro) {
            (true, true) => "GSO, GRO",
            (true, false) => "GSO",
            (false, true) => "GRO",
            (false, false) => "plain",
        })
    }
}

/// One message for [`UdpSocket::send_many`].
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Where to; of the socket's own family.
    pub to: SocketAddr,
    /// The payload, gathered from at most [`MAX_SLICES`].
    pub slices: &'a [IoSlice<'a>],
    /// Cut the payload into datagrams of that many bytes, the last one shorter: at most [`MAX_SEGMENTS`] of them.
    /// `None` sends one datagram.
    pub segment_size: Option<u16>,
}

/// A bound, unconnected, non-blocking UDP socket. It may be used from several threads at once.
#[derive(Debug)]
pub struct UdpSocket {
    inner: std::net::UdpSocket,
}

impl UdpSocket {
    /// Binds to `address` (an IPv6 socket takes IPv6 only) and says what of `options` the kernel has.
    ///
    /// Datagrams leave without the DF bit and are cut into fragments where the path needs it, as the kernel's VXLAN
    /// does by default (`df unset` in `ip-link(8)`). flannel leaves the system's default, `IP_PMTUDISC_WANT`, which
    /// sets DF and learns from ICMP: where a firewall eats that ICMP, or a peer's underlay has a smaller MTU than ours,
    /// large packets would vanish without a trace.
    ///
    /// Only single datagrams are cut so. Segments of a segmented send are never: see [`is_too_big`].
    pub fn bind(address: SocketAddr, options: UdpOptions) -> io::Result<(Self, UdpModes)> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(family, SockType::Datagram, flags, None)?;
        if address.is_ipv6() {
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        socket::setsockopt(&fd, sockopt::ReusePort, &options.shared)?;
        never_set_df(fd.as_fd(), address.is_ipv4())?;

        // Never lower than the system's default.
        let bytes = options.buffer_bytes.min(i32::MAX as usize / 2);
        if bytes.saturating_mul(2) > socket::getsockopt(&fd, sockopt::SndBuf)?
            && socket::setsockopt(&fd, sockopt::SndBufForce, &bytes).is_err()
        {
            socket::setsockopt(&fd, sockopt::SndBuf, &bytes)?;
        }
        if bytes.saturating_mul(2) > socket::getsockopt(&fd, sockopt::RcvBuf)?
            && socket::setsockopt(&fd, sockopt::RcvBufForce, &bytes).is_err()
        {
            socket::setsockopt(&fd, sockopt::RcvBuf, &bytes)?;
        }

        // A default segment size of zero changes nothing but tells whether the kernel has the option.
        let gso = options.gso && socket::setsockopt(&fd, sockopt::UdpGsoSegment, &0).is_ok();
        let gro = options.gro && socket::setsockopt(&fd, sockopt::UdpGroSegment, &true).is_ok();
        let modes = UdpModes {
            gso,
            gro,
            send_buffer_bytes: socket::getsockopt(&fd, sockopt::SndBuf)?,
            receive_buffer_bytes: socket::getsockopt(&fd, sockopt::RcvBuf)?,
        };
        // Last, so that nothing is received before the socket is as it shall be.
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok((Self { inner: fd.into() }, modes))
    }

    /// Hands the datagrams for all sockets of this address ([`UdpOptions::shared`]) to the one whose place in the order
    /// of binding is the number of the processor that they arrive on, modulo `sockets`: Linux 4.5 and later.
    pub fn steer_by_processor(&self, sockets: u32) -> io::Result<()> {
        const PROCESSOR: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;
        let step = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let mut program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, PROCESSOR),
            step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets.max(1)),
            step(libc::BPF_RET | libc::BPF_A, 0),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        Ok(socket::setsockopt(&self.inner, sockopt::AttachReusePortCbpf, &program)?)
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Sends the first [`MAX_MESSAGES`] of `messages` with one call, in their order, each whole or not at all, and says
    /// how many were sent: at least one, unless there are none. An error is that of the first message; one that comes
    /// later ends the call, and is told by the call that begins with it.
    ///
    /// The caller sees to it that a message has at most [`MAX_SEGMENTS`] segments and [`MAX_PAYLOAD_BYTES`] bytes, better
    /// [`MAX_GSO_BYTES`]. More than [`MAX_SLICES`] slices are [`io::ErrorKind::InvalidInput`]. Other errors are told
    /// apart by [`is_gso_refused`], [`is_too_big`] and [`is_full`].
    pub fn send_many(&self, messages: &[Message<'_>]) -> io::Result<usize> {
        let messages = &messages[..messages.len().min(MAX_MESSAGES)];
        // Not set to zero first: for a few messages that would be most of the work.
        let mut envelopes = [const { MaybeUninit::<Envelope>::uninit() }; MAX_MESSAGES];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_MESSAGES];
        let mut count = 0;
        for ((message, envelope), header) in messages.iter().zip(&mut envelopes).zip(&mut headers) {
            if let Err(error) = check_slices(message) {
                if count == 0 {
                    return Err(error);
                }
                break;
            }
            let envelope = envelope.write(Envelope::new(message));
            header.write(libc::mmsghdr { msg_hdr: envelope.header(message), msg_len: 0 });
            count += 1;
        }
        // SAFETY: the first `count` headers are initialised; they point to the envelopes and to the caller's slices,
        // which outlive the call, with their true lengths. sendmmsg writes to the headers' msg_len only.
        #[allow(unsafe_code)]
        let sent = unsafe {
            libc::sendmmsg(self.inner.as_raw_fd(), headers.as_mut_ptr().cast(), count as libc::c_uint, 0)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what waits, up to the size of `batch`, and says how many datagrams that is: at least one. Of large
    /// ones fewer are taken at a time, so that they are still in the processor's cache when they are looked at.
    /// [`io::ErrorKind::WouldBlock`] where none waits. What `batch` held before is gone, also after an error.
    pub fn receive(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        let headers = batch.prepare();
        // SAFETY: each header points to its own buffer, name and control space inside `batch`, which is borrowed
        // exclusively for the call, with their true lengths; a null time-out means none.
        #[allow(unsafe_code)]
        let received = unsafe {
            libc::recvmmsg(
                self.inner.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        batch.filled = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        batch.expect_more_of_the_same();
        Ok(batch.filled)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// Whether an error of a segmented send may come from the segmentation: the same payload may go through as single
/// datagrams.
///
/// `EIO`: the device cannot do checksums (before Linux 6.11), or the route has an IPsec policy. `EINVAL`: too many
/// segments, or a segment is larger than the path's MTU on kernels before 6.14 (later ones: [`is_too_big`]); it is the
/// answer to an invalid destination too, such as port 0. `EOPNOTSUPP`: no such option.
pub fn is_gso_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP))
}

/// Whether a datagram was too large (`EMSGSIZE`): beyond [`MAX_PAYLOAD_BYTES`]; or, in a segmented send, a segment is
/// larger than the MTU of the path, in which case its datagrams may be sent singly, and are cut into fragments.
pub fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Whether a queue is full: that of the socket (`EAGAIN`) or, seldom, that of a device (`ENOBUFS`). The datagrams are
/// lost if not sent again.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
}

/// Buffers for one [`UdpSocket::receive`], used again and again.
#[derive(Debug)]
pub struct ReceiveBatch {
    /// Buffers of [`BUFFER_BYTES`], one after the other. Memory that no datagram ever reached is never touched, and
    /// costs nothing.
    storage: Box<[u8]>,
    slots: Box<[Slot]>,
    headers: Box<[libc::mmsghdr]>,
    filled: usize,
    /// Datagrams to ask for next time.
    wanted: usize,
    asked: usize,
}

// SAFETY: the raw pointers in `slots` and `headers` are written by `prepare` and followed only by the kernel within
// the same `receive`, which has the batch exclusively, on whichever thread it is.
#[allow(unsafe_code)]
unsafe impl Send for ReceiveBatch {}

/// Every datagram fits, merged ones included.
const BUFFER_BYTES: usize = 65_536;

/// Bytes that one [`UdpSocket::receive`] aims at: they fit into a core's second-level cache beside all else.
const RECEIVE_BYTES: usize = 256 << 10;

/// A received datagram, or several of one sender that the kernel merged.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Outer source.
    pub source: SocketAddr,
    /// The payloads, one after the other.
    pub bytes: &'a mut [u8],
    /// Bytes of each payload but the last, which may be shorter. Never 0; the length of `bytes` where nothing was
    /// merged.
    pub segment_size: usize,
}

/// What the kernel writes beside the payload of one received message.
#[derive(Debug, Clone, Copy)]
struct Slot {
    name: Name,
    control: Control,
    buffer: libc::iovec,
}

impl ReceiveBatch {
    /// Room for `datagrams` (1 to 1,024), each possibly merged from many: 64 KiB of address space for each.
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

    /// Whether the last receive brought as many as it asked for: more may wait.
    pub fn is_full(&self) -> bool {
        self.filled == self.asked
    }

    /// Asks for as many next time as make [`RECEIVE_BYTES`], if they are like the ones of this time.
    fn expect_more_of_the_same(&mut self) {
        let bytes: usize = self.headers[..self.filled].iter().map(|header| header.msg_len as usize).sum();
        let likely = (self.filled * RECEIVE_BYTES).checked_div(bytes).unwrap_or(usize::MAX);
        self.wanted = likely.clamp(1, self.slots.len());
    }

    /// What the last [`UdpSocket::receive`] brought, in the order of arrival. Only what did not fit is left out, which
    /// cannot happen with the kernels that are known.
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
    fn prepare(&mut self) -> &mut [libc::mmsghdr] {
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

/// What a message to send needs beside its payload.
struct Envelope {
    name: Name,
    name_bytes: libc::socklen_t,
    control: Control,
    control_bytes: usize,
}

impl Envelope {
    fn new(message: &Message<'_>) -> Self {
        let (name, name_bytes) = Name::new(message.to);
        let (control, control_bytes) = match message.segment_size {
            Some(size) => (Control::segment(size), size_of::<Control>()),
            None => (Control::empty(), 0),
        };
        Self { name, name_bytes, control, control_bytes }
    }

    /// A header that points into this envelope and to the slices of `message`.
    fn header(&mut self, message: &Message<'_>) -> libc::msghdr {
        let mut header = empty_header();
        header.msg_name = (&raw mut self.name).cast();
        header.msg_namelen = self.name_bytes;
        // `IoSlice` is laid out as `struct iovec` (its documentation); sends only read through it.
        header.msg_iov = message.slices.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.slices.len() as _;
        if self.control_bytes > 0 {
            header.msg_control = (&raw mut self.control).cast();
            header.msg_controllen = self.control_bytes as _;
        }
        header
    }
}

/// The kernel says `EMSGSIZE` for too many slices, which means something else here.
fn check_slices(message: &Message<'_>) -> io::Result<()> {
    if message.slices.len() <= MAX_SLICES {
        return Ok(());
    }
    let text = format!("{} slices in a message; {MAX_SLICES} are possible", message.slices.len());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// A socket address of either family, as the kernel lays it out. Both begin with the family.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    const EMPTY: Self = Self {
        v6: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    /// The name of `address`, and how many bytes of it count.
    fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut name = Self::EMPTY;
        let bytes = match address {
            SocketAddr::V4(address) => {
                name.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                name.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo().to_be(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                size_of::<libc::sockaddr_in6>()
            }
        };
        (name, bytes as libc::socklen_t)
    }

    /// The address, if the kernel wrote `bytes` of one.
    fn address(&self, bytes: libc::socklen_t) -> Option<SocketAddr> {
        // SAFETY: every byte of the union is initialised by `EMPTY`, and all bit patterns are valid in both variants.
        #[allow(unsafe_code)]
        let (v4, v6) = unsafe { (self.v4, self.v6) };
        match (libc::c_int::from(v4.sin_family), bytes as usize) {
            (libc::AF_INET, size) if size >= size_of::<libc::sockaddr_in>() => {
                let address = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into())
            }
            (libc::AF_INET6, size) if size >= size_of::<libc::sockaddr_in6>() => {
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(
                    SocketAddrV6::new(address, port, u32::from_be(v6.sin6_flowinfo), v6.sin6_scope_id).into(),
                )
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.address(size_of::<Self>() as libc::socklen_t))
    }
}

/// Space for one control message with a number (`cmsg(3)`): the segment size, `u16` when sending and `int` when
/// receiving. Laid out as `CMSG_DATA` and `CMSG_SPACE` say, which a test holds it to.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    data: [u8; 8],
}

impl Control {
    fn empty() -> Self {
        // SAFETY: cmsghdr consists of integers, for which zero is a value; musl's has private padding, so that it
        // cannot be written out.
        #[allow(unsafe_code)]
        let header = unsafe { std::mem::zeroed() };
        Self { header, data: [0; 8] }
    }

    fn segment(size: u16) -> Self {
        let mut control = Self::empty();
        control.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _;
        control.header.cmsg_level = libc::SOL_UDP;
        control.header.cmsg_type = libc::UDP_SEGMENT;
        control.data[..2].copy_from_slice(&size.to_ne_bytes());
        control
    }

    /// The segment size in bytes, if the kernel wrote one into the `bytes` that it used.
    fn segment_size(&self, bytes: usize) -> Option<usize> {
        let &[a, b, c, d, ..] = &self.data;
        let complete = bytes >= size_of::<libc::cmsghdr>() + size_of::<libc::c_int>();
        let ours = self.header.cmsg_level == libc::SOL_UDP && self.header.cmsg_type == libc::UDP_GRO;
        (complete && ours).then(|| i32::from_ne_bytes([a, b, c, d])).and_then(|size| size.try_into().ok())
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.segment_size(size_of::<Self>()))
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr consists of integers and pointers, for which zero is a value; musl's has private padding, so
    // that it cannot be written out.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::zeroed()
    }
}

/// `IP_MTU_DISCOVER` (`ip(7)`), which nix does not have.
fn never_set_df(fd: BorrowedFd<'_>, ipv4: bool) -> io::Result<()> {
    let (level, option, value) = if ipv4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
    };
    let bytes = size_of_val(&value) as libc::socklen_t;
    // SAFETY: both options read one int through the pointer, which outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), bytes) };
    nix::errno::Errno::result(result).map(drop).map_err(Into::into)
}

#[cfg(test)]
mod tests;
