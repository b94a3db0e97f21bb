//! Traffic in both directions beside the pings: whole pages, and bursts of TCP and of small UDP packets.
//!
//! It is bounded so that no queue on the way overflows, for then pings would be lost without anybody's fault: TCP has
//! little under way, and the bursts have a rate.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use flan_integration::command::{self, Place};
use flan_integration::end::End;
use flan_integration::process::{Lifetime, Process};
use flan_integration::wait;
use serde_json::Value;

/// Bytes of a page.
const PAGE_BYTES: u64 = 8 << 20;

/// The receive buffer of all connections, in bytes: the most that one has under way. A queue of the device holds 500
/// packets.
const RECEIVE_BUFFER: u32 = 64 << 10;

/// Between one page or burst and the next.
const PAUSE: Duration = Duration::from_millis(200);

/// The payload of the small packets, in bytes; 64 with the headers.
const SMALL_PAYLOAD: u64 = 36;

/// 1,000 of these packets a second: an agent may be half a second late before a queue is full. How many get through in
/// all is for the bench to ask.
const SMALL_BITS_PER_SECOND: &str = "288K";

/// How long a page or a burst may take.
const TRANSFER_SECONDS: u32 = 20;

/// How long a server may take to listen.
const SERVER_LIMIT: Duration = Duration::from_secs(10);

/// Traffic that runs until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Load {
    progress: Arc<LoadProgress>,
    threads: Vec<JoinHandle<()>>,
    _servers: Vec<Process>,
}

#[derive(Debug, Default)]
struct LoadProgress {
    over: AtomicBool,
    counts: Counts,
    failure: Mutex<Option<anyhow::Error>>,
}

#[derive(Debug, Default)]
struct Counts {
    pages: AtomicU64,
    tcp_bursts: AtomicU64,
    tcp_bytes: AtomicU64,
    udp_bursts: AtomicU64,
    udp_sent: AtomicU64,
    udp_received: AtomicU64,
}

/// What has gone over so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally {
    /// Of [`PAGE_BYTES`] each, whole.
    pages: u64,
    tcp_bursts: u64,
    tcp_bytes: u64,
    udp_bursts: u64,
    udp_sent: u64,
    udp_received: u64,
}

/// One way between the ends.
#[derive(Debug, Clone)]
struct Way {
    client: Place,
    server: Place,
    address: Ipv4Addr,
    /// What the server's web server serves.
    pages: PathBuf,
}

impl Load {
    /// Starts servers at both ends and the traffic between them.
    pub(crate) fn start(dir: &Path, ends: &[End; 2]) -> Result<Load> {
        let mut servers = Vec::new();
        for (number, end) in ends.iter().enumerate() {
            let setting =
                format!("echo 4096 {RECEIVE_BUFFER} {RECEIVE_BUFFER} > /proc/sys/net/ipv4/tcp_rmem");
            end.place.run("sh", ["-c", &setting])?;
            let pages = pages_of(dir, number);
            fs::create_dir(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
            let mut httpd = end.place.command("busybox");
            httpd.args(["httpd", "-f", "-p", "80", "-h"]).arg(&pages);
            servers.push(start_server(&end.place, &httpd, 80, &dir.join(format!("httpd{number}.log")))?);
            let mut iperf3 = end.place.command("iperf3");
            iperf3.args(["--server", "--interval", "0"]);
            servers.push(start_server(&end.place, &iperf3, 5201, &dir.join(format!("iperf3-{number}.log")))?);
        }
        let ways = [(0, 1), (1, 0)].map(|(client, server): (usize, usize)| Way {
            client: ends[client].place.clone(),
            server: ends[server].place.clone(),
            address: ends[server].address,
            pages: pages_of(dir, server),
        });
        let progress = Arc::new(LoadProgress::default());
        let threads = vec![
            LoadProgress::repeat(&progress, &ways, |way, _, counts| transfer_page(way, counts)),
            LoadProgress::repeat(&progress, &ways, burst),
        ];
        Ok(Load { progress, threads, _servers: servers })
    }

    /// What ended the traffic, if it has ended.
    pub(crate) fn ensure_running(&self) -> Result<()> {
        let failure = self.progress.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failure {
            Some(failure) => Err(failure),
            None if self.threads.iter().any(JoinHandle::is_finished) => Err(anyhow!("the traffic has ended")),
            None => Ok(()),
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        let counts = &self.progress.counts;
        Tally {
            pages: counts.pages.load(Relaxed),
            tcp_bursts: counts.tcp_bursts.load(Relaxed),
            tcp_bytes: counts.tcp_bytes.load(Relaxed),
            udp_bursts: counts.udp_bursts.load(Relaxed),
            udp_sent: counts.udp_sent.load(Relaxed),
            udp_received: counts.udp_received.load(Relaxed),
        }
    }

    /// Lets what is under way end.
    pub(crate) fn stop(mut self) -> Result<Tally> {
        self.ensure_running()?;
        self.join();
        match self.progress.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(failure) => Err(failure),
            None => Ok(self.tally()),
        }
    }

    fn join(&mut self) {
        self.progress.over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}

impl LoadProgress {
    /// Does `work` this way and that, over and over, in a thread of its own. The work is told how often it was done.
    fn repeat(
        progress: &Arc<LoadProgress>,
        ways: &[Way; 2],
        work: impl Fn(&Way, usize, &Counts) -> Result<()> + Send + 'static,
    ) -> JoinHandle<()> {
        let (progress, ways) = (progress.clone(), ways.clone());
        thread::spawn(move || {
            for number in 0.. {
                if progress.over.load(Relaxed) {
                    return;
                }
                if let Err(error) = work(&ways[number % 2], number, &progress.counts) {
                    *progress.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
                thread::sleep(PAUSE);
            }
        })
    }
}

impl Tally {
    pub(crate) fn ensure_something_of_each(&self) -> Result<()> {
        ensure!(self.pages > 0 && self.tcp_bytes > 0 && self.udp_received > 0, "not everything went over");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { pages, tcp_bursts, tcp_bytes, udp_bursts, udp_sent, udp_received } = self;
        let mebibytes = tcp_bytes >> 20;
        write!(f, "{pages} pages whole; {tcp_bursts} TCP bursts, {mebibytes} MiB; ")?;
        write!(f, "{udp_bursts} UDP bursts, {udp_received} of {udp_sent} packets")
    }
}

/// A page that did not exist before, fetched and compared.
fn transfer_page(way: &Way, counts: &Counts) -> Result<()> {
    let page = way.pages.join("page");
    let write = format!("head -c {PAGE_BYTES} /dev/urandom > {0} && sha256sum < {0}", page.display());
    let written = way.server.run("sh", ["-c", &write])?;
    let fetch =
        format!("timeout {TRANSFER_SECONDS} busybox wget -q -O - http://{}/page | sha256sum", way.address);
    let fetched = way.client.run("sh", ["-c", &fetch])?;
    ensure!(fetched == written, "from {} came {fetched:?}, not {written:?}", way.address);
    counts.pages.fetch_add(1, Relaxed);
    Ok(())
}

/// Two of TCP, one each way, then two of UDP, and so on.
fn burst(way: &Way, number: usize, counts: &Counts) -> Result<()> {
    let udp = number / 2 % 2 == 1;
    let mut client = way.client.command("timeout");
    client.args([&TRANSFER_SECONDS.to_string(), "iperf3"]);
    client.args(["--client", &way.address.to_string(), "--time", "2", "--json", "--interval", "0"]);
    if udp {
        client.args(["--udp", "--bitrate", SMALL_BITS_PER_SECOND, "--length", &SMALL_PAYLOAD.to_string()]);
    } else {
        client.args(["--bitrate", "200M"]);
    }
    let outcome = command::run(&client)?;
    outcome.succeeded(&command::line(&client))?;
    let result: Value = serde_json::from_str(&outcome.stdout).context("what iperf3 printed")?;
    // With --json, iperf3 tells a failure there and ends with 0.
    ensure!(result.get("error").is_none(), "{}: {}", command::line(&client), result["error"]);
    let number = |pointer: &str| {
        let value = result.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("iperf3's JSON has no number {pointer}"))
    };
    let received = number("/end/sum_received/bytes")?;
    if udp {
        counts.udp_bursts.fetch_add(1, Relaxed);
        counts.udp_sent.fetch_add(number("/end/sum_sent/packets")?, Relaxed);
        counts.udp_received.fetch_add(received / SMALL_PAYLOAD, Relaxed);
    } else {
        counts.tcp_bursts.fetch_add(1, Relaxed);
        counts.tcp_bytes.fetch_add(received, Relaxed);
    }
    Ok(())
}

fn pages_of(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("pages{number}"))
}

fn start_server(place: &Place, command: &std::process::Command, port: u16, log: &Path) -> Result<Process> {
    let mut server = Process::spawn(&command::line(command), command, log, Lifetime::Bound)?;
    wait::until(&format!("{} to listen", server.name()), SERVER_LIMIT, || {
        server.ensure_running()?;
        let sockets = place.run("ss", ["-Hltn", &format!("sport = :{port}")])?;
        ensure!(!sockets.trim().is_empty(), "nobody listens at port {port}");
        Ok(())
    })?;
    Ok(server)
}
