//! The command line.

use clap::{Parser, value_parser};
use flan_integration::bench::ReportArguments;

/// How fast fland answers questions about names, and how much memory they take, with many containers in the store. The
/// control is Debian's dnsmasq with the same names. And how soon after `docker run` another host knows the name.
#[derive(Debug, Parser)]
#[command(mut_arg("json", |json| json.default_value("target/bench/names.json")))]
pub(crate) struct Arguments {
    /// Hosts in the store, with 20 containers each.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(1..=1000))]
    pub(crate) hosts: u32,

    /// Rounds of questions to each of the two servers.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..=50))]
    pub(crate) rounds: u32,

    /// Seconds of each round.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u32).range(1..=60))]
    pub(crate) seconds: u32,

    /// Containers that are started on one host and looked for on another. 0 for none.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = value_parser!(u32).range(0..=200))]
    pub(crate) containers: u32,

    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
