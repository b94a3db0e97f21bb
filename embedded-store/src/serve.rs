//! The sockets: TLS, gRPC, and `/health` for those who speak plain HTTP.

use std::net::SocketAddr;

use axum::Router;
use axum::http::Uri;
use axum::response::IntoResponse;
use axum::routing::get;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::refusal::not_served;
use crate::service::Service;
use crate::settings::{ListenUrl, StartError, TlsFiles};

/// Connections that wait to be accepted: all hosts of a site come at once when the store is back.
const BACKLOG: u32 = 1024;
/// A client without a sign of life is asked for one after this.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A socket that listens, and where.
pub(crate) struct Listening {
    pub(crate) url: ListenUrl,
    listener: TcpListener,
}

/// Listens, before anything is served.
pub(crate) fn listen(url: ListenUrl) -> Result<Listening, StartError> {
    let bind = || {
        let socket = if url.address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(url.address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address): (TcpListener, SocketAddr) =
        bind().map_err(|source| StartError::Listen { url, source })?;
    Ok(Listening { url: ListenUrl { address, ..url }, listener })
}

/// The server's certificate, and whom it serves.
pub(crate) fn tls(files: &TlsFiles) -> Result<ServerTlsConfig, StartError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path)
            .map_err(|reason| StartError::Setting(format!("cannot read {}: {reason}", path.display())))
    };
    let identity = Identity::from_pem(read(&files.certificate)?, read(&files.key)?);
    let config = ServerTlsConfig::new().identity(identity);
    Ok(match &files.client_authorities {
        Some(path) => config.client_ca_root(Certificate::from_pem(read(path)?)),
        None => config,
    })
}

/// A server with all services, ready for its sockets.
pub(crate) fn server(tls: Option<ServerTlsConfig>) -> Result<Server, StartError> {
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .max_concurrent_streams(u32::MAX);
    match tls {
        Some(tls) => server.tls_config(tls).map_err(|reason| {
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

/// Serves one socket until that fails; answers why.
pub(crate) async fn serve(mut server: Server, routes: Routes, listening: Listening) -> String {
    let incoming = TcpIncoming::from(listening.listener).with_nodelay(Some(true));
    let outcome = server.add_routes(routes).serve_with_incoming(incoming).await;
    let reason = outcome.map_or_else(|reason| causes(&reason), |()| "it was closed".to_owned());
    format!("cannot go on serving {}: {reason}", listening.url)
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
