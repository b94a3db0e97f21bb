//! Machines with one identity: a clone beside the host that it was made from, and a host that comes back elsewhere.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::lab::ROUTER;
use flan_integration::witness::{Object, Witness};
use flan_integration::{Host, Lab, LabOptions};

use crate::stage::{NETWORK, no_problem, problem, wait_until_all_know_each_other};

/// How long a holder has for objecting.
const CLAIM_WAIT: Duration = Duration::from_secs(30);

fn start(host: &mut Host, node_id: &str) -> Result<()> {
    host.start_agent_with(&[&STATUS_FLAGS[..], &["--node-id", node_id]].concat())
}

/// Gives one host the subnet file of another.
fn copy_subnet_file(from: &Host, to: &Host) -> Result<()> {
    let file = to.subnet_file();
    fs::create_dir_all(file.parent().context("the file is in no directory")?)?;
    fs::copy(from.subnet_file(), file).context("cannot copy the subnet file").map(drop)
}

#[test]
fn a_clone_of_a_living_host_takes_another_subnet_and_both_say_why() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut hosts = vec![lab.host("h1")?, lab.host("h2")?];
        start(&mut hosts[0], "same")?;
        start(&mut hosts[1], "other")?;
        wait_until_all_know_each_other(&hosts)?;
        let env = hosts[0].subnet_env()?;
        let key = format!("subnets/{}", env.key());
        let (value, lease) = (lab.store().value(&key)?, lab.store().lease_id(&key)?);
        let witness = Witness::start(hosts[1].netns())?;
        let mark = witness.mark();
        let mut ping = hosts[1].ping(env.base_address())?;

        let mut clone = lab.host("h3")?;
        copy_subnet_file(&hosts[0], &clone)?;
        let started = Instant::now();
        start(&mut clone, "same")?;
        ensure!(
            started.elapsed() < CLAIM_WAIT / 3,
            "a living host answers at once, not after {:?}",
            started.elapsed()
        );
        let taken = clone.subnet_env()?;
        ensure!(taken != env, "the clone has the subnet of the first host");
        let (first, second) = (hosts[0].address().to_string(), clone.address().to_string());
        problem(&hosts[0], "clone", &[&format!("{second} (h3)"), "--node-id", &env.base()])?;
        problem(&clone, "clone", &[&format!("{first} (h1)"), "--node-id", &taken.base()])?;
        let told = clone.log_lines(&["WARN", &env.base(), &first, "--node-id"])?;
        ensure!(!told.is_empty(), "the clone's log does not say why it takes another subnet");

        hosts.push(clone);
        wait_until_all_know_each_other(&hosts)?;
        ping.wait_for_answers(50)?;
        ping.stop()?.nothing_lost(50)?;
        assert_eq!(lab.store().value(&key)?, value, "the lease of the first host");
        assert_eq!(lab.store().lease_id(&key)?, lease, "the etcd lease behind it");
        assert_eq!(hosts[0].subnet_env()?, env);
        let of_the_first = |object: &Object| matches!(object, Object::Route { destination, .. } if destination.to_string() == env.base());
        let touched = witness.since(mark)?.into_iter().filter(|change| of_the_first(&change.object)).count();
        ensure!(touched == 0, "a peer has programmed the first host again, {touched} times");

        // With an identity of its own it is a host like any other.
        hosts[2].stop_agent()?;
        start(&mut hosts[2], "its own")?;
        no_problem(&hosts[2], "clone")
    })
}

#[test]
fn a_host_whose_address_changed_while_its_agent_was_down_keeps_its_subnet() -> Result<()> {
    const NEW: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 177);
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        start(&mut host, "same")?;
        let (env, old) = (host.subnet_env()?, host.address());
        host.stop_agent()?;
        host.ip(&format!("address del {old}/24 dev eth0"))?;
        host.ip(&format!("address add {NEW}/24 dev eth0"))?;
        // With the address went the routes that hang on it.
        host.ip(&format!("route add default via {ROUTER}"))?;

        let started = Instant::now();
        host.spawn_agent(&[&STATUS_FLAGS[..], &["--node-id", "same"]].concat())?;
        host.wait_for_agent_within(2 * CLAIM_WAIT)?;
        ensure!(
            started.elapsed() >= CLAIM_WAIT,
            "taken from whoever holds it, after {:?}",
            started.elapsed()
        );
        assert_eq!(host.subnet_env()?, env);
        let value = lab.store().value(&format!("subnets/{}", env.key()))?.unwrap_or_default();
        ensure!(value.contains(&NEW.to_string()) && !value.contains("Claim"), "{value}");
        ensure!(
            !host.log_lines(&["does not object", &old.to_string()])?.is_empty(),
            "no word about the wait"
        );
        no_problem(&host, "clone")
    })
}
