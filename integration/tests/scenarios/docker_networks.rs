//! Networks that are made in Docker on one host, and are on all.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flan_integration::docker::Container;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::{Bridge, Host, Lab, LabOptions, wait};

use crate::obstacles::wait_for_problem;
use crate::stage::{NETWORK, bare_hosts, talk_both_ways, wait_until_all_know_each_other};

const BOTH: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

const DRIVER: &[&str] = &["--docker"];

/// What another host did shows this soon. People are promised one second on a machine of their own.
const SHOWN: Duration = Duration::from_secs(5);

/// A Docker that was killed takes this long until its containers are there again.
const RESTARTED: Duration = Duration::from_secs(60);

/// Pings answered in each phase.
const PHASE: usize = 100;

pub(crate) fn start(host: &mut Host) -> Result<()> {
    host.start_agent_with(&[&STATUS_FLAGS[..], DRIVER].concat())
}

/// Hosts with an agent that serves Docker, and a Docker.
fn docker_hosts(lab: &Lab) -> Result<Vec<Host>> {
    lab.set_network(NETWORK)?;
    let mut hosts = bare_hosts(lab, 2)?;
    on_all(&mut hosts, start)?;
    wait_until_all_know_each_other(&hosts)?;
    on_all(&mut hosts, |host| host.start_docker(Bridge::WholeSubnet))?;
    Ok(hosts)
}

pub(crate) fn create(host: &Host, arguments: &[&str]) -> Result<String> {
    host.docker(&[&["network", "create", "-d", "flan", "--ipam-driver", "flan"], arguments].concat())
}

/// The names of the flan networks that a host's Docker shows.
pub(crate) fn shown(host: &Host) -> Result<Vec<String>> {
    let text = host.docker(&["network", "ls", "--filter", "driver=flan", "--format", "{{.Name}}"])?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn wait_until_shown(host: &Host, names: &[&str]) -> Result<()> {
    wait::until(&format!("Docker on {} to show {names:?}", host.name()), SHOWN, || {
        let shown = shown(host)?;
        ensure!(shown == names, "it shows {shown:?}");
        Ok(())
    })
}

/// The reason why Docker refused.
fn refused(done: Result<String>) -> Result<String> {
    match done {
        Ok(output) => bail!("it was done: {output}"),
        Err(reason) => Ok(format!("{reason:#}")),
    }
}

pub(crate) fn in_network(host: &Host, network: &str, name: &str, options: &[&str]) -> Result<Container> {
    host.run_container(name, &[&["--network", network], options].concat())
}

/// One on each host, in a network made on the first.
fn containers_of_blue(hosts: &[Host]) -> Result<[Container; 2]> {
    create(&hosts[0], &["--subnet", "10.7.0.0/16", "blue"])?;
    wait_until_shown(&hosts[1], &["blue"])?;
    Ok([in_network(&hosts[0], "blue", "web1", &[])?, in_network(&hosts[1], "blue", "web2", &[])?])
}

fn subnet_of(host: &Host, network: &str) -> Result<String> {
    Ok(host.subnet_env_of(network)?.base().to_string())
}

#[test]
fn a_network_made_in_docker_on_one_host_is_on_all_until_it_is_removed_on_any() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = docker_hosts(lab)?;
        create(&hosts[0], &["--label", "team=web", "blue"])?;
        wait_until_shown(&hosts[1], &["blue"])?;
        let label = hosts[1].docker(&["network", "inspect", "-f", "{{.Labels.team}}", "blue"])?;
        assert_eq!(label.trim(), "web");

        let web1 = in_network(&hosts[0], "blue", "web1", &[])?;
        let web2 = in_network(&hosts[1], "blue", "web2", &[])?;
        talk_both_ways(&web1, &web2)?;
        a_network_in_use_comes_back(&hosts, &web2)?;
        an_address_is_honoured_inside_this_hosts_part_alone(&hosts)?;
        the_way_out_and_published_ports_are_dockers(&hosts)?;

        hosts[0].docker(&["rm", "-f", "web1"])?;
        hosts[1].docker(&["rm", "-f", "web2"])?;
        hosts[1].docker(&["network", "rm", "blue"])?;
        wait_until_shown(&hosts[0], &[])?;
        nothing_is_left(lab, &hosts)
    })
}

/// Docker takes no refusal of a driver: it logs the reason, and the network is there again.
fn a_network_in_use_comes_back(hosts: &[Host], elsewhere: &Container) -> Result<()> {
    hosts[0].docker(&["rm", "-f", "web1"])?;
    wait::until("the store to know the container", SHOWN, || {
        ensure!(hosts[0].flanctl(&["network", "inspect", "blue"])?.stdout.contains("web2"));
        Ok(())
    })?;
    hosts[1].docker(&["stop", "-t", "0", "web2"])?;
    // Nobody runs in it. It would be gone when the stopped one is started.
    wait::until("h2 to have left", SHOWN, || {
        ensure!(hosts[1].status()?["networks"].as_array().is_some_and(Vec::is_empty));
        Ok(())
    })?;
    hosts[0].docker(&["network", "rm", "blue"])?;
    let told = hosts[0].log_lines(&[
        "refused what Docker asked for",
        "in use by container web2 on 192.168.64.12 (h2); it stays",
    ])?;
    ensure!(told.len() == 1, "{told:?}");
    wait_until_shown(&hosts[0], &["blue"])?;
    hosts[1].docker(&["start", "web2"])?;
    let again = in_network(&hosts[0], "blue", "web1", &[])?;
    talk_both_ways(&again, elsewhere)
}

fn an_address_is_honoured_inside_this_hosts_part_alone(hosts: &[Host]) -> Result<()> {
    let ours: Ipv4Addr = subnet_of(&hosts[0], "blue")?.split('/').next().context("a subnet")?.parse()?;
    let (inside, outside) =
        (Ipv4Addr::from_bits(ours.to_bits() + 77), Ipv4Addr::from_bits(ours.to_bits() + 1024));
    let fixed = in_network(&hosts[0], "blue", "fixed", &["--ip", &inside.to_string()])?;
    assert_eq!(fixed.address()?, inside);
    let last = Ipv4Addr::from_bits(ours.to_bits() + 254);
    let told = refused(hosts[0].docker(&[
        "run",
        "--rm",
        "--network",
        "blue",
        "--ip",
        &outside.to_string(),
        "flan-busybox",
        "ls",
    ]))?;
    ensure!(told.contains(&outside.to_string()) && told.contains(&last.to_string()), "{told}");
    hosts[0].docker(&["rm", "-f", "fixed"])?;
    Ok(())
}

fn the_way_out_and_published_ports_are_dockers(hosts: &[Host]) -> Result<()> {
    let public = in_network(&hosts[0], "blue", "public", &["-p", "8088:80"])?;
    let target = format!("http://{}:8088/cgi-bin/name", hosts[0].address());
    let page = hosts[1].run("busybox", &["wget", "-q", "-O", "-", &target])?;
    assert_eq!(page.trim(), "public");
    public.ping(flan_integration::lab::OUTSIDE)?;
    hosts[0].docker(&["rm", "-f", "public"])?;
    Ok(())
}

#[test]
fn networks_and_addresses_outlive_the_agent_and_docker() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = docker_hosts(lab)?;
        let [web1, web2] = containers_of_blue(&hosts)?;
        let fixed = Ipv4Addr::from_bits(web1.address()?.to_bits() + 70);
        let options = ["--restart", "always", "--ip", &fixed.to_string()];
        let fixed = in_network(&hosts[0], "blue", "fixed", &options)?;
        let subnets = [subnet_of(&hosts[0], "blue")?, subnet_of(&hosts[1], "blue")?];
        talk_both_ways(&web1, &web2)?;

        agents_are_killed_and_started_again(&mut hosts, &web1, &web2)?;
        a_bridge_that_was_deleted_comes_back_with_its_containers(&hosts[0], &web1, &web2)?;
        what_was_known_is_lost(&mut hosts[0], &web1, &web2)?;
        docker_is_killed_and_started_again(&mut hosts[0], &web2, &fixed)?;
        assert_eq!([subnet_of(&hosts[0], "blue")?, subnet_of(&hosts[1], "blue")?], subnets);
        Ok(())
    })
}

fn agents_are_killed_and_started_again(hosts: &mut [Host], web1: &Container, web2: &Container) -> Result<()> {
    let mut ping = hosts[0].ping_from(web1, web2.address()?)?;
    ping.wait_for_answers(PHASE)?;
    for host in &mut *hosts {
        host.kill_agent()?;
    }
    ping.wait_for_answers(PHASE)?;
    for host in &mut *hosts {
        start(host)?;
    }
    wait_until_shown(&hosts[0], &["blue"])?;
    ping.wait_for_answers(PHASE)?;
    ping.stop()?.nothing_lost(3 * PHASE)?;
    // What the new agents know of the old ones' containers is right.
    let third = in_network(&hosts[0], "blue", "third", &[])?;
    ensure!(third.address()? != web1.address()?);
    talk_both_ways(&third, web2)?;
    hosts[0].docker(&["rm", "-f", "third"])?;
    Ok(())
}

fn a_bridge_that_was_deleted_comes_back_with_its_containers(
    host: &Host,
    web1: &Container,
    web2: &Container,
) -> Result<()> {
    host.ip("link delete flan-blue")?;
    wait::until("the containers to be reached again", SHOWN, || talk_both_ways(web1, web2))
}

/// The agent learns from Docker which addresses containers have.
fn what_was_known_is_lost(host: &mut Host, web1: &Container, web2: &Container) -> Result<()> {
    host.kill_agent()?;
    fs::write(host.dir().join("run/flan/state/docker.json"), "{")?;
    let mut ping = host.ping_from(web1, web2.address()?)?;
    start(host)?;
    wait::until("the containers to be known", SHOWN, || {
        let known = host.log_lines(&["recorded a running container"])?;
        ensure!(known.len() == 2, "{known:?}");
        Ok(())
    })?;
    ping.wait_for_answers(PHASE)?;
    ping.stop()?.nothing_lost(PHASE)?;
    let other = in_network(host, "blue", "other", &[])?;
    ensure!(other.address()? != web1.address()?);
    host.docker(&["rm", "-f", "other"])?;
    Ok(())
}

/// All containers die at once, and dockerd does not tell of each. One of them is to be started again at its address.
fn docker_is_killed_and_started_again(
    host: &mut Host,
    elsewhere: &Container,
    fixed: &Container,
) -> Result<()> {
    let address = fixed.address()?;
    host.stop_docker()?;
    host.start_docker(Bridge::WholeSubnet)?;
    wait::until("the container to be there again", RESTARTED, || {
        ensure!(fixed.address()? == address, "it has another address");
        talk_both_ways(fixed, elsewhere)
    })?;
    host.docker(&["start", "web1"])?;
    assert_eq!(shown(host)?, ["blue"]);
    Ok(())
}

#[test]
fn dockers_of_two_releases_share_networks_of_both_families_and_internal_ones() -> Result<()> {
    Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
        lab.set_network(BOTH)?;
        let mut hosts = vec![lab.host("h1")?, lab.host_of_forky("h2")?];
        on_all(&mut hosts, start)?;
        on_all(&mut hosts, |host| host.start_docker_with(&host.docker_options()?))?;
        create(&hosts[1], &["--ipv6", "--subnet", "10.7.0.0/16", "--subnet", "fd00:7::/48", "both"])?;
        create(&hosts[0], &["--internal", "inner"])?;
        for host in &hosts {
            wait_until_shown(host, &["both", "inner"])?;
        }
        let web1 = in_network(&hosts[0], "both", "web1", &["--network-alias", "front"])?;
        let web2 = in_network(&hosts[1], "both", "web2", &[])?;
        talk_both_ways(&web1, &web2)?;
        web1.ping(ipv6_of(&hosts[1], "web2")?)?;
        web2.ping(ipv6_of(&hosts[0], "web1")?)?;
        packets_are_as_large_as_the_path_lets_them_be(&hosts[0], &web1, &web2)?;
        a_running_container_is_connected_and_disconnected(&hosts)?;
        an_internal_network_has_no_way_out(&hosts)
    })
}

fn ipv6_of(host: &Host, container: &str) -> Result<Ipv6Addr> {
    let format = "{{.NetworkSettings.Networks.both.GlobalIPv6Address}}";
    let text = host.docker(&["inspect", "-f", format, container])?;
    text.trim().parse().with_context(|| format!("{container} has no IPv6 address: {text:?}"))
}

fn packets_are_as_large_as_the_path_lets_them_be(
    host: &Host,
    from: &Container,
    to: &Container,
) -> Result<()> {
    let mtu = host.subnet_env_of("both")?.mtu;
    let shown = from.exec(&["cat", "/sys/class/net/eth0/mtu"])?;
    assert_eq!(shown.trim(), mtu.to_string());
    let size = (mtu - 28).to_string();
    let place = from.network_place()?;
    place.run("ping", ["-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size, &to.address()?.to_string()])?;
    Ok(())
}

/// By its name, too: on one host that is Docker's own doing.
fn a_running_container_is_connected_and_disconnected(hosts: &[Host]) -> Result<()> {
    let late = hosts[0].run_container("late", &[])?;
    hosts[0].docker(&["network", "connect", "both", "late"])?;
    assert_eq!(late.fetch_name("front")?, "web1");
    hosts[0].docker(&["network", "disconnect", "both", "late"])?;
    ensure!(late.fetch_name("front").is_err(), "it still reaches the network");
    hosts[0].docker(&["rm", "-f", "late"])?;
    Ok(())
}

fn an_internal_network_has_no_way_out(hosts: &[Host]) -> Result<()> {
    let inner1 = in_network(&hosts[0], "inner", "inner1", &[])?;
    let inner2 = in_network(&hosts[1], "inner", "inner2", &[])?;
    talk_both_ways(&inner1, &inner2)?;
    for (container, host) in [(&inner1, &hosts[0]), (&inner2, &hosts[1])] {
        let outside = flan_integration::lab::OUTSIDE.to_string();
        let reached = container.exec_outcome(&["ping", "-c", "1", "-W", "1", &outside])?;
        ensure!(reached.code != Some(0), "a container of an internal network gets out on {}", host.name());
    }
    Ok(())
}

#[test]
fn a_network_is_removed_by_people_alone_and_a_store_that_is_away_stops_no_container() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = docker_hosts(lab)?;
        let [web1, web2] = containers_of_blue(&hosts)?;
        let mut ping = hosts[0].ping_from(&web1, web2.address()?)?;

        lab.store_mut().kill_member(0)?;
        // A container needs the store only if its host has to join the network first.
        let third = in_network(&hosts[0], "blue", "third", &[])?;
        talk_both_ways(&third, &web2)?;
        let told = refused(create(&hosts[0], &["green"]))?;
        ensure!(told.contains("store"), "{told}");
        lab.store_mut().start_member(0)?;
        ping.wait_for_answers(PHASE)?;
        ping.stop()?.nothing_lost(PHASE)?;

        wait::until("a network to be made again", RESTARTED, || create(&hosts[0], &["green"]))?;
        wait_until_shown(&hosts[1], &["blue", "green"])?;
        lab.store().delete("blue/config")?;
        hosts[1].docker(&["network", "rm", "green"])?;
        wait_until_shown(&hosts[0], &["blue"])?;
        for host in &hosts {
            wait_for_problem(host, "docker-networks", &["network blue", "nobody removed it"], RESTARTED)?;
        }
        Ok(())
    })
}

#[test]
fn docker_starts_although_the_store_is_away_and_beside_a_swarm() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = docker_hosts(lab)?;
        let address = hosts[0].address().to_string();
        hosts[0].docker(&["swarm", "init", "--advertise-addr", &address])?;
        create(&hosts[0], &["blue"])?;
        wait_until_shown(&hosts[1], &["blue"])?;
        let web1 = in_network(&hosts[0], "blue", "web1", &["--restart", "always"])?;
        let web2 = in_network(&hosts[1], "blue", "web2", &[])?;
        talk_both_ways(&web1, &web2)?;

        hosts[0].stop_docker()?;
        hosts[0].kill_agent()?;
        lab.store_mut().kill_member(0)?;
        // This agent knows of no network yet. It says so to who wants one, and others start.
        hosts[0].spawn_agent(&[&STATUS_FLAGS[..], DRIVER].concat())?;
        hosts[0].start_docker(Bridge::WholeSubnet)?;
        hosts[0].run_container("plain", &[])?;
        let told = refused(hosts[0].docker(&["start", "web1"]))?;
        ensure!(told.contains("has not joined network blue yet: it waits for"), "{told}");

        lab.store_mut().start_member(0)?;
        hosts[0].wait_for_agent()?;
        wait::until("the container to be there again", RESTARTED, || {
            hosts[0].docker(&["start", "web1"])?;
            talk_both_ways(&web1, &web2)
        })?;
        assert_eq!(shown(&hosts[0])?, ["blue"]);
        Ok(())
    })
}

#[test]
fn what_cannot_be_is_refused_with_what_would_and_what_can_is_as_asked() -> Result<()> {
    Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
        lab.set_network(BOTH)?;
        let mut host = lab.host("h1")?;
        start(&mut host)?;
        host.start_docker(Bridge::WholeSubnet)?;
        create(&host, &["--subnet", "10.7.0.0/16", "-o", "flan.vni=77", "-o", "flan.subnet-len=26", "blue"])?;
        create(&host, &["-o", "flan.backend=host-gw", "plain"])?;
        create(&host, &["--ipv6", "both"])?;
        wait_until_shown(&host, &["blue", "both", "plain"])?;
        for (network, parts) in [
            ("blue", ["10.7.0.0/16", "vxlan", "77"]),
            ("plain", ["10.", "host-gw", "vni         -"]),
            ("both", ["10.", "fd", "::/48"]),
        ] {
            wait::until("the network to be in the store", SHOWN, || {
                let told = lab.flanctl(&["network", "inspect", network])?.stdout;
                ensure!(parts.iter().all(|part| told.contains(part)), "{told}");
                Ok(())
            })?;
        }
        in_network(&host, "blue", "web", &[])?;
        assert_eq!(host.subnet_env_of("blue")?.base().split('/').nth(1), Some("26"));
        one_network_of_the_store_has_two_names(&host)?;

        for (arguments, told) in [
            (
                ["--subnet", "10.7.4.0/22", "red"].as_slice(),
                "10.7.4.0/22 overlaps 10.7.0.0/16 of network blue",
            ),
            (&["-o", "flan.vni=77", "red"], "network blue has the VNI 77"),
            (
                &["-o", "flan.vnii=7", "red"],
                "option flan.vnii=7: there is no such option; there are flan.network",
            ),
            (&["-o", "flan.backend=udp", "red"], "vxlan, host-gw and alloc work in others"),
            (&["-o", "flan.network=none", "red"], "there is no network none in the store"),
            (
                &["--subnet", "10.9.0.0/16", "--gateway", "10.9.0.9", "red"],
                "--gateway 10.9.0.9 has no effect",
            ),
            (
                &["--subnet", "10.9.0.0/16", "--ip-range", "10.9.1.0/24", "red"],
                "--ip-range 10.9.1.0/24 has no effect",
            ),
            (
                &["--subnet", "10.9.0.0/16", "--aux-address", "a=10.9.0.9", "red"],
                "--aux-address has no effect",
            ),
            (&["--ipam-opt", "a=b", "red"], "the IPAM driver flan has no option a"),
        ] {
            let reason = refused(create(&host, arguments))?;
            ensure!(reason.contains(told), "{arguments:?}: {reason}");
        }
        let reason = refused(host.docker(&["network", "create", "-d", "flan", "red"]))?;
        ensure!(reason.contains("add --ipam-driver flan"), "{reason}");
        assert_eq!(shown(&host)?, ["azure", "blue", "both", "plain"]);
        Ok(())
    })
}

/// The second goes without the first.
fn one_network_of_the_store_has_two_names(host: &Host) -> Result<()> {
    create(host, &["--subnet", "10.7.0.0/16", "-o", "flan.network=blue", "azure"])?;
    wait_until_shown(host, &["azure", "blue", "both", "plain"])?;
    let web = in_network(host, "azure", "azure1", &[])?;
    ensure!(host.subnet_env_of("blue")?.subnet.contains(web.address()?), "it is not in blue");
    host.docker(&["rm", "-f", "azure1"])?;
    host.docker(&["network", "rm", "azure"])?;
    wait_until_shown(host, &["blue", "both", "plain"])?;
    ensure!(host.flanctl(&["network", "inspect", "blue"])?.code == Some(0), "blue went with it");
    create(host, &["--subnet", "10.7.0.0/16", "-o", "flan.network=blue", "azure"]).map(drop)
}

/// No network, no lease, no bridge and no end of a container.
fn nothing_is_left(lab: &Lab, hosts: &[Host]) -> Result<()> {
    let list = lab.flanctl(&["network", "ls", "-o", "json"])?.stdout;
    ensure!(!list.contains("blue"), "{list}");
    for host in hosts {
        wait::until("nothing to be left", SHOWN, || {
            let links = host.ip("-o link show")?;
            ensure!(!links.contains("flan-blue") && !links.contains("flnh"), "{links}");
            ensure!(host.status()?["networks"].as_array().is_some_and(Vec::is_empty));
            Ok(())
        })?;
    }
    Ok(())
}
