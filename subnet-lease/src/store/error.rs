//! Why the store failed: etcd's many errors, sorted by what a caller can do about them.

use std::fmt;

use flan_tls_files::BadFile;

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No endpoint answered: the outcome for each.
    #[error("cannot reach the store at {}", each(.0))]
    Unreachable(Vec<Unanswered>),
    /// The store denies us access.
    #[error("the store at {endpoint} refuses these credentials: {reason}")]
    Unauthorised {
        /// The endpoint that answered.
        endpoint: String,
        /// The store's message.
        reason: String,
    },
    /// A certificate or key file cannot be used.
    #[error(transparent)]
    CredentialFile(#[from] BadFile),
    /// A setting cannot work.
    #[error("{0}")]
    Setting(String),
    /// The etcd lease has expired or was revoked.
    #[error("lease {0:x} no longer exists in the store")]
    LeaseGone(i64),
    /// The store lacks this part of etcd's protocol.
    #[error("the store at {endpoint} does not offer this: {reason}")]
    NotOffered {
        /// The endpoint that answered.
        endpoint: String,
        /// The store's message.
        reason: String,
    },
    /// The store answered with an error.
    #[error("the store at {endpoint}: {reason}")]
    Refused {
        /// The endpoint that answered.
        endpoint: String,
        /// The store's message.
        reason: String,
    },
}

/// The failure of one endpoint. `{}` prints `URL: REASON (REMEDY)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Its URL.
    pub endpoint: String,
    /// The reason.
    pub reason: String,
    /// A remedy, if the reason suggests one.
    pub remedy: Option<String>,
    /// The kind of reason.
    pub cause: Cause,
}

/// Kinds of reasons why an endpoint does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No connection: nobody listens, a firewall drops packets, or no answer arrives in time.
    NoConnection,
    /// The host name has no address.
    UnknownHost,
    /// The server closed the connection.
    Ended,
    /// A server answers, but not in our protocol.
    NoUnderstanding,
}

impl Unanswered {
    /// Creates the error for a time limit that passed.
    pub fn silent(endpoint: &str, reason: String) -> Self {
        Self { endpoint: endpoint.to_owned(), reason, remedy: None, cause: Cause::NoConnection }
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.endpoint, self.reason)?;
        match &self.remedy {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

fn each(endpoints: &[Unanswered]) -> String {
    endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
