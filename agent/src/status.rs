//! What the agent says of itself: `GET /status` in full, `GET /healthz` in short.

#[cfg(fuzzing)]
pub mod fuzz;
mod port;

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use flan_backends::udp::{Gauge, Modes, Totals};
use flan_connections::ConnectionLimit;
use flan_subnet_lease::{Quarantined, shown};
use serde::{Serialize, Serializer};
use tokio::net::TcpListener;

use crate::problem::{Code, Problems};
use crate::reconcile::Repairs;

/// The form of this document; it changes when a field changes its meaning or goes.
pub const API_VERSION: &str = "flan/v1";

/// Entries of each list whose length the store decides.
pub const SHOWN_IN_LISTS: usize = 100;

/// The agent's state in short.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Whether `subnet.env` is written and the backend stands.
    pub ready: bool,
    /// What the agent waits for, before it is ready.
    pub waiting_for: Option<String>,
    /// Our subnets.
    pub subnets: Vec<String>,
    /// Our underlay addresses.
    pub public_ips: Vec<String>,
    /// The backend's name.
    pub backend: &'static str,
    /// Largest packet in bytes that containers may send.
    pub mtu: u32,
    /// Number of peers that packets are sent to.
    pub peers: usize,
    /// Peers with a good lease that this backend cannot reach from this host: the first [`SHOWN_IN_LISTS`].
    pub unreachable: Vec<UnreachablePeer>,
    /// How many there are.
    pub unreachable_count: usize,
    /// Leases that are kept from the kernel: the first [`SHOWN_IN_LISTS`].
    pub quarantined: Vec<QuarantinedLease>,
    /// How many there are.
    pub quarantined_count: usize,
    /// How often something of ours was put right that another program had changed.
    pub repairs: Repairs,
    /// The store, where this host carries it.
    pub embedded_store: Option<EmbeddedStore>,
    /// The data path, where packets pass through this program.
    pub datapath: Option<DatapathGauge>,
    /// Why our lease could not be renewed, while that lasts.
    pub lease_problem: Option<String>,
    /// Why the network config is not the one that this agent runs with.
    pub config_problem: Option<String>,
    /// Why the view of the leases may be out of date.
    pub store_problem: Option<String>,
    /// Why the kernel is not as it should be.
    pub kernel_problem: Option<String>,
    /// What is wrong on this host although the agent itself works, as far as the agent has noticed.
    pub problems: Problems,
}

/// The data path of the udp backend, read at the moment when the status is asked for.
#[derive(Debug, Clone)]
pub struct DatapathGauge(pub Arc<Gauge>);

impl Serialize for DatapathGauge {
    /// An object with the modes in force (`tun`, `gso`, `gro`, `merge`) and all counters.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Now {
            tun: String,
            gso: bool,
            gro: bool,
            merge: bool,
            #[serde(flatten)]
            totals: Totals,
        }
        let Modes { tun, udp, merge } = self.0.modes();
        Now { tun: tun.to_string(), gso: udp.gso, gro: udp.gro, merge, totals: self.0.totals() }
            .serialize(serializer)
    }
}

/// A store in the agent's own process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddedStore {
    /// The directory of its data.
    pub data_dir: String,
    /// The URLs that it listens at.
    pub listen: Vec<String>,
}

/// A bad lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantinedLease {
    /// The last part of its key, printable; of a long one the beginning.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl From<Quarantined<'_>> for QuarantinedLease {
    fn from(bad: Quarantined<'_>) -> Self {
        Self { key: shown(bad.key).into_owned(), reason: bad.reason.to_string() }
    }
}

/// A peer that cannot be reached from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreachablePeer {
    /// Its subnets.
    pub subnets: String,
    /// Its address and, where it says one, its name.
    pub holder: String,
    /// Why not.
    pub reason: String,
}

/// The status as the daemon writes it and the server reads it.
#[derive(Clone, Default)]
pub struct SharedStatus(Arc<RwLock<Status>>);

impl Status {
    /// Whether packets go where they should, as far as this host can tell. A store that cannot be reached does not
    /// make a host unhealthy: the data path stands without it.
    pub fn is_healthy(&self) -> bool {
        self.ready && self.kernel_problem.is_none()
    }

    fn verdict(&self) -> String {
        match (&self.kernel_problem, &self.waiting_for) {
            _ if self.is_healthy() => "ok\n".to_owned(),
            (Some(problem), _) => format!("the kernel is not as it should be: {problem}\n"),
            (None, Some(what)) => format!("waiting for {what}\n"),
            (None, None) => "starting\n".to_owned(),
        }
    }
}

impl SharedStatus {
    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Notes what is wrong of this kind at the moment, or that nothing is, for the log and the status.
    pub fn report(&self, code: Code, wrong: Option<String>) {
        self.update(|status| status.problems.report(code, wrong, SystemTime::now()));
    }

    /// The status now.
    pub fn read(&self) -> Status {
        let status = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Status { api_version: API_VERSION, ..status }
    }
}

/// Answers `GET /healthz` (200 or 503, with a line that says why) and `GET /status` (JSON) until the process ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, status: SharedStatus) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(port::serve(listener, router(status), ConnectionLimit::of_monitors()));
    Ok(())
}

fn router(status: SharedStatus) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/status", get(full)).with_state(status)
}

async fn healthz(State(status): State<SharedStatus>) -> (StatusCode, String) {
    let status = status.read();
    let code = if status.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, status.verdict())
}

async fn full(State(status): State<SharedStatus>) -> Json<Status> {
    Json(status.read())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_about_packets_and_not_about_the_store() {
        let mut status = Status { waiting_for: Some("a lease".to_owned()), ..Status::default() };
        assert_eq!(status.verdict(), "waiting for a lease\n");
        status.ready = true;
        status.store_problem = Some("cannot reach the store".to_owned());
        assert!(status.is_healthy());
        status.kernel_problem = Some("no such device".to_owned());
        assert_eq!(status.verdict(), "the kernel is not as it should be: no such device\n");
    }
}
