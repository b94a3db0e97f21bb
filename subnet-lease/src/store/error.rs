//! Why the store did not do what was asked: etcd's many errors, sorted by what a caller can do about them.

use std::path::PathBuf;

use super::CONNECT_LIMIT;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No endpoint answered.
    #[error("cannot reach etcd: {0}")]
    Unreachable(
        /// What each endpoint said.
        String,
    ),
    /// The store does not let us.
    #[error("etcd at {endpoint} refuses these credentials: {reason}")]
    Unauthorised {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// A certificate or key file cannot be used.
    #[error("cannot read {}: {source}", path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A setting cannot work.
    #[error("{0}")]
    Setting(String),
    /// The etcd lease has expired or was revoked.
    #[error("etcd lease {0:x} no longer exists")]
    LeaseGone(i64),
    /// The store does not offer this part of etcd's protocol.
    #[error("etcd at {endpoint} does not offer this: {reason}")]
    NotOffered {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// The store answered with an error.
    #[error("etcd at {endpoint}: {reason}")]
    Refused {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
        reason: String,
    },
}

/// Why a request failed on one endpoint.
pub(super) enum Failure {
    /// Another endpoint may answer.
    Unanswered(String),
    /// This is the answer, and any other endpoint's would be the same.
    Answered(StoreError),
}

/// How the client words it that an answer is not one of gRPC.
pub(super) const NO_GRPC: &str = "grpc-status header missing";

/// Sorts an error of the client: did the store answer, and did it refuse who we are?
pub(super) fn failure(endpoint: &str, error: &etcd_client::Error) -> Failure {
    let (endpoint, reason) = (endpoint.to_owned(), plain(error));
    let etcd_client::Error::GRpcStatus(status) = error else {
        return match error {
            etcd_client::Error::LeaseKeepAliveError(_) => {
                Failure::Answered(StoreError::Refused { endpoint, reason })
            }
            _ => Failure::Unanswered(reason),
        };
    };
    // The codes of gRPC: 3 invalid argument, 7 permission denied, 9 failed precondition, 12 unimplemented,
    // 16 unauthenticated; 1 cancelled, 2 unknown, 4 deadline exceeded, 13 internal (a connection that ended), 14 unavailable.
    match status.code() as i32 {
        7 | 16 => Failure::Answered(StoreError::Unauthorised { endpoint, reason }),
        3 | 9 if is_about_us(&reason) => Failure::Answered(StoreError::Unauthorised { endpoint, reason }),
        // An HTTP server that is no etcd says the same by its 404.
        12 if reason.contains(NO_GRPC) => Failure::Unanswered(reason),
        12 => Failure::Answered(StoreError::NotOffered { endpoint, reason }),
        1 | 2 | 4 | 13 | 14 => Failure::Unanswered(reason),
        _ => Failure::Answered(StoreError::Refused { endpoint, reason }),
    }
}

/// Why the store cancelled a watch at once, as an error: there its words alone tell the kind.
pub(super) fn refused_watch(endpoint: String, reason: &str) -> StoreError {
    let reason = reason.split_once(" desc = ").map_or(reason, |(_, words)| words).to_owned();
    if reason.contains("permission denied") || is_about_us(&reason) {
        StoreError::Unauthorised { endpoint, reason }
    } else {
        StoreError::Refused { endpoint, reason }
    }
}

/// Whether a request failed for who we are, by the words of etcd where its code says less.
fn is_about_us(reason: &str) -> bool {
    ["user name is empty", "authentication", "auth store is old"].iter().any(|words| reason.contains(words))
}

/// The innermost reason of an error, without the library's wrapping.
pub(super) fn plain(error: &etcd_client::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = match error {
        etcd_client::Error::GRpcStatus(status) => std::error::Error::source(status),
        etcd_client::Error::TransportError(error) => Some(error),
        _ => None,
    };
    let mut text = match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    match text.as_str() {
        "deadline has elapsed" => format!("no connection within {} s", CONNECT_LIMIT.as_secs()),
        _ => text,
    }
}
