//! The sockets: TLS, gRPC, and `/health` for those who speak plain HTTP.

mod connection;
mod hpack;
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

use self::connection::Connection;
#[cfg(fuzzing)]
pub use self::connection::mended;
pub(crate) use self::tls::Acceptor;
use crate::refusal::not_served;
use crate::service::Service;
use crate::settings::{ListenUrl, StartError, TlsFiles};

/// Connections that wait to be accepted: all hosts of a site come at once when the store is back.
const BACKLOG: u32 = 1024;
/// Connections that wait for one that serves.
pub(crate) const CONNECTIONS_WAITING: usize = 16;
/// Requests of a connection that are under way at once. Each costs memory, and a watch is one, of any number of keys.
const STREAMS: u32 = 1024;
/// A client without a sign of life is asked for one after this.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A connection that may be served, and its place.
pub(crate) type Admitted = (TcpStream, Slot);

/// A socket that listens, and where.
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

    /// Gives each connection to the next of those who serve, as far as `limit` allows; answers why no longer.
    pub(crate) async fn accept(
        self,
        serving: Vec<mpsc::Sender<Admitted>>,
        limit: Arc<ConnectionLimit>,
    ) -> String {
        let reason = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => accept(Door::new(listener, limit, self.url), &serving).await,
            Err(reason) => reason.to_string(),
        };
        format!("cannot go on serving {}: {reason}", self.url)
    }
}

async fn accept(mut door: Door, serving: &[mpsc::Sender<Admitted>]) -> String {
    for next in serving.iter().cycle() {
        let admitted = loop {
            let (connection, slot) = door.next().await;
            // One that is gone already is nobody's loss.
            if let Ok(connection) = connection.into_std() {
                break (connection, slot);
            }
        };
        if next.send(admitted).await.is_err() {
            break;
        }
    }
    "a thread that serves has ended".to_owned()
}

/// A server, ready for its connections, and what shakes hands with those of TLS.
pub(crate) fn server(tls: Option<&TlsFiles>) -> Result<(Server, Option<Acceptor>), StartError> {
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS);
    Ok((server, tls.map(Acceptor::new).transpose()?))
}

/// What is answered under which path.
pub(crate) fn routes(service: Service) -> Routes {
    let health = {
        let service = service.clone();
        get(move || async move {
            let healthy = service.shared.failure().is_none();
            ([("content-type", "application/json")], format!(r#"{{"health":"{healthy}"}}"#))
        })
    };
    let router: Router = service.routes().into_axum_router().route("/health", health);
    Routes::from(router.fallback(|uri: Uri| async move {
        not_served(uri.path().trim_start_matches('/')).into_http::<axum::body::Body>().into_response()
    }))
}

/// Serves connections until no more can come; answers why.
pub(crate) async fn serve(
    (mut server, tls): (Server, Option<Acceptor>),
    routes: Routes,
    connections: mpsc::Receiver<Admitted>,
) -> String {
    let incoming = ReceiverStream::new(connections).filter_map(|(connection, slot)| {
        // One that is gone already is nobody's loss.
        let ready = connection.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(connection));
        future::ready(ready.ok().map(|tcp| Connection::new(tcp, slot)))
    });
    let server = server.add_routes(routes);
    let served = match tls {
        None => server.serve_with_incoming(incoming.map(Ok::<_, Infallible>)).await,
        Some(tls) => {
            // All that come at once: they are as many as there are slots, and each has its time.
            let handshakes = incoming.map(|connection| tls.clone().accept(connection));
            let shaken = handshakes.buffer_unordered(usize::MAX).filter_map(future::ready);
            server.serve_with_incoming(shaken.map(Ok::<_, Infallible>)).await
        }
    };
    match served {
        Ok(()) => "nobody takes connections any longer".to_owned(),
        Err(reason) => format!("cannot go on serving: {}", causes(&reason)),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
