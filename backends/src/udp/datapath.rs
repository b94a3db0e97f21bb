//! The threads that move packets. Each worker has its own queue of the device and its own socket, and moves packets
//! between them in both directions; workers share the forwarding table and the counters. Another thread sends to the
//! peers that can only take short bursts. In plain mode, one task does all.

mod common;
mod inbound;
mod outbound;
mod pacing;
mod plain;
mod rules;
mod settings;

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use flan_kernel::tun::{self, AsyncTun, TunMode, TunQueue};
use flan_kernel::udp_socket::{UdpOptions, UdpSocket};
use tokio::task::AbortHandle;

use self::common::Common;
use self::inbound::Inbound;
use self::outbound::Outbound;
use self::pacing::Pacer;
use self::plain::Plain;
pub(super) use self::settings::Settings;
use super::forwarding::ForwardingReader;
use crate::userspace::endpoints::Endpoints;
use crate::userspace::gauge::Gauge;
use crate::userspace::running::{self, DatapathError, EndNote, SOCKET_BUFFER, Threads};
use crate::userspace::worker::{BATCH, Directions, Share, Worker};

/// Threads, and queues of the device: one per processor within these bounds. tokio-tun requires at least two queues.
const WORKERS: RangeInclusive<usize> = 2..=4;
/// A running data path. Its threads and its task end when it is dropped.
pub struct Datapath {
    threads: Threads,
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
        let workers = running::workers(&WORKERS);
        let (queues, mode) = TunQueue::open(device, workers, settings.tun).map_err(tun_error)?;
        let address = SocketAddr::new(settings.local.into(), settings.port);
        let (sockets, udp) = running::sockets(address, workers, options(&settings))
            .map_err(|source| DatapathError::Socket { address, source })?;
        running::steer_by_processor(&sockets);
        let common = Common::new(settings, table, mode, udp);
        let sockets: Vec<Arc<UdpSocket>> = sockets.into_iter().map(Arc::new).collect();
        let (pacer, entrance) = Pacer::new(common.clone(), sockets[0].clone());
        let mut threads = Threads::new(common.running.clone(), device, index)?;
        for (number, (queue, socket)) in queues.into_iter().zip(sockets).enumerate() {
            let worker = Worker {
                endpoints: Endpoints { running: common.running.clone(), queue, socket },
                share: Share { number, of: workers },
                waker: threads.waker.clone(),
                directions: Udp {
                    outbound: Outbound::new(BATCH, common.clone(), entrance.clone()),
                    inbound: Inbound::new(BATCH, common.clone()),
                },
            };
            threads.spawn(&format!("flan-{number}"), move || worker.run())?;
        }
        // Started last: it ends with the workers, so nothing may fail between its start and the end of ours.
        threads.spawn("flan-pacer", move || pacer.run())?;
        Ok(Self { threads, task: None })
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
        let common = Common::new(settings, table, TunMode::PLAIN, udp);
        let threads = Threads::new(common.running.clone(), device, index)?;
        let plain = Plain { common: common.clone(), queues, socket };
        let note = EndNote(common.running.clone());
        let task = tokio::spawn(async move {
            plain.run().await;
            drop(note);
        });
        Ok(Self { threads, task: Some(task.abort_handle()) })
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

fn options(settings: &Settings) -> UdpOptions {
    UdpOptions { gso: settings.gso, gro: settings.gro, shared: true, buffer_bytes: SOCKET_BUFFER }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The two directions of a worker.
struct Udp {
    outbound: Outbound,
    inbound: Inbound,
}

impl Directions for Udp {
    fn outbound(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        self.outbound.pass(endpoints)
    }

    fn inbound(&mut self, endpoints: &Endpoints) -> io::Result<bool> {
        self.inbound.pass(endpoints)
    }
}
