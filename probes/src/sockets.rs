//! The sockets of probes.

use std::io;
use std::net::{IpAddr, SocketAddr};

use flan_kernel::echo::EchoSocket;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::message::{MESSAGE_BYTES, Message};
use crate::prober::{AGAIN, Settings};
use crate::target::Way;
use crate::watch::Packet;

/// The open sockets, of each family at most one of each kind: IPv4 first.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) echo: [Option<EchoSocket>; 2],
    pub(crate) agent: [Option<Agent>; 2],
    /// When to try again to open what could not be opened.
    pub(crate) again: Option<Instant>,
    /// The last failure that was logged.
    failure: Option<String>,
}

/// The socket for messages between agents.
#[derive(Debug)]
pub(crate) struct Agent {
    address: IpAddr,
    socket: UdpSocket,
}

/// What arrived.
pub(crate) enum Heard<'a> {
    /// The answer to a packet of ours.
    Answer(u64),
    /// A question, from this address on this socket.
    Question(u64, SocketAddr, &'a Agent),
}

impl Sockets {
    /// Opens what this way of packets needs, and closes what it does not.
    pub(crate) fn open(&mut self, way: &Way, settings: Settings) {
        self.again = None;
        let mut failures = Vec::new();
        for (at, is_ipv4) in [(0, true), (1, false)] {
            let of_family =
                |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
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
                match Agent::bound(address, settings.port) {
                    Ok(agent) => self.agent[at] = Some(agent),
                    Err(reason) => {
                        failures.push(format!("UDP port {} of {address}: {reason}", settings.port));
                    }
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

    /// Sends a packet.
    ///
    /// # Errors
    /// `NotConnected` if there is no socket for it, or why the kernel refuses it.
    pub(crate) fn send(&self, packet: &Packet, port: u16) -> io::Result<()> {
        let Packet { nonce, from, to, echo } = *packet;
        let family = usize::from(to.is_ipv6());
        if let Some(bytes) = echo {
            let socket = self.echo[family].as_ref().ok_or(io::ErrorKind::NotConnected)?;
            return socket.send(from, to, nonce, bytes);
        }
        let agent = self.agent[family].as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let request = Message::Request(nonce).encode();
        agent.send(&request, SocketAddr::new(to, port))
    }

    /// Waits for an answer or a question on any socket. Cancel-safe.
    pub(crate) async fn receive(&self) -> io::Result<Heard<'_>> {
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
    let Some(agent) = agent else { return std::future::pending().await };
    loop {
        // A byte more than a message, so that longer datagrams are none.
        let mut bytes = [0; MESSAGE_BYTES + 1];
        let (length, from) = agent.socket.recv_from(&mut bytes).await?;
        match Message::decode(&bytes[..length]) {
            Some(Message::Request(number)) => return Ok(Heard::Question(number, from, agent)),
            Some(Message::Reply(number)) => return Ok(Heard::Answer(number)),
            None => {}
        }
    }
}

impl Agent {
    /// Sends a message now, or not at all.
    pub(crate) fn send(&self, message: &[u8], to: SocketAddr) -> io::Result<()> {
        // Tokio would ask whether the socket takes something, which a new one has not told yet.
        SockRef::from(&self.socket).send_to(message, &to.into()).map(drop)
    }

    /// Binds to an address that this host may get only later; with port 0 to any free port.
    pub(crate) fn bound(address: IpAddr, port: u16) -> io::Result<Self> {
        let name = SocketAddr::new(address, port);
        let socket = Socket::new(Domain::for_address(name), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if address.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
        socket.bind(&name.into())?;
        Ok(Self { address, socket: UdpSocket::from_std(socket.into())? })
    }
}
