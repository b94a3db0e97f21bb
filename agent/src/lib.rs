//! The agent `fland`, which runs on every host, and the store that a host can embed ([`embedded`], [`store_command`]).
//!
//! [`agent::Agent`] turns events into effects, which the event loop in [`daemon`] carries out. All changes of the kernel
//! pass through [`host::reconcile`]. What other programs read from the agent is in `flan_agent_api`.

pub mod agent;
pub mod args;
pub mod daemon;
pub mod docker_args;
pub mod names_args;

mod due;
pub mod embedded;
pub mod embedded_args;
mod flag_values;
pub mod host;
pub mod log;
pub mod lookout;
pub mod network;
mod notify;
mod ports;
pub mod probe_args;
mod probing;
mod problem;
pub mod refused;
mod rights;
mod root_socket;
mod serving_args;
pub mod status;
pub mod store_command;
pub mod wireguard;
