//! The threads that move packets: from the device to the wire, one for each of its queues, and from the wire to the
//! device. Each owns its buffers; they share the forwarding table, the socket and the counters.

mod inbound;
mod outbound;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use flan_kernel::LinkName;
use flan_kernel::tun::{TunError, TunMode, TunQueue, Waker};
use flan_kernel::udp_socket::{UdpModes, UdpOptions, UdpSocket};
use tracing::info;

use super::counters::{Counters, Totals};
use super::forwarding::ForwardingTable;

/// Queues of the device. tokio-tun takes no fewer.
const QUEUES: usize = 2;
/// Bytes of the socket's buffers, each way.
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
    pub(super) strict_source: bool,
}

/// What the kernel gave of what was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// How packets are exchanged with the device.
    pub tun: TunMode,
    /// How datagrams are exchanged with the socket.
    pub udp: UdpModes,
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
    counters: Counters,
}

/// What all threads see.
struct Shared {
    settings: Settings,
    table: ForwardingTable,
    socket: UdpSocket,
    gauge: Arc<Gauge>,
    /// A thread has ended by itself, as when the device was deleted.
    over: AtomicBool,
}

impl Datapath {
    pub(super) fn start(settings: Settings, table: ForwardingTable) -> Result<Self, DatapathError> {
        let device = settings.device;
        let tun_error = |source| DatapathError::Tun { device, source };
        let (queues, tun) = TunQueue::open(device, QUEUES, settings.tun).map_err(tun_error)?;
        let address = SocketAddr::new(settings.local.into(), settings.port);
        let options = UdpOptions { gso: settings.gso, gro: settings.gro, buffer_bytes: SOCKET_BUFFER };
        let (socket, udp) =
            UdpSocket::bind(address, options).map_err(|source| DatapathError::Socket { address, source })?;
        let waker = Waker::new().map_err(DatapathError::Thread)?;
        let modes = Modes { tun, udp };
        info!(%device, %address, tun = %tun, gso = udp.gso, gro = udp.gro, "data path");

        let shared = Arc::new(Shared {
            settings,
            table,
            socket,
            gauge: Arc::new(Gauge { modes, gso: AtomicBool::new(udp.gso), counters: Counters::default() }),
            over: AtomicBool::new(false),
        });
        let mut datapath = Self { shared: shared.clone(), waker: waker.clone(), threads: Vec::new() };
        let queues: Vec<Arc<TunQueue>> = queues.into_iter().map(Arc::new).collect();
        for (number, queue) in queues.iter().enumerate() {
            let outbound = outbound::Outbound::new(shared.clone(), queue.clone(), waker.clone(), tun);
            datapath.spawn(&format!("flan-out-{number}"), move || outbound.run())?;
        }
        if let Some(queue) = queues.first() {
            let inbound = inbound::Inbound::new(shared, queue.clone(), waker, tun);
            datapath.spawn("flan-in", move || inbound.run())?;
        }
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

impl Gauge {
    /// The modes in force.
    pub fn modes(&self) -> Modes {
        let mut modes = self.modes;
        modes.udp.gso &= self.gso.load(Relaxed);
        modes
    }

    /// What was done so far.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
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
