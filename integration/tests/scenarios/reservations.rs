//! Subnets that are kept for one host: what becomes of them under flanneld, and when a host moves to one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::flannel::{LEASE_SECONDS, lease_value};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::{Lab, LabOptions, wait};

use crate::stage::{NETWORK, hosts_with_status, no_problem, problem};

const REFUSED: Option<i32> = Some(6);
const KEY: &str = "subnets/10.5.77.0-24";

#[test]
fn a_reservation_that_flanneld_made_an_ordinary_lease_is_missed_until_it_is_made_again() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        let address = host.address().to_string();
        let reserve = ["subnets", "reserve", "10.5.77.0/24", "--public-ip", &address];
        lab.flanctl(&reserve)?.succeeded("flanctl subnets reserve")?;
        // As flanneld takes what it finds under its address.
        lab.store().put_leased(KEY, &lease_value(&address, "02:00:00:00:00:77"), LEASE_SECONDS)?;
        host.start_agent_with(&STATUS_FLAGS)?;
        assert_eq!(host.subnet_env()?.base(), "10.5.77.0/24");
        let command = format!("subnets reserve 10.5.77.0/24 --public-ip {address}");
        problem(&host, "reservation-lost", &["10.5.77.0/24", &command])?;
        for words in [&["subnets", "ls"][..], &["subnets", "ls", "-o", "json"], &["subnets", "show", "h1"]] {
            let shown = lab.flanctl(words)?;
            shown.succeeded(&words.join(" "))?;
            ensure!(shown.stdout.contains("active") && shown.stdout.contains(&command), "{shown:?}");
        }

        let again = lab.flanctl(&command.split(' ').collect::<Vec<_>>())?;
        again.succeeded("flanctl subnets reserve")?;
        ensure!(again.stdout.contains("again"), "{again:?}");
        no_problem(&host, "reservation-lost")?;
        assert_eq!(lab.store().lease_id(KEY)?, 0, "it ends again with its host");
        // And once more under a running agent.
        lab.store().put_leased(KEY, &lease_value(&address, "02:00:00:00:00:77"), LEASE_SECONDS)?;
        problem(&host, "reservation-lost", &[&command])
    })
}

#[test]
fn a_running_host_moves_to_a_reservation_at_its_next_start_or_when_it_is_told_so() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 1)?;
        let host = &mut hosts[0];
        let (held, address) = (host.subnet_env()?, host.address().to_string());
        // A host takes its first subnet at random.
        let mut others = ["10.5.77.0/24", "10.5.78.0/24", "10.5.79.0/24"];
        others.sort_by_key(|other| *other == held.base());
        let [first, second, _] = others;
        let reserved = lab.flanctl(&["subnets", "reserve", first, "--public-ip", &address])?;
        reserved.succeeded("flanctl subnets reserve")?;
        ensure!(
            reserved.stdout.contains(&held.base()) && reserved.stdout.contains("--now"),
            "what comes of it is not said: {reserved:?}"
        );
        // Whatever happens to its key meanwhile, and with it no word of a bad lease.
        wait::while_holds("the host keeps its subnet", Duration::from_secs(3), || {
            ensure!(host.subnet_env()? == held && host.status()?["quarantined"] == serde_json::json!([]));
            Ok(())
        })?;
        host.stop_agent()?;
        host.start_agent_with(&STATUS_FLAGS)?;
        assert_eq!(host.subnet_env()?.base(), first);

        let other = ["subnets", "reserve", second, "--public-ip", "h1"];
        let refused = lab.flanctl(&other)?;
        ensure!(refused.code == REFUSED && refused.stderr.contains(first), "{refused:?}");
        let now = lab.flanctl(&[&other[..], &["--now"]].concat())?;
        now.succeeded("flanctl subnets reserve --now")?;
        ensure!(now.stdout.contains("restart Docker"), "{now:?}");
        wait::until("the host to move", Duration::from_secs(5), || {
            let now = host.subnet_env()?.base();
            ensure!(now == second, "{now}");
            Ok(())
        })?;
        assert_eq!(lab.store().subnet_keys()?, [second.replace('/', "-")]);
        host.ensure_agent_runs()
    })
}

#[test]
fn the_release_of_a_living_hosts_lease_is_not_called_done() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 2)?;
        let key = format!("subnets/{}", hosts[0].subnet_env()?.key());
        let release = ["subnets", "release", "h1", "--yes"];
        let refused = lab.flanctl(&release)?;
        ensure!(refused.code == REFUSED, "{refused:?}");
        for said in ["alive", "(h1)", "stop fland"] {
            ensure!(refused.stderr.contains(said), "{said:?} is not said: {refused:?}");
        }
        ensure!(!refused.stdout.contains("released"), "{refused:?}");
        lab.store().value(&key)?.context("the lease did not come back")?;

        hosts[0].stop_agent()?;
        let done = lab.flanctl(&release)?;
        done.succeeded("flanctl subnets release")?;
        ensure!(done.stdout.starts_with("released "), "{done:?}");
        ensure!(lab.store().value(&key)?.is_none(), "the lease is there");
        Ok(())
    })
}
