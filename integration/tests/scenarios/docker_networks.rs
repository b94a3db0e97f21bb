//! Networks that are made in Docker on one host, and are on all.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flan_integration::docker::Container;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::{Bridge, Host, Lab, LabOptions, wait};

use crate::stage::{NETWORK, bare_hosts, talk_both_ways, wait_until_all_know_each_other};

const DRIVER: &[&str] = &["--docker", "--docker-state=/run/flan/docker.json"];

/// What another host did shows this soon. People are promised one second on a machine of their own.
const SHOWN: Duration = Duration::from_secs(5);

fn start(host: &mut Host) -> Result<()> {
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

fn create(host: &Host, arguments: &[&str]) -> Result<String> {
    host.docker(&[&["network", "create", "-d", "flan", "--ipam-driver", "flan"], arguments].concat())
}

/// The names of the flan networks that a host's Docker shows.
fn shown(host: &Host) -> Result<Vec<String>> {
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

fn in_network(host: &Host, network: &str, name: &str, options: &[&str]) -> Result<Container> {
    host.run_container(name, &[&["--network", network], options].concat())
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
    hosts[0].docker(&["network", "rm", "blue"])?;
    let told = hosts[0].log_lines(&[
        "refused what Docker asked for",
        "in use by container web2 on 192.168.64.12 (h2); it stays",
    ])?;
    ensure!(told.len() == 1, "{told:?}");
    wait_until_shown(&hosts[0], &["blue"])?;
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
