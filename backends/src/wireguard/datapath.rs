//! The threads that move packets. Each worker has its own queue of the device and its own socket, and encrypts and
//! decrypts what passes there. Another thread does what is due at a time.

mod inbound;
mod outbound;
mod timers;

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use flan_kernel::LinkName;
use flan_kernel::tun::{self, TunMode, TunQueue};
use flan_kernel::udp_socket::{UdpModes, UdpOptions, UdpSocket};
use flan_subnet_lease::PerFamily;
use tracing::info;

use self::inbound::Inbound;
use self::outbound::Outbound;
use self::timers::Timers;
use super::exchange::Exchange;
use super::identity::Identity;
use super::peers::Peers;
use super::table::Table;
use super::wire::Wire;
use crate::userspace::endpoints::Endpoints;
use crate::userspace::gauge::Gauge;
use crate::userspace::outgoing::Outgoing;
use crate::userspace::running::{self, DatapathError, Running, SOCKET_BUFFER, Threads};
use crate::userspace::worker::{BATCH, Directions, Share, Worker};

/// Threads, and queues of the device: one per processor within these bounds. tokio-tun requires at least two queues.
const WORKERS: RangeInclusive<usize> = 2..=8;

/// The settings of a data path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A TUN device, which must exist.
    pub device: LinkName,
    /// How to exchange packets with it, as far as the kernel can.
    pub tun: TunMode,
    /// Whether to send many packets at a time (`UDP_SEGMENT`).
    pub gso: bool,
    /// Whether to receive many packets at a time (`UDP_GRO`).
    pub gro: bool,
    /// Where messages from peers arrive. `[::]` takes both families, and IPv4 alone on a kernel without IPv6.
    pub listen: SocketAddr,
    /// The device's addresses: the sources of ICMP errors.
    pub addresses: PerFamily<IpAddr>,
    /// Bytes of the largest inner packet.
    pub mtu: u32,
}

/// A running data path. Its threads end when it is dropped; the peers stay.
pub struct Datapath {
    threads: Threads,
}

/// What all threads share.
struct Common {
    settings: Settings,
    peers: Peers,
    running: Arc<Running>,
    /// Whether the sockets are IPv6's, and take mapped addresses for IPv4.
    is_mapped: bool,
}

impl Datapath {
    /// Starts the threads that move packets between the device and the peers. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`DatapathError`] if the device or the port cannot be opened.
    pub fn start(settings: Settings, peers: &Peers) -> Result<Self, DatapathError> {
        let device = settings.device;
        let index = tun::index_of(device);
        let workers = running::workers(&WORKERS);
        let (queues, mode) = TunQueue::open(device, workers, settings.tun)
            .map_err(|source| DatapathError::Tun { device, source })?;
        let (sockets, udp) = sockets(&settings, workers)
            .map_err(|source| DatapathError::Socket { address: settings.listen, source })?;
        let is_mapped = sockets[0].local_addr().is_ok_and(|address| address.is_ipv6());
        let running = Running::new(device, settings.listen, mode, udp);
        let common = Arc::new(Common { settings, peers: peers.clone(), running: running.clone(), is_mapped });
        let mut threads = Threads::new(running.clone(), device, index)?;
        let sockets: Vec<Arc<UdpSocket>> = sockets.into_iter().map(Arc::new).collect();
        let (waker, socket) = (threads.waker.clone(), sockets[0].clone());
        let timers = Timers { common: common.clone(), socket, waker };
        threads.spawn("flan-timers", move || timers.run())?;
        for (number, (queue, socket)) in queues.into_iter().zip(sockets).enumerate() {
            let worker = Worker {
                endpoints: Endpoints { running: running.clone(), queue, socket },
                share: Share { number, of: workers },
                waker: threads.waker.clone(),
                directions: WireGuard {
                    outbound: Outbound::new(BATCH, common.clone()),
                    inbound: Inbound::new(BATCH, common.clone()),
                },
            };
            threads.spawn(&format!("flan-{number}"), move || worker.run())?;
        }
        Ok(Self { threads })
    }

    /// Returns whether to start another data path: a thread has ended by itself, or the device was deleted or created
    /// again.
    pub fn is_over(&self) -> bool {
        self.threads.is_over()
    }

    /// Returns its modes and counters.
    pub fn gauge(&self) -> Arc<Gauge> {
        self.threads.running.gauge.clone()
    }
}

/// Opens the sockets of the workers.
fn sockets(settings: &Settings, workers: usize) -> io::Result<(Vec<UdpSocket>, UdpModes)> {
    let Settings { gso, gro, listen, .. } = *settings;
    let options = UdpOptions { gso, gro, shared: true, buffer_bytes: SOCKET_BUFFER };
    let opened = running::sockets(listen, workers, options);
    let lacks_ipv6 = |error: &io::Error| error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    if listen.is_ipv6() && listen.ip().is_unspecified() && opened.as_ref().is_err_and(lacks_ipv6) {
        info!("the kernel has no IPv6; peers are reached over IPv4 alone");
        return running::sockets((Ipv4Addr::UNSPECIFIED, listen.port()).into(), workers, options);
    }
    opened
}

impl Common {
    fn exchange<'a>(&'a self, table: &'a Table, identity: &'a Arc<Identity>) -> Exchange<'a> {
        Exchange {
            table,
            identity,
            counters: &self.running.gauge.counters,
            mtu: self.settings.mtu as usize,
            now: Instant::now(),
        }
    }

    /// Sends all messages, and forgets them.
    fn send(&self, wire: &mut Wire, socket: &UdpSocket) {
        if wire.is_empty() {
            return;
        }
        let mut outgoing = Outgoing::new(&self.running.gauge, socket);
        for (to, message) in wire.messages() {
            outgoing.add(self.as_socket_has_it(to), [IoSlice::new(message)]);
        }
        // A message that is too large for the path leaves in fragments, so nobody has to be told.
        outgoing.send(|_| {});
        wire.clear();
    }

    fn as_socket_has_it(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(address) if self.is_mapped => {
                SocketAddr::new(address.to_ipv6_mapped().into(), to.port())
            }
            _ => to,
        }
    }
}

/// The two directions of a worker.
struct WireGuard {
    outbound: Outbound,
    inbound: Inbound,
}

impl Directions for WireGuard {
    fn outbound(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        self.outbound.pass(endpoints)
    }

    fn inbound(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        self.inbound.pass(endpoints)
    }
}
