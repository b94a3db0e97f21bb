//! The sockets: TLS, gRPC, and `/health` and `/metrics` over plain HTTP.

mod causes;
mod connection;
mod etcdctl_authority;
mod tls;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Uri;
use axum::response::IntoResponse;
use axum::routing::get;
use flan_connections::{ConnectionLimit, Door, Slot};
use futures::{StreamExt, future};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;

use self::causes::causes;
use self::connection::Connection;
#[cfg(fuzzing)]
pub use self::etcdctl_authority::fixed;
pub(crate) use self::tls::Acceptor;
use crate::figures::{Figures, OPENMETRICS};
use crate::refusal::not_served;
use crate::service::Service;
use crate::settings::{ListenUrl, StartError, TlsFiles};

/// Connections that the kernel queues: all hosts of a site connect at once when the store is back.
const BACKLOG: u32 = 1024;
/// Connections that wait for a serving thread.
pub(crate) const CONNECTIONS_WAITING: usize = 16;
/// Concurrent requests of one connection. Each takes memory. A watch stream is one request with any number of watches.
const STREAMS: u32 = 1024;
/// The server pings a silent client after this time.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// An admitted connection and its slot.
pub(crate) type Admitted = (TcpStream, Slot);

/// A listening socket and its URL.
pub(crate) struct Listening {
    pub(crate) url: ListenUrl,
    listener: TcpListener,
}

impl Listening {
    /// Listens, before anything is served.
    pub(crate) fn open(url: ListenUrl) -> Result<Self, StartError> {
        let listen = || {
            let socket = if url.address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(url.address)?;
            let listener = socket.listen(BACKLOG)?.into_std()?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address): (TcpListener, SocketAddr) =
            listen().map_err(|source| StartError::Listen { url, source })?;
        Ok(Self { url: ListenUrl { address, ..url }, listener })
    }

    /// Passes connections to the serving threads in turn, within `limit`. Returns the reason when it cannot continue.
    pub(crate) async fn accept(
        self,
        serving: Vec<mpsc::Sender<Admitted>>,
        limit: Arc<ConnectionLimit>,
    ) -> String {
        let reason = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => accept(Door::new(listener, limit, self.url), &serving).await,
            Err(reason) => reason.to_string(),
        };
        format!("cannot continue to serve {}: {reason}", self.url)
    }
}

async fn accept(mut door: Door, serving: &[mpsc::Sender<Admitted>]) -> String {
    for next in serving.iter().cycle() {
        let admitted = loop {
            let (connection, slot) = door.next().await;
            // A connection that is already gone needs no handling.
            if let Ok(connection) = connection.into_std() {
                break (connection, slot);
            }
        };
        if next.send(admitted).await.is_err() {
            break;
        }
    }
    "a serving thread has ended".to_owned()
}

/// Returns the gRPC server, and the TLS acceptor if TLS is on.
pub(crate) fn server(tls: Option<&TlsFiles>) -> Result<(Server, Option<Acceptor>), StartError> {
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS);
    Ok((server, tls.map(Acceptor::new).transpose()?))
}

pub(crate) fn routes(service: Service, figures: Figures) -> Routes {
    let health = {
        let service = service.clone();
        get(move || async move {
            let healthy = service.store.failure().is_none();
            ([("content-type", "application/json")], format!(r#"{{"health":"{healthy}"}}"#))
        })
    };
    // On the port of the clients, as with etcd.
    let metrics = get(move || async move { ([("content-type", OPENMETRICS)], figures.text()) });
    let router: Router =
        service.routes().into_axum_router().route("/health", health).route("/metrics", metrics);
    Routes::from(router.fallback(|uri: Uri| async move {
        not_served(uri.path().trim_start_matches('/')).into_http::<axum::body::Body>().into_response()
    }))
}

/// Serves connections until there are no more. Returns the reason.
pub(crate) async fn serve(
    (mut server, tls): (Server, Option<Acceptor>),
    routes: Routes,
    connections: mpsc::Receiver<Admitted>,
) -> String {
    let incoming = ReceiverStream::new(connections).filter_map(|(connection, slot)| {
        // A connection that is already gone needs no handling.
        let ready = connection.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(connection));
        future::ready(ready.ok().map(|tcp| Connection::new(tcp, slot)))
    });
    let server = server.add_routes(routes);
    let served = match tls {
        None => server.serve_with_incoming(incoming.map(Ok::<_, Infallible>)).await,
        Some(tls) => {
            // All handshakes run at once. The slots limit their number, and each has a time limit.
            let handshakes = incoming.map(|connection| tls.clone().accept(connection));
            let shaken = handshakes.buffer_unordered(usize::MAX).filter_map(future::ready);
            server.serve_with_incoming(shaken.map(Ok::<_, Infallible>)).await
        }
    };
    match served {
        Ok(()) => "no thread accepts connections any more".to_owned(),
        Err(reason) => format!("cannot continue to serve: {}", causes(&reason)),
    }
}
