//! The command line.

use std::path::PathBuf;

use clap::{Parser, value_parser};
use flan_integration::bench::ReportArguments;

/// How fast the embedded store is beside a real etcd with one member: both with their data on the same disk, both on
/// loopback, one after the other.
#[derive(Debug, Parser)]
#[command(mut_arg("json", |json| json.default_value("target/bench/store.json")))]
pub(crate) struct Arguments {
    /// How often each is measured; the median is reported.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=20))]
    pub(crate) rounds: u32,

    /// Clients at a time, each with a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = value_parser!(u32).range(1..=500))]
    pub(crate) clients: u32,

    /// Seconds for which each kind of request is sent.
    #[arg(long, value_name = "S", default_value_t = 4, value_parser = value_parser!(u32).range(1..=60))]
    pub(crate) seconds: u32,

    /// Where both keep their data; a directory on the disk that is to be measured.
    #[arg(long, value_name = "DIR", default_value = "target/bench/store")]
    pub(crate) data_dir: PathBuf,

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
