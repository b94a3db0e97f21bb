//! Why the store did not do what was asked: etcd's many errors, sorted by what a caller can do about them.

use std::fmt;

use flan_tls_files::BadFile;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No endpoint answered: what became of each.
    #[error("cannot reach the store at {}", each(.0))]
    Unreachable(Vec<Unanswered>),
    /// The store does not let us.
    #[error("the store at {endpoint} refuses these credentials: {reason}")]
    Unauthorised {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
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
    /// The store does not offer this part of etcd's protocol.
    #[error("the store at {endpoint} does not offer this: {reason}")]
    NotOffered {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// The store answered with an error.
    #[error("the store at {endpoint}: {reason}")]
    Refused {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
        reason: String,
    },
}

/// What became of one endpoint that did not answer. Displayed as `URL: REASON (REMEDY)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Its URL.
    pub endpoint: String,
    /// Why.
    pub reason: String,
    /// What would help, where the reason alone tells.
    pub remedy: Option<String>,
    /// What kind of reason it is.
    pub cause: Cause,
}

/// Kinds of reasons why an endpoint does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// There is no connection: nobody listens, a firewall is between, or no answer comes in time.
    NoConnection,
    /// The host name has no address.
    UnknownHost,
    /// The other side ended the connection.
    Ended,
    /// Somebody is there, and we do not understand each other.
    NoUnderstanding,
}

impl Unanswered {
    /// Nothing came in time.
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
