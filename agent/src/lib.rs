//! The agent `fland`: one on every host; and the store, where a host carries it ([`embedded`], [`store_command`]).
//!
//! One event loop ([`daemon`]) owns all state: what the store says, what we hold, what the kernel should hold. The
//! one way into the kernel is [`reconcile`]. What other programs read from us is in `flan_agent_api`.

pub mod args;
pub mod bridge;
pub mod daemon;
pub mod embedded;
pub mod embedded_args;
mod flag_values;
pub mod interface;
pub mod log;
pub mod lookout;
mod notify;
mod ports;
mod problem;
pub mod reconcile;
pub mod refused;
mod rights;
mod serving_args;
pub mod status;
pub mod store_command;
