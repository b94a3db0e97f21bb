//! How long the store may take, and how much it may say.

use std::time::Duration;

/// How long one request may take on one endpoint before the next one is asked.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long one may take where no other endpoint is left. One that is dead or out of reach is given up sooner, by
/// [`KEEP_ALIVE`]; what is behind it is a slow one, and to ask that again makes it slower.
pub(super) const LONGEST_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection may take to open.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A connection without a sign of life is asked for one after this, and given up when none comes in the same time.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Bytes of one message, where the store decides: as many as etcd's own clients take.
pub(super) const ANY_SIZE: usize = i32::MAX as usize;
