//! A store that answers late, as one does whose disk is slow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::overlay::DEVICE;
use flan_integration::{Host, Lab, LabOptions, Store, chance, wait};

use crate::paper_peer::PaperPeer;
use crate::stage::{NETWORK, wait_until_all_know_each_other};

/// A store that takes longer for an answer is slow, and told of.
const PATIENCE: Duration = Duration::from_secs(5);

/// A start asks so often, one request after the other: for the config, the leases, its own etcd lease's time, and more
/// of it.
const REQUESTS_OF_START: u32 = 4;

/// What everything else may take, on a busy machine: less than one more answer would take at ten seconds.
const MARGIN: Duration = Duration::from_secs(9);

/// How long a lease lasts: the shortest time that there is. The agent asks for more of it after a third.
const LEASE: Duration = Duration::from_secs(60);

#[test]
fn an_agent_restarts_and_follows_its_peers_while_each_answer_takes_a_second() -> Result<()> {
    restarts_and_follows_its_peers(Duration::from_secs(1))
}

#[test]
fn an_agent_restarts_and_follows_its_peers_while_each_answer_takes_ten_seconds() -> Result<()> {
    restarts_and_follows_its_peers(Duration::from_secs(10))
}

fn restarts_and_follows_its_peers(delay: Duration) -> Result<()> {
    const JOINS: PaperPeer = PaperPeer { third: 200, mac: "02:00:00:00:02:00" };
    let is_slow = delay > PATIENCE;
    let (lease_flag, seconds) = ("--subnet-lease-ttl", format!("{}s", LEASE.as_secs()));
    let flags: Vec<&str> = STATUS_FLAGS.into_iter().chain([lease_flag, &seconds]).collect();
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let detour = lab.detour(chance::fresh_seed())?;
        let (mut slow, mut other) = (lab.host("h1")?, lab.host("h2")?);
        other.start_agent()?;
        slow.use_store(&detour.url());
        slow.start_agent_with(&flags)?;
        let mut hosts = [slow, other];
        wait_until_all_know_each_other(&hosts)?;
        let key = format!("subnets/{}", hosts[0].subnet_env()?.key());
        let (lease, written) = (lab.store().lease_id(&key)?, lab.store().modified_at(&key)?);
        let ping = hosts[0].ping(hosts[1].subnet_env()?.base_address())?;
        let mut monitor = hosts[0].monitor()?;

        hosts[0].kill_agent()?;
        detour.delay_answers(delay);
        hosts[0].spawn_agent(&flags)?;
        ensure_it_says_what_it_waits_for(&hosts[0], &detour.url())?;
        if is_slow {
            let asked = hosts[0].flanctl(&["config", "get"])?;
            asked.succeeded("flanctl config get")?;
            let waits = format!("waiting for the store at {}", detour.url());
            ensure!(asked.stderr.contains(&waits), "{asked:?}");
        }
        let ready = hosts[0].wait_for_agent_within(REQUESTS_OF_START * delay + MARGIN)?;

        JOINS.put(lab.store())?;
        // The watch that brings it may have yet to be opened.
        wait::until("the peer that joins", 2 * delay + MARGIN, || JOINS.is_known_to(&hosts[0]))?;
        wait::until("the agent to keep its lease alive", LEASE / 3 + MARGIN, || {
            let (left, since) = (time_left(lab.store(), lease)?, ready.elapsed());
            ensure!(
                left + since > LEASE + MARGIN,
                "{left:?} of {LEASE:?} are left {since:?} after the start"
            );
            Ok(())
        })?;
        ensure!(lab.store().lease_id(&key)? == lease, "another etcd lease");
        ensure!(lab.store().modified_at(&key)? == written, "the lease was written again");
        ping.stop()?.nothing_lost(200)?;
        let deletions = monitor.deletions(DEVICE)?;
        ensure!(deletions.is_empty(), "deleted: {deletions:#?}");
        let failures = hosts[0].log_lines(&["cannot reach the store"])?;
        ensure!(failures.is_empty(), "{failures:#?}");
        let told = hosts[0].log_lines(&["the store is slow", &detour.url()])?;
        ensure!(told.len() == usize::from(is_slow), "told of {} times: {told:#?}", told.len());
        hosts[0].ensure_agent_runs()
    })
}

fn ensure_it_says_what_it_waits_for(host: &Host, url: &str) -> Result<()> {
    wait::until("the agent to say what it waits for", PATIENCE, || {
        let waits = host.status()?["waitingFor"].to_string();
        ensure!(waits.contains("config in the store at") && waits.contains(url), "{waits}");
        Ok(())
    })
}

/// How much of its time an etcd lease has left.
fn time_left(store: &Store, lease: i64) -> Result<Duration> {
    let told = store.ctl(&["lease", "timetolive", &format!("{lease:x}")])?;
    let left = told.split_once("remaining(").and_then(|(_, rest)| rest.split_once("s)"));
    let (seconds, _) = left.with_context(|| format!("no time in {told:?}"))?;
    Ok(Duration::from_secs(seconds.parse().with_context(|| format!("no seconds in {told:?}"))?))
}
