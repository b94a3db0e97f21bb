//! What a host tells about itself: the archive for a bug report, and who may ask the agent.

use std::fs;

use anyhow::{Context, Result, ensure};
use flan_integration::host::{STATUS_FLAGS, WIREGUARD_KEY};
use flan_integration::{Lab, LabOptions, tools};

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
        ensure!(written.stdout.contains("passwords and keys are left out"), "{written:?}");
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
