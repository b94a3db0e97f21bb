//! Leases that nobody should have written, beside good ones.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::flannel::{LEASE_SECONDS, lease_value};
use flan_integration::{Lab, LabOptions, wait};
use serde_json::Value;

use crate::stage::{hosts, wait_until_all_know_each_other};

/// Key, value, and a part of the reason that must be shown.
type BadLease = (&'static str, String, &'static str);

/// Leases that are bad in anybody's eyes.
fn bad_leases() -> Vec<BadLease> {
    let mac = "02:00:00:00:0b:ad";
    vec![
        ("10.5.100.0-24", "{not JSON".to_owned(), "unreadable value"),
        ("10.5.101.0-24", r#"["PublicIP"]"#.to_owned(), "unreadable value"),
        ("10.5.102.0-24", r#"{"PublicIP":"192.168.64","PublicIPv6":null}"#.to_owned(), "unreadable value"),
        ("no-subnet", lease_value("192.168.64.103", mac), "unreadable key"),
        ("10.5.104.0", lease_value("192.168.64.104", mac), "unreadable key"),
        ("10.5.105.8-24", lease_value("192.168.64.105", mac), "boundary"),
        ("10.6.106.0-24", lease_value("192.168.64.106", mac), "outside Network"),
        ("10.5.108.0-23", lease_value("192.168.64.108", mac), "larger"),
        ("10.5.200.128-25", lease_value("192.168.64.110", mac), "overlaps"),
        ("10.5.111.0-24", lease_value("0.0.0.0", mac), "no public IPv4 address"),
        ("10.5.112.0-24", lease_value("127.0.0.1", mac), "not a usable"),
        ("10.5.113.0-24", lease_value("224.0.0.1", mac), "not a usable"),
        ("10.5.114.0-24", lease_value("255.255.255.255", mac), "not a usable"),
        ("10.5.115.0-24", r#"{"PublicIP":"192.168.64.115","PublicIPv6":null}"#.to_owned(), "backend"),
        (
            "10.5.116.0-24",
            r#"{"PublicIP":"192.168.64.116","PublicIPv6":null,"BackendType":"host-gw"}"#.to_owned(),
            "backend",
        ),
        (
            "10.5.117.0-24",
            r#"{"PublicIP":"192.168.64.117","PublicIPv6":null,"BackendType":"vxlan"}"#.to_owned(),
            "VTEP",
        ),
        (
            "10.5.118.0-24",
            r#"{"PublicIP":"192.168.64.118","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"x"}}"#
                .to_owned(),
            "VTEP",
        ),
        ("10.5.119.0-24", lease_value("192.168.64.119", "00:00:00:00:00:00"), "MAC"),
        ("10.5.120.0-24", lease_value("192.168.64.120", "01:00:5e:00:00:01"), "MAC"),
        ("10.5.121.0-24", lease_value("192.168.64.121", "ff:ff:ff:ff:ff:ff"), "MAC"),
        (
            "10.5.122.0-24",
            r#"{"PublicIP":"192.168.64.122","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:00:00:00:0b:ad"}}"#
                .to_owned(),
            "VNI",
        ),
    ]
}

/// The items of `flanctl subnets ls -o json`.
fn listed(lab: &Lab) -> Result<Vec<Value>> {
    let outcome = lab.flanctl(&["subnets", "ls", "-o", "json"])?;
    outcome.succeeded("flanctl subnets ls")?;
    let list: Value = serde_json::from_str(&outcome.stdout).context("flanctl's JSON")?;
    ensure!(list["apiVersion"] == "flan/v1" && list["kind"] == "SubnetList", "{list}");
    Ok(list["items"].as_array().context("no items")?.clone())
}

/// The state and the reason of the lease with this key, which is shown as subnet or, where it names none, as it is.
fn shown(items: &[Value], key: &str) -> Result<(String, String)> {
    let names = [key.to_owned(), key.replace('-', "/")];
    let is_meant = |item: &&Value| {
        let text = item.to_string();
        names.iter().any(|name| text.contains(&format!("\"{name}\"")))
    };
    let item = items.iter().find(is_meant).with_context(|| format!("{key} is not listed"))?;
    let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("reason")))
}

#[test]
fn bad_leases_are_shown_and_kept_out_while_good_ones_work() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts(lab, 2)?;
        let store = lab.store();
        let bad = bad_leases();
        let good = ("10.5.200.0-24", lease_value("192.168.64.200", "02:00:00:00:02:00"));
        store.put_leased(&format!("subnets/{}", good.0), &good.1, LEASE_SECONDS)?;
        for (key, value, _) in &bad {
            store.put_leased(&format!("subnets/{key}"), value, LEASE_SECONDS)?;
        }
        // Written last: once this one has arrived, the agents have seen all of them.
        let last = ("10.5.201.0-24", lease_value("192.168.64.201", "02:00:00:00:02:01"));
        store.put_leased(&format!("subnets/{}", last.0), &last.1, LEASE_SECONDS)?;

        for number in [0, 1] {
            let host = &hosts[number];
            let peer = hosts[1 - number].subnet_env()?.base();
            let wanted = [peer, "10.5.200.0/24".to_owned(), "10.5.201.0/24".to_owned()].into();
            wait::until("the good leases in the kernel, and no other", Duration::from_secs(15), || {
                let overlay = host.overlay()?;
                ensure!(overlay.complete_peers() == wanted && overlay.has_no_remains(), "{overlay:?}");
                Ok(())
            })?;
        }
        let items = listed(lab)?;
        for (key, value, reason) in &bad {
            let (state, said) = shown(&items, key)?;
            ensure!(state == "bad", "{key} with {value} is shown as {state:?} ({said})");
            ensure!(said.contains(reason), "{key} with {value} is bad because of {said:?}, not {reason:?}");
        }
        for key in [good.0, last.0] {
            ensure!(
                shown(&items, key)? == ("active".to_owned(), String::new()),
                "{key}: {:?}",
                shown(&items, key)?
            );
        }

        // A restart meets them all in its first list.
        hosts[0].kill_agent()?;
        hosts[0].start_agent()?;
        let target = hosts[1].subnet_env()?.base_address();
        hosts[0].ping(target)?.stop()?.nothing_lost(5)?;
        ensure!(hosts[0].overlay()?.complete_peers().len() == 3, "{:?}", hosts[0].overlay()?);
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn a_lease_that_claims_a_hosts_own_address_or_mac_does_not_reach_its_kernel() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts(lab, 2)?;
        let store = lab.store();
        let our_ip = lease_value(hosts[0].address(), "02:00:00:00:0b:ad");
        let our_mac = lease_value("192.168.64.200", &hosts[0].vtep_mac()?);
        store.put_leased("subnets/10.5.130.0-24", &our_ip, LEASE_SECONDS)?;
        store.put_leased("subnets/10.5.131.0-24", &our_mac, LEASE_SECONDS)?;
        let last = lease_value("192.168.64.201", "02:00:00:00:02:01");
        store.put_leased("subnets/10.5.201.0-24", &last, LEASE_SECONDS)?;

        let wanted = [hosts[1].subnet_env()?.base(), "10.5.201.0/24".to_owned()].into();
        wait::until("the good leases in the kernel, and no other", Duration::from_secs(15), || {
            let overlay = hosts[0].overlay()?;
            ensure!(overlay.complete_peers() == wanted && overlay.has_no_remains(), "{overlay:?}");
            Ok(())
        })?;
        let log = fs::read_to_string(hosts[0].agent_log())?;
        for claimed in [hosts[0].address().to_string(), hosts[0].vtep_mac()?.to_uppercase()] {
            let said = |line: &&str| line.to_uppercase().contains(&claimed) && line.contains("is our own");
            ensure!(
                log.lines().any(|line| said(&line)),
                "the agent does not say who claims {claimed}:\n{log}"
            );
        }
        // An onlooker cannot know whose an address is, but sees that two claim it; of two with one MAC, the older stays.
        let items = listed(lab)?;
        let (state, said) = shown(&items, "10.5.130.0-24")?;
        ensure!(state == "active" && said.contains("is also that of"), "{state}: {said}");
        let (state, said) = shown(&items, "10.5.131.0-24")?;
        ensure!(state == "bad" && said.contains("is that of the older lease"), "{state}: {said}");
        for key in ["10.5.130.0-24", "10.5.131.0-24"] {
            store.delete(&format!("subnets/{key}"))?;
        }
        store.delete("subnets/10.5.201.0-24")?;
        wait_until_all_know_each_other(&hosts)
    })
}
