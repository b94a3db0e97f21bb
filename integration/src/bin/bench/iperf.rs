//! Runs of iperf3: a server that serves once, a client, and what the client's JSON says.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use flan_integration::command::{self, Place};
use flan_integration::process::{Lifetime, Process};
use flan_integration::{cpu, wait};
use serde_json::Value;

use crate::pair::Pair;

/// How long a server may take to listen, and to end after its client.
const SERVER_LIMIT: Duration = Duration::from_secs(10);

/// What a client sends. One process sends it all, from one thread.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// As much as goes through, over this many streams.
    Tcp { streams: u32 },
    /// Packets with this many bytes of payload, as fast as they can be sent.
    Udp { payload: u32 },
}

/// What went over TCP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tcp {
    received_bits_per_second: f64,
    received_bytes: f64,
    /// Segments sent again.
    pub(crate) retransmits: f64,
}

/// What went over UDP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Udp {
    sent: f64,
    received: f64,
    seconds: f64,
}

/// Sends for so many seconds, and returns the client's JSON with the seconds that all CPUs were busy meanwhile.
pub(crate) fn run(pair: &Pair, load: Load, seconds: u32, dir: &Path) -> Result<(Value, f64)> {
    let server = start_server(&pair.server().place, &dir.join("iperf3-server.log"))?;
    let mut client = pair.client().place.command("iperf3");
    client.args(["--client", &pair.server().address.to_string(), "--time", &seconds.to_string()]);
    // No reports on the way: they cost time.
    client.args(["--json", "--interval", "0"]);
    match load {
        Load::Tcp { streams } => client.args(["--parallel", &streams.to_string()]),
        Load::Udp { payload } => client.args(["--udp", "--bitrate", "0", "--length", &payload.to_string()]),
    };
    let before = cpu::busy_seconds()?;
    let outcome = command::run(&client)?;
    let busy = cpu::busy_seconds()? - before;

    let result = outcome.succeeded("the client").and_then(|()| parse(&outcome.stdout));
    let result =
        result.map_err(|error| anyhow!("{}: {error:#}\n{}", command::line(&client), server.last_lines()))?;
    end(server)?;
    Ok((result, busy))
}

/// Reads the end of a run over TCP.
pub(crate) fn tcp(result: &Value) -> Result<Tcp> {
    let tcp = Tcp {
        received_bits_per_second: number(result, "/end/sum_received/bits_per_second")?,
        received_bytes: number(result, "/end/sum_received/bytes")?,
        retransmits: number(result, "/end/sum_sent/retransmits")?,
    };
    ensure!(tcp.received_bytes > 0.0, "iperf3 has received nothing");
    Ok(tcp)
}

/// Reads the end of a run over UDP with packets of so many bytes.
///
/// iperf3's own loss leaves out what was lost at the end, so it is taken from what was sent and received.
pub(crate) fn udp(result: &Value, payload: u32) -> Result<Udp> {
    let udp = Udp {
        sent: number(result, "/end/sum_sent/packets")?,
        received: number(result, "/end/sum_received/bytes")? / f64::from(payload),
        seconds: number(result, "/end/sum_received/seconds")?,
    };
    ensure!(udp.sent > 0.0 && udp.seconds > 0.0, "iperf3 has sent nothing: {udp:?}");
    Ok(udp)
}

impl Tcp {
    pub(crate) fn gigabits_per_second(&self) -> f64 {
        self.received_bits_per_second / 1e9
    }

    pub(crate) fn gigabytes(&self) -> f64 {
        self.received_bytes / 1e9
    }
}

impl Udp {
    pub(crate) fn packets_per_second(&self) -> f64 {
        self.received / self.seconds
    }

    pub(crate) fn loss_percent(&self) -> f64 {
        100.0 * (1.0 - self.received / self.sent).max(0.0)
    }
}

/// A server that ends after one client.
fn start_server(place: &Place, log: &Path) -> Result<Process> {
    // Of this run alone.
    let _ = fs::remove_file(log);
    let mut command = place.command("iperf3");
    command.args(["--server", "--one-off", "--interval", "0"]);
    let mut server = Process::spawn("iperf3's server", &command, log, Lifetime::Bound)?;
    wait::until("iperf3's server to listen", SERVER_LIMIT, || {
        server.ensure_running()?;
        let sockets = place.run("ss", ["-Hltn", "sport = :5201"])?;
        ensure!(!sockets.trim().is_empty(), "nobody listens at port 5201");
        Ok(())
    })?;
    Ok(server)
}

fn end(mut server: Process) -> Result<()> {
    let status = server.wait_for_end(SERVER_LIMIT)?;
    ensure!(status.success(), "iperf3's server ended with {status}\n{}", server.last_lines());
    Ok(())
}

/// An error if the run failed: with `--json`, iperf3 says so in the JSON and ends with 0.
fn parse(text: &str) -> Result<Value> {
    let result: Value = serde_json::from_str(text).with_context(|| format!("not JSON: {text:?}"))?;
    match result["error"].as_str() {
        Some(error) => Err(anyhow!("iperf3: {error}")),
        None => Ok(result),
    }
}

fn number(result: &Value, pointer: &str) -> Result<f64> {
    let value = result.pointer(pointer).and_then(Value::as_f64);
    value.with_context(|| format!("iperf3's JSON has no number {pointer}; version 3.12 has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From iperf3 3.12 with `--parallel 4`, without the single streams.
    const TCP: &str = r#"{"start":{"version":"iperf 3.12"},"intervals":[],"end":{
        "sum_sent":{"start":0,"end":1.001604,"seconds":1.001604,"bytes":2583822336,
            "bits_per_second":20637476176.213356,"retransmits":1,"sender":true},
        "sum_received":{"start":0,"end":1.002592,"seconds":1.002592,"bytes":2583822336,
            "bits_per_second":20617139063.547287,"sender":true}}}"#;

    /// From iperf3 3.12 with `--udp --bitrate 0 --length 36`.
    const UDP: &str = r#"{"start":{"version":"iperf 3.12"},"intervals":[],"end":{
        "sum":{"start":0,"end":1.000073,"seconds":1.000073,"bytes":9819720,"bits_per_second":78556424.5407828,
            "jitter_ms":0.001992528737808803,"lost_packets":86239,"packets":272770,
            "lost_percent":31.616013491219707,"sender":true},
        "sum_sent":{"start":0,"end":1.000017,"seconds":1.000017,"bytes":9819720,
            "bits_per_second":78556424.5407828,"jitter_ms":0,"lost_packets":0,"packets":272770,
            "lost_percent":0,"sender":true},
        "sum_received":{"start":0,"end":1.000073,"seconds":1.000073,"bytes":6710904,
            "bits_per_second":53683313.118142374,"jitter_ms":0.001992528737808803,"lost_packets":86239,
            "packets":272653,"lost_percent":31.616013491219707,"sender":false}}}"#;

    /// From iperf3 3.12, which ended with 0.
    const REFUSED: &str = r#"{"start":{"connected":[],"version":"iperf 3.12"},"intervals":[],"end":{},
        "error":"unable to connect to server: Connection refused"}"#;

    #[test]
    fn tcp_counts_what_was_received() {
        let tcp = tcp(&parse(TCP).unwrap()).unwrap();
        assert!((tcp.gigabits_per_second() - 20.617).abs() < 0.001, "{tcp:?}");
        assert!((tcp.gigabytes() - 2.583_822_336).abs() < 1e-9, "{tcp:?}");
        assert_eq!(tcp.retransmits, 1.0);
    }

    #[test]
    fn udp_counts_packets_received_and_loses_the_rest() {
        let udp = udp(&parse(UDP).unwrap(), 36).unwrap();
        assert_eq!(udp.received, 272_653.0 - 86_239.0);
        assert_eq!(udp.packets_per_second().round(), 186_400.0);
        assert!((udp.loss_percent() - 31.66).abs() < 0.01, "{}", udp.loss_percent());
    }

    #[test]
    fn a_failure_is_told_in_iperfs_words() {
        let error = parse(REFUSED).unwrap_err().to_string();
        assert_eq!(error, "iperf3: unable to connect to server: Connection refused");
    }

    #[test]
    fn a_missing_number_is_named() {
        let error = udp(&parse(TCP).unwrap(), 36).unwrap_err().to_string();
        assert!(error.contains("/end/sum_sent/packets"), "{error}");
    }
}
