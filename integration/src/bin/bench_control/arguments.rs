//! The command line.

use clap::{Parser, value_parser};
use flan_integration::bench::ReportArguments;

use crate::peers::MOST;

/// How fast one fland follows many leases: what stands in etcd is in the kernel how much later, at what cost, and how
/// that compares with `ip -batch` doing the same.
#[derive(Debug, Parser)]
#[command(mut_arg("json", |json| json.default_value("target/bench/control.json")))]
pub(crate) struct Arguments {
    /// Numbers of peers, separated by commas, up to 50000.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100, 1000, 10_000, MOST],
        value_parser = value_parser!(u32).range(1..=i64::from(MOST)))]
    peers: Vec<u32>,

    /// How often fland and the controls are started from nothing; the median is reported.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    pub(crate) rounds: u32,

    /// Leases that are added, changed and deleted, one after the other.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u32).range(1..=4000))]
    pub(crate) writes: u32,

    /// Seconds for which the idle agent is watched.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = value_parser!(u32).range(10..=600))]
    pub(crate) idle_seconds: u32,

    /// The control in flannel's form beyond 10,000 peers, too: its cost grows with the square of their number.
    #[arg(long)]
    pub(crate) all_controls: bool,

    /// etcd writes to the disk below /tmp, as a real one does; by default to memory, or the disk would be measured.
    #[arg(long)]
    pub(crate) etcd_on_disk: bool,

    /// Count no netlink sends by strace.
    #[arg(long)]
    pub(crate) no_strace: bool,

    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

impl Arguments {
    /// The numbers of peers, each once, the smallest first.
    pub(crate) fn peers(&self) -> Vec<u32> {
        let mut peers = self.peers.clone();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn numbers_come_once_and_in_order() {
        let read = |words: &[&str]| Arguments::try_parse_from(words).map(|arguments| arguments.peers());
        assert_eq!(read(&["bench-control"]).unwrap(), [100, 1000, 10_000, 50_000]);
        assert_eq!(read(&["bench-control", "--peers", "500,20,500"]).unwrap(), [20, 500]);
        assert!(read(&["bench-control", "--peers", "50001"]).is_err());
    }
}
