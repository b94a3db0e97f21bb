//! `flanctl` against a real store: what it does, what it refuses, and how it ends.

use anyhow::{Result, ensure};
use flan_integration::command::Outcome;
use flan_integration::{Lab, LabOptions, StoreKind};
use serde_json::Value;

use crate::stage::NETWORK;

const UNUSABLE: i32 = 2;
const UNREACHABLE: i32 = 3;
const UNAUTHORISED: i32 = 4;
const NO_CONFIG: i32 = 5;
const REFUSED: i32 = 6;
const NOT_FOUND: i32 = 7;
const TIMED_OUT: i32 = 8;

/// An error unless it ended with this code and, if that is not 0, said so in one line of standard error.
fn ended_with(code: i32, outcome: &Outcome) -> Result<()> {
    ensure!(outcome.code == Some(code), "wanted exit code {code}: {outcome:?}");
    let lines = outcome.stderr.trim().lines().count();
    ensure!(code == 0 || lines >= 1, "no word about the failure: {outcome:?}");
    Ok(())
}

fn one_line_about(code: i32, outcome: &Outcome) -> Result<()> {
    ended_with(code, outcome)?;
    ensure!(outcome.stderr.trim().lines().count() == 1, "more than one line: {outcome:?}");
    Ok(())
}

#[test]
fn the_network_config_is_checked_before_it_is_written() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        one_line_about(NO_CONFIG, &lab.flanctl(&["config", "get"])?)?;
        one_line_about(NO_CONFIG, &lab.flanctl(&["subnets", "ls"])?)?;

        for (config, named) in [
            ("{", "JSON"),
            (r#"{"Backend":{"Type":"vxlan"}}"#, "Network"),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":31,"Backend":{"Type":"vxlan"}}"#, "31"),
            (r#"{"Network":"10.5.0.0/16","SubnetMin":"10.4.0.0","Backend":{"Type":"vxlan"}}"#, "10.4.0.0"),
            (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"carrier-pigeon"}}"#, "carrier-pigeon"),
        ] {
            for verb in ["validate", "set"] {
                let outcome = lab.flanctl_with_input(&["config", verb, "-"], config)?;
                one_line_about(UNUSABLE, &outcome)?;
                ensure!(
                    outcome.stderr.contains(named),
                    "{verb} of {config} does not name {named}: {outcome:?}"
                );
            }
        }
        ensure!(lab.store().value("config")?.is_none(), "a bad config was written");

        ended_with(0, &lab.flanctl_with_input(&["config", "validate", "-"], NETWORK)?)?;
        ensure!(lab.store().value("config")?.is_none(), "validate has written");
        ended_with(0, &lab.flanctl_with_input(&["config", "set", "-"], NETWORK)?)?;
        let got = lab.flanctl(&["config", "get"])?;
        ended_with(0, &got)?;
        ensure!(got.stdout.contains("10.5.0.0/16"), "{got:?}");
        let stored: Value = serde_json::from_str(&lab.store().value("config")?.unwrap_or_default())?;
        ensure!(stored["Network"] == "10.5.0.0/16", "flannel reads {stored}");
        Ok(())
    })
}

#[test]
fn the_backend_is_written_out_and_never_changed_unasked() -> Result<()> {
    const TACIT: &str = "\u{feff}{\"Network\":\"10.5.0.0/16\"}";
    const UDP: &str = r#"{"Network":"10.5.0.0/16", "Backend": {"Type": "udp"}}"#;
    const VXLAN: &str = r#"{"Network":"10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    Lab::run(LabOptions::default(), |lab| {
        let set = |flags: &[&str]| lab.flanctl_with_input(&[&["config", "set", "-"], flags].concat(), TACIT);
        let stored = || Ok::<_, anyhow::Error>(lab.store().value("config")?.unwrap_or_default());
        let added = set(&[])?;
        ended_with(0, &added)?;
        ensure!(added.stdout.contains(r#"added "Backend": {"Type": "vxlan"}"#), "{added:?}");
        assert_eq!(stored()?, VXLAN);
        ended_with(0, &set(&["--backend", "udp"])?)?;
        assert_eq!(stored()?, UDP);

        // As somebody wrote it without flanctl.
        for runs_udp in [UDP, r#"{"Network":"10.5.0.0/16"}"#] {
            lab.store().put("config", runs_udp)?;
            let refused = set(&[])?;
            one_line_about(REFUSED, &refused)?;
            ensure!(refused.stderr.contains("--backend udp"), "no word of what would work: {refused:?}");
            assert_eq!(stored()?, runs_udp);
        }
        ended_with(0, &set(&["--backend", "vxlan"])?)?;
        assert_eq!(stored()?, VXLAN);
        one_line_about(
            UNUSABLE,
            &lab.flanctl_with_input(&["config", "set", "-", "--backend", "udp"], NETWORK)?,
        )
    })
}

#[test]
fn a_config_that_would_strand_leases_is_refused() -> Result<()> {
    const ELSEWHERE: &str = r#"{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}"#;
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        host.start_agent()?;
        let subnet = host.subnet_env()?.base();

        let refused = lab.flanctl_with_input(&["config", "set", "-"], ELSEWHERE)?;
        ended_with(REFUSED, &refused)?;
        ensure!(refused.stderr.contains(&subnet), "the stranded lease {subnet} is not named: {refused:?}");
        ensure!(lab.store().value("config")?.is_some_and(|config| config.contains("10.5.0.0/16")));

        ended_with(0, &lab.flanctl_with_input(&["config", "set", "--force", "-"], ELSEWHERE)?)?;
        ensure!(lab.store().value("config")?.is_some_and(|config| config.contains("10.77.0.0/16")));
        Ok(())
    })
}

#[test]
fn a_reserved_subnet_goes_to_its_host_and_stays_reserved() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        let address = host.address().to_string();
        let reserve = ["subnets", "reserve", "10.5.77.0/24", "--public-ip", &address];
        ended_with(0, &lab.flanctl(&reserve)?)?;
        ended_with(
            REFUSED,
            &lab.flanctl(&["subnets", "reserve", "10.5.77.0/24", "--public-ip", "192.168.64.99"])?,
        )?;
        let outside = lab.flanctl(&["subnets", "reserve", "10.6.1.0/24", "--public-ip", "192.168.64.99"])?;
        ensure!(outside.code != Some(0), "reserved outside the network: {outside:?}");

        host.start_agent()?;
        assert_eq!(host.subnet_env()?.base(), "10.5.77.0/24");
        assert_eq!(lab.store().lease_id("subnets/10.5.77.0-24")?, 0, "the reservation got a time to live");
        let list = lab.flanctl(&["subnets", "ls", "-o", "json"])?;
        ended_with(0, &list)?;
        let list: Value = serde_json::from_str(&list.stdout)?;
        let item = &list["items"][0];
        assert_eq!(item["subnets"][0], "10.5.77.0/24");
        assert_eq!(item["publicIPs"][0], address.as_str());
        assert_eq!(item["expiresInSeconds"], Value::Null);
        for format in ["table", "wide", "yaml"] {
            let list = lab.flanctl(&["subnets", "ls", "-o", format])?;
            ended_with(0, &list)?;
            ensure!(list.stdout.contains("10.5.77.0/24"), "{format}: {list:?}");
        }
        let shown = lab.flanctl(&["subnets", "show", "10.5.77.0/24"])?;
        ended_with(0, &shown)?;
        ensure!(shown.stdout.contains(&address), "{shown:?}");

        // Nobody answers its question here, so it must not go ahead.
        let unanswered = lab.flanctl(&["subnets", "release", "10.5.77.0/24"])?;
        ensure!(unanswered.code != Some(0), "released without an answer: {unanswered:?}");
        ensure!(lab.store().value("subnets/10.5.77.0-24")?.is_some());
        host.stop_agent()?;
        ended_with(0, &lab.flanctl(&["subnets", "release", "10.5.77.0/24", "--yes"])?)?;
        ensure!(lab.store().value("subnets/10.5.77.0-24")?.is_none());
        one_line_about(NOT_FOUND, &lab.flanctl(&["subnets", "release", "10.5.77.0/24", "--yes"])?)?;
        one_line_about(NOT_FOUND, &lab.flanctl(&["subnets", "show", "10.5.77.0/24"])?)
    })
}

#[test]
fn waiting_for_the_agent_ends_with_it_or_with_the_time() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        ended_with(TIMED_OUT, &host.flanctl(&["wait", "--timeout", "1s"])?)?;
        host.start_agent()?;
        ended_with(0, &host.flanctl(&["wait", "--timeout", "20s"])?)
    })
}

#[test]
fn a_store_that_refuses_or_does_not_answer_is_said_so() -> Result<()> {
    // Users and roles are the real one's alone.
    Lab::run(LabOptions { store: Some(StoreKind::Etcd), ..LabOptions::default() }, |lab| {
        lab.set_network(NETWORK)?;
        for command in ["user add root:secret", "role add root", "user grant-role root root", "auth enable"] {
            lab.store().ctl(&command.split(' ').collect::<Vec<_>>())?;
        }
        one_line_about(UNAUTHORISED, &lab.flanctl(&["config", "get"])?)?;
        let wrong = ["--etcd-username", "root", "--etcd-password", "wrong", "config", "get"];
        one_line_about(UNAUTHORISED, &lab.flanctl(&wrong)?)?;
        let right = ["--etcd-username", "root", "--etcd-password", "secret", "config", "get"];
        ended_with(0, &lab.flanctl(&right)?)?;

        lab.store_mut().kill_member(0)?;
        one_line_about(UNREACHABLE, &lab.flanctl(&["config", "get"])?)?;
        one_line_about(UNREACHABLE, &lab.flanctl(&["subnets", "ls"])?)
    })
}
