//! The sockets: TLS, gRPC, and `/health` for those who speak plain HTTP.

mod connection;
mod hpack;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::Uri;
use axum::response::IntoResponse;
use axum::routing::get;
use flan_connections::{ConnectionLimit, Door, Slot};
use flan_tls_files::{Authorities, BadFile, Holder};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tracing::warn;

use self::connection::{Connection, FIRST_WORDS};
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

/// The server's certificate, and whom it serves. What clients may not accept of it is logged.
fn config(files: &TlsFiles) -> Result<ServerTlsConfig, StartError> {
    let bad = |bad: BadFile| StartError::Setting(bad.to_string());
    let now = SystemTime::now();
    let own =
        flan_tls_files::Identity::load(Holder::Store, &files.certificate, &files.key, now).map_err(bad)?;
    let config =
        ServerTlsConfig::new().identity(Identity::from_pem(own.certificate, own.key)).timeout(FIRST_WORDS);
    let (config, doubts) = match &files.client_authorities {
        Some(path) => {
            let authorities = Authorities::load(path, now).map_err(bad)?;
            (config.client_ca_root(Certificate::from_pem(authorities.pem)), authorities.doubts)
        }
        None => (config, Vec::new()),
    };
    for doubt in own.doubts.into_iter().chain(doubts) {
        warn!("{doubt}");
    }
    Ok(config)
}

/// A server, ready for its connections.
pub(crate) fn server(tls: Option<&TlsFiles>) -> Result<Server, StartError> {
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS);
    match tls {
        Some(files) => server.tls_config(config(files)?).map_err(|reason| {
            StartError::Setting(format!("the certificate and its key cannot be used: {}", causes(&reason)))
        }),
        None => Ok(server),
    }
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
    mut server: Server,
    routes: Routes,
    connections: mpsc::Receiver<Admitted>,
) -> String {
    let incoming = ReceiverStream::new(connections).filter_map(|(connection, slot)| {
        // One that is gone already is nobody's loss.
        let ready = connection.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(connection));
        ready.ok().map(|tcp| Ok::<_, io::Error>(Connection::new(tcp, slot)))
    });
    match server.add_routes(routes).serve_with_incoming(incoming).await {
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
