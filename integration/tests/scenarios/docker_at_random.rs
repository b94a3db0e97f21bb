//! Networks and containers that come and go at random, on two hosts with different Dockers, while agents are killed:
//! Docker, the store and the kernel agree after each step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::chance::{Chance, seed_from};
use flan_integration::docker::Container;
use flan_integration::host::on_all;
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::Value;

use crate::docker_networks::{create, in_network, shown, start};
use crate::stage::NETWORK;

const SEED: &str = "FLAN_DOCKER_SEED";

/// Steps of one run.
const STEPS: usize = 24;
/// What a step leads to is there by then.
const SETTLED: Duration = Duration::from_secs(20);
/// Names of networks.
const NAMES: [&str; 3] = ["blue", "green", "red"];
/// Containers on all hosts.
const MOST: usize = 6;

/// What there should be.
#[derive(Default)]
struct World {
    networks: BTreeSet<&'static str>,
    /// By name: its host, its network and itself.
    containers: BTreeMap<String, (usize, &'static str, Container)>,
    made: usize,
}

#[test]
fn docker_the_store_and_the_kernel_agree_whatever_comes_and_goes() -> Result<()> {
    let seed = seed_from(SEED)?;
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut hosts = vec![lab.host("h1")?, lab.host_of_forky("h2")?];
        on_all(&mut hosts, start)?;
        on_all(&mut hosts, |host| host.start_docker_with(&host.docker_options()?))?;
        let (mut world, mut chance) = (World::default(), Chance::of_seed(seed));
        for number in 0..STEPS {
            let step = world.step(&mut hosts, &mut chance)?;
            let told = || format!("after step {number}, {step}, of {SEED}={seed}");
            wait::until("all to agree", SETTLED, || world.agrees(lab, &hosts)).with_context(told)?;
            world.containers_reach_each_other(&mut chance).with_context(told)?;
        }
        Ok(())
    })
}

impl World {
    /// Does something, and says what.
    fn step(&mut self, hosts: &mut [Host], chance: &mut Chance) -> Result<String> {
        let at = if chance.below(2) == 0 { 0 } else { 1 };
        let network = chance.pick(&NAMES);
        let host = hosts[at].name().to_owned();
        match chance.below(8) {
            0 => {
                hosts[at].kill_agent()?;
                start(&mut hosts[at])?;
                Ok(format!("the agent of {host} killed and started"))
            }
            1 if self.networks.contains(network) => {
                hosts[at]
                    .docker(&["network", "rm", network])
                    .or_else(|reason| self.only_if_used(network, at, reason))?;
                // One that is in use elsewhere comes back.
                let is_used = self.containers.values().any(|(_, of, _)| *of == network);
                if !is_used {
                    self.networks.remove(network);
                }
                Ok(format!("network {network} removed on {host}"))
            }
            2 | 3 => self.remove_a_container(hosts, chance),
            _ if !self.networks.contains(network) => {
                create(&hosts[at], &[network])?;
                self.networks.insert(network);
                Ok(format!("network {network} created on {host}"))
            }
            _ if self.containers.len() < MOST => {
                self.made += 1;
                let name = format!("c{}", self.made);
                let container = in_network(&hosts[at], network, &name, &[])?;
                self.containers.insert(name.clone(), (at, network, container));
                Ok(format!("container {name} of {network} started on {host}"))
            }
            _ => self.remove_a_container(hosts, chance),
        }
    }

    /// Docker itself keeps a network that a container of its own is in.
    fn only_if_used(&self, network: &str, at: usize, reason: anyhow::Error) -> Result<String> {
        let is_used = self.containers.values().any(|(host, of, _)| *host == at && *of == network);
        if is_used { Ok(String::new()) } else { Err(reason) }
    }

    fn remove_a_container(&mut self, hosts: &[Host], chance: &mut Chance) -> Result<String> {
        let names: Vec<&String> = self.containers.keys().collect();
        if names.is_empty() {
            return Ok("nothing".to_owned());
        }
        let name = chance.pick(&names).clone();
        if let Some((at, ..)) = self.containers.remove(&name) {
            hosts[at].docker(&["rm", "-f", &name])?;
        }
        Ok(format!("container {name} removed"))
    }

    /// Compares what there should be with what each host's Docker shows, with the store and with the kernel.
    fn agrees(&self, lab: &Lab, hosts: &[Host]) -> Result<()> {
        let list: Value = serde_json::from_str(&lab.flanctl(&["network", "ls", "-o", "json"])?.stdout)?;
        for (at, host) in hosts.iter().enumerate() {
            let shown: BTreeSet<String> = shown(host)?.into_iter().collect();
            let wanted: BTreeSet<String> = self.networks.iter().map(|name| (*name).to_owned()).collect();
            ensure!(shown == wanted, "Docker on {} shows {shown:?} and not {wanted:?}", host.name());
            let links = host.ip("-o link show")?;
            for name in NAMES {
                let is_used = self.containers.values().any(|(of, network, _)| *of == at && *network == name);
                let has_bridge = links.contains(&format!(": flan-{name}:"));
                ensure!(has_bridge == is_used, "{} has a bridge of {name}: {has_bridge}", host.name());
            }
            let ends = links.matches(": flnh").count();
            let running = self.containers.values().filter(|(of, ..)| *of == at).count();
            ensure!(ends == running, "{} has {ends} ends for {running} containers", host.name());
        }
        let items = list["items"].as_array().context("no list")?;
        let stored =
            items.iter().filter_map(|item| item["name"].as_str()).filter(|name| *name != "(default)");
        let stored: BTreeSet<&str> = stored.collect();
        ensure!(stored == self.networks, "the store has {stored:?} and not {:?}", self.networks);
        for name in &self.networks {
            let users: BTreeSet<usize> =
                self.containers.values().filter(|(_, of, _)| of == name).map(|(at, ..)| *at).collect();
            let item = items.iter().find(|item| item["name"] == *name).context("not in the list")?;
            ensure!(
                item["hosts"] == users.len(),
                "{name} has {} hosts and not {}",
                item["hosts"],
                users.len()
            );
        }
        Ok(())
    }

    /// Two that are in one network, whichever hosts they are on.
    fn containers_reach_each_other(&self, chance: &mut Chance) -> Result<()> {
        let all: Vec<&(usize, &'static str, Container)> = self.containers.values().collect();
        if all.is_empty() {
            return Ok(());
        }
        let (_, network, from) = chance.pick(&all);
        for (_, of, to) in all {
            if of == network && to.name() != from.name() {
                wait::until("a container to reach another", SETTLED, || from.ping(to.address()?))?;
            }
        }
        Ok(())
    }
}
