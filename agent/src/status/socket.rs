//! The unix socket on which the agent answers `flanctl`.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use flan_agent_api::{API_VERSION, Peer, Peers, ProbeSource, WireguardPeer};
use flan_subnet_lease::NetworkName;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::SharedStatus;
use crate::daemon::{Order, Told};
use crate::root_socket;
use crate::wireguard::WireguardReport;

/// A question for the event loop: all peers, with their WireGuard keys, and how they are probed.
pub(crate) type PeersAsked = oneshot::Sender<(Option<ProbeSource>, Vec<Peer>)>;

/// What the socket's requests need.
#[derive(Clone)]
struct Asked {
    status: SharedStatus,
    peers: mpsc::Sender<PeersAsked>,
    tell: mpsc::Sender<Told>,
}

/// The group whose members may read, if this host has it.
const READERS: &str = "flan";

/// Serves what the health port serves, `GET /peers`, and for root alone `POST /networks/NAME/join` and `leave`, until the process ends.
///
/// # Errors
/// If the socket cannot be made.
pub(crate) fn serve(
    path: &Path,
    status: SharedStatus,
    peers: mpsc::Sender<PeersAsked>,
    tell: mpsc::Sender<Told>,
) -> io::Result<()> {
    let listener = root_socket::listen(path)?;
    if let Err(reason) = root_socket::open_to(path, READERS) {
        warn!(%reason, socket = %path.display(), "only root can ask the agent, and not the group {READERS}");
    }
    let beside = Router::new()
        .route("/networks/{name}/join", post(join))
        .route("/networks/{name}/leave", post(leave))
        .route_layer(middleware::from_fn(only_root))
        .route("/peers", get(all))
        .with_state(Asked { status: status.clone(), peers, tell });
    let router = super::router(status).merge(beside);
    let service = router.into_make_service_with_connect_info::<Caller>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    Ok(())
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
struct Caller {
    is_root: bool,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(connection: IncomingStream<'_, UnixListener>) -> Self {
        Self { is_root: connection.io().peer_cred().is_ok_and(|caller| caller.uid() == 0) }
    }
}

async fn only_root(
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Result<Response, (StatusCode, String)> {
    match caller.is_root {
        true => Ok(next.run(request).await),
        false => Err((StatusCode::FORBIDDEN, "only root may change what this host does\n".to_owned())),
    }
}

async fn all(State(asked): State<Asked>) -> Result<Json<Peers>, (StatusCode, String)> {
    let away = |what: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n"));
    let (answer, answered) = oneshot::channel();
    asked.peers.send(answer).await.map_err(|_| away("the agent ends"))?;
    let (probes, mut peers) = answered.await.map_err(|_| away("the agent ends"))?;
    let source = asked.status.default_network().wireguard();
    let reports = tokio::task::spawn_blocking(move || source.map(|source| source.ask())).await;
    match reports {
        Ok(Some(Ok(reports))) => add_reports(&mut peers, &reports, SystemTime::now()),
        Ok(Some(Err(reason))) => return Err(away(&format!("cannot ask for the WireGuard peers: {reason}"))),
        Ok(None) | Err(_) => {}
    }
    let status = asked.status.default_network().read();
    Ok(Json(Peers {
        api_version: API_VERSION.to_owned(),
        backend: status.backend.into_owned(),
        path: status.path.map(|path| path.path.into_owned()),
        probes,
        peers,
    }))
}

async fn join(asked: State<Asked>, name: UrlPath<String>) -> Result<Json<()>, (StatusCode, String)> {
    told(asked, &name, Order::Join).await
}

async fn leave(asked: State<Asked>, name: UrlPath<String>) -> Result<Json<()>, (StatusCode, String)> {
    told(asked, &name, Order::Leave).await
}

async fn told(
    State(asked): State<Asked>,
    name: &str,
    order: fn(NetworkName) -> Order,
) -> Result<Json<()>, (StatusCode, String)> {
    let name: NetworkName = name.parse().map_err(|why| (StatusCode::BAD_REQUEST, format!("{why}\n")))?;
    let away = (StatusCode::SERVICE_UNAVAILABLE, "the agent ends\n".to_owned());
    let (answer, answered) = oneshot::channel();
    asked.tell.send(Told { order: order(name), answer }).await.map_err(|_| away.clone())?;
    let done = answered.await.map_err(|_| away)?;
    done.map(Json).map_err(|reason| (StatusCode::CONFLICT, format!("{reason}\n")))
}

/// Adds what WireGuard reports to the peers with these keys.
fn add_reports(peers: &mut [Peer], reports: &[WireguardReport], now: SystemTime) {
    let mut by_key: HashMap<String, Vec<&WireguardReport>> = HashMap::new();
    for report in reports {
        by_key.entry(report.public_key.to_string()).or_default().push(report);
    }
    for peer in peers {
        let Some(wireguard) = &mut peer.wireguard else { continue };
        let Some(reports) = by_key.get(&wireguard.public_key) else { continue };
        // A peer of two devices is where it was heard last.
        let Some(latest) = reports.iter().max_by_key(|report| report.latest_handshake) else { continue };
        let ago = |time| now.duration_since(time).unwrap_or_default().as_secs();
        *wireguard = WireguardPeer {
            public_key: std::mem::take(&mut wireguard.public_key),
            endpoint: latest.endpoint.map(|endpoint| endpoint.to_string()),
            latest_handshake_seconds: latest.latest_handshake.map(ago),
            received_bytes: reports.iter().map(|report| report.received_bytes).sum(),
            sent_bytes: reports.iter().map(|report| report.sent_bytes).sum(),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_peer_gets_the_report_of_its_key() {
        let peer = |byte: u8| Peer {
            wireguard: Some(WireguardPeer {
                public_key: flan_wireguard_keys::PublicKey::from([byte; 32]).to_string(),
                ..WireguardPeer::default()
            }),
            ..Peer::default()
        };
        let mut peers = [peer(1), peer(2), Peer::default()];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let report = WireguardReport {
            device: 0,
            public_key: [2; 32].into(),
            endpoint: Some("192.168.64.12:51820".parse().unwrap()),
            allowed: [].into(),
            latest_handshake: Some(now - Duration::from_secs(7)),
            received_bytes: 11,
            sent_bytes: 12,
        };
        add_reports(&mut peers, &[report], now);
        assert_eq!((&peers[0], &peers[2]), (&peer(1), &Peer::default()));
        let found = peers[1].wireguard.as_ref().unwrap();
        assert_eq!(found.latest_handshake_seconds, Some(7));
        assert_eq!(found.endpoint.as_deref(), Some("192.168.64.12:51820"));
    }
}
