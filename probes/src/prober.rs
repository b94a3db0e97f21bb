//! The task that probes, and answers the questions of other agents.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flan_kernel::echo::EchoSocket;
use ipnetwork::IpNetwork;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use crate::findings::{Findings, Seen};
use crate::message::{MESSAGE_BYTES, Message};
use crate::target::{Target, Way};
use crate::watch::{Packet, Watch};

/// Interval between reports.
const REPORT: Duration = Duration::from_secs(2);
/// Delay before another attempt to open a socket.
const AGAIN: Duration = Duration::from_secs(30);
/// Delay after a socket's failure.
const PAUSE: Duration = Duration::from_millis(100);

/// What a prober does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most probes a second; with 0, only the questions of other agents are answered.
    pub rate: u16,
    /// UDP port of agents.
    pub port: u16,
}

/// Handle of the task, which ends with it.
#[derive(Debug)]
pub struct Prober {
    watch: Arc<Mutex<Watch>>,
    changed: Arc<Notify>,
    settings: Settings,
    task: tokio::task::JoinHandle<()>,
}

impl Prober {
    /// Starts the task, which passes what it finds to `tell`, every two seconds at most.
    pub fn start(settings: Settings, tell: impl Fn(&Findings) + Send + 'static) -> Self {
        let watch = Arc::new(Mutex::new(Watch::new(settings.rate, Instant::now())));
        let changed = Arc::new(Notify::new());
        let task = tokio::spawn(run(watch.clone(), changed.clone(), settings, tell));
        Self { watch, changed, settings, task }
    }

    /// Replaces the targets. What is known of those that stay as they were is kept.
    pub fn targets_are(&self, way: Way, targets: Vec<Target>) {
        lock(&self.watch).targets_are(way, targets, Instant::now());
        self.changed.notify_one();
    }

    /// Returns what is known of each target, by its subnet.
    pub fn seen(&self) -> Vec<(IpNetwork, Seen)> {
        lock(&self.watch).seen(self.settings.port, Instant::now())
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    watch: Arc<Mutex<Watch>>,
    changed: Arc<Notify>,
    settings: Settings,
    tell: impl Fn(&Findings) + Send + 'static,
) {
    let mut sockets = Sockets::default();
    let mut reports = interval(REPORT);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Findings::default();
    loop {
        let due = lock(&watch).due();
        tokio::select! {
            () = changed.notified() => {
                let way = lock(&watch).way().cloned();
                if let Some(way) = way {
                    sockets.open(&way, settings);
                }
            }
            () = sleep_until_due(sockets.again) => {
                let way = lock(&watch).way().cloned();
                if let Some(way) = way {
                    sockets.open(&way, settings);
                }
            }
            heard = sockets.receive() => match heard {
                Ok(Heard::Answer(nonce)) => lock(&watch).answered(nonce, Instant::now()),
                Ok(Heard::Question(number, from, socket)) => {
                    // Nobody else makes us send, wherever the question claims to come from.
                    if lock(&watch).knows(from.ip()) {
                        let _ = socket.try_send_to(&Message::Reply(number).encode(), from);
                    }
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            () = sleep_until_due(due) => {
                let packets = lock(&watch).time_passed(Instant::now());
                for packet in packets {
                    if !sockets.send(&packet, settings.port) {
                        lock(&watch).not_sent(packet.nonce);
                    }
                }
            }
            _ = reports.tick(), if settings.rate > 0 => {
                let found = lock(&watch).findings(settings.port);
                if found != told {
                    tell(&found);
                    told = found;
                }
            }
        }
    }
}

async fn sleep_until_due(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The open sockets, of each family at most one of each kind: IPv4 first.
#[derive(Debug, Default)]
struct Sockets {
    echo: [Option<EchoSocket>; 2],
    agent: [Option<Agent>; 2],
    /// When to try again to open what could not be opened.
    again: Option<Instant>,
    /// The last failure that was logged.
    failure: Option<String>,
}

#[derive(Debug)]
struct Agent {
    address: IpAddr,
    socket: UdpSocket,
}

/// What arrived.
enum Heard<'a> {
    /// The answer to a packet of ours.
    Answer(u64),
    /// A question, from this address on this socket.
    Question(u64, SocketAddr, &'a UdpSocket),
}

impl Sockets {
    /// Opens what this way of packets needs, and closes what it does not.
    fn open(&mut self, way: &Way, settings: Settings) {
        self.again = None;
        let mut failures = Vec::new();
        for (at, is_ipv4) in [(0, true), (1, false)] {
            let of_family = |addresses: &[IpAddr]| {
                addresses.iter().copied().find(|address| address.is_ipv4() == is_ipv4)
            };
            let (overlay, underlay) = (of_family(&way.overlay), of_family(&way.underlay));
            let needs_echo = settings.rate > 0 && (overlay.is_some() || underlay.is_some());
            if !needs_echo {
                self.echo[at] = None;
            } else if self.echo[at].is_none() {
                match if is_ipv4 { EchoSocket::v4() } else { EchoSocket::v6() } {
                    Ok(socket) => self.echo[at] = Some(socket),
                    Err(reason) => failures.push(format!("echo requests: {reason}")),
                }
            }
            // Without an overlay address of any family, agents speak from underlay to underlay address.
            let address = overlay.or(underlay.filter(|_| way.overlay.is_empty()));
            self.agent[at] = self.agent[at].take().filter(|agent| Some(agent.address) == address);
            if let Some(address) = address
                && self.agent[at].is_none()
            {
                match bound(SocketAddr::new(address, settings.port)) {
                    Ok(socket) => self.agent[at] = Some(Agent { address, socket }),
                    Err(reason) => failures.push(format!("UDP port {} of {address}: {reason}", settings.port)),
                }
            }
        }
        let failure = (!failures.is_empty()).then(|| failures.join("; "));
        if failure != self.failure {
            match &failure {
                Some(failure) => warn!("cannot probe peers, or answer their probes: {failure}"),
                None => info!("peers can be probed again"),
            }
            self.failure.clone_from(&failure);
        }
        self.again = failure.map(|_| Instant::now() + AGAIN);
    }

    /// Sends a packet. Returns whether there is a socket for it: what the kernel refuses is lost, as on the way.
    fn send(&self, packet: &Packet, port: u16) -> bool {
        let Packet { nonce, from, to, echo } = *packet;
        let family = usize::from(to.is_ipv6());
        if let Some(bytes) = echo {
            let Some(socket) = &self.echo[family] else { return false };
            let _ = socket.send(from, to, nonce, bytes);
            return true;
        }
        let Some(agent) = &self.agent[family] else { return false };
        let _ = agent.socket.try_send_to(&Message::Request(nonce).encode(), SocketAddr::new(to, port));
        true
    }

    /// Waits for an answer or a question on any socket. Cancel-safe.
    async fn receive(&self) -> io::Result<Heard<'_>> {
        let [echo_v4, echo_v6] = &self.echo;
        let [agent_v4, agent_v6] = &self.agent;
        tokio::select! {
            answer = reply(echo_v4.as_ref()) => answer.map(Heard::Answer),
            answer = reply(echo_v6.as_ref()) => answer.map(Heard::Answer),
            heard = message(agent_v4.as_ref()) => heard,
            heard = message(agent_v6.as_ref()) => heard,
        }
    }
}

async fn reply(socket: Option<&EchoSocket>) -> io::Result<u64> {
    match socket {
        Some(socket) => socket.receive().await,
        None => std::future::pending().await,
    }
}

async fn message(agent: Option<&Agent>) -> io::Result<Heard<'_>> {
    let Some(Agent { socket, .. }) = agent else { return std::future::pending().await };
    loop {
        // A byte more than a message, so that longer datagrams are none.
        let mut bytes = [0; MESSAGE_BYTES + 1];
        let (length, from) = socket.recv_from(&mut bytes).await?;
        match Message::decode(&bytes[..length]) {
            Some(Message::Request(number)) => return Ok(Heard::Question(number, from, socket)),
            Some(Message::Reply(number)) => return Ok(Heard::Answer(number)),
            None => {}
        }
    }
}

/// Binds to an address that this host may get only later.
fn bound(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}
