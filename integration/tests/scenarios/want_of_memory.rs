//! An agent that the kernel kills when memory is short.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, Txn, TxnOp};
use flan_integration::flannel::lease_value;
use flan_integration::inside::Inside;
use flan_integration::memory_group::MemoryGroup;
use flan_integration::overlay::DEVICE;
use flan_integration::process::{Lifetime, Process};
use flan_integration::store::PREFIX;
use flan_integration::{Host, Lab, LabOptions, wait};

/// Room for so many peers; agents choose from above them.
const NETWORK: &str =
    r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.254.0.0","Backend":{"Type":"vxlan"}}"#;

const PEERS: u32 = 1000;

/// How much memory is left when it becomes short, and how much somebody else then wants.
const LEFT: u64 = 16 << 20;
const WANTED: u64 = 24 << 20;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn an_agent_that_is_killed_for_memory_loses_no_packet_and_finds_everything_again() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        write_peers(lab)?;
        let (mut host, mut other) = (lab.host("h1")?, lab.host("h2")?);
        other.start_agent()?;
        let group = MemoryGroup::new(lab)?;
        let starter = group.starter();
        let starter: Vec<&str> = starter.iter().map(String::as_str).collect();
        host.spawn_agent_under(&starter, &["--ip-masq"])?;
        host.wait_for_agent()?;
        wait_for_all_peers(&host)?;
        let before = (host.overlay()?, host.subnet_env()?, host.vtep_mac()?);
        let key = format!("subnets/{}", before.1.key().replace('/', "-"));
        let lease = lab.store().lease_id(&key)?;
        let mut ping = host.ping(other.subnet_env()?.base_address())?;
        ping.wait_for_answers(10)?;
        let mut monitor = host.monitor()?;

        let used = group.usage()?;
        group.limit(used + LEFT)?;
        // Somebody else in the same group, whom the kernel is told to spare.
        let mut greedy = host.place().then(starter).command("sh");
        let take =
            format!("echo -1000 > /proc/self/oom_score_adj; head -c {WANTED} /dev/zero | tail | sleep 60");
        greedy.args(["-c", &take]);
        let greedy = Process::spawn("greedy", &greedy, &lab.dir().join("greedy.log"), Lifetime::Bound)?;
        let status = host.wait_for_agent_end(LIMIT).with_context(|| format!("{:?} used", group.usage()))?;
        let killed = group.killed()?;
        // A program that the agent had just started may have gone with it.
        ensure!(
            status.signal() == Some(9) && killed >= 1,
            "it ended with {status}, and {killed} were killed"
        );
        ping.wait_for_answers(100)?;
        greedy.kill()?;

        host.start_agent()?;
        ping.wait_for_answers(100)?;
        ping.stop()?.nothing_lost(200)?;
        let changes = monitor.changes(DEVICE)?;
        ensure!(changes.is_empty(), "changed in the kernel: {changes:#?}");
        ensure!((host.overlay()?, host.subnet_env()?, host.vtep_mac()?) == before, "not as before");
        ensure!(lab.store().lease_id(&key)? == lease, "another etcd lease");
        Ok(())
    })
}

fn wait_for_all_peers(host: &Host) -> Result<()> {
    wait::until("the host to know all peers", LIMIT, || {
        let peers = host.overlay()?.complete_peers().len();
        ensure!(peers == PEERS as usize + 1, "{peers} peers");
        Ok(())
    })
}

/// Writes the leases of peers that exist as leases alone.
fn write_peers(lab: &Lab) -> Result<()> {
    let put = |number: u32| {
        let [_, _, high, low] = number.to_be_bytes();
        let key = format!("{PREFIX}/subnets/10.{high}.{low}.0-24");
        let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
        TxnOp::put(key, lease_value(format!("172.16.{high}.{low}"), &mac), None)
    };
    let inside = Inside::of(lab.underlay())?;
    let endpoints = lab.store().endpoints();
    inside.run(LIMIT, async move {
        let mut client = Client::connect([endpoints], None).await?;
        let numbers: Vec<u32> = (1..=PEERS).collect();
        for batch in numbers.chunks(100) {
            client.txn(Txn::new().and_then(batch.iter().copied().map(put).collect::<Vec<_>>())).await?;
        }
        Ok(())
    })
}
