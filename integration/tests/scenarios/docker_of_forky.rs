//! The Docker of Debian forky, 28.5: it drops what comes from another host unless it is told not to. Beside it that of
//! the machine, 20.10 on Debian 12.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::lab::{OUTSIDE, ROUTER};
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::obstacles::{TOLD, problem, wait_for_problem, wait_until_solved};
use crate::stage::{NETWORK, talk_both_ways, wait_until_all_know_each_other};

/// What lets packets of other hosts pass, from 28.2 on.
const DIRECT_ROUTING: &str = "--allow-direct-routing";

/// On the underlay, where nothing else of the lab is.
const ON_THE_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 200);

/// The first two numbers of the version of a host's dockerd.
fn docker_version(host: &Host) -> Result<(u32, u32)> {
    let text = host.docker(&["version", "--format", "{{.Server.Version}}"])?;
    let mut numbers = text.split('.').map(str::parse);
    let mut next = || numbers.next().with_context(|| format!("no version: {text:?}"));
    Ok((next()??, next()??))
}

/// Hosts with agents that know each other: h1 of the machine's Debian, the others of forky.
fn hosts(lab: &Lab, of_forky: &[&str]) -> Result<Vec<Host>> {
    lab.set_network(NETWORK)?;
    let mut hosts = vec![lab.host("h1")?];
    for name in of_forky {
        hosts.push(lab.host_of_forky(name)?);
    }
    on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
    wait_until_all_know_each_other(&hosts)?;
    Ok(hosts)
}

/// Docker 28 puts its jump before that of the agent, and drops what arrives for a port that is not published; the agent
/// sees it at its next look.
fn wait_until_the_agents_rules_come_first(host: &Host) -> Result<()> {
    wait::until("flan's jump to be the first", Duration::from_secs(15), || {
        let chain = host.run("iptables", &["-w", "-S", "FORWARD"])?;
        ensure!(chain.lines().nth(1) == Some("-A FORWARD -j FLAN-FORWARD"), "{chain}");
        Ok(())
    })
}

#[test]
fn containers_of_two_releases_of_docker_talk_with_the_options_of_the_drop_in() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, &["h2"])?;
        on_all(&mut hosts, |host| host.start_docker_with(&host.docker_options()?))?;
        let versions = [docker_version(&hosts[0])?, docker_version(&hosts[1])?];
        ensure!(versions[1] >= (28, 2), "forky's Docker is {versions:?}");
        for (host, version) in hosts.iter().zip(versions) {
            let options = host.docker_options()?;
            ensure!(
                options.iter().any(|option| option == DIRECT_ROUTING) == (version >= (28, 2)),
                "Docker {version:?} gets {options:?}"
            );
        }

        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;
        wait_until_the_agents_rules_come_first(&hosts[1])?;
        talk_both_ways(&web1, &web2)?;
        for (host, container) in hosts.iter().zip([&web1, &web2]) {
            assert_eq!(container.source_seen_by(OUTSIDE)?, IpAddr::from(host.address()));
        }
        a_macvlan_network_beside_it(&hosts)?;
        talk_both_ways(&web1, &web2)?;
        for host in &hosts {
            wait::until("no rules of Docker's to be told of", TOLD, || {
                let told = problem(host, "packet-filter")?;
                ensure!(told.is_none(), "{told:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// A container on the underlay itself, and one that has a leg in both networks.
fn a_macvlan_network_beside_it(hosts: &[Host]) -> Result<()> {
    let (gateway, address) = (ROUTER.to_string(), ON_THE_LAN.to_string());
    let of_lan = ["--subnet", "192.168.64.0/24", "--gateway", &gateway, "-o", "parent=eth0", "lan"];
    hosts[1].docker(&[&["network", "create", "-d", "macvlan"], &of_lan[..]].concat())?;
    let lan = hosts[1].run_container("lan", &["--network", "lan", "--ip", &address])?;
    hosts[0].ping_once(ON_THE_LAN)?;
    assert_eq!(lan.source_seen_by(OUTSIDE)?, IpAddr::from(ON_THE_LAN));

    let web3 = hosts[0].run_container("web3", &[])?;
    ensure!(web3.fetch_name(ON_THE_LAN)? == "lan");
    let both = hosts[1].run_container("both", &[])?;
    let on_bridge = both.address()?;
    hosts[1].docker(&["network", "connect", "--ip", "192.168.64.201", "lan", "both"])?;
    web3.ping(on_bridge)?;
    ensure!(web3.fetch_name(on_bridge)? == "both");
    both.fetch_name(lan.address()?).map(drop)
}

#[test]
fn without_the_option_docker_28_drops_what_comes_from_another_host_and_the_agent_says_so() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, &["h2"])?;
        on_all(&mut hosts, |host| {
            let mut options = host.docker_options()?;
            options.retain(|option| option != DIRECT_ROUTING);
            host.start_docker_with(&options)
        })?;
        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;
        wait_until_the_agents_rules_come_first(&hosts[1])?;

        // Nor do answers arrive: what drops them knows no connections. It is neither the agents nor the network.
        web1.ping(hosts[1].subnet_env()?.subnet.ip())?;
        for (from, to) in [(&web1, &web2), (&web2, &web1)] {
            let target = to.address()?.to_string();
            let outcome = from.exec_outcome(&["ping", "-c", "2", "-i", "0.2", "-W", "1", &target])?;
            ensure!(outcome.stdout.contains(" 100% packet loss"), "{outcome:?}");
        }
        let dropped = hosts[1].run("iptables", &["-w", "-t", "raw", "-S", "PREROUTING"])?;
        ensure!(dropped.contains(&format!("-d {}/32 ! -i docker0 -j DROP", web2.address()?)), "{dropped}");
        let chain =
            "chain PREROUTING of iptables -t raw drops what other hosts send to containers at docker0";
        wait_for_problem(&hosts[1], "packet-filter", &[chain, DIRECT_ROUTING], TOLD)?;
        let told = problem(&hosts[0], "packet-filter")?;
        ensure!(told.is_none(), "h1 has no such rules: {told:?}");

        drop(web2);
        hosts[1].stop_docker()?;
        let options = hosts[1].docker_options()?;
        hosts[1].start_docker_with(&options)?;
        let web2 = hosts[1].run_container("again", &[])?;
        wait_until_the_agents_rules_come_first(&hosts[1])?;
        wait_until_solved(&hosts[1], "packet-filter", TOLD)?;
        talk_both_ways(&web1, &web2)
    })
}
