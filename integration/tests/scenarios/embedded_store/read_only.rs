//! A disk that becomes read-only.

use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::store::{StoreData, ensure_healthy};
use flan_integration::{Lab, LabOptions, wait};

use super::embedded;
use crate::stage::{ends_of, hosts, wait_until_all_know_each_other, wait_until_reached};

/// How the kernel says it.
const READ_ONLY: &str = "Read-only file system";

const LIMIT: Duration = Duration::from_secs(15);

#[test]
fn a_store_on_a_disk_that_became_read_only_serves_reads_and_heals_with_the_disk() -> Result<()> {
    let options = LabOptions { store_data: StoreData::OnExt4Of { mib: 32 }, ..embedded() };
    Lab::run(options, |lab| {
        let mut hosts = hosts(lab, 2)?;
        let ends = ends_of(&hosts)?;
        wait_until_reached(&ends[0], &ends[1], LIMIT)?;
        let mut ping = hosts[0].ping_from_end(&ends[0], ends[1].address)?;
        lab.store().ctl(&["put", "before", "kept"])?;

        let disk = lab.store().disk(0)?;
        disk.fail()?;
        let Err(refused) = lab.store().ctl(&["put", "during", "lost"]) else {
            anyhow::bail!("a write is acknowledged that is on no disk")
        };
        ensure!(format!("{refused:#}").contains(READ_ONLY), "{refused:#}");
        let held = |key| lab.store().ctl(&["get", key, "--print-value-only"]);
        ensure!(held("before")?.trim() == "kept" && held("during")?.is_empty(), "{}", held("during")?);
        ensure!(
            ensure_healthy(&lab.underlay().place(), &lab.store().endpoints()).is_err(),
            "/health says nothing"
        );
        lab.flanctl(&["subnets", "ls"])?.succeeded("flanctl subnets ls")?;
        let mut third = lab.host("h3")?;
        third.spawn_agent(&STATUS_FLAGS)?;
        wait::until("the third host to say what it waits for", LIMIT, || {
            let waits = third.status()?["waitingFor"].to_string();
            ensure!(waits.contains("a lease") && waits.contains(READ_ONLY), "{waits}");
            third.ensure_agent_runs()
        })?;
        ping.wait_for_answers(20)?;

        disk.repair()?;
        third.wait_for_agent()?;
        hosts.push(third);
        wait_until_all_know_each_other(&hosts)?;
        ensure_healthy(&lab.underlay().place(), &lab.store().endpoints())?;
        ensure!(held("before")?.trim() == "kept" && held("during")?.is_empty(), "{}", held("during")?);
        ping.stop()?.nothing_lost(50)?;
        for host in &mut hosts {
            host.ensure_agent_runs()?;
            let lost = host.log_lines(&["lost sight of the leases"])?;
            ensure!(lost.is_empty(), "{}: {lost:?}", host.name());
        }
        Ok(())
    })
}
