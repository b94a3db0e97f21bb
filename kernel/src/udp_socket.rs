//! A UDP socket for the datapath: batched sends and receives, segmented and merged by the kernel.
//!
//! Everything is non-blocking and allocates nothing per call, which is why the two calls that move packets go to
//! libc: nix's `sendmmsg` and `recvmmsg` build vectors. Source: `udp(7)`, `sendmmsg(2)`, `recvmmsg(2)`,
//! `net/ipv4/udp.c`.

mod message;
mod raw;
mod receive;

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use self::message::{Envelope, check_slices};

pub use self::message::{MAX_GSO_BYTES, MAX_MESSAGES, MAX_PAYLOAD_BYTES, MAX_SEGMENTS, Message};
pub use self::raw::MAX_SLICES;
pub use self::receive::{Datagram, ReceiveBatch};

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
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        batch.filled_with(received);
        Ok(received)
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
