//! The command line.

use clap::{Parser, ValueEnum, value_parser};
use flan_integration::bench::ReportArguments;

use crate::ends::Ends;
use crate::measure::Measure;
use crate::rows::{Kernel, Row};
use crate::underlay::Underlay;

/// How fast packets travel between two hosts in network namespaces, over each data path, compared with a VXLAN of the
/// kernel made by hand.
#[derive(Debug, Parser)]
#[command(mut_arg("json", |json| json.default_value("target/bench/datapath.json")))]
pub(crate) struct Arguments {
    /// How often each measure is taken on each row; the median is reported.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,

    /// Seconds of each run that measures throughput, 1 to 60.
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = value_parser!(u32).range(1..=60))]
    pub(crate) seconds: u32,

    /// Data paths to measure, separated by commas; by default all that this kernel has. Ratios need vxlan-control.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    rows: Vec<Row>,

    /// What to measure, separated by commas; everything by default.
    #[arg(long, value_name = "MEASURE", value_delimiter = ',')]
    measures: Vec<Measure>,

    /// What the network cards (veth) of the underlay can do, separated by commas; all settings in turn by default.
    #[arg(long, value_name = "SETTING", value_delimiter = ',')]
    underlay: Vec<Underlay>,

    /// Between what is measured.
    #[arg(long, value_enum, default_value_t = Ends::Hosts)]
    pub(crate) ends: Ends,

    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

impl Arguments {
    /// The rows wanted, in the order of the report. By default, one that the kernel does not have is left out.
    pub(crate) fn rows(&self, kernel: Kernel) -> Vec<Row> {
        let mut rows = wanted(&self.rows);
        if self.rows.is_empty() {
            rows.retain(|row| row.is_there(kernel));
        }
        rows
    }

    /// The measures wanted, in the order of the report.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        wanted(&self.measures)
    }

    /// The settings of the underlay wanted.
    pub(crate) fn underlays(&self) -> Vec<Underlay> {
        wanted(&self.underlay)
    }
}

/// All that were chosen, each once; all that there are if none was.
fn wanted<T: ValueEnum + PartialEq>(chosen: &[T]) -> Vec<T> {
    let all = T::value_variants().iter();
    all.filter(|value| chosen.is_empty() || chosen.contains(value)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    fn kernel(has: bool) -> Kernel {
        Kernel { has_fou: has, has_wireguard: has }
    }

    #[test]
    fn nothing_chosen_is_everything() {
        let arguments = Arguments::try_parse_from(["bench"]).unwrap();
        assert_eq!((arguments.rows(kernel(true)).len(), arguments.rows(kernel(false)).len()), (10, 7));
        assert_eq!(arguments.measures().len(), 5);
        assert_eq!(arguments.underlays().len(), 2);
    }

    #[test]
    fn what_is_chosen_comes_once_and_in_order() {
        let words = [
            "bench",
            "--rows",
            "flan-udp-kernel,vxlan-control,flan-udp-kernel",
            "--underlay",
            "no-tunnel-offloads",
        ];
        let arguments = Arguments::try_parse_from(words).unwrap();
        assert_eq!(arguments.rows(kernel(false)), [Row::VxlanControl, Row::FlanUdpKernel]);
        assert_eq!(arguments.underlays(), [Underlay::NoTunnelOffloads]);
    }
}
