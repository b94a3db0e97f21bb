//! Containers in VLANs of the physical network.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::{Container, Host, Lab, LabOptions, vm, wait};

use crate::docker_networks::in_network;
use crate::lan::{FOLLOW, attach, docker_hosts};

const SOON: Duration = Duration::from_secs(30);

fn in_vlan(host: &Host, container: &str, parent: &[&str], vlan: u16, last: u8) -> Result<Ipv4Addr> {
    let (vlan, address) = (vlan.to_string(), format!("10.55.0.{last}/24"));
    attach(host, container, &[parent, &["--vlan", &vlan, "--address", &address]].concat())?
        .succeeded("flanctl attach")?;
    Ok(Ipv4Addr::new(10, 55, 0, last))
}

fn cannot_reach(from: &Container, target: Ipv4Addr) -> Result<()> {
    let said = from.exec_outcome(&["ping", "-c", "2", "-W", "1", &target.to_string()])?;
    ensure!(said.code != Some(0), "it can: {said:?}");
    Ok(())
}

fn has(host: &Host, device: &str) -> Result<bool> {
    Ok(host.ip("-oneline link")?.contains(&format!(" {device}@eth0:")))
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn containers_in_a_vlan_reach_each_other_across_hosts_and_nobody_else() -> Result<()> {
    vm::ensure_inside()?;
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = docker_hosts(lab, vec![lab.host("h1")?, lab.host_of_forky("h2")?])?;
        let [one, other] = [hosts[0].run_container("one", &[])?, hosts[0].run_container("other", &[])?];
        hosts[1].run_container("two", &[])?;
        let on_eth0 = ["--parent", "eth0"];
        in_vlan(&hosts[0], "one", &on_eth0, 5, 1)?;
        let two = in_vlan(&hosts[1], "two", &on_eth0, 5, 2)?;
        in_vlan(&hosts[0], "other", &on_eth0, 6, 3)?;
        one.ping(two)?;
        cannot_reach(&other, two)?;

        // The device of a VLAN goes with the last container on it, and not before.
        hosts[0].run_container("third", &[])?;
        in_vlan(&hosts[0], "third", &on_eth0, 5, 4)?;
        hosts[0].flanctl_beside_docker(&["detach", "third"])?.succeeded("flanctl detach")?;
        one.ping(two)?;
        hosts[0].flanctl_beside_docker(&["detach", "one"])?.succeeded("flanctl detach")?;
        ensure!(!has(&hosts[0], "eth0.5")? && has(&hosts[0], "eth0.6")?, "{}", hosts[0].ip("link")?);
        let _service = hosts[0].flanctl_service(&FOLLOW)?;
        hosts[0].docker(&["rm", "-f", "other"])?;
        wait::until("the device of the VLAN to be gone", SOON, || {
            ensure!(!has(&hosts[0], "eth0.6")?);
            Ok(())
        })?;

        a_device_of_the_operator_stays(&hosts[0], &one)?;
        ports_of_a_bridge_are_in_their_vlans(&hosts[0])?;
        dockers_own_macvlan_in_a_vlan(&hosts)
    })
}

fn a_device_of_the_operator_stays(host: &Host, one: &Container) -> Result<()> {
    host.ip("link add link eth0 name eth0.7 type vlan id 7")?;
    host.ip("link set eth0.7 up")?;
    in_vlan(host, "one", &["--parent", "eth0"], 7, 1)?;
    ensure!(one.exec(&["ls", "/sys/class/net"])?.contains("lan0"));
    host.flanctl_beside_docker(&["detach", "one"])?.succeeded("flanctl detach")?;
    ensure!(has(host, "eth0.7")?, "the operator's device is gone");
    Ok(())
}

fn ports_of_a_bridge_are_in_their_vlans(host: &Host) -> Result<()> {
    host.ip("link add lanbr type bridge vlan_filtering 1")?;
    host.ip("link set lanbr up")?;
    let on_bridge = ["--parent", "lanbr", "--mode", "bridge"];
    let mut containers = Vec::new();
    for (last, vlan) in [(1, 5), (2, 5), (3, 6), (4, 1)] {
        let name = format!("port{last}");
        let container = host.run_container(&name, &[])?;
        containers.push((container, in_vlan(host, &name, &on_bridge, vlan, last)?));
    }
    let [(one, _), (_, two), (_, three), (four, _)] = &containers[..] else { unreachable!("there are four") };
    one.ping(*two)?;
    cannot_reach(one, *three)?;
    cannot_reach(four, *two)
}

fn dockers_own_macvlan_in_a_vlan(hosts: &[Host]) -> Result<()> {
    let ends: Vec<(Container, Ipv4Addr)> = hosts
        .iter()
        .zip(["10.59.0.0/26", "10.59.0.64/26"])
        .map(|(host, range)| {
            let create =
                ["network", "create", "-d", "macvlan", "--subnet", "10.59.0.0/24", "--ip-range", range];
            host.docker(&[&create[..], &["-o", "parent=eth0.9", "vlan9"]].concat())?;
            let container = in_network(host, "vlan9", "nine", &[])?;
            let address = container.address()?;
            Ok((container, address))
        })
        .collect::<Result<_>>()?;
    ends[0].0.ping(ends[1].1)
}
