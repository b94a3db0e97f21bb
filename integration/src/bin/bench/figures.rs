//! The figures that come out of the measures.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a figure is about. The order is that of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Figure {
    /// Payload received over one TCP stream, in 10^9 bits per second.
    Tcp1Gbps,
    /// Segments sent again by that stream.
    Tcp1Retransmits,
    /// Busy time of all CPUs for 10^9 bytes received over that stream, in seconds.
    Tcp1CpuSecondsPerGigabyte,
    /// Payload received over four TCP streams together, in 10^9 bits per second.
    Tcp4Gbps,
    /// Segments sent again by those streams.
    Tcp4Retransmits,
    /// UDP packets received per second, each of 64 bytes with its IP header.
    Udp64PacketsPerSecond,
    /// Of those sent, how many did not arrive, in percent.
    Udp64LossPercent,
    /// UDP packets received per second, each as large as the MTU allows.
    UdpMtuPacketsPerSecond,
    /// Of those sent, how many did not arrive, in percent.
    UdpMtuLossPercent,
    /// Median round trip of a ping while nothing else is sent, in microseconds.
    RttMedianMicroseconds,
    /// The round trip that 99 of 100 pings do not exceed, in microseconds.
    RttP99Microseconds,
}

/// What one run yields.
pub(crate) type Figures = BTreeMap<Figure, f64>;

impl Figure {
    /// The unit of [`Figure::shown`], with what is counted.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Figure::Tcp1Gbps | Figure::Tcp4Gbps => "Gb/s",
            Figure::Tcp1Retransmits | Figure::Tcp4Retransmits => "retransmits",
            Figure::Tcp1CpuSecondsPerGigabyte => "CPU s/GB",
            Figure::Udp64PacketsPerSecond | Figure::UdpMtuPacketsPerSecond => "k packets/s",
            Figure::Udp64LossPercent | Figure::UdpMtuLossPercent => "% lost",
            Figure::RttMedianMicroseconds => "µs median",
            Figure::RttP99Microseconds => "µs p99",
        }
    }

    /// The value in the unit of [`Figure::unit`].
    pub(crate) fn shown(self, value: f64) -> String {
        match self {
            Figure::Tcp1Gbps | Figure::Tcp4Gbps => format!("{value:.2}"),
            Figure::Tcp1CpuSecondsPerGigabyte => format!("{value:.2}"),
            Figure::Udp64PacketsPerSecond | Figure::UdpMtuPacketsPerSecond => {
                format!("{:.1}", value / 1000.0)
            }
            Figure::Udp64LossPercent | Figure::UdpMtuLossPercent => format!("{value:.1}"),
            Figure::Tcp1Retransmits
            | Figure::Tcp4Retransmits
            | Figure::RttMedianMicroseconds
            | Figure::RttP99Microseconds => format!("{value:.0}"),
        }
    }
}

/// All figures of a run in one line, for the progress.
pub(crate) fn line(figures: &Figures) -> String {
    let texts = figures.iter().map(|(figure, value)| format!("{} {}", figure.shown(*value), figure.unit()));
    texts.collect::<Vec<_>>().join(", ")
}
