//! A data path while it runs: its threads, its sockets, and what they share.

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use flan_kernel::LinkName;
use flan_kernel::tun::{self, TunError, TunMode};
use flan_kernel::udp_socket::{UdpModes, UdpOptions, UdpSocket};
use flan_kernel::wait::Waker;
use tracing::{debug, info};

use super::gauge::{Gauge, Modes};

/// Bytes of a socket's buffers, per direction.
pub(crate) const SOCKET_BUFFER: usize = 8 << 20;

/// Why a data path could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The device cannot be opened.
    #[error("cannot open device {device}: {source}")]
    Tun {
        /// The device.
        device: LinkName,
        /// The cause.
        #[source]
        source: TunError,
    },
    /// The port cannot be opened.
    #[error("cannot listen on UDP {address}: {source}")]
    Socket {
        /// The address and port.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// What the threads of a data path share, whatever they send.
pub(crate) struct Running {
    /// How the device exchanges packets.
    pub(crate) tun: TunMode,
    pub(crate) gauge: Arc<Gauge>,
    /// The threads must end, or one has ended by itself, for instance because the device was deleted.
    pub(crate) over: AtomicBool,
}

impl Running {
    /// Returns what threads with these modes share, and logs the modes.
    pub(crate) fn new(device: LinkName, address: SocketAddr, tun: TunMode, udp: UdpModes) -> Arc<Self> {
        info!(%device, %address, %tun, gso = udp.gso, gro = udp.gro, "data path");
        let gauge = Arc::new(Gauge::new(Modes { tun, udp, merge: tun.tso }));
        Arc::new(Self { tun, gauge, over: AtomicBool::new(false) })
    }
}

/// The threads of a data path. They end when it is dropped.
pub(crate) struct Threads {
    pub(crate) running: Arc<Running>,
    pub(crate) waker: Waker,
    device: LinkName,
    /// The device's index when this was started.
    index: Option<u32>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Returns a data path without threads, for `device` with what was its [index](tun::index_of) before it was opened.
    ///
    /// # Errors
    /// If the kernel cannot wake threads.
    pub(crate) fn new(
        running: Arc<Running>,
        device: LinkName,
        index: Option<u32>,
    ) -> Result<Self, DatapathError> {
        let waker = Waker::new().map_err(DatapathError::Thread)?;
        Ok(Self { running, waker, device, index, threads: Vec::new() })
    }

    pub(crate) fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), DatapathError> {
        let note = EndNote(self.running.clone());
        let guarded = move || {
            let _note = note;
            body();
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(guarded);
        self.threads.push(thread.map_err(DatapathError::Thread)?);
        Ok(())
    }

    /// Returns whether to start another data path: a thread has ended by itself, or the device was deleted or created
    /// again.
    pub(crate) fn is_over(&self) -> bool {
        self.running.over.load(Relaxed) || tun::index_of(self.device) != self.index
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.running.over.store(true, Relaxed);
        self.waker.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Notes that a thread or a task has ended, even by a panic.
pub(crate) struct EndNote(pub(crate) Arc<Running>);

impl Drop for EndNote {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
    }
}

/// Returns how many workers to start: one for each processor within these bounds.
pub(crate) fn workers(bounds: &RangeInclusive<usize>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    processors.clamp(*bounds.start(), *bounds.end())
}

/// Opens one socket per worker, all bound to `address`. Returns them with the granted options. The kernel distributes
/// datagrams among them by sender.
pub(crate) fn sockets(
    address: SocketAddr,
    workers: usize,
    options: UdpOptions,
) -> io::Result<(Vec<UdpSocket>, UdpModes)> {
    let (first, modes) = UdpSocket::bind(address, options)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(UdpSocket::bind(address, options)?.0);
    }
    Ok((sockets, modes))
}

/// Delivers a datagram to the thread on the processor where it arrives: no other thread wakes up, and what the kernel
/// has touched is still in that processor's cache.
pub(crate) fn steer_by_processor(sockets: &[UdpSocket]) {
    if let Err(reason) = sockets[0].steer_by_processor(sockets.len() as u32) {
        debug!(%reason, "datagrams are not processed where they arrive");
    }
}
