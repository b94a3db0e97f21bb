//! The agent's socket, through which `flanctl` asks it.

use std::path::PathBuf;

use clap::Args;

/// The path of the socket.
#[derive(Debug, Clone, Args)]
pub struct AgentSocket {
    /// Unix socket on which fland answers flanctl, for root and the group flan
    #[arg(
        id = "socket",
        long = "socket",
        value_name = "FILE",
        env = "FLAND_SOCKET",
        default_value = "/run/flan/fland.sock"
    )]
    pub path: PathBuf,
}
