//! The wireguard backend: WireGuard devices that know every peer by its key, with flannel's leases.
//!
//! On the kernel path, devices and peers are the kernel's ([`Wireguard`] plans them). On the user path, packets pass
//! between a TUN device and a UDP socket of this process. boringtun speaks the protocol: handshakes, their retries, cookies,
//! replayed packets. This module finds the peer of each packet ([`Peers`]), decides what passes, and moves many packets at a time
//! ([`Datapath`]). Hosts on this path and hosts on the kernel's understand each other.

mod datapath;
#[cfg(any(test, fuzzing))]
pub mod ends;
mod exchange;
mod identity;
mod peer;
mod peers;
mod plan;
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
pub(crate) use plan::is_name;
pub use plan::{Wireguard, WireguardHost};
