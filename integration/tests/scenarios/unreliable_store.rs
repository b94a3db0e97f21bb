//! A way to the store on which one in three requests fails.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::host::on_all;
use flan_integration::{Host, Lab, LabOptions, chance, wait};

use crate::stage::bare_hosts;

/// With room for all.
const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Hosts that start at once.
const CROWD: usize = 100;

/// How soon all of them have a subnet, and know each other after that, on a machine that is busy with other stories.
const LIMIT: Duration = Duration::from_secs(150);

/// The variable whose seed lets the same requests fail again, as far as they come in the same order.
const SEED: &str = "FLAN_DAMAGE_SEED";

#[test]
fn a_crowd_joins_at_once_while_one_in_three_requests_fails() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let seed = chance::seed_from(SEED)?;
        let detour = lab.detour(seed)?;
        let mut hosts = bare_hosts(lab, CROWD)?;
        detour.break_one_in(3);
        for host in &mut hosts {
            host.use_store(&detour.url());
            // All hosts of a lab share one table of neighbours, which has no room for each to probe each.
            host.spawn_agent(&["--ip-masq", "--probe-rate", "0"])?;
        }
        on_all(&mut hosts, |host| host.wait_for_agent_within(LIMIT).map(drop))?;
        let subnets =
            hosts.iter().map(|host| Ok(host.subnet_env()?.base())).collect::<Result<BTreeSet<_>>>()?;
        ensure!(subnets.len() == CROWD, "{} subnets for {CROWD} hosts, {SEED}={seed}", subnets.len());

        wait::until("each host to know all the others", LIMIT, || {
            for host in &hosts {
                let (overlay, mut others) = (host.overlay()?, subnets.clone());
                others.remove(&host.subnet_env()?.base());
                let peers = overlay.complete_peers();
                ensure!(peers == others, "{}: {} peers, {SEED}={seed}", host.name(), peers.len());
                ensure!(overlay.has_no_remains(), "{}: {overlay:?}", host.name());
            }
            Ok(())
        })?;
        let (requests, broken) = detour.requests_and_broken();
        ensure!(broken * 5 > requests, "only {broken} of {requests} requests have failed");
        // Nobody has left a subnet behind and taken another one.
        let leases = lab.store().subnet_keys()?.len();
        ensure!(leases == CROWD, "{leases} leases for {CROWD} hosts, {SEED}={seed}");
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}
