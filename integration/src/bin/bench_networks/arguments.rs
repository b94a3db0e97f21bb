//! The command line.

use clap::{Parser, value_parser};
use flan_integration::bench::ReportArguments;

/// What many networks on one host cost: how soon all are ready, memory, CPU time while nothing happens. The control is one
/// network with as many peers as all of them have together. And how long `docker run` takes in one of them; the control is
/// Docker's own bridge.
#[derive(Debug, Parser)]
#[command(mut_arg("json", |json| json.default_value("target/bench/networks.json")))]
pub(crate) struct Arguments {
    /// Numbers of networks beside the default one, separated by commas, up to 100.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 10, 100],
        value_parser = value_parser!(u32).range(1..=100))]
    pub(crate) networks: Vec<u32>,

    /// Peers in each of them.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u32).range(1..=100))]
    pub(crate) peers: u32,

    /// Seconds for which the idle agent is watched.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = value_parser!(u32).range(10..=600))]
    pub(crate) idle_seconds: u32,

    /// Rounds of `docker run` in a network of flan and on Docker's own bridge. 0 for none.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = value_parser!(u32).range(0..=200))]
    pub(crate) docker_rounds: u32,

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
