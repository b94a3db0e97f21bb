//! The agent `fland`: one on every host; and the store, where a host carries it ([`embedded`], [`store_command`]).
//!
//! One event loop ([`daemon`]) owns all state: what the store says, what we hold, what the kernel should hold. The
//! one way into the kernel is [`reconcile`]. What other programs read from us is in [`subnet_env`] and [`status`].

pub mod args;
pub mod bridge;
pub mod daemon;
pub mod embedded;
pub mod embedded_args;
pub mod host_networks;
pub mod interface;
pub mod log;
pub mod lookout;
pub mod node;
mod notify;
pub mod only_agent;
mod ports;
pub mod problem;
pub mod reconcile;
pub mod refused;
mod retention;
mod rights;
pub mod status;
pub mod store_args;
pub mod store_command;
pub mod subnet_env;
pub mod urls;
