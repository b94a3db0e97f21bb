//! Beside flannel, and in its place.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use flan_integration::host::on_all;
use flan_integration::overlay::DEVICE;
use flan_integration::{Bridge, Lab, LabOptions, flannel};
use serde_json::{Value, json};

use crate::stage::{NETWORK, flannel_env, two_flannel_hosts};

#[test]
fn a_flannel_host_and_a_flan_host_talk() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut hosts = [lab.host("flan")?, lab.host("flannel")?];
        let theirs = flannel_env(4)?;
        flannel::set_up(&hosts[1], lab.store(), &theirs)?;
        hosts[0].start_agent()?;
        hosts[0].wait_for_peers(&[&theirs])?;

        // What flannel would read of the lease that flan wrote, and do with it.
        let ours = hosts[0].subnet_env()?;
        let text = lab.store().value(&format!("subnets/{}", ours.key()))?.context("flan has no lease")?;
        let lease: Value = serde_json::from_str(&text)?;
        assert_eq!(lease["PublicIP"], json!(hosts[0].address().to_string()));
        assert_eq!(lease.get("PublicIPv6"), Some(&Value::Null));
        assert_eq!(lease["BackendType"], json!("vxlan"));
        assert_eq!(lease["BackendData"], json!({"VNI": 1, "VtepMAC": hosts[0].vtep_mac()?}));
        let mac = lease["BackendData"]["VtepMAC"].as_str().context("no MAC")?.to_owned();
        flannel::add_peer(&hosts[1], &ours, &mac, hosts[0].address())?;

        on_all(&mut hosts, |host| host.start_docker(Bridge::WholeSubnet))?;
        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;
        web1.ping(web2.address()?)?;
        web2.ping(web1.address()?)?;
        ensure!(web1.fetch_name(web2.address()?)? == "web2");
        ensure!(web2.fetch_name(web1.address()?)? == "web1");
        assert_eq!(web1.source_seen_by(web2.address()?)?, IpAddr::from(web1.address()?));
        Ok(())
    })
}

#[test]
fn fland_takes_over_from_flanneld_without_losing_a_packet() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let (mut hosts, envs, macs) = two_flannel_hosts(lab)?;
        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;
        let keys = lab.store().subnet_keys()?;

        let mut monitor = hosts[0].monitor()?;
        let mut pings = [
            hosts[0].ping(envs[1].subnet.ip())?,
            hosts[0].ping_from(&web1, web2.address()?)?,
            hosts[1].ping_from(&web2, web1.address()?)?,
        ];
        hosts[0].start_agent_with(&[])?;
        hosts[0].wait_for_peers(&[&envs[1]])?;
        for ping in &mut pings {
            ping.wait_for_answers(100)?;
        }

        for ping in pings {
            ping.stop()?.nothing_lost(100)?;
        }
        assert_eq!(hosts[0].vtep_mac()?, macs[0], "another device");
        assert_eq!(hosts[0].subnet_env()?, envs[0], "another subnet");
        assert_eq!(lab.store().subnet_keys()?, keys, "other leases");
        let device_gone = monitor.deletions(DEVICE)?.into_iter().any(|line| line.contains("[LINK]"));
        ensure!(!device_gone, "{DEVICE} was deleted on the way");

        // From now on flan looks after what flannel had put there.
        lab.store().delete(&format!("subnets/{}", envs[1].key()))?;
        hosts[0].wait_for_peers(&[])
    })
}
