//! The store: the one module that speaks to etcd.

mod client;
pub(crate) mod error;
mod etcd_lease;
mod failure;
mod keys;
mod limits;
mod listing;
mod raw;
mod reason;
mod reservations;
mod status;
mod stream;
mod tls;
mod unanswered;
mod user;

pub use client::Store;
pub use error::{Cause, StoreError, Unanswered};
pub use keys::StoredConfig;
#[cfg(test)]
pub(crate) use limits::REQUEST_LIMIT;
pub use listing::{Listing, Snapshot};
pub use reservations::Reservation;
pub use status::MemberStatus;
pub(crate) use stream::{Watch, WatchMessage};
