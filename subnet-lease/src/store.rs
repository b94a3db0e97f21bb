//! The store: the one module that speaks to etcd.

mod client;
mod clock;
mod collection;
mod creation;
pub(crate) mod error;
mod etcd_lease;
mod failure;
mod figures;
mod limits;
mod listing;
mod network;
mod networks;
mod reason;
mod reservations;
mod status;
mod stream;
mod tls;
mod user;

pub use client::Store;
pub use clock::{ClockSkew, clock_skew};
pub use collection::Collection;
pub use creation::{KnownNetworks, NotCreated};
pub use error::{Cause, StoreError, Unanswered};
pub use figures::StoreFigures;
#[cfg(test)]
pub(crate) use limits::REQUEST_LIMIT;
pub use network::{ConfigWritten, Snapshot, StoredConfig};
pub use networks::{Networks, StoredNetwork};
pub use reservations::Reservation;
pub use status::MemberStatus;
pub(crate) use stream::{Watch, WatchMessage};
