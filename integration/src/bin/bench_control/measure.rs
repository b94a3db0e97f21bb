//! What is measured for each number of peers, and how it is told.

use std::collections::BTreeMap;

use flan_integration::statistics::{median, percentile};
use serde::Serialize;

/// One kind of value. The order is that of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Measure {
    /// Seconds from the start of fland to the last route, neighbour and FDB entry.
    Programmed,
    /// Seconds that `ip -batch` and `bridge -batch` take for the same in flannel's form.
    ControlInline,
    /// Seconds that they take for the same with nexthop objects.
    ControlNextHops,
    /// Seconds from the start of fland to the last route on udp, whose packets the kernel carries.
    ProgrammedForUdp,
    /// Seconds from the start of fland until it is ready on wireguard.
    ReadyOnWireguard,
    /// CPU seconds of fland from its start until it is quiet.
    StartCpu,
    /// The most memory that fland ever had, in 10^6 bytes.
    PeakMemory,
    /// Its memory once it is quiet, in 10^6 bytes.
    SettledMemory,
    /// Sends on netlink sockets from the start until it is quiet, counted by strace in a run of its own.
    NetlinkSends,
    /// Milliseconds from a put of a new lease to its route.
    Added,
    /// Milliseconds from a put of another VtepMAC to the neighbour with it.
    Changed,
    /// Milliseconds from the deletion of a lease to that of its route.
    Deleted,
    /// Milliseconds from a write to its event on a watch that does nothing with it, before fland starts.
    ControlWatch,
    /// Milliseconds that etcd took to acknowledge each of the writes that fland followed.
    Acknowledged,
    /// Milliseconds from the deletion of a route to its return.
    RouteRepaired,
    /// Seconds from the deletion of the first of all routes to the return of the last.
    AllRepaired,
    /// Seconds from the start to READY=1 with everything in place.
    Restarted,
    /// Changes of our objects in the kernel from the end of one fland until the next is ready and quiet.
    RestartChanges,
    /// CPU with a resync each 10 s, in percent of one core.
    IdleAtTenSeconds,
    /// The same, worked out for a resync each 60 s.
    IdleAtSixtySeconds,
}

/// All values that were taken.
pub(crate) type Values = BTreeMap<Measure, Vec<f64>>;

/// All values for one number of peers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    pub(crate) peers: u32,
    pub(crate) values: Values,
}

impl Measure {
    /// All, in the order of the report.
    pub(crate) const ALL: [Measure; 20] = [
        Measure::Programmed,
        Measure::ControlInline,
        Measure::ControlNextHops,
        Measure::ProgrammedForUdp,
        Measure::ReadyOnWireguard,
        Measure::StartCpu,
        Measure::PeakMemory,
        Measure::SettledMemory,
        Measure::NetlinkSends,
        Measure::Added,
        Measure::Changed,
        Measure::Deleted,
        Measure::ControlWatch,
        Measure::Acknowledged,
        Measure::RouteRepaired,
        Measure::AllRepaired,
        Measure::Restarted,
        Measure::RestartChanges,
        Measure::IdleAtTenSeconds,
        Measure::IdleAtSixtySeconds,
    ];

    /// What it is, and in which unit.
    pub(crate) fn name(self) -> (&'static str, &'static str) {
        match self {
            Measure::Programmed => ("exec to last peer programmed", "s"),
            Measure::ControlInline => ("  control: ip -batch, flannel's form", "s"),
            Measure::ControlNextHops => ("  control: ip -batch, nexthop objects", "s"),
            Measure::ProgrammedForUdp => ("  the same on udp, in the kernel", "s"),
            Measure::ReadyOnWireguard => ("  ready on wireguard", "s"),
            Measure::StartCpu => ("  CPU of fland until quiet", "s"),
            Measure::PeakMemory => ("memory, peak", "MB"),
            Measure::SettledMemory => ("memory, settled", "MB"),
            Measure::NetlinkSends => ("netlink sends of a start (strace)", ""),
            Measure::Added => ("put to route, new lease", "ms"),
            Measure::Changed => ("put to neighbour, other MAC", "ms"),
            Measure::Deleted => ("delete to route gone", "ms"),
            Measure::ControlWatch => ("  control: a bare watch", "ms"),
            Measure::Acknowledged => ("  acknowledged by etcd", "ms"),
            Measure::RouteRepaired => ("one route deleted, back after", "ms"),
            Measure::AllRepaired => ("all routes deleted, back after", "s"),
            Measure::Restarted => ("restart to READY=1", "s"),
            Measure::RestartChanges => ("  changes in the kernel", ""),
            Measure::IdleAtTenSeconds => ("idle CPU, resync each 10 s", "%"),
            Measure::IdleAtSixtySeconds => ("  worked out for each 60 s", "%"),
        }
    }

    /// The value in its unit.
    pub(crate) fn shown(self, value: f64) -> String {
        match self {
            Measure::NetlinkSends | Measure::RestartChanges => format!("{value:.0}"),
            Measure::PeakMemory | Measure::SettledMemory | Measure::RouteRepaired => format!("{value:.1}"),
            _ if self.has_p99() => format!("{value:.2}"),
            _ => format!("{value:.3}"),
        }
    }

    /// True if there are so many values that the slowest of a hundred is of interest, too.
    pub(crate) fn has_p99(self) -> bool {
        matches!(
            self,
            Measure::Added
                | Measure::Changed
                | Measure::Deleted
                | Measure::ControlWatch
                | Measure::Acknowledged
        )
    }
}

/// The median of what was measured.
pub(crate) fn median_of(values: &Values, measure: Measure) -> Option<f64> {
    median(values.get(&measure)?)
}

/// The value that 99 of 100 do not exceed.
pub(crate) fn p99_of(values: &Values, measure: Measure) -> Option<f64> {
    percentile(values.get(&measure)?, 99)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_in_the_order_of_the_report() {
        assert!(Measure::ALL.is_sorted());
        assert_eq!(Measure::ALL.iter().collect::<std::collections::BTreeSet<_>>().len(), Measure::ALL.len());
    }
}
