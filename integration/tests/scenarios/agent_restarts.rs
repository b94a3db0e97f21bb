//! An agent that dies, stops or starts again, under traffic that must not notice.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::overlay::DEVICE;
use flan_integration::store::PREFIX;
use flan_integration::{Bridge, Lab, LabOptions, wait};

use crate::stage::{hosts, two_docker_hosts, wait_until_all_know_each_other};

/// Pings answered in each phase of a story.
const PHASE: usize = 100;

#[test]
pub(crate) fn an_agent_killed_and_restarted_loses_no_packet_and_deletes_nothing() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = two_docker_hosts(lab, Bridge::WholeSubnet)?;
        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;
        let env = hosts[0].subnet_env()?;
        let (before, mac) = (hosts[0].overlay()?, hosts[0].vtep_mac()?);
        let lease = lab.store().lease_id(&format!("subnets/{}", env.key()))?;

        let mut monitor = hosts[0].monitor()?;
        let bridge2 = hosts[1].subnet_env()?.subnet.ip();
        let mut pings = [
            hosts[0].ping(bridge2)?,
            hosts[0].ping_from(&web1, web2.address()?)?,
            hosts[1].ping_from(&web2, web1.address()?)?,
        ];
        hosts[0].kill_agent()?;
        for ping in &mut pings {
            ping.wait_for_answers(PHASE)?;
        }
        hosts[0].start_agent()?;
        for ping in &mut pings {
            ping.wait_for_answers(PHASE)?;
        }

        for ping in pings {
            ping.stop()?.nothing_lost(2 * PHASE)?;
        }
        let deletions = monitor.deletions(DEVICE)?;
        ensure!(deletions.is_empty(), "the restarted agent deleted: {deletions:#?}");
        assert_eq!(hosts[0].overlay()?, before);
        assert_eq!(hosts[0].vtep_mac()?, mac);
        assert_eq!(hosts[0].subnet_env()?, env);
        assert_eq!(lab.store().lease_id(&format!("subnets/{}", env.key()))?, lease, "another etcd lease");
        Ok(())
    })
}

#[test]
fn a_terminated_agent_leaves_everything_in_place() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 2)?;
        let env = hosts[0].subnet_env()?;
        let key = format!("subnets/{}", env.key());
        let (before, written) = (hosts[0].overlay()?, lab.store().modified_at(&key)?);
        let file = fs::read(hosts[0].subnet_file())?;
        let mut monitor = hosts[0].monitor()?;
        let target = hosts[1].subnet_env()?.base_address();
        let mut ping = hosts[0].ping(target)?;

        hosts[0].stop_agent()?;

        wait::while_holds("a host without its agent keeps its place", Duration::from_secs(2), || {
            ensure!(hosts[0].overlay()? == before, "the kernel holds {:?}", hosts[0].overlay()?);
            ensure!(lab.store().modified_at(&key)? == written, "its lease was written or removed");
            ensure!(fs::read(hosts[0].subnet_file())? == file, "subnet.env has changed");
            Ok(())
        })?;
        ping.wait_for_answers(PHASE)?;
        ping.stop()?.nothing_lost(PHASE)?;
        let deletions = monitor.deletions(DEVICE)?;
        ensure!(deletions.is_empty(), "the terminated agent deleted: {deletions:#?}");
        // Its peer has not noticed anything either.
        hosts[1].wait_for_peers(&[&env])
    })
}

#[test]
fn a_peer_that_left_while_the_agent_was_down_is_removed_and_no_other() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 3)?;
        let left = hosts[2].subnet_env()?;
        let left_mac = hosts[2].vtep_mac()?;
        hosts[0].kill_agent()?;
        hosts[2].stop_agent()?;
        lab.flanctl(&["subnets", "release", &left.base(), "--yes"])?.succeeded("flanctl subnets release")?;
        ensure!(!lab.store().subnet_keys()?.contains(&left.key()), "still in {PREFIX}/subnets");

        let mut monitor = hosts[0].monitor()?;
        let target = hosts[1].subnet_env()?.base_address();
        let mut ping = hosts[0].ping(target)?;
        hosts[0].start_agent()?;

        hosts.truncate(2);
        wait_until_all_know_each_other(&hosts)?;
        ping.wait_for_answers(PHASE)?;
        ping.stop()?.nothing_lost(PHASE)?;
        let stayed = hosts[1].subnet_env()?;
        let stayed_mac = hosts[1].vtep_mac()?;
        let deletions = monitor.deletions(DEVICE)?;
        let base = stayed.base_address().to_string();
        let wrong: Vec<_> =
            deletions.iter().filter(|line| line.contains(&base) || line.contains(&stayed_mac)).collect();
        ensure!(wrong.is_empty(), "deleted of the peer that stayed: {wrong:#?}");
        ensure!(
            deletions.iter().any(|line| line.contains(&left_mac)),
            "nothing deleted of {left_mac}: {deletions:#?}"
        );
        Ok(())
    })
}
