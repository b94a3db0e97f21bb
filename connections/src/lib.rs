//! How many connections a server accepts, and which one makes room for the next.

mod door;
mod limit;

pub use door::Door;
pub use limit::{ConnectionLimit, Slot};
