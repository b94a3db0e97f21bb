//! The sockets on which questions come.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_server::Server;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::handler::{Handler, Shared};

const PORT: u16 = 53;
/// How long a client by TCP may say nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers that wait for one client by TCP.
const ANSWERS: usize = 16;
const BACKLOG: i32 = 128;

/// Serves on this address until it is dropped.
///
/// # Errors
/// If the port is in use there.
pub(crate) fn listen(address: IpAddr, shared: &Arc<Shared>) -> io::Result<Server<Handler>> {
    let udp = UdpSocket::from_std(bound(address, Type::DGRAM, Protocol::UDP)?.into())?;
    let tcp = bound(address, Type::STREAM, Protocol::TCP)?;
    tcp.listen(BACKLOG)?;
    let mut server = Server::new(Handler(shared.clone()));
    server.register_socket(udp);
    server.register_listener(TcpListener::from_std(tcp.into())?, PATIENCE, ANSWERS);
    Ok(server)
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
