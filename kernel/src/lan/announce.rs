//! Asks the LAN who has an IPv4 address, and tells it who has it now (RFC 5227).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, NetSlice, PacketBuilder, SlicedPacket};
use macaddr::MacAddr6;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{read, write};

/// Questions whether somebody has an address, and the time between them. RFC 5227 asks for a second or two between them:
/// LANs of its time were slower, and a container does not wait so long.
const PROBES: u32 = 3;
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Announcements, and the time between them.
const ANNOUNCEMENTS: u32 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(50);
/// Largest frame that is read: an ARP packet, padded.
const FRAME_BYTES: usize = 128;

/// A socket for the ARP packets of one interface.
pub(super) struct Arp {
    socket: OwnedFd,
    mac: MacAddr6,
}

impl Arp {
    /// Opens one in this thread's network namespace. Needs `CAP_NET_RAW`.
    pub(super) fn open(interface: u32, mac: MacAddr6) -> io::Result<Self> {
        // Without a protocol nothing arrives before it is bound.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        bind(&socket, interface)?;
        Ok(Self { socket, mac })
    }

    /// Returns who else on the LAN has this address, or is about to take it. Blocks for up to a third of a second.
    pub(super) fn holder_of(&self, address: Ipv4Addr) -> io::Result<Option<MacAddr6>> {
        self.ask(address, true)
    }

    /// The same without those who are about to take it: some switches ask like them.
    pub(super) fn present_holder_of(&self, address: Ipv4Addr) -> io::Result<Option<MacAddr6>> {
        self.ask(address, false)
    }

    fn ask(&self, address: Ipv4Addr, or_wanted: bool) -> io::Result<Option<MacAddr6>> {
        for _ in 0..PROBES {
            self.send(Ipv4Addr::UNSPECIFIED, address)?;
            if let Some(holder) = self.other_holder(address, or_wanted, Instant::now() + PROBE_INTERVAL)? {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }

    /// Tells everybody on the LAN which MAC the address has from now on. Blocks for a moment.
    pub(super) fn announce(&self, address: Ipv4Addr) -> io::Result<()> {
        for number in 0..ANNOUNCEMENTS {
            if number > 0 {
                std::thread::sleep(ANNOUNCE_INTERVAL);
            }
            self.send(address, address)?;
        }
        Ok(())
    }

    fn send(&self, sender: Ipv4Addr, target: Ipv4Addr) -> io::Result<()> {
        let packet = ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: self.mac.into_array(),
            sender_ipv4: sender.octets(),
            target_mac: [0; 6],
            target_ipv4: target.octets(),
        };
        let builder = PacketBuilder::ethernet2(self.mac.into_array(), [0xff; 6]).arp(ArpPacket::from(packet));
        let mut frame = Vec::with_capacity(FRAME_BYTES);
        builder.write(&mut frame).map_err(io::Error::other)?;
        write(&self.socket, &frame)?;
        Ok(())
    }

    /// Waits for a packet by which somebody else shows that `address` is taken or wanted.
    fn other_holder(
        &self,
        address: Ipv4Addr,
        or_wanted: bool,
        until: Instant,
    ) -> io::Result<Option<MacAddr6>> {
        let mut frame = [0; FRAME_BYTES];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Zero would be without a limit.
            let micros = left.as_micros() as i64;
            if micros == 0 {
                return Ok(None);
            }
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros))?;
            match read(&self.socket, &mut frame) {
                Ok(length) => {
                    if let Some(holder) = other_holder(&frame[..length], self.mac, address, or_wanted) {
                        return Ok(Some(holder));
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn other_holder(frame: &[u8], ours: MacAddr6, address: Ipv4Addr, or_wanted: bool) -> Option<MacAddr6> {
    let Ok(SlicedPacket { net: Some(NetSlice::Arp(arp)), .. }) = SlicedPacket::from_ethernet(frame) else {
        return None;
    };
    let packet = arp.to_packet().try_eth_ipv4().ok()?;
    let sender = MacAddr6::from(packet.sender_mac);
    let has_it = packet.sender_ipv4_addr() == address;
    let wants_it = packet.sender_ipv4_addr().is_unspecified() && packet.target_ipv4_addr() == address;
    (sender != ours && (has_it || (or_wanted && wants_it))).then_some(sender)
}

/// Ties the socket to the ARP packets of an interface (`packet(7)`).
fn bind(socket: &OwnedFd, interface: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let bytes = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of a complete sockaddr_ll, which the kernel only reads.
    #[allow(unsafe_code)]
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHERS: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 77);

    fn seen(sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Option<MacAddr6> {
        let packet = ArpEthIpv4Packet {
            operation: ArpOperation::REPLY,
            sender_mac,
            sender_ipv4: sender.octets(),
            target_mac: OURS,
            target_ipv4: target.octets(),
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(sender_mac, OURS).arp(packet.into()).write(&mut frame).unwrap();
        // As a network card pads it.
        frame.resize(60, 0);
        other_holder(&frame, OURS.into(), ADDRESS, true)
    }

    #[test]
    fn who_has_the_address_or_asks_for_it_at_the_same_time_is_seen() {
        let elsewhere = Ipv4Addr::new(192, 168, 1, 1);
        assert_eq!(seen(OTHERS, ADDRESS, Ipv4Addr::UNSPECIFIED), Some(OTHERS.into()));
        assert_eq!(seen(OTHERS, Ipv4Addr::UNSPECIFIED, ADDRESS), Some(OTHERS.into()));
        assert_eq!(seen(OTHERS, elsewhere, ADDRESS), None, "who talks to us does not want it");
        assert_eq!(seen(OURS, ADDRESS, ADDRESS), None, "ourselves");
    }

    #[test]
    fn a_frame_that_is_no_arp_packet_tells_nothing() {
        for frame in [&[][..], &[0; 14], &[0xff; 60]] {
            assert_eq!(other_holder(frame, OURS.into(), ADDRESS, true), None);
        }
    }
}
