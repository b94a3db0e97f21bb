//! The agent `fland`: one on every host.
//!
//! One event loop ([`daemon`]) owns all state: what the store says, what we hold, what the kernel should hold. The
//! one way into the kernel is [`reconcile`]. What other programs read from us is in [`subnet_env`] and [`status`].

pub mod args;
pub mod daemon;
pub mod interface;
pub mod node;
pub mod reconcile;
pub mod status;
pub mod store_args;
pub mod subnet_env;
