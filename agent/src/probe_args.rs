//! Flags of the probes.

use clap::Args;

/// How this agent probes its peers.
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// Most probes of peers a second, each of three small packets and one as large as containers may send. Each of up to 20
    /// subnets of peers is probed every two seconds, more of them in turn. With 0, only the probes of others are answered
    #[arg(
        long,
        value_name = "NUMBER",
        env = "FLAND_PROBE_RATE",
        default_value_t = 10,
        value_parser = clap::value_parser!(u16).range(0..=1000),
    )]
    pub probe_rate: u16,

    /// UDP port on which agents answer each other's probes, on this host's address on the overlay; with host-gw, on the
    /// underlay. The same on all hosts
    #[arg(
        long,
        value_name = "PORT",
        env = "FLAND_PROBE_PORT",
        default_value_t = 8475,
        value_parser = clap::value_parser!(u16).range(1..),
    )]
    pub probe_port: u16,
}
