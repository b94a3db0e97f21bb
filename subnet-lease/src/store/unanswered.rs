//! Why an endpoint gave no answer, in a person's words, and what would help.

use std::io;

use super::error::{Cause, Unanswered};
use super::reason::{DEADLINE, Words, chain, innermost};
use super::tls;
use crate::store_config::Credentials;

/// How the client words it that an answer is not one of gRPC.
pub(super) const NO_GRPC: &str = "grpc-status header missing";

impl Unanswered {
    /// The same, told better where TLS is behind the end of a connection.
    pub(super) async fn explained(self, credentials: &Credentials) -> Self {
        if self.cause != Cause::Ended {
            return self;
        }
        match tls::refusal(&self.endpoint, credentials).await {
            Some(Words { reason, remedy }) => Self { reason, remedy, cause: Cause::NoUnderstanding, ..self },
            None => self,
        }
    }
}

/// Words for an error of the client that is no answer of the store.
pub(super) fn unanswered(
    endpoint: &str,
    error: &etcd_client::Error,
    credentials: &Credentials,
) -> Unanswered {
    let words = tls::words(endpoint, error, credentials);
    let told = |Words { reason, remedy }| (reason, remedy, Cause::NoUnderstanding);
    let (reason, remedy, cause) = words.map_or_else(|| untold(endpoint, error, credentials), told);
    Unanswered { endpoint: endpoint.to_owned(), reason, remedy, cause }
}

/// The same for an error that is not one of TLS, as far as anybody can tell.
fn untold(
    endpoint: &str,
    error: &etcd_client::Error,
    credentials: &Credentials,
) -> (String, Option<String>, Cause) {
    let reason = innermost(error);
    if reason.contains(NO_GRPC) {
        let remedy = "it speaks HTTP, but not etcd's protocol; is that the port of the store?";
        return (reason, Some(remedy.to_owned()), Cause::NoUnderstanding);
    }
    if reason.contains("failed to lookup address") {
        return (reason, None, Cause::UnknownHost);
    }
    let is_over = ["connection closed", "broken pipe", "connection reset", "frame with invalid size"];
    if !is_over.iter().any(|end| reason.contains(end)) {
        return (reason, None, cause(error));
    }
    let remedy = if let Some(place) = endpoint.strip_prefix("http://") {
        Some(format!("does it speak TLS? Then give https://{place}"))
    } else if credentials.cert_file.is_none() {
        Some(tls::GIVE_A_CERTIFICATE.replacen("give", "does it demand a client certificate? Then give", 1))
    } else {
        None
    };
    (reason, remedy, Cause::Ended)
}

fn cause(error: &etcd_client::Error) -> Cause {
    let no_connection = |kind| {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        matches!(kind, ConnectionRefused | HostUnreachable | NetworkUnreachable | TimedOut)
    };
    let found = chain(error).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| no_connection(error.kind()))
            || error.to_string() == DEADLINE
    });
    if found { Cause::NoConnection } else { Cause::NoUnderstanding }
}
