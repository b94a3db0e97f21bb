//! The agent `fland`: one on every host; and the store, where a host carries it ([`embedded`], [`store_command`]).
//!
//! [`agent::Agent`] decides, from events to effects; the event loop in [`daemon`] waits for the former and carries out the
//! latter. The one way into the kernel is [`host::reconcile`]. What other programs read from us is in `flan_agent_api`.

pub mod agent;
pub mod args;
pub mod bridge;
pub mod daemon;
mod due;
pub mod embedded;
pub mod embedded_args;
mod flag_values;
pub mod host;
pub mod interface;
pub mod log;
pub mod lookout;
pub mod network;
mod notify;
mod ports;
mod problem;
pub mod refused;
mod rights;
mod serving_args;
pub mod status;
pub mod store_command;
