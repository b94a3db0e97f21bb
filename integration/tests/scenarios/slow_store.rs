//! A store that answers late, as one does whose disk is slow.

use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::overlay::DEVICE;
use flan_integration::{Lab, LabOptions, chance, wait};

use crate::paper_peer::PaperPeer;
use crate::stage::{NETWORK, wait_until_all_know_each_other};

/// More than one request may take where another endpoint is left to ask, and than a firewall's or a dead host's silence.
const DELAY: Duration = Duration::from_secs(6);

/// A start asks four times, one after the other.
const START_LIMIT: Duration = Duration::from_secs(45);

#[test]
fn an_agent_restarts_and_follows_its_peers_while_each_answer_takes_six_seconds() -> Result<()> {
    const JOINS: PaperPeer = PaperPeer { third: 200, mac: "02:00:00:00:02:00" };
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let detour = lab.detour(chance::fresh_seed())?;
        let (mut slow, mut other) = (lab.host("h1")?, lab.host("h2")?);
        slow.use_store(&detour.url());
        slow.start_agent_with(&STATUS_FLAGS)?;
        other.start_agent()?;
        let mut hosts = [slow, other];
        wait_until_all_know_each_other(&hosts)?;
        let key = format!("subnets/{}", hosts[0].subnet_env()?.key());
        let (lease, written) = (lab.store().lease_id(&key)?, lab.store().modified_at(&key)?);
        let target = hosts[1].subnet_env()?.base_address();
        let ping = hosts[0].ping(target)?;
        let mut monitor = hosts[0].monitor()?;

        hosts[0].kill_agent()?;
        detour.delay_answers(DELAY);
        hosts[0].spawn_agent(&STATUS_FLAGS)?;
        wait::until("the agent to say what it waits for", Duration::from_secs(5), || {
            let waits = hosts[0].status()?["waitingFor"].to_string();
            ensure!(waits.contains("config in the store at") && waits.contains(&detour.url()), "{waits}");
            Ok(())
        })?;
        let asked = hosts[0].flanctl(&["config", "get"])?;
        asked.succeeded("flanctl config get")?;
        ensure!(asked.stderr.contains(&format!("waiting for the store at {}", detour.url())), "{asked:?}");
        hosts[0].wait_for_agent_within(START_LIMIT)?;
        ensure!(
            !hosts[0].log_lines(&["the store is slow", &detour.url()])?.is_empty(),
            "the log says nothing of it"
        );

        JOINS.put(lab.store())?;
        wait::until("the peer that joins", 2 * DELAY + Duration::from_secs(5), || {
            JOINS.is_known_to(&hosts[0])
        })?;
        ensure!(lab.store().lease_id(&key)? == lease, "another etcd lease");
        ensure!(lab.store().modified_at(&key)? == written, "the lease was written again");
        ping.stop()?.nothing_lost(200)?;
        let deletions = monitor.deletions(DEVICE)?;
        ensure!(deletions.is_empty(), "deleted: {deletions:#?}");
        let failures = hosts[0].log_lines(&["cannot reach the store"])?;
        ensure!(failures.is_empty(), "{failures:#?}");
        hosts[0].ensure_agent_runs()
    })
}
