//! What is measured on each row, and what figures come out of it.

use std::fmt;
use std::path::Path;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::figures::{Figure, Figures};
use crate::iperf::{self, Load};
use crate::pair::Pair;
use crate::ping;

/// Bytes of the IPv4 and the UDP header.
const HEADERS: u32 = 28;

/// Bytes of a small packet, with its headers.
const SMALL_PACKET: u32 = 64;

/// One kind of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// One TCP stream: throughput, retransmits, CPU time of the whole machine.
    Tcp1,
    /// Four TCP streams at once: throughput, retransmits.
    Tcp4,
    /// UDP packets of 64 bytes as fast as one sender can: packets received, loss.
    Udp64,
    /// The same with packets as large as the MTU.
    UdpMtu,
    /// 400 pings, one each 5 ms, on the idle path: median and p99 of the round trip.
    Ping,
}

impl Measure {
    /// The figures of its runs, in the order of the report.
    pub(crate) fn figures(self) -> &'static [Figure] {
        match self {
            Measure::Tcp1 => &[Figure::Tcp1Gbps, Figure::Tcp1Retransmits, Figure::Tcp1CpuSecondsPerGigabyte],
            Measure::Tcp4 => &[Figure::Tcp4Gbps, Figure::Tcp4Retransmits],
            Measure::Udp64 => &[Figure::Udp64PacketsPerSecond, Figure::Udp64LossPercent],
            Measure::UdpMtu => &[Figure::UdpMtuPacketsPerSecond, Figure::UdpMtuLossPercent],
            Measure::Ping => &[Figure::RttMedianMicroseconds, Figure::RttP99Microseconds],
        }
    }
}

/// Takes the measure once. `dir` is where the server's log goes.
pub(crate) fn run(measure: Measure, pair: &Pair, seconds: u32, dir: &Path) -> Result<Figures> {
    let values = match measure {
        Measure::Tcp1 => {
            let (transfer, cpu) = iperf::run(pair, Load::Tcp { streams: 1 }, seconds, dir)?;
            let tcp = iperf::tcp(&transfer)?;
            vec![tcp.gigabits_per_second(), tcp.retransmits, cpu / tcp.gigabytes()]
        }
        Measure::Tcp4 => {
            let (transfer, _) = iperf::run(pair, Load::Tcp { streams: 4 }, seconds, dir)?;
            let tcp = iperf::tcp(&transfer)?;
            vec![tcp.gigabits_per_second(), tcp.retransmits]
        }
        Measure::Udp64 => udp(pair, SMALL_PACKET - HEADERS, seconds, dir)?,
        Measure::UdpMtu => udp(pair, pair.client().mtu - HEADERS, seconds, dir)?,
        Measure::Ping => {
            let trips = ping::round_trips(&pair.client().place, pair.server().address)?;
            vec![trips.median, trips.p99]
        }
    };
    let figures = measure.figures().iter().copied().zip(values).collect::<Figures>();
    ensure!(figures.values().all(|value| value.is_finite()), "not a number among {figures:?}");
    Ok(figures)
}

/// One second of TCP that nobody measures: neighbours are found, buffers grow, code is in the caches.
pub(crate) fn warm_up(pair: &Pair, dir: &Path) -> Result<()> {
    iperf::run(pair, Load::Tcp { streams: 1 }, 1, dir).map(drop)
}

fn udp(pair: &Pair, payload: u32, seconds: u32, dir: &Path) -> Result<Vec<f64>> {
    let (transfer, _) = iperf::run(pair, Load::Udp { payload }, seconds, dir)?;
    let udp = iperf::udp(&transfer, payload)?;
    Ok(vec![udp.packets_per_second(), udp.loss_percent()])
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Measure::Tcp1 => "TCP, 1 stream",
            Measure::Tcp4 => "TCP, 4 streams",
            Measure::Udp64 => "UDP, 64 bytes",
            Measure::UdpMtu => "UDP, MTU size",
            Measure::Ping => "ping",
        })
    }
}
