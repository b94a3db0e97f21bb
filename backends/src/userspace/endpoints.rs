//! The two ends between which a worker moves packets: a queue of the device and a socket.

use std::io::{self, IoSlice};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use flan_kernel::tun::{TunQueue, is_gone};
use flan_kernel::udp_socket::{self, ReceiveBatch, UdpSocket};
use tracing::{debug, warn};

use super::coalescing::{Batch, MAX_SEGMENTS};
use super::counters::{Counters, add};
use super::packet::VnetHeader;
use super::running::Running;

/// A queue of the device, a socket, and what all workers share.
pub(crate) struct Endpoints {
    pub(crate) running: Arc<Running>,
    pub(crate) queue: TunQueue,
    pub(crate) socket: Arc<UdpSocket>,
}

impl Endpoints {
    /// Writes one packet to the device, gathered from its pieces: at most [`MAX_SEGMENTS`] after its headers.
    fn write<'a>(&self, header: VnetHeader, packet: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let header = header.to_bytes();
        let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS + 2];
        slices[0] = IoSlice::new(&header);
        let mut count = usize::from(self.running.tun.vnet_header);
        for (slice, piece) in slices[count..].iter_mut().zip(packet) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        self.queue.write(&slices[..count])
    }

    /// Receives what is queued, as far as it fits. Returns whether anything was.
    pub(crate) fn receive(&self, received: &mut ReceiveBatch) -> bool {
        match self.socket.receive(received) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // An answer to what was sent earlier, such as "port unreachable": the peer is away.
            Err(error) => {
                debug!(%error, "receive");
                false
            }
        }
    }

    /// Writes a batch to the device. Returns whether the device refused a merged packet, which was then written one by
    /// one: merge no more. An error means that the device is gone.
    pub(crate) fn deliver(&self, batch: &mut Batch<'_, '_>) -> io::Result<bool> {
        let counters = &self.running.gauge.counters;
        let mut merging_refused = false;
        for write in batch.writes() {
            match self.write(write.header, iter::once(write.headers).chain(write.payload())) {
                Err(error) if write.count > 1 && is_refused(&error) => {
                    merging_refused = true;
                    for packet in write.packets() {
                        counted(counters, 1, self.write(VnetHeader::default(), iter::once(packet)))?;
                    }
                }
                result => counted(counters, write.count, result)?,
            }
        }
        if merging_refused {
            warn!("the device refuses merged packets; writing them one by one from now on");
            self.running.gauge.merge.store(false, Relaxed);
        }
        Ok(merging_refused)
    }

    /// Writes an ICMP error to the device, if one is due.
    pub(crate) fn tell(&self, error: Option<&[u8]>) {
        let Some(error) = error else { return };
        if self.write(VnetHeader::default(), iter::once(error)).is_ok() {
            add(&self.running.gauge.counters.icmp_sent, 1);
        }
    }
}

/// Counts the outcome of a write that carries `packets`. An error means that the device is gone.
pub(crate) fn counted(counters: &Counters, packets: usize, result: io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => {
            add(&counters.written, 1);
            add(&counters.merged, packets - 1);
        }
        Err(error) if is_gone(&error) => return Err(error),
        Err(error) if udp_socket::is_full(&error) => add(&counters.dropped_full, packets),
        Err(_) => add(&counters.dropped_refused, packets),
    }
    Ok(())
}

/// Returns whether the kernel rejects such a packet (`tun_get_user` in `drivers/net/tun.c`).
fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
