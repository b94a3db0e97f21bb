//! The threads that move packets. Each worker has its own queue of the device and its own socket, and moves packets
//! between them in both directions; workers share the forwarding table and the counters. Another thread sends to the
//! peers that can only take short bursts. In plain mode, one task does all.

mod common;
mod endpoints;
mod inbound;
mod outbound;
mod outgoing;
mod pacing;
mod plain;
mod rules;
mod settings;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use flan_kernel::LinkName;
use flan_kernel::tun::{self, AsyncTun, TunError, TunMode, TunQueue};
use flan_kernel::udp_socket::{UdpModes, UdpOptions, UdpSocket};
use flan_kernel::wait::Waker;
use tokio::task::AbortHandle;
use tracing::debug;

use self::common::Common;
use self::endpoints::Endpoints;
use self::pacing::Pacer;
use self::plain::Plain;
pub(super) use self::settings::Settings;
use self::worker::{Share, Worker};
use super::forwarding::ForwardingReader;
use super::gauge::Gauge;

/// Threads, and queues of the device: one per processor within these bounds. tokio-tun requires at least two queues.
const WORKERS: RangeInclusive<usize> = 2..=4;
/// Bytes of a socket's buffers, per direction.
const SOCKET_BUFFER: usize = 8 << 20;

/// Why the data path could not be started.
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

/// A running data path. Its threads and its task end when it is dropped.
pub struct Datapath {
    common: Arc<Common>,
    /// The device's index when this was started.
    index: Option<u32>,
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
    /// In plain mode.
    task: Option<AbortHandle>,
}

impl Datapath {
    pub(super) fn start(settings: Settings, table: ForwardingReader) -> Result<Self, DatapathError> {
        if settings.is_plain() {
            return Self::start_plain(settings, table);
        }
        let device = settings.device;
        let index = tun::index_of(device);
        let tun_error = |source| DatapathError::Tun { device, source };
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers = processors.clamp(*WORKERS.start(), *WORKERS.end());
        let (queues, mode) = TunQueue::open(device, workers, settings.tun).map_err(tun_error)?;
        let address = SocketAddr::new(settings.local.into(), settings.port);
        let (sockets, udp) = sockets(address, workers, &settings)
            .map_err(|source| DatapathError::Socket { address, source })?;
        let waker = Waker::new().map_err(DatapathError::Thread)?;
        let common = Common::new(settings, table, mode, udp);
        let sockets: Vec<Arc<UdpSocket>> = sockets.into_iter().map(Arc::new).collect();
        let (pacer, entrance) = Pacer::new(common.clone(), sockets[0].clone());
        let mut datapath =
            Self { common: common.clone(), index, waker: waker.clone(), threads: Vec::new(), task: None };
        for (number, (queue, socket)) in queues.into_iter().zip(sockets).enumerate() {
            let share = Share { number, of: workers };
            let endpoints = Endpoints { common: common.clone(), queue, socket };
            let worker = Worker::new(endpoints, share, waker.clone(), entrance.clone());
            datapath.spawn(&format!("flan-{number}"), move || worker.run())?;
        }
        // Started last: it ends with the workers, so nothing may fail between its start and the end of ours.
        datapath.spawn("flan-pacer", move || pacer.run())?;
        Ok(datapath)
    }

    /// Starts plain mode: a task in the current tokio runtime.
    fn start_plain(settings: Settings, table: ForwardingReader) -> Result<Self, DatapathError> {
        let device = settings.device;
        let index = tun::index_of(device);
        let address = SocketAddr::new(settings.local.into(), settings.port);
        let queues = AsyncTun::open(device).map_err(|source| DatapathError::Tun { device, source })?;
        let (socket, udp) = UdpSocket::bind(address, options(&settings))
            .and_then(|(socket, udp)| Ok((socket.into_tokio()?, udp)))
            .map_err(|source| DatapathError::Socket { address, source })?;
        let waker = Waker::new().map_err(DatapathError::Thread)?;
        let common = Common::new(settings, table, TunMode::PLAIN, udp);
        let plain = Plain { common: common.clone(), queues, socket };
        let note = EndNote(common.clone());
        let task = tokio::spawn(async move {
            plain.run().await;
            drop(note);
        });
        Ok(Self { common, index, waker, threads: Vec::new(), task: Some(task.abort_handle()) })
    }

    /// Returns whether to start another data path: a thread has ended by itself, or the device was deleted or created
    /// again.
    pub fn is_over(&self) -> bool {
        self.common.over.load(Relaxed) || tun::index_of(self.common.settings.device) != self.index
    }

    /// Returns its modes and counters.
    pub fn gauge(&self) -> Arc<Gauge> {
        self.common.gauge.clone()
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), DatapathError> {
        let common = self.common.clone();
        let guarded = move || {
            let _note = EndNote(common);
            body();
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(guarded);
        self.threads.push(thread.map_err(DatapathError::Thread)?);
        Ok(())
    }
}

/// Opens one socket per worker, all bound to `address`. Returns them with the granted options.
fn sockets(
    address: SocketAddr,
    workers: usize,
    settings: &Settings,
) -> io::Result<(Vec<UdpSocket>, UdpModes)> {
    let options = options(settings);
    let (first, modes) = UdpSocket::bind(address, options)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(UdpSocket::bind(address, options)?.0);
    }
    // Delivers a datagram to the thread on the processor where it arrives: no other thread wakes up, and what the
    // kernel has touched is still in that processor's cache. Otherwise the kernel distributes by sender.
    if let Err(reason) = sockets[0].steer_by_processor(workers as u32) {
        debug!(%reason, "datagrams are not processed where they arrive");
    }
    Ok((sockets, modes))
}

fn options(settings: &Settings) -> UdpOptions {
    UdpOptions { gso: settings.gso, gro: settings.gro, shared: true, buffer_bytes: SOCKET_BUFFER }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.common.over.store(true, Relaxed);
        self.waker.wake();
        if let Some(task) = &self.task {
            task.abort();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Notes that a thread has ended, even by a panic.
struct EndNote(Arc<Common>);

impl Drop for EndNote {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
    }
}
