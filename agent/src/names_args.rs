//! Flags of names.

use clap::Args;
use flan_names::Upstream;

/// How this agent answers questions about the names of containers.
#[derive(Debug, Clone, Args)]
pub struct NamesArgs {
    /// With --docker, serve the names of containers of all hosts, on port 53 of 169.254.53.53 and of the bridges'
    /// addresses
    #[arg(long, env = "FLAND_NAMES", default_value = "true")]
    pub names: bool,

    /// Who answers other names: host for the servers in this host's /etc/resolv.conf, none to refuse them, or the
    /// addresses of servers, separated by commas
    #[arg(long, value_name = "SERVERS", env = "FLAND_NAMES_UPSTREAM", default_value = "host")]
    pub names_upstream: Upstream,
}
