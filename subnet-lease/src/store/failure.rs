//! Classifies errors of etcd's client: did the store answer, and did it reject our credentials? If it did not answer:
//! why, in plain words, and what would help.

use std::io;

use super::error::{Cause, StoreError, Unanswered};
use super::reason::{DEADLINE, Words, chain, innermost};
use super::tls;
use crate::store_config::Credentials;

pub(super) enum Failure {
    /// Another endpoint may answer.
    Unanswered(Unanswered),
    /// The answer; any other endpoint's would be the same.
    Answered(StoreError),
    /// Our token is not, or no longer, valid; a new one may be.
    Token(StoreError),
}

/// Classifies an error of the client: did the store answer, and did it reject our credentials?
pub(super) fn failure(endpoint: &str, error: &etcd_client::Error, credentials: &Credentials) -> Failure {
    let nobody = || Failure::Unanswered(unanswered(endpoint, error, credentials));
    let (endpoint, reason) = (endpoint.to_owned(), innermost(error));
    let etcd_client::Error::GRpcStatus(status) = error else {
        return match error {
            etcd_client::Error::LeaseKeepAliveError(_) => {
                Failure::Answered(StoreError::Refused { endpoint, reason })
            }
            _ => nobody(),
        };
    };
    // gRPC codes: 3 invalid argument, 7 permission denied, 9 failed precondition, 12 unimplemented, 16 unauthenticated;
    // 1 cancelled, 2 unknown, 4 deadline exceeded, 13 internal (a connection that ended), 14 unavailable.
    match status.code() as i32 {
        16 => Failure::Token(StoreError::Unauthorised { endpoint, reason }),
        3 if lacks_token(&reason) => Failure::Token(StoreError::Unauthorised { endpoint, reason }),
        7 => Failure::Answered(StoreError::Unauthorised { endpoint, reason }),
        3 | 9 if is_about_us(&reason) => Failure::Answered(StoreError::Unauthorised { endpoint, reason }),
        // An HTTP server that is not etcd answers 404, which the client reports like this.
        12 if reason.contains(NO_GRPC) => nobody(),
        12 => Failure::Answered(StoreError::NotOffered { endpoint, reason }),
        1 | 2 | 4 | 13 | 14 => nobody(),
        _ => Failure::Answered(StoreError::Refused { endpoint, reason }),
    }
}

/// Returns the error for a watch that the store cancelled at once; only its message tells the kind.
pub(super) fn refused_watch(endpoint: String, reason: &str) -> StoreError {
    let reason = reason.split_once(" desc = ").map_or(reason, |(_, words)| words).to_owned();
    if reason.contains("permission denied") || is_about_us(&reason) {
        StoreError::Unauthorised { endpoint, reason }
    } else {
        StoreError::Refused { endpoint, reason }
    }
}

/// Returns whether authentication is disabled in the store. Like etcd's own clients, we then continue without a token.
pub(super) fn asks_nobody(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if status.code() as i32 == 9 && status.message().contains("authentication is not enabled"))
}

/// Returns whether a request had no token, or one older than a change of a user or role.
fn lacks_token(reason: &str) -> bool {
    ["user name is empty", "auth store is old"].iter().any(|words| reason.contains(words))
}

/// Returns whether a request failed because of our credentials, by etcd's message if its code is unspecific.
fn is_about_us(reason: &str) -> bool {
    lacks_token(reason) || reason.contains("authentication")
}

/// The client's message if an answer is not gRPC.
const NO_GRPC: &str = "grpc-status header missing";

impl Unanswered {
    /// Explains the end of a connection better if TLS caused it.
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

/// Describes an error of the client that is not an answer of the store.
fn unanswered(endpoint: &str, error: &etcd_client::Error, credentials: &Credentials) -> Unanswered {
    let words = tls::words(endpoint, error, credentials);
    let told = |Words { reason, remedy }| (reason, remedy, Cause::NoUnderstanding);
    let (reason, remedy, cause) = words.map_or_else(|| untold(endpoint, error, credentials), told);
    Unanswered { endpoint: endpoint.to_owned(), reason, remedy, cause }
}

/// Describes an error that, as far as we can tell, is not about TLS.
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
