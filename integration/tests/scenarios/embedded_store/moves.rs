//! From the embedded store to etcd, and back.

use anyhow::{Result, ensure};
use flan_integration::store::StoreData;
use flan_integration::{Host, Lab, StoreKind};

use super::{REACHED_LIMIT, embedded, subnets_of};
use crate::stage::{ends_of, hosts, wait_until_all_know_each_other, wait_until_reached};

#[test]
fn hosts_move_to_etcd_and_back_without_losing_a_packet_or_a_subnet() -> Result<()> {
    Lab::run(embedded(), |lab| {
        let mut hosts = hosts(lab, 2)?;
        let ends = ends_of(&hosts)?;
        wait_until_reached(&ends[0], &ends[1], REACHED_LIMIT)?;
        let subnets = subnets_of(&hosts)?;
        let mut ping = hosts[0].ping_from_end(&ends[0], ends[1].address)?;
        let etcd = lab.another_store(StoreKind::Etcd, StoreData::OnDisk)?;
        let (here, there) = (lab.store().endpoints(), etcd.endpoints());

        copy(lab, &["--from", &here, "--to", &there])?;
        restart_on(&mut hosts, &there)?;
        // Nobody needs it any more.
        lab.store_mut().kill_member(0)?;
        let mut third = lab.host("h3")?;
        third.use_store(&there);
        third.start_agent()?;
        hosts.push(third);
        wait_until_all_know_each_other(&hosts)?;
        ensure!(subnets_of(&hosts[..2])? == subnets, "{:?} instead of {subnets:?}", subnets_of(&hosts)?);

        let subnets = subnets_of(&hosts)?;
        lab.store_mut().start_member(0)?;
        let back = ["--from", &there, "--to", &here];
        let refused = lab.flanctl(&[&["store", "copy"], back.as_slice()].concat())?;
        ensure!(refused.code != Some(0), "copied over what is there: {refused:?}");
        ensure!(!lab.store().subnet_keys()?.contains(&hosts[2].subnet_env()?.key()), "refused, but copied");
        copy(lab, &[back.as_slice(), &["--force"]].concat())?;
        restart_on(&mut hosts, &here)?;
        drop(etcd);
        wait_until_all_know_each_other(&hosts)?;
        ensure!(subnets_of(&hosts)? == subnets, "{:?} instead of {subnets:?}", subnets_of(&hosts)?);
        ping.wait_for_answers(200)?;
        ping.stop()?.nothing_lost(200)
    })
}

fn copy(lab: &Lab, options: &[&str]) -> Result<()> {
    let copied = lab.flanctl(&[&["store", "copy"], options].concat())?;
    copied.succeeded("flanctl store copy")?;
    ensure!(!copied.stdout.trim().is_empty(), "no word about what was copied: {copied:?}");
    Ok(())
}

/// One after the other, as a person would do it.
fn restart_on(hosts: &mut [Host], endpoints: &str) -> Result<()> {
    hosts.iter_mut().try_for_each(|host| {
        host.stop_agent()?;
        host.use_store(endpoints);
        host.start_agent()
    })
}
