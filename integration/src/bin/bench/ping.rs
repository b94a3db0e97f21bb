//! Round trips, each of them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use flan_integration::command::Place;
use flan_integration::statistics::{median, percentile};

/// Pings in a run.
const COUNT: usize = 400;

/// Seconds from one ping to the next.
const INTERVAL: &str = "0.005";

/// Round trips of a run, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoundTrips {
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

/// Pings for two seconds. An error if more than one ping in a hundred has no answer.
pub(crate) fn round_trips(from: &Place, to: Ipv4Addr) -> Result<RoundTrips> {
    let output =
        from.run("ping", ["-n", "-i", INTERVAL, "-c", &COUNT.to_string(), "-W", "1", &to.to_string()])?;
    let times = parse(&output)?;
    ensure!(times.len() * 100 >= COUNT * 99, "only {} of {COUNT} pings were answered", times.len());
    Ok(RoundTrips {
        median: median(&times).context("no answer")?,
        p99: percentile(&times, 99).context("no answer")?,
    })
}

/// The round trips of all answers, in microseconds.
fn parse(output: &str) -> Result<Vec<f64>> {
    let times = output.lines().filter_map(|line| line.split_once(" time=")).map(|(_, time)| {
        let number = time.strip_suffix(" ms").with_context(|| format!("not in ms: {time:?}"))?;
        let milliseconds: f64 = number.parse().with_context(|| format!("not a time: {time:?}"))?;
        Ok(milliseconds * 1000.0)
    });
    times.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From ping of iputils 20221126.
    const TEXT: &str = "PING 10.99.0.2 (10.99.0.2) 56(84) bytes of data.\n\
        64 bytes from 10.99.0.2: icmp_seq=1 ttl=64 time=0.067 ms\n\
        64 bytes from 10.99.0.2: icmp_seq=2 ttl=64 time=0.007 ms\n\
        64 bytes from 10.99.0.2: icmp_seq=4 ttl=64 time=1.20 ms\n\
        \n\
        --- 10.99.0.2 ping statistics ---\n\
        4 packets transmitted, 3 received, 25% packet loss, time 22ms\n\
        rtt min/avg/max/mdev = 0.007/0.027/1.200/0.022 ms\n";

    #[test]
    fn each_answer_is_read_in_microseconds() {
        let times = parse(TEXT).unwrap();
        assert_eq!(times.iter().map(|time| time.round()).collect::<Vec<_>>(), [67.0, 7.0, 1200.0]);
    }

    #[test]
    fn another_unit_is_an_error() {
        assert!(parse("64 bytes from 10.99.0.2: icmp_seq=1 ttl=64 time=0.067 s\n").is_err());
    }
}
