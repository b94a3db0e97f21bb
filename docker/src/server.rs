//! The socket on which dockerd calls the driver.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tracing::warn;

use crate::driver::{ADDRESS_SPACE, Driver};

const JSON: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");

/// Who tells of an error, which decides the field that dockerd reads.
#[derive(Clone, Copy)]
enum Kind {
    Network,
    Ipam,
}

/// Makes the socket.
///
/// # Errors
/// If it cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Only one agent runs on a host, so this is what an earlier one left.
    match fs::remove_file(path) {
        Err(reason) if reason.kind() != io::ErrorKind::NotFound => return Err(reason),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Answers dockerd until the process ends.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: UnixListener, driver: Arc<Driver>) -> io::Result<()> {
    axum::serve(listener, router(driver)).await
}

fn router(driver: Arc<Driver>) -> Router {
    let nothing = || async { answer(Kind::Network, "", Ok(json!({}))) };
    Router::new()
        .route("/Plugin.Activate", said(json!({"Implements": ["NetworkDriver", "IpamDriver"]})))
        .route(
            "/NetworkDriver.GetCapabilities",
            // A host manages its own networks: Docker keeps those of all hosts only in swarm.
            said(json!({"Scope": "local", "ConnectivityScope": "local"})),
        )
        .route("/IpamDriver.GetCapabilities", said(json!({})))
        .route(
            "/IpamDriver.GetDefaultAddressSpaces",
            said(json!({
                "LocalDefaultAddressSpace": ADDRESS_SPACE,
                "GlobalDefaultAddressSpace": ADDRESS_SPACE,
            })),
        )
        .route("/IpamDriver.RequestPool", post(request_pool))
        .route("/IpamDriver.ReleasePool", post(nothing))
        .route("/IpamDriver.RequestAddress", post(request_address))
        .route("/IpamDriver.ReleaseAddress", post(release_address))
        .route("/NetworkDriver.CreateNetwork", post(create_network))
        .route("/NetworkDriver.DeleteNetwork", post(delete_network))
        .route("/NetworkDriver.CreateEndpoint", post(create_endpoint))
        .route("/NetworkDriver.DeleteEndpoint", post(delete_endpoint))
        .route("/NetworkDriver.EndpointOperInfo", said(json!({"Value": {}})))
        .route("/NetworkDriver.Join", post(join))
        // The devices go with the endpoint: until then dockerd moves one of them back.
        .route("/NetworkDriver.Leave", post(nothing))
        .route("/NetworkDriver.ProgramExternalConnectivity", post(nothing))
        .route("/NetworkDriver.RevokeExternalConnectivity", post(nothing))
        .route("/NetworkDriver.DiscoverNew", post(nothing))
        .route("/NetworkDriver.DiscoverDelete", post(nothing))
        .with_state(driver)
}

/// Always answers the same.
fn said(value: Value) -> axum::routing::MethodRouter<Arc<Driver>> {
    post(move || async move { answer(Kind::Network, "", Ok(value)) })
}

async fn request_pool(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = async { driver.request_pool(read(&body)?).await };
    answer(Kind::Ipam, "RequestPool", done.await)
}

async fn request_address(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = async { driver.request_address(read(&body)?).await };
    answer(Kind::Ipam, "RequestAddress", done.await)
}

async fn release_address(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = read(&body).and_then(|call| driver.release_address(&call)).map(empty);
    answer(Kind::Ipam, "ReleaseAddress", done)
}

async fn create_network(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = async { driver.create_network(read(&body)?).await.map(empty) };
    answer(Kind::Network, "CreateNetwork", done.await)
}

async fn delete_network(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = async { driver.delete_network(&read(&body)?).await.map(empty) };
    answer(Kind::Network, "DeleteNetwork", done.await)
}

async fn create_endpoint(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = read(&body).and_then(|call| driver.create_endpoint(call));
    answer(Kind::Network, "CreateEndpoint", done)
}

async fn delete_endpoint(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = async {
        let call: crate::protocol::ById = read(&body)?;
        driver.delete_endpoint(&call.endpoint_id).await.map(empty)
    };
    answer(Kind::Network, "DeleteEndpoint", done.await)
}

async fn join(State(driver): State<Arc<Driver>>, body: Bytes) -> Response {
    let done = async { driver.join(&read(&body)?).await };
    answer(Kind::Network, "Join", done.await)
}

fn empty((): ()) -> Value {
    json!({})
}

/// Reads the body of a call; dockerd does not always name its type.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|reason| format!("cannot read the call: {reason}"))
}

/// dockerd expects an error as an answer like others.
fn answer<T: Serialize>(kind: Kind, call: &str, done: Result<T, String>) -> Response {
    let body = match done {
        Ok(value) => json!(value),
        Err(reason) => {
            warn!(call, %reason, "refused what Docker asked for");
            let reason = format!("flan: {reason}");
            match kind {
                Kind::Network => json!({ "Err": reason }),
                Kind::Ipam => json!({ "Error": reason }),
            }
        }
    };
    (StatusCode::OK, [(CONTENT_TYPE, JSON)], body.to_string()).into_response()
}
