//! A way to the store on which one in three requests fails.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flan_integration::host::on_all;
use flan_integration::{Host, Lab, LabOptions, chance, wait};

use crate::stage::{NETWORK, bare_hosts};

/// Hosts that start at once.
const CROWD: usize = 100;

/// How soon all of them have a subnet and know each other. Alone on two processors it takes 20 s.
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn a_hundred_hosts_join_at_once_while_one_in_three_requests_fails() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let crowd = std::env::var("CROWD").ok().and_then(|c| c.parse().ok()).unwrap_or(CROWD);
        lab.set_network(&NETWORK.replace("99", "250"))?;
        let seed = chance::fresh_seed();
        eprintln!("what fails is of the seed {seed}");
        let detour = lab.detour(seed)?;
        let t = Instant::now();
        let mut hosts = bare_hosts(lab, crowd)?;
        eprintln!("hosts {:?}", t.elapsed());
        detour.break_one_in(3);
        let started = Instant::now();
        for host in &mut hosts {
            host.use_store(&detour.url());
            host.spawn_agent(&["--ip-masq"])?;
        }
        on_all(&mut hosts, |host| host.wait_for_agent_within(LIMIT).map(drop))?;
        eprintln!("ready {:?} {:?}", started.elapsed(), detour.requests_and_broken());
        let subnets =
            hosts.iter().map(|host| Ok(host.subnet_env()?.base())).collect::<Result<BTreeSet<_>>>()?;
        ensure!(subnets.len() == hosts.len(), "{} subnets for {} hosts", subnets.len(), hosts.len());

        wait::until("each host to know all the others", LIMIT, || {
            for host in &hosts {
                let overlay = host.overlay()?;
                let peers = overlay.complete_peers();
                ensure!(peers.len() + 1 == subnets.len(), "{}: {} peers", host.name(), peers.len());
                ensure!(
                    peers.is_subset(&subnets) && overlay.has_no_remains(),
                    "{}: {overlay:?}",
                    host.name()
                );
            }
            Ok(())
        })?;
        let (requests, broken) = detour.requests_and_broken();
        eprintln!("know {:?} {:?}", started.elapsed(), detour.requests_and_broken());
        ensure!(broken * 5 > requests, "only {broken} of {requests} requests have failed");
        // No subnet is left behind by one who got another in the end, and no etcd lease.
        let keys = lab.store().subnet_keys()?;
        ensure!(keys.len() == hosts.len(), "{} leases for {} hosts", keys.len(), hosts.len());
        eprintln!("{}", lab.store().ctl(&["lease", "list"])?.lines().next().unwrap_or_default());
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}
