//! The threads that move packets. Each worker has a queue of the device and a socket of its own, and moves packets both
//! ways between them; they share the forwarding table and the counters. One more thread sends to the peers that take
//! packets in short bursts only.

mod inbound;
mod outbound;
mod outgoing;
mod pacing;
mod worker;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use flan_kernel::LinkName;
use flan_kernel::tun::{TunError, TunMode, TunQueue};
use flan_kernel::udp_socket::{UdpModes, UdpOptions, UdpSocket};
use flan_kernel::wait::Waker;
use ipnetwork::Ipv4Network;
use tracing::{debug, info};

use self::pacing::Pacer;
use self::worker::{Share, Worker};
use super::counters::{Counters, Totals};
use super::forwarding::ForwardingTable;

/// Threads, and queues of the device: one for each processor within these bounds. tokio-tun takes no fewer than two
/// queues.
const WORKERS: RangeInclusive<usize> = 2..=4;
/// Bytes of a socket's buffers, each way.
const SOCKET_BUFFER: usize = 8 << 20;

/// What a data path is made from.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) device: LinkName,
    pub(super) tun: TunMode,
    pub(super) gso: bool,
    pub(super) gro: bool,
    /// Underlay address that datagrams are sent from and arrive at.
    pub(super) local: Ipv4Addr,
    pub(super) port: u16,
    /// The device's address: the source of ICMP errors.
    pub(super) address: Ipv4Addr,
    /// Bytes of the largest inner packet.
    pub(super) mtu: u32,
    /// This host's subnet, if packets must go there and come from that of the peer that sent them.
    pub(super) strict: Option<Ipv4Network>,
}

impl Settings {
    /// Packets at a time, each way: one in plain mode, where each is read, sent, received and written by a call of its
    /// own, as flannel does.
    fn batch(&self) -> usize {
        const BATCH: usize = 64;
        let plain = !self.tun.vnet_header && !self.gso && !self.gro;
        if plain { 1 } else { BATCH }
    }
}

/// What the kernel gave of what was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// How packets are exchanged with the device.
    pub tun: TunMode,
    /// How datagrams are exchanged with the sockets.
    pub udp: UdpModes,
    /// Whether segments that arrive are merged for the device.
    pub merge: bool,
}

/// Why no data path could be started.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The device cannot be opened.
    #[error("cannot open device {device}: {source}")]
    Tun {
        /// The device.
        device: LinkName,
        /// Why.
        #[source]
        source: TunError,
    },
    /// The port cannot be opened.
    #[error("cannot listen on UDP {address}: {source}")]
    Socket {
        /// The address and port.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A running data path. Its threads end when it is dropped.
pub struct Datapath {
    shared: Arc<Shared>,
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
}

/// What a data path does, for whoever looks; also after its end.
#[derive(Debug)]
pub struct Gauge {
    modes: Modes,
    /// Whether batches go out with `UDP_SEGMENT`; off for good once the kernel has refused one.
    gso: AtomicBool,
    /// Whether packets are merged for the device; off for good once the kernel has refused a merged one.
    merge: AtomicBool,
    counters: Counters,
}

/// What all threads see.
struct Shared {
    settings: Settings,
    table: ForwardingTable,
    tun: TunMode,
    gauge: Arc<Gauge>,
    /// The threads shall end, or one has ended by itself, as when the device was deleted.
    over: AtomicBool,
}

impl Datapath {
    pub(super) fn start(settings: Settings, table: ForwardingTable) -> Result<Self, DatapathError> {
        let device = settings.device;
        let tun_error = |source| DatapathError::Tun { device, source };
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers = processors.clamp(*WORKERS.start(), *WORKERS.end());
        let (queues, tun) = TunQueue::open(device, workers, settings.tun).map_err(tun_error)?;
        let address = SocketAddr::new(settings.local.into(), settings.port);
        let (sockets, udp) = sockets(address, workers, &settings)
            .map_err(|source| DatapathError::Socket { address, source })?;
        let waker = Waker::new().map_err(DatapathError::Thread)?;
        let modes = Modes { tun, udp, merge: tun.tso };
        info!(%device, %address, tun = %tun, gso = udp.gso, gro = udp.gro, "data path");

        let shared = Arc::new(Shared {
            settings,
            table,
            tun,
            gauge: Arc::new(Gauge::new(modes)),
            over: AtomicBool::new(false),
        });
        let sockets: Vec<Arc<UdpSocket>> = sockets.into_iter().map(Arc::new).collect();
        let (pacer, entrance) = Pacer::new(shared.clone(), sockets[0].clone());
        let mut datapath = Self { shared: shared.clone(), waker: waker.clone(), threads: Vec::new() };
        for (number, (queue, socket)) in queues.into_iter().zip(sockets).enumerate() {
            let share = Share { number, of: workers };
            let worker = Worker::new(shared.clone(), share, queue, socket, waker.clone(), entrance.clone());
            datapath.spawn(&format!("flan-{number}"), move || worker.run())?;
        }
        // Last: it ends with the workers, so there must be no way out of here between its start and the end of ours.
        datapath.spawn("flan-pacer", move || pacer.run())?;
        Ok(datapath)
    }

    /// Whether a thread has ended by itself, as when the device was deleted: start another data path then.
    pub fn is_over(&self) -> bool {
        self.shared.over.load(Relaxed)
    }

    /// What it does.
    pub fn gauge(&self) -> Arc<Gauge> {
        self.shared.gauge.clone()
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), DatapathError> {
        let shared = self.shared.clone();
        let guarded = move || {
            let _ends = Ends(shared);
            body();
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(guarded);
        self.threads.push(thread.map_err(DatapathError::Thread)?);
        Ok(())
    }
}

/// One socket for each worker, all bound to `address`, and what the kernel gave of what was wanted.
fn sockets(
    address: SocketAddr,
    workers: usize,
    settings: &Settings,
) -> io::Result<(Vec<UdpSocket>, UdpModes)> {
    let options =
        UdpOptions { gso: settings.gso, gro: settings.gro, shared: true, buffer_bytes: SOCKET_BUFFER };
    let (first, modes) = UdpSocket::bind(address, options)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(UdpSocket::bind(address, options)?.0);
    }
    // The thread that waits on the processor where a datagram arrives gets it: nobody else is woken, and what the
    // kernel has touched is still in that processor's cache. Without it the kernel spreads them by sender.
    if let Err(reason) = sockets[0].steer_by_processor(workers as u32) {
        debug!(%reason, "datagrams are not handed to the processor that they arrive on");
    }
    Ok((sockets, modes))
}

impl Gauge {
    fn new(modes: Modes) -> Self {
        let (gso, merge) = (AtomicBool::new(modes.udp.gso), AtomicBool::new(modes.merge));
        Self { modes, gso, merge, counters: Counters::default() }
    }

    /// The modes in force.
    pub fn modes(&self) -> Modes {
        let mut modes = self.modes;
        modes.udp.gso &= self.gso.load(Relaxed);
        modes.merge &= self.merge.load(Relaxed);
        modes
    }

    /// What was done so far.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.shared.over.store(true, Relaxed);
        self.waker.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Notes that a thread has ended, also by a panic.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
    }
}
