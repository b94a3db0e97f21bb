//! One thread of the data path: moves what is queued in both directions in turn, and sleeps if nothing is.
//!
//! Both directions share a thread because what is written to the device is often answered at once: TCP acknowledges, a
//! ping is echoed. The next round finds the answer, and nobody has to be woken for it.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;

use flan_kernel::scheduling;
use flan_kernel::wait::{Waker, wait_readable};
use tracing::{debug, warn};

use super::endpoints::Endpoints;

/// Packets per batch, per direction.
pub(crate) const BATCH: usize = 64;

/// The two directions of a data path.
pub(crate) trait Directions {
    /// Moves one batch from the device to the wire, and returns whether more may be queued. An error means that the
    /// device is gone.
    fn outbound(&mut self, endpoints: &Endpoints) -> io::Result<bool>;

    /// The same from the wire to the device.
    fn inbound(&mut self, endpoints: &Endpoints) -> io::Result<bool>;
}

/// A queue of the device, a socket, and what is needed to move packets between them.
pub(crate) struct Worker<D> {
    pub(crate) endpoints: Endpoints,
    pub(crate) share: Share,
    pub(crate) waker: Waker,
    pub(crate) directions: D,
}

/// The number of this worker, and how many there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

impl<D: Directions> Worker<D> {
    /// Runs until the data path is over, or the device is gone.
    pub(crate) fn run(mut self) {
        self.settle();
        // Whether something may be queued at the device, and at the socket.
        let mut waiting = [true; 2];
        while !self.endpoints.running.over.load(Relaxed) {
            if waiting == [false; 2] {
                let Endpoints { queue, socket, .. } = &self.endpoints;
                match wait_readable([queue.as_fd(), socket.as_fd()], &self.waker) {
                    Ok([queue, _]) if queue.hung_up => return warn!("the device is gone"),
                    Ok(both) => waiting = both.map(|fd| fd.readable || fd.hung_up),
                    Err(reason) => return warn!(%reason, "cannot wait for packets"),
                }
            }
            match self.pass(waiting) {
                Ok(more) => waiting = more,
                Err(reason) => return warn!(%reason, "the device is gone"),
            }
        }
    }

    /// Moves one batch per direction where something may be queued, and returns where more may be. An error means that
    /// the device is gone.
    fn pass(&mut self, [queue, socket]: [bool; 2]) -> io::Result<[bool; 2]> {
        let Self { endpoints, directions, .. } = self;
        Ok([queue && directions.outbound(endpoints)?, socket && directions.inbound(endpoints)?])
    }

    /// Places the thread near the packets, and before ordinary threads, like the kernel's own packet work.
    fn settle(&self) {
        let Share { number, of } = self.share;
        if let Err(reason) =
            scheduling::stay_on_every(of, number).and_then(|()| scheduling::prefer_this_thread())
        {
            debug!(%reason, "a thread of the data path runs at ordinary priority");
        }
    }
}
