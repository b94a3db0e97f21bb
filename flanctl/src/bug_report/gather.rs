//! Everything that goes into a report: files, what programs say, what the agent and the store know.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use flan_subnet_lease::{Store, StoreConfig, StoreError};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Entry, secrets};
use crate::args::BugReportArgs;
use crate::failure::{Failure, Kind};
use crate::{access, agent, check, subnets};

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Most that is kept of one file, in bytes: its end.
const MOST: usize = 4 << 20;

/// What programs say, by the file that it goes to.
const PROGRAMS: [(&str, &[&str]); 23] = [
    ("versions/kernel", &["uname", "-a"]),
    ("versions/ip", &["ip", "-V"]),
    ("versions/nft", &["nft", "--version"]),
    ("versions/iptables", &["iptables", "--version"]),
    ("versions/docker", &["docker", "version"]),
    ("kernel/links", &["ip", "-d", "link"]),
    ("kernel/addresses", &["ip", "address"]),
    ("kernel/routes", &["ip", "route", "show", "table", "all"]),
    ("kernel/routes-ipv6", &["ip", "-6", "route", "show", "table", "all"]),
    ("kernel/rules", &["ip", "rule"]),
    ("kernel/next-hops", &["ip", "nexthop"]),
    ("kernel/neighbours", &["ip", "neigh"]),
    ("kernel/forwarding-entries", &["bridge", "fdb"]),
    ("kernel/sockets", &["ss", "-lunp"]),
    // Not /proc/modules, which tells root where they are in memory.
    ("kernel/modules", &["lsmod"]),
    ("kernel/fou", &["ip", "fou", "show"]),
    ("rules/nftables", &["nft", "list", "ruleset"]),
    ("rules/iptables", &["iptables-save", "-c"]),
    ("rules/ip6tables", &["ip6tables-save", "-c"]),
    ("rules/iptables-legacy", &["iptables-legacy-save", "-c"]),
    ("docker/networks", &["docker", "network", "ls"]),
    ("log/fland", &["journalctl", "-u", "fland", "-n", "5000", "--no-pager", "-o", "short-iso-precise"]),
    // What dockerd itself says, and not its containers.
    (
        "log/docker",
        &[
            "journalctl",
            "-u",
            "docker",
            "_TRANSPORT=stdout",
            "-n",
            "500",
            "--no-pager",
            "-o",
            "short-iso-precise",
        ],
    ),
];

/// Files that are taken as they are.
const FILES: [(&str, &str); 4] = [
    ("versions/system", "/etc/os-release"),
    ("kernel/counters", "/proc/net/snmp"),
    ("settings/fland.service.d", "/etc/systemd/system/fland.service.d/override.conf"),
    ("settings/docker.service.d", "/etc/systemd/system/docker.service.d/flan.conf"),
];

/// Settings of the kernel, below `/proc/sys`.
const SETTINGS: [&str; 10] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
];

/// Gathers all of it. What cannot be had says why.
pub(super) async fn all(
    args: &BugReportArgs,
    settings_file: &Path,
    config: Result<StoreConfig, StoreError>,
    comment: &str,
) -> Vec<Entry> {
    let entry = |name: &str, text: String| Entry { name: name.to_owned(), text };
    let mut entries = vec![entry("versions/flanctl", format!("flanctl {}\n", env!("CARGO_PKG_VERSION")))];
    entries.push(entry(
        "check",
        match &config {
            Ok(config) => check::examined(&args.host, config, comment).await.text(),
            Err(reason) => format!("cannot be done, as the settings of the store cannot be used: {reason}\n"),
        },
    ));
    for (name, path) in [("agent/status.json", "/status"), ("agent/peers.json", "/peers")] {
        entries.push(entry(name, or_reason(document(&args.host.socket.path, path).await)));
    }
    let store = config.map_err(Failure::from).and_then(access::open);
    entries.push(entry("store/config.json", or_reason(stored_config(&store).await)));
    entries.push(entry("store/leases.json", or_reason(leases(&store).await)));
    for (name, program) in PROGRAMS {
        entries.push(entry(name, said(program).await));
    }
    for (name, file) in FILES {
        entries.push(entry(name, read(Path::new(file))));
    }
    let settings: Vec<String> = SETTINGS
        .iter()
        .map(|setting| format!("{setting} = {}", read(&Path::new("/proc/sys").join(setting)).trim()))
        .collect();
    entries.push(entry("kernel/settings", settings.join("\n")));
    entries.push(entry("settings/fland", secrets::settings_of(settings_file)));
    for (name, file) in [
        ("settings/daemon.json", &args.host.docker_settings),
        ("subnets/default.env", &args.host.subnet_file.path),
    ] {
        entries.push(entry(name, read(file)));
    }
    for (network, file) in args.subnet_dir.files().unwrap_or_default() {
        entries.push(entry(&format!("subnets/{network}.env"), read(&file)));
    }
    entries
}

fn or_reason(text: Result<String, Failure>) -> String {
    text.unwrap_or_else(|failure| format!("{failure}\n"))
}

async fn document(socket: &Path, path: &str) -> Result<String, Failure> {
    pretty(&agent::get::<Value>(socket, path).await?)
}

async fn stored_config(store: &Result<Store, Failure>) -> Result<String, Failure> {
    let stored = in_time(opened(store)?.config()).await??;
    let json = stored.ok_or_else(|| Failure::new(Kind::NoConfig, "there is no network config"))?.json;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

async fn leases(store: &Result<Store, Failure>) -> Result<String, Failure> {
    pretty(&in_time(subnets::document(opened(store)?)).await??)
}

fn opened(store: &Result<Store, Failure>) -> Result<&Store, Failure> {
    store.as_ref().map_err(|failure| Failure::new(failure.kind, failure))
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure::new(Kind::TimedOut, format!("no answer within {} s", LIMIT.as_secs()));
    timeout(LIMIT, work).await.map_err(late)
}

fn pretty(document: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(document).map_err(|error| Failure::new(Kind::Other, error))
}

/// Returns what a program says, on both of its outputs.
async fn said(words: &[&str]) -> String {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).kill_on_drop(true);
    let text = match timeout(LIMIT, command.output()).await {
        Ok(Ok(output)) => {
            let ended = if output.status.success() { String::new() } else { format!("{}\n", output.status) };
            format!("{}{}{ended}", end_of(&output.stdout), end_of(&output.stderr))
        }
        Ok(Err(reason)) => format!("cannot be run: {reason}\n"),
        Err(_) => format!("did not end within {} s\n", LIMIT.as_secs()),
    };
    format!("$ {}\n{text}", words.join(" "))
}

fn read(file: &Path) -> String {
    match std::fs::read(file) {
        Ok(bytes) => end_of(&bytes),
        Err(reason) => format!("{}: {reason}\n", file.display()),
    }
}

fn end_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MOST)..]).into_owned()
}
