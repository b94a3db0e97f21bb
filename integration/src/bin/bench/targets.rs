//! What the data paths should reach, and whether they did.

use flan_integration::bench::target::{Bound, Target};
use flan_integration::statistics::median;

use crate::figures::Figure;
use crate::rows::Row;
use crate::runs::{Run, median_of, ratios};
use crate::underlay::Underlay;

/// The least ratio of a row's figure to that of another row; `None` on an underlay that it is not asked for.
struct LeastRatio {
    name: &'static str,
    figure: Figure,
    row: Row,
    to: Row,
    offloads: Option<f64>,
    no_tunnel_offloads: Option<f64>,
}

const fn to_control(name: &'static str, row: Row, figure: Figure, offloads: f64, without: f64) -> LeastRatio {
    LeastRatio {
        name,
        figure,
        row,
        to: Row::CONTROL,
        offloads: Some(offloads),
        no_tunnel_offloads: Some(without),
    }
}

const RATIOS: [LeastRatio; 13] = [
    to_control("flan udp kernel to control, TCP, 1 stream", Row::FlanUdpKernel, Figure::Tcp1Gbps, 0.95, 0.95),
    to_control(
        "flan udp kernel to control, TCP, 4 streams",
        Row::FlanUdpKernel,
        Figure::Tcp4Gbps,
        0.95,
        0.95,
    ),
    to_control(
        "flan udp kernel to control, packets of 64 bytes",
        Row::FlanUdpKernel,
        Figure::Udp64PacketsPerSecond,
        1.0,
        1.0,
    ),
    to_control("flan udp to control, TCP, 1 stream", Row::FlanUdp, Figure::Tcp1Gbps, 0.55, 0.50),
    to_control("flan udp to control, TCP, 4 streams", Row::FlanUdp, Figure::Tcp4Gbps, 0.50, 0.50),
    to_control(
        "flan udp to control, packets of 64 bytes",
        Row::FlanUdp,
        Figure::Udp64PacketsPerSecond,
        0.70,
        0.60,
    ),
    to_control("flan vxlan to control, TCP, 1 stream", Row::FlanVxlan, Figure::Tcp1Gbps, 0.98, 0.98),
    to_control("flan vxlan to control, TCP, 4 streams", Row::FlanVxlan, Figure::Tcp4Gbps, 0.98, 0.98),
    to_control("flan wireguard to control, TCP, 1 stream", Row::FlanWireguard, Figure::Tcp1Gbps, 0.25, 0.25),
    to_control("flan wireguard to control, TCP, 4 streams", Row::FlanWireguard, Figure::Tcp4Gbps, 0.25, 0.25),
    LeastRatio {
        name: "flan wireguard to wireguard-go, TCP, 1 stream",
        figure: Figure::Tcp1Gbps,
        row: Row::FlanWireguard,
        to: Row::WireguardGo,
        offloads: Some(1.8),
        no_tunnel_offloads: Some(1.8),
    },
    LeastRatio {
        name: "flan wireguard kernel to wireguard control, TCP, 1 stream",
        figure: Figure::Tcp1Gbps,
        row: Row::FlanWireguardKernel,
        to: Row::WireguardControl,
        offloads: Some(0.98),
        no_tunnel_offloads: Some(0.98),
    },
    LeastRatio {
        name: "flan udp to flan udp plain, TCP, 1 stream",
        figure: Figure::Tcp1Gbps,
        row: Row::FlanUdp,
        to: Row::FlanUdpPlain,
        offloads: Some(10.0),
        no_tunnel_offloads: None,
    },
];

/// How much longer than over the control the median ping over udp may take, in microseconds.
const LATENCY: f64 = 60.0;

/// How many times the median ping over the control one over udp in the kernel may take.
const KERNEL_LATENCY: f64 = 1.1;

/// Judges all targets of these underlays.
pub(crate) fn judge(runs: &[Run], underlays: &[Underlay]) -> Vec<Target> {
    underlays.iter().flat_map(|&underlay| judge_one(runs, underlay)).collect()
}

fn judge_one(runs: &[Run], underlay: Underlay) -> Vec<Target> {
    let target = |name, wanted, unit, found| Target::new(&underlay, name, wanted, unit, found);
    let mut targets = Vec::new();
    for LeastRatio { name, figure, row, to, offloads, no_tunnel_offloads } in RATIOS {
        let least = match underlay {
            Underlay::Offloads => offloads,
            Underlay::NoTunnelOffloads => no_tunnel_offloads,
        };
        let found = median(&ratios(runs, underlay, figure, row, to));
        targets.extend(least.map(|least| target(name, Bound::AtLeast(least), "x", found)));
    }
    let times = ratios(runs, underlay, Figure::RttMedianMicroseconds, Row::FlanUdpKernel, Row::CONTROL);
    let name = "flan udp kernel to control, median ping";
    targets.push(target(name, Bound::AtMost(KERNEL_LATENCY), "x", median(&times)));
    let ping = |row| median_of(runs, underlay, row, Figure::RttMedianMicroseconds);
    let longer = ping(Row::FlanUdp).zip(ping(Row::CONTROL)).map(|(udp, control)| udp - control);
    targets.push(target("flan udp beyond control, median ping", Bound::AtMost(LATENCY), "µs", longer));
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::tests::run;

    fn reached(runs: &[Run], underlay: Underlay, name: &str) -> Option<bool> {
        judge(runs, &[underlay]).into_iter().find(|target| target.name == name).unwrap().reached
    }

    #[test]
    fn a_ratio_is_judged_by_the_underlays_own_bound() {
        let name = "flan udp to control, TCP, 1 stream";
        for (underlay, wanted) in [(Underlay::Offloads, false), (Underlay::NoTunnelOffloads, true)] {
            let runs = [
                run(underlay, 1, Row::CONTROL, Figure::Tcp1Gbps, 10.0),
                run(underlay, 1, Row::FlanUdp, Figure::Tcp1Gbps, 5.2),
            ];
            assert_eq!(reached(&runs, underlay, name), Some(wanted));
        }
    }

    #[test]
    fn a_ping_may_take_60_microseconds_longer() {
        let name = "flan udp beyond control, median ping";
        let with = |udp| {
            let figure = Figure::RttMedianMicroseconds;
            [
                run(Underlay::Offloads, 1, Row::CONTROL, figure, 40.0),
                run(Underlay::Offloads, 1, Row::FlanUdp, figure, udp),
            ]
        };
        assert_eq!(reached(&with(100.0), Underlay::Offloads, name), Some(true));
        assert_eq!(reached(&with(101.0), Underlay::Offloads, name), Some(false));
    }

    #[test]
    fn a_ping_through_the_kernel_may_take_a_tenth_longer() {
        let name = "flan udp kernel to control, median ping";
        let with = |kernel| {
            let figure = Figure::RttMedianMicroseconds;
            [
                run(Underlay::Offloads, 1, Row::CONTROL, figure, 100.0),
                run(Underlay::Offloads, 1, Row::FlanUdpKernel, figure, kernel),
            ]
        };
        assert_eq!(reached(&with(110.0), Underlay::Offloads, name), Some(true));
        assert_eq!(reached(&with(111.0), Underlay::Offloads, name), Some(false));
    }

    #[test]
    fn what_was_not_measured_is_neither_reached_nor_missed() {
        for target in judge(&[], &[Underlay::Offloads, Underlay::NoTunnelOffloads]) {
            assert_eq!((target.found, target.reached), (None, None));
        }
    }

    #[test]
    fn ten_times_the_plain_path_is_asked_for_with_offloads_only() {
        let names = |underlay| judge(&[], &[underlay]).iter().filter(|t| t.name.contains("plain")).count();
        assert_eq!((names(Underlay::Offloads), names(Underlay::NoTunnelOffloads)), (1, 0));
    }
}
