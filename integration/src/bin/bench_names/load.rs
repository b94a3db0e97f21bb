//! Many questions to fland and to dnsmasq, with the same names.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::inside::Inside;
use flan_integration::process::{Lifetime, Process};
use flan_integration::statistics::median;
use flan_integration::store::{PREFIX, StoreClient};
use flan_integration::vitals::Vitals;
use flan_integration::{Host, Lab, LabOptions, StoreKind, wait};
use serde::Serialize;

use crate::arguments::Arguments;
use crate::question::Asker;

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}"#;
/// Containers of each host.
const CONTAINERS: u32 = 20;
const LIMIT: Duration = Duration::from_secs(60);
/// The load beside which single questions are timed.
const BESIDE: u32 = 50_000;
/// Single questions a second.
const SINGLE: u32 = 500;
const CONTROL: &str = "127.0.0.2";

/// What was measured of one server.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Speed {
    /// Answers a second, as fast as it can; the median of all rounds.
    pub(crate) answers: f64,
    /// Milliseconds of a single question beside 50,000 others a second; the median.
    pub(crate) milliseconds: f64,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Load {
    pub(crate) containers: u32,
    /// fland's memory with all names and without any, in 10^6 bytes.
    pub(crate) memory_megabytes: f64,
    pub(crate) memory_before: f64,
    pub(crate) fland: Speed,
    pub(crate) dnsmasq: Speed,
    /// The median ratio of answers in one round.
    pub(crate) ratio: f64,
}

pub(crate) fn measure(arguments: &Arguments) -> Result<Load> {
    let mut measured = None;
    Lab::run(LabOptions { store: Some(StoreKind::Etcd), ..LabOptions::default() }, |lab| {
        measured = Some(with(lab, arguments)?);
        Ok(())
    })?;
    measured.context("nothing was measured")
}

fn with(lab: &Lab, arguments: &Arguments) -> Result<Load> {
    lab.set_network(CONFIG)?;
    let mut host = lab.host("server")?;
    host.start_agent_with(&["--docker", "--names-upstream=none"])?;
    // What Docker would make.
    let _docker0 = End::behind_bridge(host.netns(), &host.subnet_env()?)?;
    let server = IpAddr::V4(host.subnet_env()?.subnet.ip());
    thread::sleep(Duration::from_secs(3));
    let memory_before = megabytes(&host)?;

    let names: Vec<(String, String)> = (0..arguments.hosts)
        .flat_map(|number| {
            let of = move |one| {
                (
                    format!("c{number}-{one}"),
                    format!("10.{}.{}.{}", 100 + number / 250, number % 250, one + 2),
                )
            };
            (0..CONTAINERS).map(of)
        })
        .collect();
    let store = StoreClient::connect(lab.underlay(), &lab.store().endpoints(), LIMIT)?;
    let entry = |(number, (name, address)): (usize, &(String, String))| {
        let value = format!(
            r#"{{"Name":"{name}","Host":"h{0}","NodeID":"node-{0}","Addresses":["{address}"]}}"#,
            number as u32 / CONTAINERS
        );
        // As long as Docker's id of an end.
        (format!("{PREFIX}/endpoints/{number:064x}"), value)
    };
    store.put_all(
        (0..arguments.hosts).map(|number| (format!("{PREFIX}/hosts/node-{number}"), "{}".to_owned())),
    )?;
    store.put_all(names.iter().enumerate().map(entry))?;
    let asker = |server: IpAddr, from: IpAddr| {
        Inside::of(host.netns())?.run(LIMIT, async move { Asker::new(from, server) })
    };
    let (last, _) = names.last().context("no names")?;
    let whole = format!("{last}.flan.internal");
    let of_fland = asker(server, server)?;
    wait::until("fland to know all names", LIMIT, || {
        ensure!(of_fland.knows(&whole)?, "it does not know {whole}");
        Ok(())
    })?;
    thread::sleep(Duration::from_secs(3));
    let memory_megabytes = megabytes(&host)?;

    let control: IpAddr = CONTROL.parse().context("an address")?;
    let _dnsmasq = dnsmasq(&host, lab.dir(), &names)?;
    let of_dnsmasq = asker(control, control)?;
    wait::until("dnsmasq to know all names", LIMIT, || {
        ensure!(of_dnsmasq.knows(&whole)?, "it does not know {whole}");
        Ok(())
    })?;
    let questions = lab.dir().join("questions.txt");
    let mut text = String::new();
    for (name, _) in &names {
        writeln!(text, "{name}.flan.internal A")?;
    }
    fs::write(&questions, text).context("cannot write the questions")?;

    let seconds = arguments.seconds;
    let mut rows = Vec::new();
    for _ in 0..arguments.rounds {
        let fland = answers(&host, server, server, &questions, seconds, None)?;
        rows.push((fland, answers(&host, control, control, &questions, seconds, None)?));
    }
    let of = |value: fn(&(f64, f64)) -> f64| {
        median(&rows.iter().map(value).collect::<Vec<_>>()).context("no round")
    };
    let beside = |server: IpAddr, asker: &Asker| -> Result<f64> {
        thread::scope(|scope| {
            let load = scope.spawn(|| answers(&host, server, server, &questions, seconds, Some(BESIDE)));
            thread::sleep(Duration::from_millis(500));
            let single =
                single(asker, &whole, Duration::from_secs(u64::from(seconds) - u64::from(seconds > 1)));
            load.join().expect("dnsperf's thread has panicked")?;
            single
        })
    };
    Ok(Load {
        containers: arguments.hosts * CONTAINERS,
        memory_megabytes,
        memory_before,
        fland: Speed { answers: of(|row| row.0)?, milliseconds: beside(server, &of_fland)? },
        dnsmasq: Speed { answers: of(|row| row.1)?, milliseconds: beside(control, &of_dnsmasq)? },
        ratio: of(|row| row.0 / row.1)?,
    })
}

fn megabytes(host: &Host) -> Result<f64> {
    let pid = host.agent_pid().context("no agent runs")?;
    Ok(Vitals::of(pid)?.resident_kib as f64 * 1024.0 / 1e6)
}

/// dnsmasq with these names, on loopback.
fn dnsmasq(host: &Host, dir: &Path, names: &[(String, String)]) -> Result<Process> {
    let file = dir.join("hosts.txt");
    let mut text = String::new();
    for (name, address) in names {
        writeln!(text, "{address} {name}.flan.internal")?;
    }
    fs::write(&file, text).context("cannot write dnsmasq's names")?;
    let mut command = host.place().command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
    ]);
    command.args([format!("--listen-address={CONTROL}"), format!("--addn-hosts={}", file.display())]);
    Process::spawn("dnsmasq", &command, &dir.join("dnsmasq.log"), Lifetime::Bound)
}

/// Asks for some seconds, as fast as there are answers or so many times a second. Returns the answers a second.
fn answers(
    host: &Host,
    server: IpAddr,
    from: IpAddr,
    questions: &Path,
    seconds: u32,
    rate: Option<u32>,
) -> Result<f64> {
    let mut args: Vec<String> = [
        "-c",
        "4",
        "-q",
        "200",
        "-s",
        &server.to_string(),
        "-a",
        &from.to_string(),
        "-l",
        &seconds.to_string(),
        "-d",
    ]
    .map(str::to_owned)
    .into();
    args.push(questions.display().to_string());
    if let Some(rate) = rate {
        args.extend(["-Q".to_owned(), rate.to_string()]);
    }
    let said = host.run("dnsperf", &args.iter().map(String::as_str).collect::<Vec<_>>())?;
    let lost = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Queries lost:"))
        .context("no count of lost queries")?;
    let rate =
        said.lines().find_map(|line| line.trim().strip_prefix("Queries per second:")).context("no rate")?;
    ensure!(lost.trim().starts_with("0 ") || lost.contains("(0."), "{said}");
    rate.trim().parse().with_context(|| format!("{rate:?} is no rate"))
}

/// Asks one question after another, and returns the median time in milliseconds.
fn single(asker: &Asker, name: &str, limit: Duration) -> Result<f64> {
    let (started, mut times) = (Instant::now(), Vec::new());
    while started.elapsed() < limit {
        let asked = Instant::now();
        ensure!(asker.knows(name)?, "{name} is not known any more");
        times.push(asked.elapsed().as_secs_f64() * 1000.0);
        thread::sleep((Duration::from_secs(1) / SINGLE).saturating_sub(asked.elapsed()));
    }
    median(&times).context("nothing was asked")
}
