//! ICMP echo requests of any size, sent from a given address and never fragmented.
//!
//! A raw socket, because `ping` sockets depend on `net.ipv4.ping_group_range`; it needs `CAP_NET_RAW`. Source: RFC 792,
//! RFC 4443, `raw(7)`, `icmp(7)`, `IP_MTU_DISCOVER` in `ip(7)`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
const ICMP_HEADER: u16 = 8;
/// Bytes of the number that a reply returns.
const NONCE: u16 = 8;
/// Of the largest IPv4 header, an ICMP header and the number: no more of a reply is read.
const READ: usize = 60 + 8 + 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;
/// `ICMP_FILTER` in `linux/icmp.h`, at `SOL_RAW`.
const ICMP_FILTER: libc::c_int = 1;
/// `ICMPV6_FILTER` in `linux/icmpv6.h`, at `IPPROTO_ICMPV6`.
const ICMPV6_FILTER: libc::c_int = 1;

/// A socket for echo requests of one family. It sees all echo replies to this host, and tells them apart by a number in
/// each.
#[derive(Debug)]
pub struct EchoSocket {
    socket: AsyncFd<OwnedFd>,
    is_ipv4: bool,
}

impl EchoSocket {
    /// Opens a socket for IPv4, in the current tokio runtime.
    pub fn v4() -> io::Result<Self> {
        let socket = raw(AddressFamily::Inet, SockProtocol::Icmp)?;
        set(&socket, libc::SOL_RAW, ICMP_FILTER, &!(1_u32 << ECHO_REPLY_V4))?;
        set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)?;
        Ok(Self { socket: registered(socket)?, is_ipv4: true })
    }

    /// Opens a socket for IPv6, in the current tokio runtime.
    pub fn v6() -> io::Result<Self> {
        let socket = raw(AddressFamily::Inet6, SockProtocol::IcmpV6)?;
        let mut blocked = [u32::MAX; 8];
        blocked[usize::from(ECHO_REPLY_V6 / 32)] &= !(1 << (ECHO_REPLY_V6 % 32));
        set(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &blocked)?;
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_PROBE)?;
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, &1)?;
        Ok(Self { socket: registered(socket)?, is_ipv4: false })
    }

    /// Sends a request from `from`, or from the address that the route prefers. Its reply carries `nonce`. The packet
    /// has `bytes` bytes with its IP header, but never fewer than the number needs.
    ///
    /// # Errors
    /// The kernel's: among others `EMSGSIZE` if the packet is larger than the MTU of the device.
    pub fn send(&self, from: Option<IpAddr>, to: IpAddr, nonce: u64, bytes: u16) -> io::Result<()> {
        let headers = if self.is_ipv4 { IPV4_HEADER } else { IPV6_HEADER } + ICMP_HEADER;
        let mut payload = vec![0; bytes.saturating_sub(headers).max(NONCE).into()];
        payload[..NONCE.into()].copy_from_slice(&nonce.to_be_bytes());
        let echo = IcmpEchoHeader { id: (nonce >> 48) as u16, seq: nonce as u16 };
        let header = if self.is_ipv4 {
            Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &payload).to_bytes().to_vec()
        } else {
            // The kernel sets the checksum, which covers addresses that only it knows.
            Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes().to_vec()
        };
        let pieces = [io::IoSlice::new(&header), io::IoSlice::new(&payload)];
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let send = |control: &[ControlMessage<'_>]| {
            socket::sendmsg(self.socket.as_raw_fd(), &pieces, control, MsgFlags::MSG_DONTWAIT, Some(&to))
        };
        match from {
            Some(IpAddr::V4(from)) => {
                let from = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
                let none = libc::in_addr { s_addr: 0 };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: none };
                send(&[ControlMessage::Ipv4PacketInfo(&info)])?
            }
            Some(IpAddr::V6(from)) => {
                let from = libc::in6_addr { s6_addr: from.octets() };
                send(&[ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                    ipi6_addr: from,
                    ipi6_ifindex: 0,
                })])?
            }
            None => send(&[])?,
        };
        Ok(())
    }

    /// Waits for a reply to anybody's request, and returns the number in it. Cancel-safe.
    pub async fn receive(&self) -> io::Result<u64> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut bytes = [0; READ];
            let receive = |socket: &AsyncFd<OwnedFd>| {
                Ok(socket::recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)?)
            };
            let Ok(received) = ready.try_io(receive) else { continue };
            let length = received?;
            if let Some(nonce) = self.nonce(&bytes[..length]) {
                return Ok(nonce);
            }
        }
    }

    /// Returns the number in a reply: for IPv4 a whole packet, for IPv6 without the IP header.
    fn nonce(&self, packet: &[u8]) -> Option<u64> {
        let message = match self.is_ipv4 {
            true => packet.get(usize::from(packet.first()? & 0x0f) * 4..)?,
            false => packet,
        };
        let reply = if self.is_ipv4 { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
        let nonce = message.get(ICMP_HEADER.into()..)?.first_chunk()?;
        (message[0] == reply).then(|| u64::from_be_bytes(*nonce))
    }
}

fn raw(family: AddressFamily, protocol: SockProtocol) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(family, SockType::Raw, flags, protocol)?)
}

fn registered(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as `AsyncFd` has it.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(registered?)
}

/// Sets an option that nix does not know, whose value the kernel reads as these bytes.
fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let (value, bytes) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `bytes` bytes of the value, which outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, bytes) };
    nix::errno::Errno::result(result).map(drop).map_err(Into::into)
}
