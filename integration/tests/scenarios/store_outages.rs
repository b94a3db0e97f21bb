//! A store that restarts, forgets, falls silent or loses a member, and agents that carry on.

use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::host::on_all;
use flan_integration::overlay::DEVICE;
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::paper_peer::PaperPeer;
use crate::stage::{NETWORK, hosts, wait_until_all_know_each_other};

#[test]
fn agents_outlive_a_restart_of_the_store_and_see_who_joins_afterwards() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 2)?;
        let target = hosts[1].subnet_env()?.base_address();
        let key = format!("subnets/{}", hosts[0].subnet_env()?.key());
        let lease = lab.store().lease_id(&key)?;
        let mut ping = hosts[0].ping(target)?;

        lab.store_mut().kill_member(0)?;
        ping.wait_for_answers(100)?;
        on_all(&mut hosts, Host::ensure_agent_runs)?;
        lab.store_mut().start_member(0)?;

        let mut third = lab.host("h3")?;
        third.start_agent()?;
        hosts.push(third);
        wait_until_all_know_each_other(&hosts)?;
        assert_eq!(lab.store().lease_id(&key)?, lease, "the lease was taken anew");
        ping.stop()?.nothing_lost(100)
    })
}

#[test]
fn an_agent_cut_off_during_a_compaction_catches_up() -> Result<()> {
    const MOVES: PaperPeer = PaperPeer { third: 200, mac: "02:00:00:00:02:00" };
    const MOVED: PaperPeer = PaperPeer { third: 200, mac: "02:00:00:00:02:ff" };
    const LEAVES: PaperPeer = PaperPeer { third: 201, mac: "02:00:00:00:02:01" };
    const JOINS: PaperPeer = PaperPeer { third: 202, mac: "02:00:00:00:02:02" };
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 2)?;
        let store = lab.store();
        MOVES.put(store)?;
        LEAVES.put(store)?;
        for host in &hosts {
            wait::until("the first paper peers", Duration::from_secs(15), || {
                MOVES.is_known_to(host)?;
                LEAVES.is_known_to(host)
            })?;
        }
        let (stays, stays_mac) = (hosts[1].subnet_env()?.base_address(), hosts[1].vtep_mac()?);
        let mut monitor = hosts[0].monitor()?;
        let mut ping = hosts[0].ping(stays)?;

        store.cut_off(hosts[0].address())?;
        MOVED.put(store)?;
        store.delete(&LEAVES.key())?;
        JOINS.put(store)?;
        store.compact()?;
        // The other host sees all of it at once, so there is something that the first one has missed.
        wait::until("the host that is not cut off to follow", Duration::from_secs(15), || {
            MOVED.is_known_to(&hosts[1])?;
            JOINS.is_known_to(&hosts[1])
        })?;
        MOVES.is_known_to(&hosts[0])?;
        JOINS.is_unknown_to(&hosts[0])?;

        store.reconnect()?;
        wait::until("the host that was cut off to catch up", Duration::from_secs(45), || {
            MOVED.is_known_to(&hosts[0])?;
            LEAVES.is_unknown_to(&hosts[0])?;
            JOINS.is_known_to(&hosts[0])?;
            ensure!(hosts[0].overlay()?.has_no_remains(), "{:?}", hosts[0].overlay()?);
            Ok(())
        })?;

        let touched: Vec<_> = monitor
            .deletions(DEVICE)?
            .into_iter()
            .filter(|line| line.contains(&stays.to_string()) || line.contains(&stays_mac))
            .collect();
        ensure!(touched.is_empty(), "deleted of the peer that stayed: {touched:#?}");
        ping.wait_for_answers(20)?;
        ping.stop()?.nothing_lost(20)?;
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn an_agent_notices_that_its_watch_has_fallen_silent() -> Result<()> {
    const JOINS: PaperPeer = PaperPeer { third: 200, mac: "02:00:00:00:02:00" };
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 2)?;

        // The host hears nothing, not even that the store that it was connected to is no more.
        lab.store().silence(hosts[0].address())?;
        lab.store_mut().kill_member(0)?;
        lab.store_mut().start_member(0)?;
        JOINS.put(lab.store())?;
        lab.store().reconnect()?;

        wait::until("the host to see who joined", Duration::from_secs(60), || JOINS.is_known_to(&hosts[0]))?;
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn the_loss_of_one_of_three_etcd_members_keeps_nobody_from_joining() -> Result<()> {
    Lab::run(LabOptions { store_members: 3, ..LabOptions::default() }, |lab| {
        let mut hosts = hosts(lab, 2)?;

        // The first in everybody's list of endpoints.
        lab.store_mut().kill_member(0)?;
        on_all(&mut hosts, Host::ensure_agent_runs)?;
        let mut third = lab.host("h3")?;
        third.start_agent()?;
        hosts.push(third);

        wait::until("all to know each other", Duration::from_secs(45), || {
            wait_until_all_know_each_other(&hosts)
        })?;
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}

#[test]
fn a_store_that_forgot_everything_is_filled_again_without_losing_a_packet() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 3)?;
        let mut before = Vec::new();
        for host in &hosts {
            let key = format!("subnets/{}", host.subnet_env()?.key());
            let value = lab.store().value(&key)?;
            before.push((key, value));
        }
        let targets = [1, 2, 0].map(|next: usize| hosts[next].subnet_env());
        let mut pings = Vec::new();
        for (host, target) in hosts.iter_mut().zip(targets) {
            pings.push(host.ping(target?.base_address())?);
        }
        let mut monitor = hosts[0].monitor()?;

        lab.store_mut().kill_member(0)?;
        lab.store_mut().wipe_member(0)?;
        lab.store_mut().start_member(0)?;
        ensure!(lab.store().value("config")?.is_none(), "the store has not forgotten");
        // For a while there is not even a network config.
        for ping in &mut pings {
            ping.wait_for_answers(100)?;
        }
        lab.set_network(NETWORK)?;

        for (key, value) in &before {
            wait::until(&format!("{key} to be back"), Duration::from_secs(60), || {
                let now = lab.store().value(key)?;
                ensure!(now == *value, "{now:?} instead of {value:?}");
                Ok(())
            })?;
        }
        ensure!(lab.store().subnet_keys()?.len() == before.len(), "{:?}", lab.store().subnet_keys()?);
        for ping in &mut pings {
            ping.wait_for_answers(100)?;
        }
        wait_until_all_know_each_other(&hosts)?;
        for ping in pings {
            ping.stop()?.nothing_lost(200)?;
        }
        let deletions = monitor.deletions(DEVICE)?;
        ensure!(deletions.is_empty(), "deleted on the way: {deletions:#?}");
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}
