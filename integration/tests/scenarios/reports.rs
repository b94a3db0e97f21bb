//! What a host tells about itself: the archive for a bug report, and who may ask the agent.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::flannel::{LEASE_SECONDS, lease_value};
use flan_integration::host::{STATUS_FLAGS, WIREGUARD_KEY};
use flan_integration::{Lab, LabOptions, tools, wait};
use serde_json::Value;

use crate::probes::{both_ways, close_firewall, open_firewall};
use crate::stage::{bare_hosts, hosts_with_status};
use crate::wireguard::{PSK, network};

const PASSWORD: &str = "dwtiuthmos";

#[test]
fn a_report_has_what_helps_and_no_secret() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(&network("user"))?;
        let mut host = bare_hosts(lab, 1)?.remove(0);
        host.start_agent_with(&STATUS_FLAGS)?;
        let settings = format!(
            "FLAND_ETCD_USERNAME=flan\nFLAND_ETCD_PASSWORD={PASSWORD}\nFLAND_WIREGUARD_KEY_FILE={WIREGUARD_KEY}\n"
        );
        fs::write(host.dir().join("run/fland"), settings)?;
        // Somebody has written it elsewhere, too.
        fs::write(host.dir().join("run/daemon.json"), format!(r#"{{"labels": ["{PASSWORD}"]}}"#))?;
        let report = |more: &[&str]| {
            let args = [
                "--env-file",
                "/run/fland",
                "report",
                "--iface",
                "eth0",
                "--docker-settings",
                "/run/daemon.json",
            ];
            host.flanctl(&[&args[..], more].concat())
        };

        let shown = report(&["--show"])?;
        shown.succeeded("flanctl report --show")?;
        let written = report(&["--file", "/run/report.tar.gz"])?;
        written.succeeded("flanctl report")?;
        ensure!(written.stdout.contains("Look through it"), "{written:?}");
        let mode = host.run("stat", &["-c", "%a", "/run/report.tar.gz"])?;
        assert_eq!(mode.trim(), "600");
        let names = host.run("tar", &["-tzf", "/run/report.tar.gz"])?;
        for name in [
            "check",
            "agent/status.json",
            "store/leases.json",
            "rules/nftables",
            "kernel/routes",
            "log/fland",
        ] {
            ensure!(names.lines().any(|line| line.ends_with(name)), "no {name} in {names}");
        }
        let text = host.run("tar", &["-xzOf", "/run/report.tar.gz"])?;
        for part in
            [&host.subnet_env()?.base(), "flannel-wg", "FLAND_ETCD_PASSWORD=***", r#""PSK":"***""#, "labels"]
        {
            ensure!(text.contains(part), "{part} is missing in the archive");
        }
        let key = host.run("cat", &[WIREGUARD_KEY])?;
        for (what, secret) in [("the password", PASSWORD), ("the PSK", PSK), ("the private key", key.trim())]
        {
            ensure!(!text.contains(secret) && !shown.stdout.contains(secret), "{what} is in the report");
        }
        let again = report(&["--file", "/run/report.tar.gz"])?;
        ensure!(again.code == Some(1) && again.stderr.contains("exists"), "it was overwritten: {again:?}");
        Ok(())
    })
}

/// A host tells of a change within 5 s of seeing it, and a problem of peers takes 15 s to be seen.
const TOLD: Duration = Duration::from_secs(30);
/// What a dead agent has told last ends after 45 s.
const SILENT: Duration = Duration::from_secs(75);

#[test]
fn one_host_shows_how_all_are() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 2)?;
        let shows = |limit: Duration, code: i32, lines: &[&[&str]]| {
            wait::until(&format!("{lines:?} to be shown"), limit, || {
                let all = lab.flanctl(&["status", "--all"])?;
                let is_there = |words: &[&str]| {
                    all.stdout.lines().any(|line| words.iter().all(|word| line.contains(word)))
                };
                ensure!(all.code == Some(code) && lines.iter().all(|words| is_there(words)), "{all:?}");
                Ok(())
            })
        };
        shows(TOLD, 0, &[&["h1", "ready", "1 of 1 answer", " 0"], &["h2", "ready", "1 of 1 answer"]])?;
        let json = lab.flanctl(&["status", "--all", "-o", "json"])?;
        let list: Value = serde_json::from_str(&json.stdout)?;
        ensure!(list["kind"] == "HostList" && list["items"][0]["summary"]["reachable"] == 1, "{list}");

        close_firewall(lab, &both_ways(hosts[0].address(), hosts[1].address(), "udp dport 8472"))?;
        let said = |host| ["FLAN-E012 peer-unreachable", host, "VXLAN (UDP 8472)"];
        shows(TOLD, 9, &[&said("h1: "), &said("h2: "), &["h1", "0 of 1 answer", " 1"]])?;
        open_firewall(lab)?;
        shows(TOLD, 0, &[&["h1", "ready", "1 of 1 answer"]])?;

        let lease = lease_value("192.168.64.99", "02:00:00:00:02:99");
        lab.store().put_leased("subnets/10.5.199.0-24", &lease, LEASE_SECONDS)?;
        hosts[1].kill_agent()?;
        shows(SILENT, 9, &[&["h2", "silent: no fland"], &["192.168.64.99", "10.5.199.0/24", "flannel"]])?;
        hosts[1].start_agent_with(&STATUS_FLAGS)?;
        shows(TOLD, 9, &[&["h2", "ready"]])?;
        // What somebody else writes is cut, and steers no terminal.
        lab.store().put("status/junk", "{\"host\":\"\u{1b}[2Jevil\",\"problems\":7}")?;
        lab.store().put("status/evil", "{\"host\":\"\\u001b[2Jevil\"}")?;
        let all = lab.flanctl(&["status", "--all"])?;
        ensure!(all.stdout.contains("evil") && !all.stdout.contains('\u{1b}'), "{all:?}");
        Ok(())
    })
}

#[test]
fn the_group_flan_may_read_what_the_agent_says_and_change_nothing() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut host = hosts_with_status(lab, 1)?.remove(0);
        let flanctl = tools::flan_binary("flanctl")?;
        let flanctl = flanctl.to_str().context("its path is no text")?;
        let as_member = |host: &flan_integration::Host, args: &[&str]| {
            let words = ["--reuid", "65534", "--regid", "65534", "--groups", "4711", flanctl];
            Ok::<_, anyhow::Error>(host.command("setpriv").args(words).args(args).output()?)
        };
        // Without the group, only root is answered.
        ensure!(!as_member(&host, &["peers"])?.status.success());
        host.stop_agent()?;
        // The machine's own list of groups stays as it is.
        host.run("sh", &["-c", "cat /etc/group > /run/group; echo flan:x:4711: >> /run/group"])?;
        host.run("mount", &["--bind", "/run/group", "/etc/group"])?;
        host.start_agent_with(&STATUS_FLAGS)?;
        let peers = as_member(&host, &["peers"])?;
        ensure!(peers.status.success(), "{peers:?}");
        let joined = as_member(&host, &["network", "leave", "blue"])?;
        let said = String::from_utf8_lossy(&joined.stderr).into_owned();
        ensure!(!joined.status.success() && said.contains("only root may change"), "{said}");
        Ok(())
    })
}
