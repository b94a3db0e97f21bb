//! The two ends between which a worker moves packets: a queue of the device and a socket.

use std::io::{self, IoSlice};
use std::sync::Arc;

use flan_kernel::tun::TunQueue;
use flan_kernel::udp_socket::UdpSocket;

use super::common::Common;
use crate::udp::coalescing::MAX_SEGMENTS;
use crate::udp::counters::add;
use crate::udp::icmp::{self, Reason};
use crate::udp::packet::VnetHeader;

/// A queue of the device, a socket, and what all workers share.
pub(super) struct Endpoints {
    pub(super) common: Arc<Common>,
    pub(super) queue: TunQueue,
    pub(super) socket: Arc<UdpSocket>,
}

impl Endpoints {
    /// Writes one packet to the device, gathered from its pieces: at most [`MAX_SEGMENTS`] after its headers.
    pub(super) fn write<'a>(
        &self,
        header: VnetHeader,
        packet: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let header = header.to_bytes();
        let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS + 2];
        slices[0] = IoSlice::new(&header);
        let mut count = usize::from(self.common.tun.vnet_header);
        for (slice, piece) in slices[count..].iter_mut().zip(packet) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        self.queue.write(&slices[..count])
    }

    /// Writes an ICMP error for the sender of `packet` to the device, if one is due.
    pub(super) fn send_icmp(&self, packet: &[u8], reason: Reason) {
        let Some(error) = icmp::error(packet, self.common.settings.address, reason) else { return };
        if self.write(VnetHeader::default(), std::iter::once(&error[..])).is_ok() {
            add(&self.common.gauge.counters.icmp_sent, 1);
        }
    }
}
