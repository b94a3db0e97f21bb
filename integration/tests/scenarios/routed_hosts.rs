//! Hosts with a router between some of them, under each backend that cares.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::holdings::Holdings;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::overlay::DEVICE;
use flan_integration::subnet_env::SubnetEnv;
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::Value;

use crate::stage::{bare_hosts, ends_of, problem, wait_until_reached};

const LIMIT: Duration = Duration::from_secs(10);

/// Packets that are counted on their way.
const PACKETS: u64 = 20;

/// Packets that the kernel may send by itself meanwhile: IPv6 looks for routers on each device.
const STRAY: u64 = 10;

fn network(backend: &str) -> String {
    format!(r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{backend}}}"#)
}

/// h1 and h2 on one segment, h3 behind the router, with agents that are ready.
fn two_near_and_one_far(lab: &Lab, backend: &str) -> Result<Vec<Host>> {
    lab.set_network(&network(backend))?;
    let mut hosts = vec![lab.host("h1")?, lab.host("h2")?, lab.host_behind_router("h3")?];
    on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
    Ok(hosts)
}

fn envs_of(hosts: &[Host]) -> Result<Vec<SubnetEnv>> {
    hosts.iter().map(Host::subnet_env).collect()
}

/// `10.5.52.0/24 via 192.168.64.12 dev eth0`, as far as `ip` says that.
fn wait_for_direct_route(host: &Host, subnet: &SubnetEnv, peer: &Host) -> Result<()> {
    let wanted = format!("via {} dev eth0", peer.address());
    wait::until(&format!("a route of {} to {}", host.name(), peer.name()), LIMIT, || {
        let route = host.ip(&format!("route show {}", subnet.base()))?;
        ensure!(route.contains(&wanted), "it is {route:?}");
        Ok(())
    })
}

/// What the status says of a peer that it refuses.
fn refusal(host: &Host, peer: &SubnetEnv) -> Result<String> {
    let status = host.status()?;
    let unreachable = status["unreachable"].as_array().into_iter().flatten();
    let mut reasons = unreachable.filter(|refused| refused["subnets"] == Value::String(peer.base()));
    let reason = reasons.find_map(|refused| refused["reason"].as_str());
    Ok(reason.with_context(|| format!("nothing is said of {}: {status}", peer.base()))?.to_owned())
}

/// Packets that have left by the VXLAN device.
fn sent_by_vxlan(host: &Host) -> Result<u64> {
    let text = host.ip(&format!("-json -statistics link show dev {DEVICE}"))?;
    let links: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text:?}"))?;
    links[0]["stats64"]["tx"]["packets"].as_u64().with_context(|| format!("no count of packets: {text}"))
}

#[test]
fn hosts_on_one_link_reach_each_other_by_plain_routes_and_one_behind_a_router_is_refused() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = two_near_and_one_far(lab, r#"{"Type":"host-gw"}"#)?;
        let (envs, ends) = (envs_of(&hosts)?, ends_of(&hosts)?);
        for (from, to) in [(0, 1), (1, 0)] {
            wait_for_direct_route(&hosts[from], &envs[to], &hosts[to])?;
            wait_until_reached(&ends[from], &ends[to], LIMIT)?;
        }
        for (from, to) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
            let host = &hosts[from];
            let reason =
                wait::until("a word on the peer that is refused", LIMIT, || refusal(host, &envs[to]))?;
            let address = hosts[to].address().to_string();
            ensure!(reason.contains(&address), "{}: {reason:?} does not name {address}", host.name());
            let lines = host.log_lines(&[&address])?;
            ensure!(!lines.is_empty(), "the log of {} does not name {address}", host.name());
            let route = host.ip(&format!("route show {}", envs[to].base()))?;
            ensure!(route.is_empty(), "{} has a route to a peer behind a router: {route}", host.name());
        }
        problem(&hosts[0], "out-of-reach", &["1 peer with a good lease is out of reach"])?;
        for (host, env) in hosts.iter().zip(&envs) {
            assert_eq!(env.mtu, 1500, "{}", host.name());
            ensure!(
                host.ip(&format!("link show dev {DEVICE}")).is_err(),
                "{} has a VXLAN device",
                host.name()
            );
            let lease = lab.store().value(&format!("subnets/{}", env.key()))?.context("no lease")?;
            ensure!(lease.contains(r#""BackendType":"host-gw""#), "{lease}");
        }
        // The refused peer leaves: nothing is said of it any more.
        hosts[2].kill_agent()?;
        lab.store().delete(&format!("subnets/{}", envs[2].key()))?;
        for host in &hosts[..2] {
            wait::until("a status without the peer that has left", LIMIT, || {
                let status = host.status()?;
                ensure!(refusal(host, &envs[2]).is_err() && status["peers"] == 1, "{status}");
                Ok(())
            })?;
        }
        on_all(&mut hosts[..2], Host::ensure_agent_runs)
    })
}

#[test]
fn with_direct_routing_only_packets_for_the_host_behind_the_router_are_wrapped() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = two_near_and_one_far(lab, r#"{"Type":"vxlan","DirectRouting":true}"#)?;
        let (envs, ends) = (envs_of(&hosts)?, ends_of(&hosts)?);
        for (from, to) in [(0, 1), (1, 0)] {
            wait_for_direct_route(&hosts[from], &envs[to], &hosts[to])?;
        }
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            wait_until_reached(&ends[from], &ends[to], LIMIT)?;
        }
        for (to, is_wrapped) in [(1, false), (2, true)] {
            let before = sent_by_vxlan(&hosts[0])?;
            let target = ends[to].address.to_string();
            ends[0]
                .place
                .run("ping", ["-n", "-i", "0.01", "-c", &PACKETS.to_string(), "-W", "1", &target])?;
            let sent = sent_by_vxlan(&hosts[0])? - before;
            let as_wanted = if is_wrapped { sent >= PACKETS } else { sent < STRAY };
            ensure!(as_wanted, "{sent} packets were wrapped of {PACKETS} to {}", hosts[to].name());
        }
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}

#[test]
fn alloc_leases_a_subnet_and_leaves_the_rest_to_others() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(&network(r#"{"Type":"alloc"}"#))?;
        let mut hosts = bare_hosts(lab, 2)?;
        on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
        let envs = envs_of(&hosts)?;
        let subnets: BTreeSet<String> = envs.iter().map(SubnetEnv::base).collect();
        ensure!(subnets.len() == 2, "one subnet for two hosts: {subnets:?}");
        for (host, env) in hosts.iter().zip(&envs) {
            let text = lab.store().value(&format!("subnets/{}", env.key()))?.context("no lease")?;
            let lease: Value = serde_json::from_str(&text)?;
            ensure!(lease["PublicIP"] == host.address().to_string(), "{text}");
            ensure!(lease.get("BackendType").is_none(), "flannel writes none for alloc: {text}");
        }
        wait::while_holds("no device and no route", Duration::from_secs(2), || {
            for host in &hosts {
                let holdings = Holdings::of(host.netns())?;
                ensure!(holdings.lines(&[]).is_empty(), "{} has\n{holdings}", host.name());
            }
            Ok(())
        })?;
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}
