//! Hosts whose clocks are set wrong while they work.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::PutOptions;
use flan_integration::clock::Clock;
use flan_integration::overlay::DEVICE;
use flan_integration::store::{PREFIX, StoreClient};
use flan_integration::vitals::cpu_seconds;
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::stage::{NETWORK, ends_of, hosts, wait_until_all_know_each_other, wait_until_reached};

/// An hour, more than a lease lasts, and ten years ahead; an hour and all of them behind.
const WRONG: [&str; 5] = ["+3600", "+90000", "+315360000", "-3600", "@1970-01-01 00:00:10"];

/// How long each of them lasts.
const STEP: Duration = Duration::from_secs(1);

/// The shortest lease that an agent takes: it is renewed every 20 s.
const LEASE: [&str; 4] = ["--subnet-lease-ttl", "1m", "-v", "1"];

/// How long a renewal and the end of an etcd lease may take.
const RENEWAL_LIMIT: Duration = Duration::from_secs(30);

/// CPU time that an agent which only waits uses in all of it, in seconds. One that spins on a wrong clock uses one each
/// second, of some thirty.
const MOST_CPU: f64 = 4.0;

#[test]
fn an_agent_whose_clock_jumps_renews_its_lease_and_deletes_nothing() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut others = hosts(lab, 1)?;
        let mut host = lab.host("h2")?;
        let clock = Clock::new(&lab.dir().join("clock"))?;
        spawn_under(&mut host, &clock, &[&["--ip-masq"][..], &LEASE].concat())?;
        host.wait_for_agent()?;
        others.push(host);
        let mut hosts = others;
        wait_until_all_know_each_other(&hosts)?;
        let target = hosts[0].subnet_env()?.base_address();
        let key = format!("subnets/{}", hosts[1].subnet_env()?.key());
        let (lease, written) = (lab.store().lease_id(&key)?, lab.store().modified_at(&key)?);
        let mut monitor = hosts[1].monitor()?;
        let ping = hosts[1].ping(target)?;
        let pid = hosts[1].agent_pid().context("no agent")?;
        let before = cpu_seconds(pid)?;

        for time in WRONG {
            clock.set(time)?;
            wait::while_holds(&format!("all is well at {time}"), STEP, || hosts[1].ensure_agent_runs())?;
        }
        // Only a program that believes in this clock says so.
        wait::until("a renewal in 1970", RENEWAL_LIMIT, || {
            let renewals = hosts[1].log_lines(&["1970-01-01T", "kept the lease alive"])?;
            ensure!(!renewals.is_empty(), "not renewed");
            hosts[1].ensure_agent_runs()
        })?;
        clock.set("+0")?;

        ensure!(lab.store().lease_id(&key)? == lease, "another etcd lease");
        ensure!(lab.store().modified_at(&key)? == written, "the lease was written again");
        ping.stop()?.nothing_lost(100)?;
        let deletions = monitor.deletions(DEVICE)?;
        ensure!(deletions.is_empty(), "deleted: {deletions:#?}");
        let used = cpu_seconds(pid)? - before;
        ensure!(used < MOST_CPU, "{used} s of CPU time for nothing");
        let warnings = hosts[1].log_lines(&[" WARN "])?;
        ensure!(warnings.is_empty(), "{warnings:#?}");
        wait_until_all_know_each_other(&hosts)
    })
}

#[test]
fn leases_of_an_embedded_store_last_as_long_as_granted_whatever_its_clock_says() -> Result<()> {
    /// Of the etcd lease that nobody renews, in seconds.
    const SHORT: i64 = 12;
    const KEY: &str = "/of-a-short-lease";
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        let clock = Clock::new(&lab.dir().join("clock"))?;
        let mut keeper = lab.host("h1")?;
        let mut other = lab.host("h2")?;
        let url = keeper.keep_store();
        other.use_store(&url);
        spawn_under(&mut keeper, &clock, &["--ip-masq"])?;
        wait::until("the store in the agent to take a network config", Duration::from_secs(15), || {
            keeper.ensure_agent_runs()?;
            keeper.flanctl_with_input(&["config", "set", "-"], NETWORK)?.succeeded("flanctl config set -")
        })?;
        keeper.wait_for_agent()?;
        other.start_agent()?;
        let mut hosts = [keeper, other];
        wait_until_all_know_each_other(&hosts)?;
        let ends = ends_of(&hosts)?;
        wait_until_reached(&ends[0], &ends[1], RENEWAL_LIMIT)?;
        let ping = hosts[0].ping_from_end(&ends[0], ends[1].address)?;

        let store = Subject::connect(lab, &url)?;
        let asked = Instant::now();
        let lease = store.grant(SHORT, KEY)?;
        let granted = Instant::now();
        for time in WRONG {
            clock.set(time)?;
            wait::while_holds(&format!("the short lease lasts at {time}"), STEP, || {
                // Granted between `asked` and `granted`, and looked at between two other moments.
                let least = granted.elapsed();
                let left = store.left(lease)?;
                let most = asked.elapsed();
                let left = Duration::from_secs(left.try_into()?);
                let term = Duration::from_secs(SHORT as u64);
                // Told in whole seconds.
                let second = Duration::from_secs(1);
                ensure!(
                    left + most + second >= term && left + least <= term + second,
                    "{left:?} of {term:?} are left after {least:?} to {most:?}"
                );
                ensure!(store.has(KEY)? && store.leases()? == 2, "{} leases", store.leases()?);
                Ok(())
            })?;
        }
        // It is 1970.
        wait::until("the short lease to end", RENEWAL_LIMIT, || {
            ensure!(!store.has(KEY)?, "its key is there");
            Ok(())
        })?;
        let lasted = asked.elapsed();
        ensure!(lasted >= Duration::from_secs(SHORT as u64), "it lasted for {lasted:?} of {SHORT} s");
        ensure!(store.leases()? == 2, "{} of 2 hosts have a lease", store.leases()?);
        ping.stop()?.nothing_lost(100)?;
        for host in &mut hosts {
            host.ensure_agent_runs()?;
        }
        wait_until_all_know_each_other(&hosts)
    })
}

/// Starts the host's agent under this clock.
fn spawn_under(host: &mut Host, clock: &Clock, flags: &[&str]) -> Result<()> {
    let environment = clock.environment();
    let starter: Vec<&str> = std::iter::once("env").chain(environment.iter().map(String::as_str)).collect();
    host.spawn_agent_under(&starter, flags)
}

/// The store as one client sees it.
struct Subject(StoreClient);

impl Subject {
    fn connect(lab: &Lab, url: &str) -> Result<Subject> {
        StoreClient::connect(lab.underlay(), url, Duration::from_secs(10)).map(Subject)
    }

    /// Writes a key with a new etcd lease, whose id is returned.
    fn grant(&self, seconds: i64, key: &'static str) -> Result<i64> {
        self.0.run(|mut client| async move {
            let lease = client.lease_grant(seconds, None).await?.id();
            client.put(key, "1", Some(PutOptions::new().with_lease(lease))).await?;
            Ok(lease)
        })
    }

    /// Seconds that an etcd lease has left.
    fn left(&self, lease: i64) -> Result<i64> {
        self.0.run(|mut client| async move { Ok(client.lease_time_to_live(lease, None).await?.ttl()) })
    }

    fn has(&self, key: &'static str) -> Result<bool> {
        self.0.run(|mut client| async move { Ok(!client.get(key, None).await?.kvs().is_empty()) })
    }

    /// How many hosts have a lease.
    fn leases(&self) -> Result<i64> {
        self.0.run(|mut client| async move {
            let below = etcd_client::GetOptions::new().with_prefix().with_count_only();
            Ok(client.get(format!("{PREFIX}/subnets/"), Some(below)).await?.count())
        })
    }
}
