//! A real Prometheus reads the agents' metrics, and its alerts name what is wrong.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::host::{STATUS_PORT, on_all};
use flan_integration::lab::ROUTER;
use flan_integration::process::{Lifetime, Process};
use flan_integration::{Host, Lab, LabOptions, tools, traffic, wait};
use serde_json::Value;

use crate::probes::{both_ways, close_firewall, open_firewall};
use crate::stage::{NETWORK_OF_UDP, bare_hosts};

/// How soon Prometheus sees what the agents know: scrapes and rules follow every second.
const SEEN: Duration = Duration::from_secs(30);

fn rules(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus").join(file)
}

/// Starts a Prometheus on the underlay that reads the hosts' metrics and has our rules.
fn start_prometheus(lab: &Lab, hosts: &[Host]) -> Result<Process> {
    let targets: Vec<String> =
        hosts.iter().map(|host| format!("\"{}:{STATUS_PORT}\"", host.address())).collect();
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{}\"]\nscrape_configs:\n  - job_name: fland\n    \
         static_configs: [{{targets: [{}]}}]\n",
        rules("flan.rules.yml").display(),
        targets.join(", ")
    );
    let (file, data) = (lab.dir().join("prometheus.yml"), lab.dir().join("prometheus"));
    fs::write(&file, config)?;
    let mut command = lab.underlay().place().command("prometheus");
    command
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", data.display()))
        .arg(format!("--web.listen-address={ROUTER}:9090"));
    Process::spawn("prometheus", &command, &lab.dir().join("prometheus.log"), Lifetime::Bound)
}

fn ask(lab: &Lab, path: &str) -> Result<Value> {
    let text = traffic::fetch(&lab.underlay().place(), &format!("http://{ROUTER}:9090/api/v1/{path}"))?;
    Ok(serde_json::from_str::<Value>(&text)?["data"].clone())
}

/// The value of an expression that is one number; `None` if it has none.
fn value(lab: &Lab, expression: &str) -> Result<Option<f64>> {
    // All that these expressions hold that a URL cannot.
    let query = expression.replace('{', "%7B").replace('}', "%7D").replace('"', "%22").replace('=', "%3D");
    let data = ask(lab, &format!("query?query={query}"))?;
    let text = data["result"][0]["value"][1].as_str();
    text.map(|text| text.parse().context("no number")).transpose()
}

fn wait_for_value(lab: &Lab, expression: &str, expected: f64) -> Result<()> {
    wait::until(&format!("{expression} to be {expected}"), SEEN, || {
        let value = value(lab, expression)?;
        ensure!(value == Some(expected), "it is {value:?}");
        Ok(())
    })
}

#[test]
fn the_alerts_are_right_by_their_own_tests() -> Result<()> {
    tools::check_for_prometheus()?;
    for (command, file) in [("check", "flan.rules.yml"), ("test", "flan.rules.test.yml")] {
        let output =
            std::process::Command::new("promtool").args([command, "rules"]).arg(rules(file)).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    }
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(rules("dashboard.json"))?)?;
    let text = fs::read_to_string(rules("flan.rules.yml"))?;
    ensure!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 5) && text.contains("alert:"));
    Ok(())
}

fn metrics(lab: &Lab, host: &Host) -> Result<String> {
    traffic::fetch(&lab.underlay().place(), &format!("http://{}:{STATUS_PORT}/metrics", host.address()))
}

/// All that rules and dashboard ask for is there.
fn all_names_are_metrics(metrics: &str) -> Result<()> {
    let told: Vec<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for file in ["flan.rules.yml", "dashboard.json"] {
        let text = fs::read_to_string(rules(file))?;
        let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in names.filter(|name| name.starts_with("flan_")) {
            ensure!(told.contains(&name), "{file} asks for {name}, which is no metric of: {told:?}");
        }
    }
    Ok(())
}

#[test]
fn a_prometheus_reads_two_hosts_and_an_alert_names_the_path_that_drops() -> Result<()> {
    tools::check_for_prometheus()?;
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK_OF_UDP)?;
        let mut hosts = bare_hosts(lab, 2)?;
        let flags = ["--ip-masq", "--healthz-ip", "0.0.0.0", "--healthz-port", STATUS_PORT];
        on_all(&mut hosts, |host| host.start_agent_with(&flags))?;
        let mut prometheus = start_prometheus(lab, &hosts)?;
        wait_for_value(lab, "sum(flan_ready)", 2.0)
            .with_context(|| format!("prometheus says:\n{}", prometheus.last_lines()))?;
        wait_for_value(lab, r#"sum(flan_peers{state="reachable"})"#, 2.0)?;
        wait_for_value(lab, "count(flan_peer_round_trip_seconds)", 2.0)?;
        ensure!(value(lab, "sum(flan_store_request_seconds_count)")?.is_some_and(|count| count > 4.0));
        ensure!(value(lab, "sum(flan_reconcile_seconds_count)")?.is_some_and(|count| count >= 2.0));
        ensure!(value(lab, r#"sum(flan_probes_sent_total{leg="agent"})"#)?.is_some_and(|count| count > 1.0));
        let of_good_times = metrics(lab, &hosts[0])?;
        // Somebody deletes what checks the senders.
        hosts[0].run("nft", &["delete", "table", "ip", "flan-peers"])?;
        wait::until("a repair to be counted", SEEN, || {
            let repairs = value(lab, "sum(flan_repairs_total)")?;
            ensure!(repairs.is_some_and(|repairs| repairs >= 1.0), "{repairs:?}");
            Ok(())
        })?;

        close_firewall(lab, &both_ways(hosts[0].address(), hosts[1].address(), "udp dport 8285"))?;
        wait_for_value(lab, r#"sum(flan_problems{name="peer-unreachable"})"#, 2.0)?;
        // It fires after a minute, as its own tests show.
        wait::until("an alert about both hosts", SEEN, || {
            let alerts = ask(lab, "alerts")?["alerts"].clone();
            let alerts = alerts.as_array().context("no list of alerts")?;
            let named = alerts.iter().filter(|alert| alert["labels"]["alertname"] == "FlanPeerUnreachable");
            let instances: Vec<&Value> = named.map(|alert| &alert["labels"]["instance"]).collect();
            ensure!(instances.len() == 2, "{alerts:?}");
            Ok(())
        })?;
        ensure!(
            value(lab, r#"sum(flan_datapath_packets_total{direction="sent"})"#)?
                .is_some_and(|count| count > 9.0)
        );
        all_names_are_metrics(&(of_good_times + &metrics(lab, &hosts[0])?))?;
        open_firewall(lab)?;
        wait::until("no problem to be left", SEEN, || {
            let left = value(lab, r#"sum(flan_problems{name="peer-unreachable"})"#)?;
            ensure!(left.is_none(), "{left:?}");
            Ok(())
        })?;
        prometheus.ensure_running()
    })
}
