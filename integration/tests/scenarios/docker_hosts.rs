//! Containers on two Docker hosts, in the ways that people run them every day.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::docker::Container;
use flan_integration::lab::OUTSIDE;
use flan_integration::{Bridge, Host, Lab, LabOptions, wait};

use crate::stage::{talk_both_ways, two_docker_hosts};

/// The policy and the rules of the FORWARD chain.
fn forward_chain(host: &Host) -> Result<Vec<String>> {
    Ok(host.run("iptables", &["-w", "-S", "FORWARD"])?.lines().map(str::to_owned).collect())
}

/// FORWARD drops by policy, and flan's jump is its first rule and there once.
fn assert_dropped_but_for_flan(host: &Host) -> Result<()> {
    let chain = forward_chain(host)?;
    ensure!(chain.first().is_some_and(|policy| policy == "-P FORWARD DROP"), "{chain:?}");
    ensure!(chain.get(1).is_some_and(|rule| rule == "-A FORWARD -j FLAN-FORWARD"), "{chain:?}");
    ensure!(chain.iter().filter(|rule| rule.contains("FLAN-FORWARD")).count() == 1, "{chain:?}");
    Ok(())
}

#[test]
fn containers_on_two_hosts_talk_and_keep_their_addresses() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = two_docker_hosts(lab, Bridge::WholeSubnet)?;
        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;

        talk_both_ways(&web1, &web2)?;

        // Beyond the overlay nobody knows containers' addresses: there the host stands in for them.
        for (host, container) in hosts.iter().zip([&web1, &web2]) {
            assert_eq!(container.source_seen_by(OUTSIDE)?, IpAddr::from(host.address()));
        }
        Ok(())
    })
}

#[test]
fn containers_talk_although_forward_drops() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = two_docker_hosts(lab, Bridge::WholeSubnet)?;
        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;

        for host in &hosts {
            host.run("iptables", &["-w", "-P", "FORWARD", "DROP"])?;
        }
        talk_both_ways(&web1, &web2)?;

        // dockerd was started after the agent and has put its own jumps first.
        for host in &hosts {
            wait::until("flan's jump to be first again", Duration::from_secs(45), || {
                assert_dropped_but_for_flan(host)
            })?;
        }
        for host in &mut hosts {
            host.kill_agent()?;
            host.start_agent()?;
            assert_dropped_but_for_flan(host)?;
            host.stop_agent()?;
            host.start_agent()?;
            assert_dropped_but_for_flan(host)?;
        }
        talk_both_ways(&web1, &web2)?;

        // What Docker keeps apart on one host stays apart.
        hosts[0].docker(&["network", "create", "--subnet", "10.99.0.0/24", "unrelated"])?;
        let stranger = hosts[0].run_container("stranger", &["--network", "unrelated"])?;
        for (from, to) in [(&stranger, &web1), (&web1, &stranger)] {
            let target = to.address()?;
            let outcome = from.exec_outcome(&["ping", "-c", "1", "-W", "1", &target.to_string()])?;
            ensure!(
                outcome.code != Some(0),
                "{} reaches {} on another network of Docker",
                from.name(),
                to.name()
            );
        }

        // A firewall that is reloaded takes everybody's rules with it.
        hosts[0].run("iptables", &["-w", "-F", "FORWARD"])?;
        hosts[0].run("nft", &["delete", "table", "inet", "flan"])?;
        wait::until("flan's rules to be back", Duration::from_secs(10), || {
            hosts[0].run("nft", &["list", "table", "inet", "flan"])?;
            assert_dropped_but_for_flan(&hosts[0])
        })?;
        talk_both_ways(&web1, &web2)
    })
}

#[test]
fn every_network_mode_of_docker_works_across_hosts() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        // docker0 has the lower half of each host's subnet, a user-defined network the upper.
        let hosts = two_docker_hosts(lab, Bridge::LowerHalf)?;
        for host in &hosts {
            let env = host.subnet_env()?;
            host.docker_network("apps", &env.upper_half(), env.mtu)?;
        }
        let bridge = [hosts[0].run_container("bridge1", &[])?, hosts[1].run_container("bridge2", &[])?];

        the_default_bridge(&bridge).context("default bridge")?;
        a_user_defined_network(&hosts, &bridge).context("user-defined network")?;
        the_network_of_the_host(&hosts, &bridge).context("--network host")?;
        no_network(&hosts, &bridge).context("--network none")?;
        the_network_of_another_container(&hosts, &bridge).context("--network container:X")
    })
}

fn the_default_bridge(bridge: &[Container; 2]) -> Result<()> {
    talk_both_ways(&bridge[0], &bridge[1])
}

fn a_user_defined_network(hosts: &[Host; 2], bridge: &[Container; 2]) -> Result<()> {
    let on_apps = ["--network", "apps"];
    let apps = [hosts[0].run_container("app1", &on_apps)?, hosts[1].run_container("app2", &on_apps)?];
    talk_both_ways(&apps[0], &apps[1])?;
    talk_both_ways(&apps[0], &bridge[1])?;

    let neighbour = hosts[0].run_container("neighbour", &on_apps)?;
    ensure!(neighbour.fetch_name("app1")? == "app1", "name lookup on one host");
    assert_eq!(apps[0].source_seen_by(OUTSIDE)?, IpAddr::from(hosts[0].address()));
    Ok(())
}

fn the_network_of_the_host(hosts: &[Host; 2], bridge: &[Container; 2]) -> Result<()> {
    let native = [
        hosts[0].run_container("native1", &["--network", "host"])?,
        hosts[1].run_container("native2", &["--network", "host"])?,
    ];
    // A host is reached by its address on docker0, from containers as from the other host.
    let reached_at = [hosts[0].subnet_env()?.subnet.ip(), hosts[1].subnet_env()?.subnet.ip()];
    native[0].ping(reached_at[1])?;
    ensure!(native[0].fetch_name(reached_at[1])? == "native2");
    ensure!(native[1].fetch_name(reached_at[0])? == "native1");
    ensure!(bridge[1].fetch_name(reached_at[0])? == "native1");
    ensure!(native[0].fetch_name(bridge[1].address()?)? == "bridge2");
    // The host's own packets into the overlay carry the address of its VXLAN device.
    let device_address = IpAddr::from(hosts[0].subnet_env()?.base_address());
    assert_eq!(native[0].source_seen_by(bridge[1].address()?)?, device_address);
    Ok(())
}

fn no_network(hosts: &[Host; 2], bridge: &[Container; 2]) -> Result<()> {
    let alone = hosts[0].run_container("alone", &["--network", "none"])?;
    let interfaces = alone.exec(&["ip", "-o", "link"])?;
    let others: Vec<&str> =
        interfaces.lines().filter(|line| line.contains("eth") || line.contains("flannel")).collect();
    ensure!(others.is_empty(), "an isolated container has {others:?}");
    for target in [bridge[0].address()?, bridge[1].address()?, OUTSIDE] {
        let outcome = alone.exec_outcome(&["ping", "-c", "1", "-W", "1", &target.to_string()])?;
        ensure!(outcome.code != Some(0), "an isolated container reaches {target}");
    }
    Ok(())
}

fn the_network_of_another_container(hosts: &[Host; 2], bridge: &[Container; 2]) -> Result<()> {
    let guest = hosts[0].run_container_at(8080, "guest", &["--network", "container:bridge1"])?;
    let address = bridge[0].address()?;
    ensure!(bridge[1].fetch_name(format!("{address}:8080"))? == "guest");
    ensure!(guest.fetch_name(bridge[1].address()?)? == "bridge2");
    assert_eq!(guest.source_seen_by(bridge[1].address()?)?, IpAddr::from(address));
    Ok(())
}
