//! WireGuard in this process: packets between a TUN device and a UDP socket, encrypted for each peer.
//!
//! For hosts whose kernel has no WireGuard. boringtun speaks the protocol: handshakes, their retries, cookies, replayed
//! packets. This module finds the peer of each packet ([`Peers`]), decides what passes, and moves many packets at a time
//! ([`Datapath`]). Hosts on this path and hosts on the kernel's understand each other.

mod datapath;
#[cfg(any(test, fuzzing))]
pub mod ends;
mod exchange;
mod identity;
mod peer;
mod peers;
mod table;
#[cfg(test)]
mod tests;
mod tunnel;
mod wire;

pub use crate::userspace::counters::{Counters, Totals};
pub use crate::userspace::gauge::{Gauge, Modes};
pub use crate::userspace::running::DatapathError;
pub use datapath::{Datapath, Settings};
pub use peer::{PeerReport, PeerSettings};
pub use peers::Peers;
