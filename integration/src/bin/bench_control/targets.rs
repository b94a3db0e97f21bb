//! What is wanted, and whether it was found.

use flan_integration::bench::target::{Bound, Target};

use crate::measure::{Measure, Run, median_of, p99_of};

/// A number of peers, with what is wanted of it.
struct Wanted {
    name: &'static str,
    peers: u32,
    at_most: f64,
    unit: &'static str,
    found: fn(&[Run], u32) -> Option<f64>,
}

const fn wanted(
    peers: u32,
    name: &'static str,
    at_most: f64,
    unit: &'static str,
    found: fn(&[Run], u32) -> Option<f64>,
) -> Wanted {
    Wanted { name, peers, at_most, unit, found }
}

const WANTED: [Wanted; 16] = [
    wanted(10_000, "exec to last peer", 0.7, "s", |runs, peers| median(runs, peers, Measure::Programmed)),
    wanted(10_000, "exec to last peer, to control with nexthop objects", 2.5, "x", to_control),
    wanted(10_000, "exec to last peer on udp in the kernel, to that of vxlan", 1.0, "x", udp_to_vxlan),
    wanted(10_000, "ready on wireguard, beyond exec to last peer on vxlan", 1.5, "s", wireguard_beyond_vxlan),
    wanted(50_000, "exec to last peer", 3.0, "s", |runs, peers| median(runs, peers, Measure::Programmed)),
    wanted(50_000, "exec to last peer, to that of 10,000", 5.5, "x", growth),
    wanted(50_000, "write to kernel, median of the slowest kind", 3.0, "ms", |runs, peers| {
        slowest(runs, peers, median)
    }),
    wanted(50_000, "write to kernel, p99 of the slowest kind", 10.0, "ms", |runs, peers| {
        slowest(runs, peers, p99)
    }),
    wanted(10_000, "memory, settled", 25.0, "MB", |runs, peers| median(runs, peers, Measure::SettledMemory)),
    wanted(50_000, "memory, settled", 70.0, "MB", |runs, peers| median(runs, peers, Measure::SettledMemory)),
    wanted(10_000, "restart, changes in the kernel", 0.0, "", |runs, peers| {
        median(runs, peers, Measure::RestartChanges)
    }),
    wanted(50_000, "restart, changes in the kernel", 0.0, "", |runs, peers| {
        median(runs, peers, Measure::RestartChanges)
    }),
    wanted(50_000, "restart to READY=1", 1.5, "s", |runs, peers| median(runs, peers, Measure::Restarted)),
    wanted(50_000, "all routes deleted, back", 3.0, "s", |runs, peers| {
        median(runs, peers, Measure::AllRepaired)
    }),
    wanted(50_000, "idle CPU, resync each 60 s", 1.0, "%", |runs, peers| {
        median(runs, peers, Measure::IdleAtSixtySeconds)
    }),
    wanted(10_000, "idle CPU, resync each 60 s", 1.0, "%", |runs, peers| {
        median(runs, peers, Measure::IdleAtSixtySeconds)
    }),
];

/// Judges all targets.
pub(crate) fn judge(runs: &[Run]) -> Vec<Target> {
    let judged = WANTED.iter().map(|&Wanted { name, peers, at_most, unit, found }| {
        Target::new(&peers, name, Bound::AtMost(at_most), unit, found(runs, peers))
    });
    judged.collect()
}

/// How many times as long as a control it took, by the medians.
pub(crate) fn ratio(run: &Run, control: Measure) -> Option<f64> {
    let control = median_of(&run.values, control).filter(|seconds| *seconds > 0.0)?;
    Some(median_of(&run.values, Measure::Programmed)? / control)
}

fn to_control(runs: &[Run], peers: u32) -> Option<f64> {
    ratio(run(runs, peers)?, Measure::ControlNextHops)
}

fn udp_to_vxlan(runs: &[Run], peers: u32) -> Option<f64> {
    let vxlan = median(runs, peers, Measure::Programmed).filter(|seconds| *seconds > 0.0)?;
    Some(median(runs, peers, Measure::ProgrammedForUdp)? / vxlan)
}

fn wireguard_beyond_vxlan(runs: &[Run], peers: u32) -> Option<f64> {
    Some(median(runs, peers, Measure::ReadyOnWireguard)? - median(runs, peers, Measure::Programmed)?)
}

fn growth(runs: &[Run], peers: u32) -> Option<f64> {
    let fewer = median(runs, 10_000, Measure::Programmed).filter(|seconds| *seconds > 0.0)?;
    Some(median(runs, peers, Measure::Programmed)? / fewer)
}

/// The greatest for a new lease, another MAC and a lease that goes; `None` unless all were measured.
fn slowest(runs: &[Run], peers: u32, statistic: fn(&[Run], u32, Measure) -> Option<f64>) -> Option<f64> {
    let kinds = [Measure::Added, Measure::Changed, Measure::Deleted];
    let found = kinds.map(|measure| statistic(runs, peers, measure));
    found.into_iter().reduce(|one, other| Some(one?.max(other?)))?
}

fn median(runs: &[Run], peers: u32, measure: Measure) -> Option<f64> {
    median_of(&run(runs, peers)?.values, measure)
}

fn p99(runs: &[Run], peers: u32, measure: Measure) -> Option<f64> {
    p99_of(&run(runs, peers)?.values, measure)
}

fn run(runs: &[Run], peers: u32) -> Option<&Run> {
    runs.iter().find(|run| run.peers == peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(peers: u32, values: &[(Measure, &[f64])]) -> Run {
        Run { peers, values: values.iter().map(|(measure, values)| (*measure, values.to_vec())).collect() }
    }

    fn reached(runs: &[Run], peers: u32, name: &str) -> Option<bool> {
        let mut targets = judge(runs).into_iter();
        targets.find(|target| target.subject == peers.to_string() && target.name == name).unwrap().reached
    }

    #[test]
    fn growth_is_judged_by_the_smaller_number() {
        let runs = [
            run_of(10_000, &[(Measure::Programmed, &[0.5])]),
            run_of(50_000, &[(Measure::Programmed, &[2.7])]),
        ];
        assert_eq!(reached(&runs, 50_000, "exec to last peer"), Some(true));
        assert_eq!(reached(&runs, 50_000, "exec to last peer, to that of 10,000"), Some(true));
        assert_eq!(reached(&runs[1..], 50_000, "exec to last peer, to that of 10,000"), None);
    }

    #[test]
    fn the_slowest_kind_of_write_counts() {
        let name = "write to kernel, median of the slowest kind";
        let with = |slowest: &[f64]| {
            [run_of(
                50_000,
                &[(Measure::Added, &[1.0]), (Measure::Changed, slowest), (Measure::Deleted, &[1.0])],
            )]
        };
        assert_eq!(reached(&with(&[3.0]), 50_000, name), Some(true));
        assert_eq!(reached(&with(&[3.1]), 50_000, name), Some(false));
        assert_eq!(reached(&[run_of(50_000, &[(Measure::Added, &[1.0])])], 50_000, name), None);
    }

    #[test]
    fn what_was_not_measured_is_neither_reached_nor_missed() {
        assert!(judge(&[]).iter().all(|target| target.found.is_none() && target.reached.is_none()));
    }
}
