//! Flags that choose the external interface, shared by the agent and `flanctl check`.

use std::net::IpAddr;

use clap::Args;
use regex::Regex;

use crate::host_args::PublicIps;

/// Which interface is the external one. Names and meanings are flannel's.
#[derive(Debug, Clone, Args)]
pub struct InterfaceArgs {
    /// External interface, by name or address. May be repeated; fland takes the first that exists. By default the
    /// interface that holds --public-ip or --public-ipv6, else the one with the best default route
    #[arg(
        long,
        value_name = "NAME|IP",
        env = "FLAND_IFACE",
        value_delimiter = ',',
        help_heading = "External interface"
    )]
    pub iface: Vec<String>,

    /// Regular expression for the name or an address of the external interface. Tried after --iface
    #[arg(
        long,
        value_name = "REGEX",
        env = "FLAND_IFACE_REGEX",
        value_parser = pattern,
        help_heading = "External interface"
    )]
    pub iface_regex: Vec<Regex>,

    /// Take the interface through which packets to this address leave
    #[arg(
        long,
        value_name = "IP",
        env = "FLAND_IFACE_CAN_REACH",
        conflicts_with_all = ["iface", "iface_regex"],
        help_heading = "External interface"
    )]
    pub iface_can_reach: Option<IpAddr>,

    /// The addresses that peers send to.
    #[command(flatten, next_help_heading = "External interface")]
    pub public_ips: PublicIps,
}

fn pattern(text: &str) -> Result<Regex, String> {
    // The library draws the position in three lines; the last line is the reason.
    Regex::new(text).map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())
}
