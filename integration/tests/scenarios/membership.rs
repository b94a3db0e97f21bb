//! Hosts that come and go.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::stage::{NETWORK, bare_hosts, hosts, wait_until_all_know_each_other};

const CROWD: usize = 30;

#[test]
fn a_third_host_joins_and_one_leaves() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 2)?;
        let mut third = lab.host("h3")?;
        third.start_agent()?;
        hosts.push(third);
        wait_until_all_know_each_other(&hosts)?;
        let target = hosts[2].subnet_env()?.base_address();
        let mut ping = hosts[0].ping(target)?;

        let mut leaver = hosts.remove(1);
        let left = leaver.subnet_env()?;
        leaver.stop_agent()?;
        lab.flanctl(&["subnets", "release", &left.base(), "--yes"])?.succeeded("flanctl subnets release")?;

        // Exactly each other: route, neighbour and FDB entry of the one that left are gone.
        wait_until_all_know_each_other(&hosts)?;
        ping.wait_for_answers(50)?;
        ping.stop()?.nothing_lost(50)
    })
}

#[test]
fn a_host_that_finds_a_bad_config_waits_and_joins_when_it_is_corrected() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.store().put("config", r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#)?;
        let mut host = lab.host("h1")?;
        host.spawn_agent(&STATUS_FLAGS)?;
        wait::until("the agent to say what is wrong", Duration::from_secs(5), || {
            let waits = host.status()?["waitingFor"].to_string();
            ensure!(waits.contains("the network config") && waits.contains("ipip"), "{waits}");
            Ok(())
        })?;
        lab.set_network(NETWORK)?;
        host.wait_for_agent()
    })
}

#[test]
fn thirty_hosts_start_at_once_and_get_thirty_subnets() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut hosts = bare_hosts(lab, CROWD)?;
        for host in &mut hosts {
            host.spawn_agent(&["--ip-masq"])?;
        }
        on_all(&mut hosts, Host::wait_for_agent)?;

        let subnets =
            hosts.iter().map(|host| Ok(host.subnet_env()?.base())).collect::<Result<BTreeSet<_>>>()?;
        assert_eq!(subnets.len(), CROWD, "{subnets:?}");
        wait::until("each host to know all the others", Duration::from_secs(30), || {
            for host in &hosts {
                let overlay = host.overlay()?;
                let mut wanted = subnets.clone();
                wanted.remove(&host.subnet_env()?.base());
                ensure!(
                    overlay.complete_peers() == wanted,
                    "{}: {} peers",
                    host.name(),
                    overlay.routes.len()
                );
                ensure!(overlay.has_no_remains(), "{}: {overlay:?}", host.name());
            }
            Ok(())
        })?;
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}
