//! Hosts whose leases `fland store` keeps, by itself or in an agent: it goes away, fills its disk, is moved from.

mod full_disk;
mod kills;
mod moves;
mod read_only;
mod writers;

use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::host::{STATUS_FLAGS, STATUS_PORT, on_all};
use flan_integration::{Host, Lab, LabOptions, StoreKind, traffic, wait};

use crate::stage::{NETWORK, ends_of, hosts, wait_until_all_know_each_other, wait_until_reached};

/// How long the first packet between two ends may take.
const REACHED_LIMIT: Duration = Duration::from_secs(15);

/// A lab with `fland store`.
fn embedded() -> LabOptions {
    LabOptions { store: Some(StoreKind::Embedded), ..LabOptions::default() }
}

#[test]
fn an_agent_keeps_the_store_for_itself_and_another_host() -> Result<()> {
    // No other store is there.
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        let mut keeper = lab.host("h1")?;
        let mut other = lab.host("h2")?;
        other.use_store(&keeper.keep_store());
        keeper.spawn_agent(&STATUS_FLAGS)?;
        wait::until("the store in the agent to take a network config", Duration::from_secs(15), || {
            keeper.ensure_agent_runs()?;
            keeper.flanctl_with_input(&["config", "set", "-"], NETWORK)?.succeeded("flanctl config set -")
        })?;
        keeper.wait_for_agent()?;
        other.start_agent()?;
        let mut hosts = [keeper, other];
        wait_until_all_know_each_other(&hosts)?;
        let ends = ends_of(&hosts)?;
        for (from, to) in [(0, 1), (1, 0)] {
            wait_until_reached(&ends[from], &ends[to], REACHED_LIMIT)?;
        }
        let subnets = subnets_of(&hosts)?;
        let mut ping = hosts[0].ping_from_end(&ends[0], ends[1].address)?;
        // What the store does is told on its own port, as with etcd, and by the agent that it is in.
        for url in
            ["http://127.0.0.1:2379/metrics".to_owned(), format!("http://127.0.0.1:{STATUS_PORT}/metrics")]
        {
            let metrics = traffic::fetch(&hosts[0].netns().place(), &url)?;
            let has =
                |name: &str| metrics.lines().any(|line| line.starts_with(name) && !line.ends_with(" 0"));
            for name in ["keys", "leases", "revision", "file_bytes", "write_seconds_count"] {
                ensure!(has(&format!("flan_store_server_{name} ")), "{url} tells no {name}: {metrics}");
            }
        }

        // Its store goes and comes with it.
        hosts[0].kill_agent()?;
        ping.wait_for_answers(100)?;
        hosts[0].start_agent()?;
        hosts[1].ensure_agent_runs()?;
        wait_until_all_know_each_other(&hosts)?;
        ensure!(subnets_of(&hosts)? == subnets, "{:?} instead of {subnets:?}", subnets_of(&hosts)?);
        ping.wait_for_answers(100)?;
        ping.stop()?.nothing_lost(200)
    })
}

#[test]
fn packets_flow_and_subnets_stay_while_the_embedded_store_is_away() -> Result<()> {
    Lab::run(embedded(), |lab| {
        let mut hosts = hosts(lab, 2)?;
        let ends = ends_of(&hosts)?;
        wait_until_reached(&ends[0], &ends[1], REACHED_LIMIT)?;
        let subnets = subnets_of(&hosts)?;
        let mut ping = hosts[0].ping_from_end(&ends[0], ends[1].address)?;

        lab.store_mut().kill_member(0)?;
        ping.wait_for_answers(500)?;
        on_all(&mut hosts, Host::ensure_agent_runs)?;
        lab.store_mut().start_member(0)?;

        // That they are with it again shows in what they learn from it.
        let mut third = lab.host("h3")?;
        third.start_agent()?;
        hosts.push(third);
        wait_until_all_know_each_other(&hosts)?;
        ensure!(subnets_of(&hosts[..2])? == subnets, "{:?} instead of {subnets:?}", subnets_of(&hosts)?);
        ping.stop()?.nothing_lost(500)
    })
}

#[test]
fn debians_etcdctl_finds_in_the_embedded_store_what_it_expects() -> Result<()> {
    /// What is typed, and what the answer has in it.
    const TYPED: [(&str, &str); 15] = [
        ("put a/1 x", "OK"),
        ("put a/2 y", "OK"),
        ("get --prefix a/ --keys-only", "a/2"),
        ("get a/1 -w json", "\"version\":1"),
        ("get a --prefix --rev 2 --limit 1 --print-value-only", "x"),
        ("del a/1 --prev-kv", "x"),
        ("lease grant 600", "granted with TTL(600s)"),
        ("lease list", "found 1 leases"),
        ("compact 3", "compacted revision 3"),
        ("member list", "started"),
        ("alarm list", ""),
        ("endpoint health", ""),
        ("endpoint status", "http://127.0.0.1:2379"),
        ("endpoint status -w json", "\"revision\":4"),
        ("endpoint status --cluster -w table", "true"),
    ];
    Lab::run(embedded(), |lab| {
        for (typed, expected) in TYPED {
            let args: Vec<&str> = typed.split(' ').collect();
            let answer = lab.store().ctl(&args)?;
            ensure!(answer.contains(expected), "etcdctl {typed}: {answer}");
        }
        Ok(())
    })
}

/// What the hosts have leased.
fn subnets_of(hosts: &[Host]) -> Result<Vec<String>> {
    hosts.iter().map(|host| Ok(host.subnet_env()?.base())).collect()
}
