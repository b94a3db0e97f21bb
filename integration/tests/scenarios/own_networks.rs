//! Networks that a host has beside the overlay, and that share addresses with it.

use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::flannel::{LEASE_SECONDS, lease_value};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::stage::{no_problem, problem};

/// Sixteen subnets, the first of which is not leased.
const NETWORK: &str = r#"{"Network":"172.16.0.0/12","SubnetLen":16,"Backend":{"Type":"vxlan"}}"#;
const FREE: u8 = 26;
const LIMIT: Duration = Duration::from_secs(8);

/// A host with a LAN at 172.26.0.5/16, in a network of which only 172.26.0.0/16 is free.
fn host_on_the_last_free_subnet(lab: &Lab) -> Result<Host> {
    lab.set_network(NETWORK)?;
    for second in (17..32).filter(|second| *second != FREE) {
        let value =
            lease_value(format!("192.168.64.{}", 100 + second), &format!("02:00:00:00:02:{second:02}"));
        lab.store().put_leased(&format!("subnets/172.{second}.0.0-16"), &value, LEASE_SECONDS)?;
    }
    let host = lab.host("h1")?;
    host.ip("link add eth1 type veth peer name lan1")?;
    host.ip("link set lan1 up")?;
    host.ip("link set eth1 up")?;
    host.ip("address add 172.26.0.5/16 dev eth1")?;
    Ok(host)
}

#[test]
fn a_subnet_that_would_cut_off_the_hosts_lan_is_not_taken_unless_asked_for() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut host = host_on_the_last_free_subnet(lab)?;
        host.spawn_agent(&STATUS_FLAGS)?;
        wait::until("fland to say what is in the way", LIMIT, || {
            let waiting = host.status()?["waitingFor"].to_string();
            let parts = ["172.26.0.0/16 on eth1", "--subnet-overlap warn"];
            ensure!(parts.iter().all(|part| waiting.contains(part)), "it waits for {waiting}");
            Ok(())
        })?;
        problem(&host, "not-ready", &["172.26.0.0/16 on eth1"])?;
        ensure!(lab.store().value("subnets/172.26.0.0-16")?.is_none(), "it is leased all the same");
        host.kill_agent()?;

        host.start_agent_with(&[&STATUS_FLAGS[..], &["--subnet-overlap", "warn"]].concat())?;
        assert_eq!(host.subnet_env()?.base(), "172.26.0.0/16");
        problem(&host, "subnet-overlap", &["172.26.0.0/16 on eth1"])?;
        // A host that comes back keeps what it held, whatever the flag says.
        host.stop_agent()?;
        host.start_agent_with(&STATUS_FLAGS)?;
        assert_eq!(host.subnet_env()?.base(), "172.26.0.0/16");
        problem(&host, "subnet-overlap", &["172.26.0.0/16 on eth1"])?;
        host.ip("address del 172.26.0.5/16 dev eth1")?;
        no_problem(&host, "subnet-overlap")
    })
}

#[test]
fn another_subnet_is_taken_as_soon_as_one_is_free_and_peers_on_the_hosts_lan_are_named() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut host = host_on_the_last_free_subnet(lab)?;
        lab.store().delete("subnets/172.20.0.0-16")?;
        host.start_agent_with(&STATUS_FLAGS)?;
        assert_eq!(host.subnet_env()?.base(), "172.20.0.0/16");
        no_problem(&host, "subnet-overlap")?;
        no_problem(&host, "peer-overlap")?;

        host.ip("address add 172.21.7.5/24 dev eth1")?;
        problem(&host, "peer-overlap", &["172.21.0.0/16 of 192.168.64.121", "172.21.7.0/24 on eth1"])?;
        // docker0 is there for the host's own containers, whatever it has.
        host.ip("link add docker0 type bridge")?;
        host.ip("address add 172.20.0.1/16 dev docker0")?;
        host.ip("link set docker0 up")?;
        host.ip("address del 172.21.7.5/24 dev eth1")?;
        no_problem(&host, "peer-overlap")?;
        no_problem(&host, "subnet-overlap")?;

        let set = host
            .flanctl_with_input(&["config", "set", "--force", "-"], &NETWORK.replace("vxlan", "host-gw"))?;
        set.succeeded("flanctl config set")?;
        ensure!(set.stderr.contains("warning: this host's network 172.26.0.0/16 on eth1"), "{set:?}");
        ensure!(!set.stderr.contains("docker0") && !set.stderr.contains("flannel.1"), "{set:?}");
        Ok(())
    })
}
