//! A host whose address on the underlay changes under a running agent.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::lab::ROUTER;
use flan_integration::{Lab, LabOptions, wait};
use serde_json::{Value, json};

use crate::stage::hosts_with_status;

/// As a DHCP server would give it out next.
const NEW: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 177);

/// How soon everybody must know.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_host_whose_address_changes_keeps_its_subnet_and_its_peers_follow() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 3)?;
        let (env, mac) = (hosts[0].subnet_env()?, hosts[0].vtep_mac()?);
        let (old, pid) = (hosts[0].address(), hosts[0].agent_pid());
        let key = format!("subnets/{}", env.key());
        let mut ping = hosts[1].ping(env.base_address())?;

        // With the address go the routes that hang on it.
        hosts[0].run(
            "sh",
            &[
                "-c",
                &format!(
                    "ip address del {old}/24 dev eth0 && ip address add {NEW}/24 dev eth0 \
                     && ip route add default via {ROUTER}"
                ),
            ],
        )?;
        let changed = Instant::now();

        wait::until("the lease to show the new address", LIMIT, || {
            let text = lab.store().value(&key)?.context("the lease is gone")?;
            let lease: Value = serde_json::from_str(&text)?;
            ensure!(lease["PublicIP"] == json!(NEW.to_string()), "{text}");
            Ok(())
        })?;
        for peer in &hosts[1..] {
            wait::until(
                &format!("{} to follow", peer.name()),
                LIMIT.saturating_sub(changed.elapsed()),
                || {
                    let to = peer.overlay()?.fdb.get(&mac).cloned();
                    ensure!(to == Some(NEW.to_string()), "it sends to {to:?}");
                    Ok(())
                },
            )?;
        }
        ping.wait_for_answers(50)?;
        println!("a peer's ping meanwhile: {:?}", ping.stop()?);
        let target = hosts[1].subnet_env()?.base_address();
        hosts[0].ping_once(target)?;

        assert_eq!(hosts[0].subnet_env()?, env, "subnet.env");
        assert_eq!(hosts[0].vtep_mac()?, mac, "the MAC of the device");
        assert_eq!(hosts[0].agent_pid(), pid, "the agent's process");
        let keys = lab.store().subnet_keys()?;
        ensure!(keys.len() == hosts.len(), "other leases than before: {keys:?}");
        hosts[0].ensure_agent_runs()
    })
}
