//! The health port: `GET /status` returns all that the agent reports, `GET /healthz` whether it is healthy, `GET /metrics`
//! figures for Prometheus.

#[cfg(fuzzing)]
pub mod fuzz;
pub(crate) mod metrics;
mod port;
pub(crate) mod socket;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use flan_agent_api::{API_VERSION, Code, Datapath, HostStatus, NamedNetwork, NetworkStatus, Status};
use flan_backends::udp::{Gauge, Modes};
use flan_connections::ConnectionLimit;
use flan_probes::ProberView;
use flan_subnet_lease::NetworkName;
use tokio::net::TcpListener;

use self::metrics::{Figures, Probes};
use crate::problem;
use crate::wireguard::WireguardSource;

/// The state of this host and of its networks, which the daemon writes and the server reads.
#[derive(Clone, Default)]
pub struct SharedStatus(Arc<Shared>);

#[derive(Default)]
struct Shared {
    host: RwLock<HostStatus>,
    default: SharedNetwork,
    named: RwLock<Vec<(NetworkName, SharedNetwork)>>,
    figures: OnceLock<Figures>,
    prober: OnceLock<ProberView>,
}

impl SharedStatus {
    /// Changes what concerns all networks.
    pub fn update(&self, change: impl FnOnce(&mut HostStatus)) {
        change(&mut self.0.host.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Records and logs what is wrong with this host at present, if anything.
    pub fn report(&self, code: Code, wrong: Option<String>) {
        self.0.default.report(code, wrong);
    }

    /// Sets what is counted as it happens, once.
    pub(crate) fn set_figures(&self, figures: Figures) {
        let _ = self.0.figures.set(figures);
    }

    /// Returns what is counted as it happens.
    pub(crate) fn figures(&self) -> Option<&Figures> {
        self.0.figures.get()
    }

    /// Sets where to ask what probes know, once.
    pub(crate) fn set_prober(&self, prober: ProberView) {
        let _ = self.0.prober.set(prober);
    }

    /// Returns the default network.
    pub fn default_network(&self) -> &SharedNetwork {
        &self.0.default
    }

    /// Adds a network beside it.
    pub fn add_network(&self, name: NetworkName) -> SharedNetwork {
        let network = SharedNetwork::default();
        self.0.named.write().unwrap_or_else(PoisonError::into_inner).push((name, network.clone()));
        network
    }

    /// Removes a network beside the default one.
    pub fn remove_network(&self, name: &NetworkName) {
        self.0.named.write().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| known != name);
    }

    /// Returns the current status.
    pub fn read(&self) -> Status {
        let named = self.0.named.read().unwrap_or_else(PoisonError::into_inner);
        let networks = named.iter();
        Status {
            api_version: API_VERSION.into(),
            default: self.0.default.read(),
            networks: networks
                .map(|(name, network)| NamedNetwork { name: name.clone(), status: network.read() })
                .collect(),
            host: self.0.host.read().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// The state of one network; the gauge of its data path, if packets pass through this process; and where to ask what its
/// WireGuard peers do.
#[derive(Clone, Default)]
pub struct SharedNetwork(Arc<RwLock<OfNetwork>>);

struct OfNetwork {
    status: NetworkStatus,
    gauge: Option<Arc<Gauge>>,
    wireguard: Option<WireguardSource>,
}

impl Default for OfNetwork {
    fn default() -> Self {
        let mut status = NetworkStatus::default();
        problem::follow(&mut status, SystemTime::now());
        Self { status, gauge: None, wireguard: None }
    }
}

impl SharedNetwork {
    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut NetworkStatus)) {
        let status = &mut self.0.write().unwrap_or_else(PoisonError::into_inner).status;
        change(status);
        problem::follow(status, SystemTime::now());
    }

    /// Records and logs what is wrong of this kind at present, if anything.
    pub fn report(&self, code: Code, wrong: Option<String>) {
        self.update(|status| problem::report(&mut status.problems, code, wrong, SystemTime::now()));
    }

    /// Sets the gauge from which each status request reads the data path.
    pub fn gauge(&self, gauge: Option<Arc<Gauge>>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).gauge = gauge;
    }

    /// Sets where to ask what WireGuard peers do.
    pub fn set_wireguard(&self, source: Option<WireguardSource>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).wireguard = source;
    }

    /// Returns where to ask; `None` with another backend.
    pub fn wireguard(&self) -> Option<WireguardSource> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).wireguard.clone()
    }

    /// Returns the current status.
    pub fn read(&self) -> NetworkStatus {
        let shared = self.0.read().unwrap_or_else(PoisonError::into_inner);
        NetworkStatus { datapath: shared.gauge.as_deref().map(datapath), ..shared.status.clone() }
    }
}

fn datapath(gauge: &Gauge) -> Datapath {
    let Modes { tun, udp, merge } = gauge.modes();
    Datapath { tun: tun.to_string(), gso: udp.gso, gro: udp.gro, merge, totals: gauge.totals() }
}

/// Serves `GET /healthz` (200 or 503, with a line that says why), `GET /status` (JSON) and `GET /metrics` (OpenMetrics) until
/// the process ends.
///
/// # Errors
/// If it cannot listen on the address.
pub async fn serve(address: SocketAddr, status: SharedStatus) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(port::serve(listener, router(status), ConnectionLimit::of_monitors()));
    Ok(())
}

fn router(status: SharedStatus) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/status", get(full))
        .route("/metrics", get(metrics))
        .with_state(status)
}

async fn healthz(State(status): State<SharedStatus>) -> (StatusCode, String) {
    health(&status.read())
}

async fn full(State(status): State<SharedStatus>) -> Json<Status> {
    Json(status.read())
}

async fn metrics(State(status): State<SharedStatus>) -> Response {
    let prober = status.0.prober.get();
    let probes = prober.map(|prober| Probes { seen: prober.seen(), counts: prober.counts() });
    metrics::response(&status.read(), status.figures(), &probes.unwrap_or_default())
}

/// Returns whether packets flow as they should, as far as this host can tell, and why not. A host without its store is
/// healthy, because the data path works without it.
fn health(status: &Status) -> (StatusCode, String) {
    let reason = match (status.default.problem(Code::Kernel), &status.default.waiting_for) {
        (None, _) if status.default.probed.is_some_and(|probed| probed.all_lost) => {
            "none of the peers that answered before answers now\n".to_owned()
        }
        (None, _) if status.default.ready => return (StatusCode::OK, "ok\n".to_owned()),
        (Some(problem), _) => format!("the kernel is not as it should be: {problem}\n"),
        (None, Some(what)) => format!("waiting for {what}\n"),
        (None, None) => "starting\n".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, reason)
}

#[cfg(test)]
mod tests {
    use flan_agent_api::{Probed, Problem};

    use super::*;

    #[test]
    fn health_is_about_packets_and_not_about_the_store() {
        let mut status = Status::default();
        status.default.waiting_for = Some("a lease".to_owned());
        let said = |status: &Status, code, text: &str| assert_eq!(health(status), (code, text.to_owned()));
        said(&status, StatusCode::SERVICE_UNAVAILABLE, "waiting for a lease\n");
        status.default.ready = true;
        let problem =
            |code, text: &str| Problem { code, text: text.to_owned(), since: SystemTime::UNIX_EPOCH };
        status.default.problems = vec![problem(Code::Store, "cannot reach the store")];
        said(&status, StatusCode::OK, "ok\n");
        status.default.probed = Some(Probed { unreachable: 2, all_lost: true, ..Probed::default() });
        said(
            &status,
            StatusCode::SERVICE_UNAVAILABLE,
            "none of the peers that answered before answers now\n",
        );
        status.default.problems.insert(0, problem(Code::Kernel, "no such device"));
        let problem = "the kernel is not as it should be: no such device\n";
        said(&status, StatusCode::SERVICE_UNAVAILABLE, problem);
    }
}
