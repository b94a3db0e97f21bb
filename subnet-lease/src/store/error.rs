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
    // The codes of gRPC: 3 invalid argument, 7 permission denied, 9 failed precondition, 16 unauthenticated;
    // 1 cancelled, 2 unknown, 4 deadline exceeded, 13 internal (a connection that ended), 14 unavailable.
    let about_us = ["user name is empty", "authentication", "auth store is old"];
    match status.code() as i32 {
        7 | 16 => Failure::Answered(StoreError::Unauthorised { endpoint, reason }),
        3 | 9 if about_us.iter().any(|words| reason.contains(words)) => {
            Failure::Answered(StoreError::Unauthorised { endpoint, reason })
        }
        1 | 2 | 4 | 13 | 14 => Failure::Unanswered(reason),
        _ => Failure::Answered(StoreError::Refused { endpoint, reason }),
    }
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
