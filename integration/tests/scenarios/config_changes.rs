//! The network config changes while hosts run: they go over to it by themselves, with the subnets that they have.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::traffic::Ping;
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::json;

use crate::stage::{all_reach_all, hosts_that_reach, text_of, wait_until_reached};
use crate::wireguard::{NO_FLAGS, REACHED, network};

const VXLAN: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}"#;
const OTHER_PORT: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan","Port":9472}}"#;
const OTHER_VNI: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan","VNI":7}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"host-gw"}}"#;
const UDP: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"udp"}}"#;
const OTHER_NETWORK: &str = r#"{"Network":"10.8.0.0/16","Backend":{"Type":"vxlan"}}"#;
const BLUE: &str = r#"{"Network":"10.7.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// Packets pass again within this time, on a machine that does other things.
const OUTAGE: Duration = Duration::from_secs(5);
/// Between two pings.
const INTERVAL: Duration = Duration::from_millis(10);

#[test]
fn a_running_network_takes_another_port_vni_and_backend_without_a_restart() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, ends) = hosts_that_reach(lab, VXLAN, &[NO_FLAGS; 3])?;
        let before = subnets_and_agents(&hosts)?;
        another_network_has_a_device(&hosts[0])?;
        let wireguard = network("user");
        for (what, config, device, mtu, gone) in [
            ("another port", OTHER_PORT, "flannel.1", 1450, "none"),
            ("another VNI", OTHER_VNI, "flannel.7", 1450, "flannel.1"),
            ("wireguard", wireguard.as_str(), "flannel-wg", 1420, "flannel.7"),
            ("udp", UDP, "flannel0", 1472, "flannel-wg"),
            ("host-gw", HOST_GW, "eth0", 1500, "flannel0"),
            ("vxlan", VXLAN, "flannel.1", 1450, "none"),
        ] {
            let log = hosts[0].dir().join(format!("ping-to-{what}.txt"));
            let mut ping = Ping::start(what, &ends[0].place, ends[1].address, &log)?;
            set(lab, config)?;
            for host in &hosts {
                wait::until(&format!("{what} on {}", host.name()), REACHED, || goes_over(host, device, mtu))?;
                wait_until_gone(host, gone)?;
            }
            all_reach_all(&ends)?;
            ping.wait_for_answers(10)?;
            let report = ping.stop()?;
            println!("to {what}: {} pings of {} lost, one every 10 ms", report.lost(), report.sent);
            ensure!(INTERVAL * u32::try_from(report.outage)? <= OUTAGE, "to {what}: {report:?}");
        }
        ensure!(subnets_and_agents(&hosts)? == before, "a host has another subnet, or another agent");
        hosts[0].ip("link show flannel.9").context("the device of another network is gone")?;
        for host in &hosts {
            let complaints = host.log_lines(&[" WARN ", "config"])?;
            ensure!(complaints.is_empty(), "{complaints:?}");
        }
        Ok(())
    })
}

#[test]
fn a_host_that_is_down_while_the_config_changes_follows_when_it_is_back() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts_that_reach(lab, VXLAN, &[NO_FLAGS; 3])?;
        hosts[2].stop_agent()?;
        set(lab, &network("user"))?;
        wait_until_reached(&ends[0], &ends[1], REACHED)?;
        for host in &hosts[..2] {
            wait::until("the host of the other kind to be told", REACHED, || {
                let bad = host.status()?["quarantined"].to_string();
                ensure!(bad.matches("backend is vxlan, this network's is wireguard").count() == 1, "{bad}");
                Ok(())
            })?;
        }
        hosts[2].start_agent_with(&STATUS_FLAGS)?;
        all_reach_all(&ends)
    })
}

#[test]
fn what_cannot_be_gone_over_to_is_told_and_one_network_moves_no_other() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.flanctl(&["network", "create", "blue", "--subnet", "10.7.0.0/16"])?.succeeded("create")?;
        let in_blue: &[&str] = &["--networks=blue"];
        let (mut hosts, ends) = hosts_that_reach(lab, VXLAN, &[in_blue; 2])?;
        let target = hosts[1].subnet_env()?.base_address();
        let mut ping = hosts[0].ping(target)?;
        // With --force: flanctl refuses to strand the leases that stand.
        for (config, told) in [
            (OTHER_NETWORK, "is not in it, so this agent keeps the one before until it is restarted"),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#,
                "another network of this host has the device flannel.2",
            ),
        ] {
            lab.store().put("config", config)?;
            for host in &hosts {
                wait::until("the change to be refused", REACHED, || {
                    let problem = text_of(&host.status()?, "config").unwrap_or_default();
                    ensure!(problem.contains(told), "{problem}");
                    Ok(())
                })?;
            }
        }
        lab.store().put("config", VXLAN)?;
        lab.flanctl_with_input(&["--network", "blue", "config", "set", "--force", "-"], BLUE)?
            .succeeded("flanctl config set")?;
        for host in &hosts {
            wait::until("the change of blue", REACHED, || {
                let status = host.status()?;
                ensure!(text_of(&status, "config").is_none(), "{status}");
                let blue = &status["networks"][0];
                ensure!((&blue["backend"], &blue["ready"]) == (&json!("host-gw"), &json!(true)), "{blue}");
                Ok(())
            })?;
            wait_until_gone(host, "flannel.2")?;
        }
        all_reach_all(&ends)?;
        ping.wait_for_answers(10)?;
        ping.stop()?.nothing_lost(20)
    })
}

fn set(lab: &Lab, config: &str) -> Result<()> {
    lab.flanctl_with_input(&["config", "set", "--force", "-"], config)?.succeeded("flanctl config set")
}

/// Each host's subnet, and the process of its agent.
fn subnets_and_agents(hosts: &[Host]) -> Result<Vec<(String, Option<u32>)>> {
    hosts.iter().map(|host| Ok((host.subnet_env()?.base().to_string(), host.agent_pid()))).collect()
}

fn goes_over(host: &Host, device: &str, mtu: u32) -> Result<()> {
    host.ip(&format!("link show {device}"))?;
    let env = host.subnet_env()?;
    ensure!(env.mtu == mtu, "the MTU in subnet.env is {}", env.mtu);
    let status = host.status()?;
    ensure!(status["ready"] == json!(true) && text_of(&status, "config").is_none(), "{status}");
    Ok(())
}

/// Somebody else's, whose name is like ours.
fn another_network_has_a_device(host: &Host) -> Result<()> {
    host.ip("link add flannel.9 type vxlan id 9 dstport 9999 local 127.0.0.1")?;
    host.ip("addr add 10.9.1.0/32 dev flannel.9")?;
    host.ip("link set flannel.9 up")?;
    Ok(())
}

/// What the earlier config made goes.
fn wait_until_gone(host: &Host, device: &str) -> Result<()> {
    wait::until(&format!("{device} to go"), REACHED, || {
        let links = host.run("ip", &["-br", "link"])?;
        ensure!(!links.lines().any(|line| line.starts_with(&format!("{device} "))), "{links}");
        Ok(())
    })
}
