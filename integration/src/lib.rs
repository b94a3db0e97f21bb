//! Whole hosts in network namespaces: an underlay, a store, `fland`, real dockerds and their containers.
//!
//! A [`Lab`] is one such world. The demo (`src/bin/demo.rs`), the benches (`src/bin/bench`,
//! `src/bin/bench_control`) and the scenarios
//! (`tests/scenarios`) are written against it. Everything that it makes lives in namespaces of its own and below one
//! directory; the machine's interfaces, routes, rules, mounts and Docker are not touched. It needs root and the
//! programs that [`tools`] names.
//!
//! ```text
//!             flan-ID-underlay: br0 192.168.64.1/24, and 203.0.113.1 as "the rest of the world"
//!        +---------------+---------------+---------------+
//!   flan-ID-store1    flan-ID-h1      flan-ID-h2      flan-ID-h3
//!   192.168.64.2      192.168.64.11   192.168.64.12   192.168.64.13
//!   etcd or fland     fland, dockerd  fland, dockerd  ...
//! ```
//!
//! A second segment hangs on the same router, for [`Lab::host_behind_router`], and with [`LabOptions::ipv6`] the first has
//! fd00:64::/64 beside its IPv4.

pub mod bench;
pub mod chance;
pub mod clock;
pub mod command;
pub mod cpu;
pub mod detour;
pub mod docker;
#[cfg(test)]
mod docs;
pub mod end;
mod flanctl;
pub mod flannel;
pub mod forgery;
pub mod forky;
pub mod fou;
pub mod holdings;
pub mod host;
pub mod inside;
pub mod interrupt;
pub mod lab;
pub mod memory_group;
pub mod monitor;
pub mod netns;
mod notify;
pub mod overlay;
pub mod podman;
pub mod process;
pub mod progress;
pub mod statistics;
pub mod store;
pub mod subnet_env;
pub mod systemd;
pub mod tools;
pub mod traffic;
pub mod vitals;
pub mod vm;
pub mod wait;
pub mod wireguard;
pub mod witness;

pub use docker::{Bridge, Container};
pub use host::Host;
pub use lab::{Lab, LabOptions};
pub use store::{Store, StoreKind};
