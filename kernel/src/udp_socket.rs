//! A UDP socket for the data path: batched sends and receives, segmented and merged by the kernel.
//!
//! Non-blocking, and without allocations per call. That is why the two calls that move packets use libc: nix's
//! `sendmmsg` and `recvmmsg` build vectors. Source: `udp(7)`, `sendmmsg(2)`, `recvmmsg(2)`, `net/ipv4/udp.c`.

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

/// Options to request for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpOptions {
    /// Let the kernel segment sends (`UDP_SEGMENT`, Linux 4.18 and later).
    pub gso: bool,
    /// Let the kernel merge received datagrams (`UDP_GRO`, Linux 5.0 and later).
    pub gro: bool,
    /// Allow other sockets of ours on the same address. The kernel distributes datagrams by sender, so that those of
    /// one sender stay in order (`SO_REUSEPORT`).
    pub shared: bool,
    /// Buffer size per direction in bytes, as for `SO_RCVBUF`: the kernel doubles it, to cover its own overhead.
    /// Exceeding `net.core.rmem_max` and `wmem_max` needs `CAP_NET_ADMIN`.
    pub buffer_bytes: usize,
}

/// The [`UdpOptions`] in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpModes {
    /// Sends may have a segment size.
    pub gso: bool,
    /// Received datagrams may be merged.
    pub gro: bool,
    /// The kernel's `SO_SNDBUF` in bytes: twice the requested size, if granted.
    pub send_buffer_bytes: usize,
    /// The kernel's `SO_RCVBUF`, likewise.
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

/// A bound, unconnected, non-blocking UDP socket. Several threads may use it at once.
#[derive(Debug)]
pub struct UdpSocket {
    inner: std::net::UdpSocket,
}

impl UdpSocket {
    /// Binds to `address`, and returns which `options` the kernel supports. `[::]` takes IPv4, too, and has mapped
    /// addresses for it (`::ffff:192.0.2.1`); another IPv6 address takes only IPv6.
    ///
    /// Datagrams leave without the DF bit and are fragmented where the path needs it, as the kernel's VXLAN does by
    /// default (`df unset` in `ip-link(8)`). flannel keeps the system's default, `IP_PMTUDISC_WANT`, which sets DF and
    /// learns from ICMP. If a firewall drops that ICMP, or a peer's underlay has a smaller MTU than ours, large packets
    /// disappear without a trace.
    ///
    /// Only single datagrams are fragmented, never the segments of a segmented send: see [`is_too_big`].
    pub fn bind(address: SocketAddr, options: UdpOptions) -> io::Result<(Self, UdpModes)> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(family, SockType::Datagram, flags, None)?;
        if address.is_ipv6() {
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
        }
        socket::setsockopt(&fd, sockopt::ReusePort, &options.shared)?;
        if address.is_ipv4() || address.ip().is_unspecified() {
            never_set_df(fd.as_fd(), true)?;
        }
        if address.is_ipv6() {
            never_set_df(fd.as_fd(), false)?;
        }

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

        // A default segment size of zero changes nothing, but shows whether the kernel has the option.
        let gso = options.gso && socket::setsockopt(&fd, sockopt::UdpGsoSegment, &0).is_ok();
        let gro = options.gro && socket::setsockopt(&fd, sockopt::UdpGroSegment, &true).is_ok();
        let modes = UdpModes {
            gso,
            gro,
            send_buffer_bytes: socket::getsockopt(&fd, sockopt::SndBuf)?,
            receive_buffer_bytes: socket::getsockopt(&fd, sockopt::RcvBuf)?,
        };
        // Last, so that nothing arrives before the socket is configured.
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok((Self { inner: fd.into() }, modes))
    }

    /// Delivers the datagrams for all sockets of this address ([`UdpOptions::shared`]) by processor: to the socket
    /// whose bind order is the number of the processor on which they arrive, modulo `sockets`. Linux 4.5 and later.
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

    /// Returns the same socket for use in the current tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub fn into_tokio(self) -> io::Result<tokio::net::UdpSocket> {
        tokio::net::UdpSocket::from_std(self.inner)
    }

    /// Returns the address that the socket is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Sends the first [`MAX_MESSAGES`] of `messages` with one call, in order, each whole or not at all. Returns how
    /// many were sent: at least one, unless there are none. An error is that of the first message; an error of a later
    /// one ends the call, and the call that begins with it returns it.
    ///
    /// The caller ensures that a message has at most [`MAX_SEGMENTS`] segments and [`MAX_PAYLOAD_BYTES`] bytes,
    /// preferably [`MAX_GSO_BYTES`]. More than [`MAX_SLICES`] slices are [`io::ErrorKind::InvalidInput`].
    /// [`is_gso_refused`], [`is_too_big`] and [`is_full`] classify other errors.
    pub fn send_many(&self, messages: &[Message<'_>]) -> io::Result<usize> {
        let messages = &messages[..messages.len().min(MAX_MESSAGES)];
        // Not zeroed first: for a few messages that would be most of the work.
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
        // SAFETY: the first `count` headers are initialised. They point to the envelopes and to the caller's slices,
        // with their true lengths; both outlive the call. sendmmsg writes only the headers' msg_len.
        #[allow(unsafe_code)]
        let sent = unsafe {
            libc::sendmmsg(self.inner.as_raw_fd(), headers.as_mut_ptr().cast(), count as libc::c_uint, 0)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what is queued, up to the size of `batch`, and returns the number of datagrams: at least one. Takes
    /// fewer large datagrams at a time, so that they are still in the processor's cache when they are processed.
    /// [`io::ErrorKind::WouldBlock`] if there is none. Clears `batch`, even on errors.
    pub fn receive(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        let headers = batch.prepare();
        // SAFETY: each header points to its own buffer, name and control space inside `batch`, with their true lengths.
        // `batch` is borrowed exclusively for the call. A null timeout means none.
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

/// Returns whether an error of a segmented send may come from the segmentation, so that single datagrams may work.
///
/// `EIO`: the device cannot compute checksums (before Linux 6.11), or the route has an IPsec policy. `EINVAL`: too many
/// segments, or a segment exceeds the path's MTU on kernels before 6.14 (later ones: [`is_too_big`]); an invalid
/// destination, such as port 0, gives it too. `EOPNOTSUPP`: no such option.
pub fn is_gso_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP))
}

/// Returns whether a datagram was too large (`EMSGSIZE`): it exceeds [`MAX_PAYLOAD_BYTES`], or a segment exceeds the
/// path's MTU. In that case its datagrams may be sent singly, and are fragmented.
pub fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Returns whether a queue is full: that of the socket (`EAGAIN`) or, rarely, of a device (`ENOBUFS`). The datagrams
/// are lost unless sent again.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
}

/// Sets `IP_MTU_DISCOVER` (`ip(7)`), which nix lacks.
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
