//! Why an endpoint gave no answer, in a person's words, and what would help.

use std::error::Error;
use std::fmt;
use std::io;

use super::error::NO_GRPC;
use super::{CONNECT_LIMIT, tls};
use crate::store_config::Credentials;

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

/// A reason and what would help.
pub(super) struct Words {
    pub(super) reason: String,
    pub(super) remedy: Option<String>,
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

/// How the client words it that no connection came in time.
const DEADLINE: &str = "deadline has elapsed";

/// The innermost reason of an error, without the library's wrapping.
pub(super) fn innermost(error: &etcd_client::Error) -> String {
    let text = chain(error).last().map(ToString::to_string);
    match text.unwrap_or_else(|| outermost(error)).as_str() {
        DEADLINE => format!("no connection within {} s", CONNECT_LIMIT.as_secs()),
        text => text.to_owned(),
    }
}

fn outermost(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

/// What is behind an error, from the outside in. The client itself hides it.
pub(super) fn chain<'a>(error: &'a etcd_client::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let first: Option<&(dyn Error + 'static)> = match error {
        etcd_client::Error::GRpcStatus(status) => status.source(),
        etcd_client::Error::TransportError(error) => Some(error),
        _ => None,
    };
    std::iter::successors(first, |error: &&'a (dyn Error + 'static)| {
        let error = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // Of an error inside of an I/O error, only the cause would come next.
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}
