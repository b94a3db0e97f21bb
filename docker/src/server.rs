//! The socket on which dockerd calls the driver.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tracing::warn;

use crate::driver::{ADDRESS_SPACE, Driver};
use crate::protocol::ById;

const JSON: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");

/// Who tells of an error, which decides the field that dockerd reads.
#[derive(Clone, Copy)]
enum Kind {
    Network,
    Ipam,
}

/// Answers dockerd until the process ends.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: UnixListener, driver: Arc<Driver>) -> io::Result<()> {
    axum::serve(listener, router(driver)).await
}

fn router(driver: Arc<Driver>) -> Router {
    use Kind::{Ipam, Network};
    let routes = [
        // The devices go with the endpoint: until then dockerd moves one of them back.
        "/NetworkDriver.Leave",
        "/NetworkDriver.ProgramExternalConnectivity",
        "/NetworkDriver.RevokeExternalConnectivity",
        "/NetworkDriver.DiscoverNew",
        "/NetworkDriver.DiscoverDelete",
        "/IpamDriver.ReleasePool",
        "/IpamDriver.GetCapabilities",
    ];
    let nothing = routes.into_iter().fold(Router::new(), |router, path| router.route(path, said(json!({}))));
    nothing
        .route("/Plugin.Activate", said(json!({"Implements": ["NetworkDriver", "IpamDriver"]})))
        .route(
            "/NetworkDriver.GetCapabilities",
            // A host manages its own networks: Docker keeps those of all hosts only in swarm.
            said(json!({"Scope": "local", "ConnectivityScope": "local"})),
        )
        .route("/NetworkDriver.EndpointOperInfo", said(json!({"Value": {}})))
        .route(
            "/IpamDriver.GetDefaultAddressSpaces",
            said(json!({
                "LocalDefaultAddressSpace": ADDRESS_SPACE,
                "GlobalDefaultAddressSpace": ADDRESS_SPACE,
            })),
        )
        .route(
            "/IpamDriver.RequestPool",
            call(Ipam, |driver, call| async move { driver.request_pool(call).await }),
        )
        .route(
            "/IpamDriver.RequestAddress",
            call(Ipam, |driver, call| async move { driver.request_address(call).await }),
        )
        .route(
            "/IpamDriver.ReleaseAddress",
            call(Ipam, |driver, call| async move { driver.release_address(&call) }),
        )
        .route(
            "/NetworkDriver.CreateNetwork",
            call(Network, |driver, call| async move { driver.create_network(call).await }),
        )
        .route(
            "/NetworkDriver.DeleteNetwork",
            call(Network, |driver, call| async move { driver.delete_network(&call).await }),
        )
        .route(
            "/NetworkDriver.CreateEndpoint",
            call(Network, |driver, call| async move { driver.create_endpoint(call) }),
        )
        .route(
            "/NetworkDriver.DeleteEndpoint",
            call(
                Network,
                |driver, call: ById| async move { driver.delete_endpoint(&call.endpoint_id).await },
            ),
        )
        .route("/NetworkDriver.Join", call(Network, |driver, call| async move { driver.join(&call).await }))
        .with_state(driver)
}

/// Always answers the same.
fn said(value: Value) -> MethodRouter<Arc<Driver>> {
    post(move || async move { answer(value) })
}

/// Reads the call and answers with what becomes of it.
fn call<C, T, F>(
    kind: Kind,
    work: impl Fn(Arc<Driver>, C) -> F + Clone + Send + Sync + 'static,
) -> MethodRouter<Arc<Driver>>
where
    C: DeserializeOwned + Send + 'static,
    T: Serialize,
    F: Future<Output = Result<T, String>> + Send + 'static,
{
    post(move |State(driver): State<Arc<Driver>>, uri: Uri, body: Bytes| async move {
        let done = match read(&body) {
            Ok(call) => work(driver, call).await,
            Err(reason) => Err(reason),
        };
        answer(done.map_or_else(|reason| refused(kind, uri.path(), &reason), |value| json!(value)))
    })
}

/// Reads the body of a call; dockerd does not always name its type.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|reason| format!("cannot read the call: {reason}"))
}

/// dockerd expects an error as an answer like others.
fn refused(kind: Kind, call: &str, reason: &str) -> Value {
    warn!(call, reason, "refused what Docker asked for");
    let reason = format!("flan: {reason}");
    match kind {
        Kind::Network => json!({ "Err": reason }),
        Kind::Ipam => json!({ "Error": reason }),
    }
}

fn answer(value: Value) -> Response {
    // dockerd reads an object, even if nothing is in it.
    let object = if value.is_null() { json!({}) } else { value };
    (StatusCode::OK, [(CONTENT_TYPE, JSON)], object.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{CreateNetwork, OfAddress, RequestPool};

    proptest! {
        #[test]
        fn any_call_is_read_or_refused(body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            r#"\{"(Pool|PoolID|Options|IPv4Data|Interface|NetworkID)":("a"|null|1|\[\]|\{\}|\[\{"Pool":3\}\])\}"#
                .prop_map(String::into_bytes),
        ]) {
            for refused in [
                read::<RequestPool>(&body).err(),
                read::<OfAddress>(&body).err(),
                read::<CreateNetwork>(&body).err(),
                read::<ById>(&body).err(),
            ] {
                prop_assert!(refused.is_none_or(|reason| reason.starts_with("cannot read the call: ")));
            }
        }
    }

    #[tokio::test]
    async fn an_answer_without_content_is_an_object() {
        for (value, text) in [(json!(()), &b"{}"[..]), (json!({"Value": 1}), br#"{"Value":1}"#)] {
            let body = axum::body::to_bytes(answer(value).into_body(), 99).await.unwrap();
            assert_eq!(body, text);
        }
    }
}
