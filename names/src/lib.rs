//! Names of containers across hosts: a DNS server beside each host's containers, which knows what the store says of the
//! containers of all hosts.

mod directory;
#[cfg(fuzzing)]
pub mod fuzz;
mod handler;
mod living;
mod serve;
mod sockets;
mod upstream;

pub use directory::{Answer, DOMAIN, Directory, Network, Place, Question};
pub use serve::{Order, Settings, serve};
pub use upstream::Upstream;
