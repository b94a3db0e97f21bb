//! The sockets on which questions come.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flan_connections::{ConnectionLimit, Door, Slot};
use hickory_server::net::xfer::Protocol as Over;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use crate::handler::{Reply, Shared};

const PORT: u16 = 53;
/// Most bytes of a question by UDP.
const MOST_BY_UDP: usize = 4096;
/// How long a client by TCP may take for a question, and for taking an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients by TCP on one address. When all are there, the oldest makes room for the next.
const CLIENTS: usize = 64;
const BACKLOG: i32 = 128;
/// Bytes of a thread's stack.
const STACK: usize = 512 << 10;
/// Delay after a socket's failure.
const AGAIN: Duration = Duration::from_millis(100);

/// Serves on one address until it is dropped.
pub(crate) struct Server {
    udp: Arc<UdpSocket>,
    thread: JoinHandle<()>,
    is_over: Arc<AtomicBool>,
    /// Serves by TCP.
    _tasks: JoinSet<()>,
}

impl Server {
    /// Returns whether it has ended by itself, which it should not.
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread, although Linux says that nothing is connected.
        let _ = SockRef::from(&*self.udp).shutdown(Shutdown::Both);
    }
}

/// Serves on this address.
///
/// # Errors
/// If the port is in use there.
pub(crate) fn listen(address: IpAddr, shared: &Arc<Shared>) -> io::Result<Server> {
    let udp: Arc<UdpSocket> = Arc::new(bound(address, Type::DGRAM, Protocol::UDP)?.into());
    udp.set_nonblocking(false)?;
    let tcp = bound(address, Type::STREAM, Protocol::TCP)?;
    tcp.listen(BACKLOG)?;
    let limit = ConnectionLimit::new(CLIENTS);
    let door = Door::new(TcpListener::from_std(tcp.into())?, limit, format!("port 53 of {address}"));
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_tcp(door, shared.clone()));
    let is_over = Arc::new(AtomicBool::new(false));
    let (socket, shared, over, runtime) = (udp.clone(), shared.clone(), is_over.clone(), Handle::current());
    let thread = thread::Builder::new()
        .name("names".to_owned())
        .stack_size(STACK)
        .spawn(move || serve_udp(&socket, &shared, &over, &runtime))?;
    Ok(Server { udp, thread, is_over, _tasks: tasks })
}

fn bound(address: IpAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // Docker gives the bridge its address later than we begin.
    match address {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SocketAddr::new(address, PORT).into())?;
    Ok(socket)
}

/// Answers at once what is ours, and in tasks what others have to answer. In a thread of its own, a question costs two
/// system calls; in a task it costs four, and the way from one thread of the runtime to another.
fn serve_udp(socket: &Arc<UdpSocket>, shared: &Arc<Shared>, is_over: &AtomicBool, runtime: &Handle) {
    let mut buffer = vec![0; MOST_BY_UDP];
    while !is_over.load(Ordering::Relaxed) {
        let (length, client) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // Such as an answer that a client did not wait for.
            Err(reason) => {
                debug!(%reason, "cannot receive questions");
                thread::sleep(AGAIN);
                continue;
            }
        };
        match shared.reply(&buffer[..length], client, Over::Udp) {
            Reply::Now(answer) => send(socket, &answer, client),
            Reply::Later(question) => {
                // The port is free once this server is dropped.
                let socket = Arc::downgrade(socket);
                runtime.spawn(async move {
                    if let (Some(answer), Some(socket)) = (question.answer().await, socket.upgrade()) {
                        send(&socket, &answer, client);
                    }
                });
            }
            Reply::Never => {}
        }
    }
}

/// Sends an answer, unless that has to wait: answers to absent clients fill the socket until ARP gives up, and all others
/// would wait. Who gets none asks again.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    let _ = SockRef::from(socket).send_to_with_flags(answer, &client.into(), libc::MSG_DONTWAIT);
}

async fn serve_tcp(mut door: Door, shared: Arc<Shared>) {
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let (stream, slot) = door.next().await;
        match stream.peer_addr() {
            Ok(client) if shared.serves(client.ip()) => {
                clients.spawn(serve_client(stream, client, slot, shared.clone()));
            }
            _ => {}
        }
    }
}

/// Answers one question after another, until there is none, or this one must make room.
async fn serve_client(mut stream: TcpStream, client: SocketAddr, slot: Slot, shared: Arc<Shared>) {
    let answers = async {
        while let Ok(Some(question)) = timeout(PATIENCE, read(&mut stream)).await {
            let answer = match shared.reply(&question, client, Over::Tcp) {
                Reply::Now(answer) => Some(answer),
                Reply::Later(question) => question.answer().await,
                Reply::Never => None,
            };
            let Some(answer) = answer else { return };
            let Ok(length) = u16::try_from(answer.len()) else { return };
            let message = [&length.to_be_bytes(), answer.as_slice()].concat();
            if !matches!(timeout(PATIENCE, stream.write_all(&message)).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = answers => {}
        () = std::future::poll_fn(|context| slot.poll_must_go(context)) => {}
    }
}

/// Reads a question behind its length (RFC 7766); `None` if there is none.
async fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = stream.read_u16().await.ok()?;
    let mut question = vec![0; length.into()];
    stream.read_exact(&mut question).await.ok()?;
    Some(question)
}
