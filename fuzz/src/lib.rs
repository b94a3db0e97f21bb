//! What must hold for bytes from outside, whatever they are: one module for each fuzz target, each with a `check` that
//! panics where it does not.

pub mod authority;
pub mod coalescing;
pub mod health;
pub mod icmp;
pub mod lease;
pub mod names;
pub mod segmentation;
pub mod store;
pub mod wireguard;

mod flows;
mod packet;
