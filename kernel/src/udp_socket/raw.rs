//! The structures that calls for datagrams exchange with the kernel.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Most slices in one message (`UIO_MAXIOV` in `linux/uio.h`).
pub const MAX_SLICES: usize = 1024;

/// A socket address of either family in the kernel's layout. Both begin with the family.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    pub(super) const EMPTY: Self = Self {
        v6: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    /// Returns the name of `address`, and its length.
    pub(super) fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
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

    /// Returns the address, if the kernel wrote `bytes` of one.
    pub(super) fn address(&self, bytes: libc::socklen_t) -> Option<SocketAddr> {
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
/// receiving. A test compares the layout with `CMSG_DATA` and `CMSG_SPACE`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Control {
    header: libc::cmsghdr,
    data: [u8; 8],
}

impl Control {
    pub(super) fn empty() -> Self {
        // SAFETY: cmsghdr has only integers, for which zero is valid. musl's has private padding, which rules out a
        // literal.
        #[allow(unsafe_code)]
        let header = unsafe { std::mem::zeroed() };
        Self { header, data: [0; 8] }
    }

    pub(super) fn segment(size: u16) -> Self {
        let mut control = Self::empty();
        control.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _;
        control.header.cmsg_level = libc::SOL_UDP;
        control.header.cmsg_type = libc::UDP_SEGMENT;
        control.data[..2].copy_from_slice(&size.to_ne_bytes());
        control
    }

    /// Returns the segment size in bytes, if the kernel wrote one into the `bytes` that it used.
    pub(super) fn segment_size(&self, bytes: usize) -> Option<usize> {
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

pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr consists of integers and pointers, for which zero is valid. musl's has private padding, which
    // rules out a literal.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_layout() {
        for text in ["192.0.2.1:8285", "[2001:db8::1]:8285", "[fe80::1%3]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let (name, bytes) = Name::new(address);
            assert_eq!(name.address(bytes), Some(address));
            assert_eq!(name.address(0), None);
        }
    }

    #[test]
    fn the_control_message_is_laid_out_as_the_macros_say() {
        let control = Control::segment(1400);
        let mut header = empty_header();
        header.msg_control = (&raw const control).cast_mut().cast();
        header.msg_controllen = size_of::<Control>() as _;
        // SAFETY: the header points to a complete control message that outlives the block.
        #[allow(unsafe_code)]
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            assert_eq!((*first).cmsg_len as u64, u64::from(libc::CMSG_LEN(2)));
            assert_eq!(libc::CMSG_DATA(first).cast_const(), control.data.as_ptr());
            assert_eq!(size_of::<Control>(), libc::CMSG_SPACE(4) as usize);
        }
    }
}
