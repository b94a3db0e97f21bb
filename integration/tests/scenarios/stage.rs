//! What many stories begin with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::docker::Container;
use flan_integration::end::End;
use flan_integration::flannel;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::subnet_env::SubnetEnv;
use flan_integration::{Bridge, Host, Lab, wait};
use serde_json::Value;

/// The network config of most stories. Agents choose from below 10.5.100.0; what a story makes up itself lies above.
pub(crate) const NETWORK: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}"#;

/// The same with the packets passing through the agents, whatever the kernel can.
pub(crate) const NETWORK_OF_UDP: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"udp","Path":"user"}}"#;

/// How soon ends reach each other.
const REACHED: Duration = Duration::from_secs(15);

/// Pings answered in each phase.
const PHASE: usize = 100;

/// How soon a problem is told of, or its end.
const PROBLEM_LIMIT: Duration = Duration::from_secs(10);

/// Hosts named h1, h2 and so on, without agents.
pub(crate) fn bare_hosts(lab: &Lab, count: usize) -> Result<Vec<Host>> {
    (1..=count).map(|number| lab.host(&format!("h{number}"))).collect()
}

/// Hosts under this network config, with agents that have these flags beside [`STATUS_FLAGS`], each with an end that stands
/// for a container. All ends reach each other.
pub(crate) fn hosts_that_reach(lab: &Lab, network: &str, flags: &[&[&str]]) -> Result<(Vec<Host>, Vec<End>)> {
    lab.set_network(network)?;
    let mut hosts = bare_hosts(lab, flags.len())?;
    for (host, flags) in hosts.iter_mut().zip(flags) {
        host.spawn_agent(&[&STATUS_FLAGS, *flags].concat())?;
    }
    on_all(&mut hosts, Host::wait_for_agent)?;
    let ends = ends_of(&hosts)?;
    all_reach_all(&ends)?;
    Ok((hosts, ends))
}

/// Waits until a packet has come back from each end to each other.
pub(crate) fn all_reach_all(ends: &[End]) -> Result<()> {
    for from in ends {
        for to in ends.iter().filter(|to| to.address != from.address) {
            wait_until_reached(from, to, REACHED)?;
        }
    }
    Ok(())
}

/// Kills the first host's agent under traffic both ways and starts it again. The kernel carries the packets: none is lost,
/// what `standing` reads stays as it was, and nothing is repaired.
pub(crate) fn killed_and_restarted_nothing_is_lost_or_changed(
    hosts: &mut [Host],
    standing: impl Fn(&Host) -> Result<String>,
) -> Result<()> {
    let before = standing(&hosts[0])?;
    let targets = [hosts[1].subnet_env()?.base_address(), hosts[0].subnet_env()?.base_address()];
    let mut pings = [hosts[0].ping(targets[0])?, hosts[1].ping(targets[1])?];
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    hosts[0].kill_agent()?;
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    hosts[0].start_agent_with(&STATUS_FLAGS)?;
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    for ping in pings {
        let report = ping.stop()?;
        println!("killed and restarted: {report:?}");
        report.nothing_lost(PHASE)?;
    }
    wait::until("the agent to know its peer", REACHED, || {
        ensure!(hosts[0].status()?["peers"] == 1, "{}", hosts[0].status()?);
        Ok(())
    })?;
    assert_eq!(standing(&hosts[0])?, before);
    let repaired = hosts[0].log_lines(&["repaired changes"])?;
    ensure!(repaired.is_empty(), "{repaired:?}");
    Ok(())
}

/// Hosts with agents that know each other.
pub(crate) fn hosts(lab: &Lab, count: usize) -> Result<Vec<Host>> {
    lab.set_network(NETWORK)?;
    let mut hosts = bare_hosts(lab, count)?;
    on_all(&mut hosts, Host::start_agent)?;
    wait_until_all_know_each_other(&hosts)?;
    Ok(hosts)
}

/// Hosts with agents that know each other and can be asked for their status.
pub(crate) fn hosts_with_status(lab: &Lab, count: usize) -> Result<Vec<Host>> {
    lab.set_network(NETWORK)?;
    let mut hosts = bare_hosts(lab, count)?;
    on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
    wait_until_all_know_each_other(&hosts)?;
    Ok(hosts)
}

/// On each host a namespace that stands for a container.
pub(crate) fn ends_of(hosts: &[Host]) -> Result<Vec<End>> {
    hosts.iter().map(|host| End::behind_bridge(host.netns(), &host.subnet_env()?)).collect()
}

/// Waits until a packet has come back from there.
pub(crate) fn wait_until_reached(from: &End, to: &End, limit: Duration) -> Result<()> {
    let target = to.address.to_string();
    wait::until(&format!("{target} to answer {}", from.address), limit, || {
        from.place.run("ping", ["-n", "-c", "1", "-W", "1", &target]).map(drop)
    })
}

/// Two hosts with agents and dockerds that know each other.
pub(crate) fn two_docker_hosts(lab: &Lab, bridge: Bridge) -> Result<[Host; 2]> {
    let pair = two_docker_hosts_of(lab, NETWORK, bridge)?;
    wait_until_all_know_each_other(&pair)?;
    Ok(pair)
}

/// Two hosts with agents and dockerds under this network config, which may not know each other yet.
pub(crate) fn two_docker_hosts_of(lab: &Lab, network: &str, bridge: Bridge) -> Result<[Host; 2]> {
    lab.set_network(network)?;
    let mut pair = [lab.host("h1")?, lab.host("h2")?];
    on_all(&mut pair, |host| {
        host.start_agent()?;
        host.start_docker(bridge)
    })?;
    Ok(pair)
}

/// Pings and fetches a page in both directions; each must see the other's own address.
pub(crate) fn talk_both_ways(one: &Container, other: &Container) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        let (source, target) = (from.address()?, to.address()?);
        from.ping(target)?;
        ensure!(from.fetch_name(target)? == to.name(), "another than {} answers at {target}", to.name());
        let seen = from.source_seen_by(target)?;
        ensure!(
            seen == source,
            "{} sees {}'s packets come from {seen}, not {source}",
            to.name(),
            from.name()
        );
    }
    Ok(())
}

/// Waits until the kernel of each host holds all the others and nothing else.
pub(crate) fn wait_until_all_know_each_other(hosts: &[Host]) -> Result<()> {
    let envs = hosts.iter().map(Host::subnet_env).collect::<Result<Vec<_>>>()?;
    for (number, host) in hosts.iter().enumerate() {
        let peers: Vec<&SubnetEnv> =
            envs.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, env)| env).collect();
        host.wait_for_peers(&peers)?;
    }
    Ok(())
}

/// What a flanneld with the subnet 10.5.`third`.0/24 writes.
pub(crate) fn flannel_env(third: u8) -> Result<SubnetEnv> {
    Ok(SubnetEnv {
        network: "10.5.0.0/16".parse()?,
        subnet: format!("10.5.{third}.1/24").parse()?,
        mtu: 1450,
        ip_masq: false,
    })
}

/// Two Docker hosts as flanneld leaves them, with the subnets 10.5.3.0/24 and 10.5.4.0/24: their subnet files and MACs.
pub(crate) fn two_flannel_hosts(lab: &Lab) -> Result<([Host; 2], [SubnetEnv; 2], Vec<String>)> {
    let mut hosts = [lab.host("h1")?, lab.host("h2")?];
    let envs = [flannel_env(3)?, flannel_env(4)?];
    let mut macs = Vec::new();
    for (host, env) in hosts.iter().zip(&envs) {
        macs.push(flannel::set_up(host, lab.store(), env)?);
    }
    flannel::add_peer(&hosts[0], &envs[1], &macs[1], hosts[1].address())?;
    flannel::add_peer(&hosts[1], &envs[0], &macs[0], hosts[0].address())?;
    on_all(&mut hosts, |host| host.start_docker(Bridge::WholeSubnet))?;
    Ok((hosts, envs, macs))
}

/// What a status says about a problem of this kind, if there is one.
pub(crate) fn text_of(status: &Value, name: &str) -> Option<String> {
    let mut problems = status["problems"].as_array().into_iter().flatten();
    let found = problems.find(|problem| problem["name"] == name)?;
    found["text"].as_str().map(str::to_owned)
}

/// Waits until the host's status tells of a problem of this kind whose text contains all of these.
pub(crate) fn problem(host: &Host, code: &str, parts: &[&str]) -> Result<()> {
    wait::until(&format!("the problem {code} that names {parts:?}"), PROBLEM_LIMIT, || {
        let problems = problems(host)?;
        let text = problems.iter().find(|one| one["name"] == code).map(|one| one["text"].to_string());
        ensure!(
            text.is_some_and(|text| parts.iter().all(|part| text.contains(part))),
            "the problems of {} are {problems:?}",
            host.name()
        );
        Ok(())
    })?;
    // A person sees it as well.
    let shown = host.flanctl(&["status"])?;
    ensure!(shown.code == Some(9) && shown.stdout.starts_with("problems\n"), "{shown:?}");
    ensure!(shown.stdout.contains(&format!("{code}: ")), "{code} is missing: {shown:?}");
    Ok(())
}

/// Waits until the host's status tells of no problem of this kind.
pub(crate) fn no_problem(host: &Host, code: &str) -> Result<()> {
    wait::until(&format!("no problem {code}"), PROBLEM_LIMIT, || {
        let problems = problems(host)?;
        ensure!(problems.iter().all(|one| one["name"] != code), "{problems:?}");
        Ok(())
    })
}

fn problems(host: &Host) -> Result<Vec<Value>> {
    let status = host.status()?;
    status["problems"].as_array().cloned().context("the status has no list of problems")
}
