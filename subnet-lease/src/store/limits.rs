//! How long the store may take, and how much it may send.

use std::time::Duration;

/// How long one request may take on one endpoint before the next one is asked.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a request may take if no other endpoint is left. [`KEEP_ALIVE`] detects a dead or unreachable endpoint
/// sooner, so the rest are slow, and repeating the request makes them slower.
pub(super) const LONGEST_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection may take to open.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A silent connection is probed after this, and given up if it stays silent for as long again.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Most bytes of one message if the store decides its size: as many as etcd's own clients accept.
pub(super) const ANY_SIZE: usize = i32::MAX as usize;
