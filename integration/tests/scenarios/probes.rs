//! What does not pass between hosts is named by each, with the part that fails, and is over when it passes again.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flan_integration::host::{STATUS_FLAGS, STATUS_PORT, on_all};
use flan_integration::{Host, Lab, LabOptions, traffic, wait};
use serde_json::Value;

use crate::obstacles::{problem, wait_for_problem, wait_until_solved};
use crate::stage::{bare_hosts, ends_of, hosts_with_status};

/// How soon a fault is named.
const NAMED: Duration = Duration::from_secs(15);
/// How soon it is told to be over: three answers, two seconds apart, and what a busy machine adds.
const OVER: Duration = Duration::from_secs(20);
/// How soon agents that have just started know that all their peers answer.
const KNOWN: Duration = Duration::from_secs(15);

const CODES: [&str; 4] = ["peer-unreachable", "peer-mtu", "peer-loss", "peer-agent"];

/// The peers of a host, as `flanctl peers` shows them.
fn peers(host: &Host) -> Result<Vec<Value>> {
    let peers: Value = serde_json::from_str(&host.flanctl(&["peers", "-o", "json"])?.stdout)?;
    peers["peers"].as_array().cloned().context("no list of peers")
}

fn health(host: &Host, peer: &Host) -> Result<Value> {
    let peers = peers(host)?;
    let found = peers.into_iter().find(|one| one["host"] == peer.name());
    Ok(found.with_context(|| format!("{} does not know {}", host.name(), peer.name()))?["health"].clone())
}

/// Waits until all hosts know of all others that they answer, their agents, too, and that packets of full size pass.
fn wait_until_all_is_well(hosts: &[Host], mtu: u64) -> Result<()> {
    for host in hosts {
        wait::until(&format!("the peers of {} to be well", host.name()), KNOWN, || {
            let peers = peers(host)?;
            ensure!(peers.len() + 1 == hosts.len(), "{peers:?}");
            for peer in peers {
                let health = &peer["health"];
                ensure!(health["state"] == "reachable" && health["mtu"] == mtu, "{peer}");
                ensure!(health["agentAnsweredSeconds"].as_u64().is_some_and(|seconds| seconds < 5), "{peer}");
                ensure!(health["roundTripMicroseconds"].as_u64().is_some(), "{peer}");
            }
            Ok(())
        })?;
        for code in CODES {
            let problem = problem(host, code)?;
            ensure!(problem.is_none(), "{} says {code}: {problem:?}", host.name());
        }
    }
    Ok(())
}

/// A firewall between hosts that drops these packets, until it is opened.
pub(crate) fn close_firewall(lab: &Lab, rules: &[String]) -> Result<()> {
    let rules = rules.join("\n");
    let table = format!(
        "table bridge between {{ chain forwarding {{ type filter hook forward priority 0;\n{rules}\n}}\n}}"
    );
    lab.underlay().place().run("nft", [&*table]).map(drop)
}

pub(crate) fn open_firewall(lab: &Lab) -> Result<()> {
    lab.underlay().place().run("nft", ["delete table bridge between"]).map(drop)
}

pub(crate) fn both_ways(one: Ipv4Addr, other: Ipv4Addr, what: &str) -> Vec<String> {
    vec![
        format!("ip saddr {one} ip daddr {other} {what} drop"),
        format!("ip saddr {other} ip daddr {one} {what} drop"),
    ]
}

/// `flanctl ping` ends with this code, and says all of this.
fn pinged(host: &Host, target: &str, code: i32, parts: &[&str]) -> Result<()> {
    let outcome = host.flanctl(&["ping", target, "--interval", "100ms"])?;
    ensure!(outcome.code == Some(code), "{outcome:?}");
    ensure!(parts.iter().all(|part| outcome.stdout.contains(part)), "no {parts:?} in {}", outcome.stdout);
    Ok(())
}

/// What the health port says.
fn is_healthy(host: &Host) -> bool {
    traffic::fetch(&host.netns().place(), &format!("http://127.0.0.1:{STATUS_PORT}/healthz")).is_ok()
}

#[test]
fn each_of_four_faults_between_hosts_is_named_within_fifteen_seconds_and_over_when_it_is() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 3)?;
        wait_until_all_is_well(&hosts, 1450)?;
        let subnet = hosts[1].subnet_values()?.key().replace('-', "/");
        let (one, other) = (hosts[0].address(), hosts[1].address());

        // A firewall drops VXLAN between two of three hosts.
        close_firewall(lab, &both_ways(one, other, "udp dport 8472"))?;
        let its = format!("h2 ({subnet}): its underlay address {other} answers");
        wait_for_problem(&hosts[0], "peer-unreachable", &[&its, "VXLAN (UDP 8472)", "firewall"], NAMED)?;
        wait_for_problem(&hosts[1], "peer-unreachable", &["h1 (", "VXLAN (UDP 8472)"], NAMED)?;
        ensure!(health(&hosts[0], &hosts[1])?["state"] == "unreachable");
        ensure!(health(&hosts[0], &hosts[2])?["state"] == "reachable");
        ensure!(problem(&hosts[2], "peer-unreachable")?.is_none(), "h3 reaches both");
        ensure!(is_healthy(&hosts[0]), "it still reaches h3");
        let shown = hosts[0].flanctl(&["status"])?;
        ensure!(shown.code == Some(9) && shown.stdout.contains("peer-unreachable: h2"), "{shown:?}");
        pinged(
            &hosts[0],
            "h2",
            9,
            &["overlay", "0 of 3", "wrong: its underlay address", "VXLAN (UDP 8472)"],
        )?;
        open_firewall(lab)?;
        hosts[..2].iter().try_for_each(|host| wait_until_solved(host, "peer-unreachable", OVER))?;
        pinged(&hosts[0], "h2", 0, &["underlay", "1450 bytes", "fland", "3 of 3 answered"])?;
        wait_until_all_is_well(&hosts, 1450)?;

        // Something in between drops large packets: 50 bytes of each are VXLAN's.
        close_firewall(lab, &both_ways(one, other, "ip length > 1400"))?;
        let size = ["h2 (", "packets of 1450 bytes do not come back, those of up to 1350 do"];
        wait_for_problem(&hosts[0], "peer-mtu", &size, NAMED)?;
        ensure!(health(&hosts[0], &hosts[1])?["mtu"] == 1350);
        pinged(
            &hosts[0],
            &subnet,
            9,
            &["0 of 3", "wrong: packets of 1450 bytes do not come back, those of up to 1350 do"],
        )?;
        open_firewall(lab)?;
        hosts[..2].iter().try_for_each(|host| wait_until_solved(host, "peer-mtu", OVER))?;

        // A cable is pulled. Both others say so, and h2 itself reaches nobody.
        lab.underlay().ip("link set h2 down")?;
        let its = format!("h2 ({subnet}): neither its underlay address {other} nor anything through VXLAN");
        for at in [0, 2] {
            wait_for_problem(&hosts[at], "peer-unreachable", &[&its], NAMED)?;
        }
        wait::until("the health port of h2 to say that it is cut off", NAMED, || {
            ensure!(!is_healthy(&hosts[1]));
            Ok(())
        })?;
        lab.underlay().ip("link set h2 up")?;
        hosts.iter().try_for_each(|host| wait_until_solved(host, "peer-unreachable", OVER))?;
        ensure!(is_healthy(&hosts[1]), "h2 is not healthy again");
        wait_until_all_is_well(&hosts, 1450)?;

        // An agent dies. Packets pass without it.
        hosts[1].kill_agent()?;
        for at in [0, 2] {
            wait_for_problem(&hosts[at], "peer-agent", &["h2 (", "does not answer on UDP 8475"], NAMED)?;
            ensure!(health(&hosts[at], &hosts[1])?["state"] == "reachable");
        }
        pinged(&hosts[0], &other.to_string(), 9, &["fland", "0 of 3", "wrong: packets pass, but its fland"])?;
        let listed = hosts[0].flanctl(&["subnets", "ls"])?.stdout;
        let of = |name: &str| -> Result<String> {
            let line = listed.lines().find(|line| line.contains(name));
            line.map(str::to_owned).with_context(|| format!("no {name} in {listed}"))
        };
        ensure!(of("SUBNET")?.contains("LAST ALIVE"), "{listed}");
        ensure!(of("h1")?.contains("now"), "{listed}");
        let ago = |name: &str| -> Result<u64> {
            let line = of(name)?;
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [.., "now", _] => Ok(0),
                [.., time, "ago", _] => Ok(time.trim_end_matches('s').parse()?),
                _ => bail!("no time in {line:?}"),
            }
        };
        ensure!(ago("h3")? < 4 && ago("h2")? >= 4, "{listed}");
        hosts[1].start_agent_with(&STATUS_FLAGS)?;
        [0, 2].iter().try_for_each(|at| wait_until_solved(&hosts[*at], "peer-agent", OVER))
    })
}

#[test]
fn a_path_that_loses_one_packet_in_five_is_lossy() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 2)?;
        wait_until_all_is_well(&hosts, 1450)?;
        let (one, other) = (hosts[0].address(), hosts[1].address());
        close_firewall(lab, &both_ways(one, other, "udp dport 8472 numgen random mod 5 0"))?;
        wait_for_problem(&hosts[0], "peer-loss", &["h2 (", "more than one packet in ten"], 3 * NAMED)?;
        for other in ["peer-unreachable", "peer-mtu"] {
            let problem = problem(&hosts[0], other)?;
            ensure!(problem.is_none(), "{other}: {problem:?}");
        }
        open_firewall(lab)
    })
}

#[test]
fn with_every_backend_hosts_find_each_other_well() -> Result<()> {
    let config = |backend: &str| format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    for (backend, mtu) in [
        (r#"{"Type":"vxlan","DirectRouting":true}"#, 1450),
        (r#"{"Type":"host-gw"}"#, 1500),
        (r#"{"Type":"udp","Path":"user"}"#, 1472),
        (r#"{"Type":"wireguard"}"#, 1420),
    ] {
        Lab::run(LabOptions::default(), |lab| {
            lab.set_network(&config(backend))?;
            let mut hosts = bare_hosts(lab, 2)?;
            on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
            wait_until_all_is_well(&hosts, mtu).with_context(|| backend.to_owned())
        })?;
    }
    Ok(())
}

#[test]
fn both_families_are_probed() -> Result<()> {
    Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
        lab.set_network(
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#,
        )?;
        let mut hosts = bare_hosts(lab, 2)?;
        on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
        wait_until_all_is_well(&hosts, 1430)?;
        wait::until("both subnets of h2 to be counted", KNOWN, || {
            let probed = &hosts[0].status()?["probed"];
            ensure!(probed["reachable"] == 2, "{probed}");
            Ok(())
        })?;
        close_firewall(lab, &["meta protocol ip6 udp dport 8472 drop".to_owned()])?;
        wait_for_problem(
            &hosts[0],
            "peer-unreachable",
            &["h2 (fd00:5:", "its underlay address fd00:64:"],
            NAMED,
        )?;
        ensure!(!problem(&hosts[0], "peer-unreachable")?.unwrap_or_default().contains("10.5."));
        open_firewall(lab)
    })
}

#[test]
fn ping_tells_a_container_that_does_not_answer_from_a_host_that_does_not() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 2)?;
        wait_until_all_is_well(&hosts, 1450)?;
        let ends = ends_of(&hosts)?;
        let address = ends[1].address.to_string();
        pinged(&hosts[0], &address, 0, &["container", "3 of 3 answered"])?;
        ends[1].place.run("ip", ["link", "set", "eth0", "down"])?;
        pinged(&hosts[0], &address, 9, &["wrong: its host is reached, but the container does not answer"])?;
        let nobody = hosts[0].flanctl(&["ping", "nobody"])?;
        ensure!(nobody.code == Some(7) && nobody.stderr.contains("no peer of this host"), "{nobody:?}");
        let document: Value = serde_json::from_str(&hosts[0].flanctl(&["ping", "h2", "-o", "json"])?.stdout)?;
        ensure!(
            document["legs"][0]["name"] == "underlay" && document["legs"][0]["answered"] == 3,
            "{document}"
        );
        Ok(())
    })
}
