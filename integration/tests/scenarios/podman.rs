//! Hosts whose containers podman starts, by CNI plugins that take what the agent's file says.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use flan_integration::docker::Bridge;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::podman::{self, PodmanContainer};
use flan_integration::{Host, Lab, LabOptions};

use crate::stage::{NETWORK, bare_hosts, wait_until_all_know_each_other};

/// The plugin that flannel's users have. It reads subnet.env itself, when each container starts.
const FLANNEL: &str = r#"[
    {"type":"flannel","delegate":{"isDefaultGateway":true,"hairpinMode":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}
]"#;

/// The plugin bridge, with what an operator copies from the file.
fn bridge(host: &Host) -> Result<String> {
    let env = host.subnet_env()?;
    Ok(format!(
        r#"[{{"type":"bridge","bridge":"cni0","mtu":{},"isGateway":true,"isDefaultGateway":true,"ipMasq":{},
            "hairpinMode":true,"ipam":{{"type":"host-local","subnet":"{}"}}}}]"#,
        env.mtu,
        !env.ip_masq,
        env.base()
    ))
}

#[test]
fn containers_of_podman_by_cni_plugins_reach_each_other_and_those_of_docker() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut hosts = bare_hosts(lab, 3)?;
        on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
        wait_until_all_know_each_other(&hosts)?;
        let with_flannel = hosts[0].podman(FLANNEL)?;
        let with_bridge = hosts[1].podman(&bridge(&hosts[1])?)?;
        hosts[2].start_docker(Bridge::WholeSubnet)?;

        let one = with_flannel.run_container("one")?;
        let two = with_bridge.run_container("two")?;
        let three = hosts[2].run_container("three", &[])?;
        for (container, host) in [(&one, &hosts[0]), (&two, &hosts[1])] {
            is_as_the_file_says(container, host)?;
        }
        // All three ways, with nobody's address changed on the way.
        let addresses = [one.address()?, two.address()?, three.address()?];
        for target in addresses {
            for (from, own) in [(&one, addresses[0]), (&two, addresses[1])] {
                ensure!(target == own || from.source_seen_by(target)? == own, "{own} to {target}");
            }
            ensure!(target == addresses[2] || three.source_seen_by(target)? == addresses[2], "to {target}");
        }
        for host in &hosts {
            let problems = host.status()?["problems"].clone();
            ensure!(problems.as_array().is_some_and(Vec::is_empty), "on {}: {problems}", host.name());
        }
        a_container_of_podman_is_attached_to_the_lan(&hosts, &with_bridge)
    })
}

fn is_as_the_file_says(container: &PodmanContainer<'_>, host: &Host) -> Result<()> {
    let (env, address) = (host.subnet_env()?, container.address()?);
    ensure!(address.octets()[..3] == env.base_address().octets()[..3], "{address} is not in {}", env.base());
    assert_eq!(container.exec(&["cat", "/sys/class/net/eth0/mtu"])?.trim(), env.mtu.to_string());
    Ok(())
}

fn a_container_of_podman_is_attached_to_the_lan(hosts: &[Host], podman: &podman::Podman) -> Result<()> {
    let _service = podman.serve()?;
    let options = ["--docker-api", podman::API, "--parent", "eth0", "--address", "192.168.64.177/24"];
    let said = hosts[1].flanctl_beside_podman(podman, &[&["attach", "two"], &options[..]].concat())?;
    said.succeeded("flanctl attach")?;
    hosts[0].ping_once(Ipv4Addr::new(192, 168, 64, 177))?;
    hosts[1].flanctl_beside_podman(podman, &["detach", "two"])?.succeeded("flanctl detach")
}
