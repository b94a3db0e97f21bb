//! The units, under a systemd: an agent with no more rights than they give can do all that it is there for.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::docker::IMAGE;
use flan_integration::systemd::Systemd;
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::stage::{NETWORK, NETWORK_OF_UDP, bare_hosts, ends_of, wait_until_reached};

const AGENT: &str = "fland.service";
const DOCKER: &str = "docker.service";
const ATTACH: &str = "flan-attach.service";
/// As seen from the host.
const DOCKER_API: &str = "unix:///run/docker.sock";

/// What an operator writes to /etc/default/fland.
fn settings(host: &Host) -> (&'static str, String) {
    let (endpoints, prefix) = host.etcd();
    let lines = format!("FLAND_ETCD_ENDPOINTS={endpoints}\nFLAND_ETCD_PREFIX={prefix}\n");
    ("fland", lines + SETTINGS)
}

const SETTINGS: &str = "FLAND_IFACE=eth0\nFLAND_IP_MASQ=true\nFLAND_LOG_FORMAT=text\n";

/// A host whose agent is a unit, and one whose agent is not, reach each other's bridges.
fn a_unit_and_a_bare_agent_reach_each_other(lab: &Lab, network: &str) -> Result<(Vec<Host>, Systemd)> {
    lab.set_network(network)?;
    let mut hosts = bare_hosts(lab, 2)?;
    let systemd = Systemd::boot(&hosts[0], &[settings(&hosts[0])])?;
    systemd.start(AGENT)?;
    hosts[1].start_agent()?;
    let ends = ends_of(&hosts)?;
    for (from, to) in [(0, 1), (1, 0)] {
        wait_until_reached(&ends[from], &ends[to], Duration::from_secs(15)).with_context(|| {
            fs::read_to_string(systemd.log(AGENT)).unwrap_or_else(|error| format!("no log: {error}"))
        })?;
    }
    // What it may not do it says.
    let log = fs::read_to_string(systemd.log(AGENT))?;
    ensure!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    Ok((hosts, systemd))
}

#[test]
fn an_agent_started_by_its_unit_joins_a_network_of_vxlan_and_comes_back_when_killed() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, systemd) = a_unit_and_a_bare_agent_reach_each_other(lab, NETWORK)?;
        let env = hosts[0].subnet_env()?;
        let killed = systemd.property(AGENT, "MainPID")?;

        systemd.systemctl(&["kill", "--signal=KILL", AGENT])?;
        wait::until("the agent to be back", Duration::from_secs(20), || {
            let (state, pid) = (systemd.property(AGENT, "ActiveState")?, systemd.property(AGENT, "MainPID")?);
            ensure!(state == "active" && pid != killed, "{state}, process {pid}");
            Ok(())
        })?;
        assert_eq!(hosts[0].subnet_env()?, env);

        systemd.systemctl(&["stop", AGENT])?;
        assert_eq!(hosts[0].subnet_env()?, env, "subnet.env does not stay for Docker's next start");
        assert_eq!(systemd.property(AGENT, "Result")?, "success");
        Ok(())
    })
}

#[test]
fn an_agent_started_by_its_unit_joins_a_network_of_udp_with_every_offload() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (_hosts, systemd) = a_unit_and_a_bare_agent_reach_each_other(lab, NETWORK_OF_UDP)?;
        let log = fs::read_to_string(systemd.log(AGENT))?;
        let line = log.lines().find(|line| line.contains("data path")).context("no data path")?;
        ensure!(line.contains("TSO") && line.contains("gso=true gro=true"), "{line}");
        Ok(())
    })
}

#[test]
fn docker_started_by_its_unit_waits_for_the_subnet_and_runs_on_while_the_agent_restarts() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let host = lab.host("h1")?;
        let systemd = Systemd::boot(&host, &[settings(&host)])?;

        // The agent comes first by the drop-in alone.
        systemd.start(DOCKER)?;
        ensure_docker0_is_the_subnet(&host)?;
        let docker = systemd.property(DOCKER, "MainPID")?;
        for how in ["restart", "stop"] {
            systemd.systemctl(&[how, AGENT])?;
            assert_eq!(systemd.property(DOCKER, "MainPID")?, docker, "another dockerd after {how}");
        }
        systemd.systemctl(&["restart", DOCKER])?;
        ensure_docker0_is_the_subnet(&host)
    })
}

#[test]
fn docker_finds_the_driver_at_boot_and_waits_for_it_while_the_agent_restarts() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let host = lab.host("h1")?;
        let systemd = Systemd::boot(&host, &[settings(&host)])?;
        systemd.start("fland-docker.socket")?;
        systemd.start(DOCKER)?;
        let create = |name: &str, subnet: &str| {
            let driver =
                ["network", "create", "-d", "flan", "--ipam-driver", "flan", "--subnet", subnet, name];
            host.run("docker", &[&["-H", DOCKER_API], &driver[..]].concat())
        };
        create("blue", "10.7.0.0/16")?;
        // The call waits in the socket until the next agent takes it.
        systemd.systemctl(&["restart", "--no-block", AGENT])?;
        create("red", "10.8.0.0/16")?;
        systemd.systemctl(&["restart", DOCKER])?;
        let list = host.run("docker", &["-H", DOCKER_API, "network", "ls", "--filter", "driver=flan"])?;
        ensure!(list.contains("blue") && list.contains("red"), "{list}");
        let log = fs::read_to_string(systemd.log(AGENT))?;
        ensure!(!log.contains(" ERROR ") && !log.contains("cannot serve names"), "{log}");
        ensure!(log.contains("serving names"), "{log}");
        Ok(())
    })
}

fn ensure_docker0_is_the_subnet(host: &Host) -> Result<()> {
    let env = host.subnet_env()?;
    let bridge = host.ip("-4 -oneline address show dev docker0")?;
    ensure!(bridge.contains(&format!(" {} ", env.subnet)), "docker0 is not {}: {bridge}", env.subnet);
    Ok(())
}

#[test]
fn an_agent_started_by_its_unit_carries_the_store_of_all() -> Result<()> {
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        let mut hosts = bare_hosts(lab, 2)?;
        let url = format!("http://{}:2379", hosts[0].address());
        let store = format!(
            "FLAND_EMBEDDED_STORE=/var/lib/flan/store\nFLAND_STORE_LISTEN={url}\nFLAND_STORE_INSECURE=true\n"
        );
        let systemd = Systemd::boot(&hosts[0], &[("fland", store + SETTINGS)])?;
        systemd.start(AGENT)?;
        hosts[1].use_store(&url);
        write_network(&hosts[1])?;
        hosts[1].start_agent()?;
        wait::until("the host with the store to have its subnet", Duration::from_secs(15), || {
            hosts[1].wait_for_peers(&[&hosts[0].subnet_env()?])
        })
    })
}

/// Puts the network config into the store that this host uses.
fn write_network(host: &Host) -> Result<()> {
    host.flanctl_with_input(&["config", "set", "-"], NETWORK)?.succeeded("flanctl config set")
}

#[test]
fn a_store_started_by_its_unit_serves_the_hosts() -> Result<()> {
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        let mut hosts = bare_hosts(lab, 2)?;
        let url = format!("http://{}:2379", hosts[0].address());
        let store = format!("FLAND_LISTEN_CLIENT_URLS={url}\nFLAND_STORE_INSECURE=true\n");
        for host in &mut hosts {
            host.use_store(&url);
        }
        let systemd = Systemd::boot(&hosts[0], &[settings(&hosts[0]), ("fland-store", store)])?;
        systemd.start("fland-store.service")?;
        write_network(&hosts[1])?;

        systemd.start(AGENT)?;
        hosts[1].start_agent()?;
        let envs = [hosts[0].subnet_env()?, hosts[1].subnet_env()?];
        hosts[0].wait_for_peers(&[&envs[1]])?;

        // What it keeps survives it.
        systemd.systemctl(&["restart", "fland-store.service"])?;
        let listed = hosts[1].flanctl(&["subnets", "ls"])?;
        listed.succeeded("flanctl subnets ls")?;
        for env in &envs {
            ensure!(listed.stdout.contains(&env.base()), "{} is not among {}", env.base(), listed.stdout);
        }
        Ok(())
    })
}

#[test]
fn the_service_that_attaches_containers_has_the_rights_that_it_needs() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let host = lab.host("h1")?;
        let systemd = Systemd::boot(&host, &[settings(&host)])?;
        systemd.start(DOCKER)?;
        systemd.start(ATTACH)?;
        let docker = |args: &[&str]| host.run("docker", &[&["-H", DOCKER_API], args].concat());
        docker(&["import", &lab.dir().join("image.tar").to_string_lossy(), IMAGE])?;
        let label = "flan.attach=parent=eth0,address=192.168.64.177/24,address=fd00:64::177/64";
        docker(&["run", "-d", "--name", "web", "--label", label, IMAGE, "/bin/sleep", "60"])?;
        wait::until("the service to attach it", Duration::from_secs(10), || {
            let seen = docker(&["exec", "web", "ip", "address", "show", "lan0"])?;
            ensure!(seen.contains("192.168.64.177/24") && seen.contains("fd00:64::177/64"), "{seen}");
            Ok(())
        })
        .with_context(|| fs::read_to_string(systemd.log(ATTACH)).unwrap_or_default())?;
        // What it made goes on without it.
        systemd.systemctl(&["stop", ATTACH])?;
        assert_eq!(systemd.property(ATTACH, "Result")?, "success");
        docker(&["exec", "web", "ip", "link", "show", "lan0"]).map(drop)
    })
}
