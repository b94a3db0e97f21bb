//! This host as flan finds it: the interface that peers send to, and what keeps packets from passing.
//!
//! It reads, and changes nothing. The agent looks all the time, `flanctl check` when it is asked to.

pub mod bridge;
pub mod docker;
pub mod interface;
pub mod ports;
pub mod settings;
pub mod tables;
