//! Finds the cause of an error of etcd's client.

use std::error::Error;
use std::io;

use super::limits::CONNECT_LIMIT;

/// A reason and its remedy.
pub(super) struct Words {
    pub(super) reason: String,
    pub(super) remedy: Option<String>,
}

/// The client's message if no connection opened in time.
pub(super) const DEADLINE: &str = "deadline has elapsed";

/// Returns the innermost reason of an error, without the library's wrapping.
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

/// Returns the chain of causes, outermost first. The client itself hides it.
pub(super) fn chain<'a>(error: &'a etcd_client::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let first: Option<&(dyn Error + 'static)> = match error {
        etcd_client::Error::GRpcStatus(status) => status.source(),
        etcd_client::Error::TransportError(error) => Some(error),
        _ => None,
    };
    std::iter::successors(first, |error: &&'a (dyn Error + 'static)| {
        let error = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // For an error inside of an I/O error, `source` would skip to its cause.
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}
