//! The fland that is measured, and the leases of peers that exist on paper alone.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::store::{PREFIX, StoreClient};
use flan_integration::vitals::{self, Vitals};
use flan_integration::{Lab, wait};
use serde::Serialize;

/// What is slow is to be measured, what hangs to be told.
const LIMIT: Duration = Duration::from_secs(120);

/// What happens right after the start is not idle.
const SETTLING: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Values {
    /// Seconds from exec until the subnet files of all networks are written: their peers are in the kernel then.
    pub(crate) ready_seconds: f64,
    /// Memory once settled, in 10^6 bytes.
    pub(crate) memory_megabytes: f64,
    /// CPU time while nothing happens, in percent of one core.
    pub(crate) idle_percent: f64,
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Values { ready_seconds, memory_megabytes, idle_percent } = self;
        write!(f, "{ready_seconds:.3} s, {memory_megabytes:.1} MB, {idle_percent:.2} %")
    }
}

/// Writes the networks and leases, starts fland in all of them, and measures.
pub(crate) fn start(lab: &Lab, networks: u32, peers: u32, idle_seconds: u32) -> Result<Values> {
    let store = StoreClient::connect(lab.underlay(), &lab.store().endpoints(), LIMIT)?;
    let names: Vec<String> = (1..=networks).map(|number| format!("n{number}")).collect();
    if networks == 0 {
        let config = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}"#;
        lab.set_network(config)?;
        store.put_all((0..peers).map(|peer| lease(PREFIX, 1, peer / 100, peer % 100)))?;
    } else {
        lab.set_network(r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
        for (number, name) in (1..).zip(&names) {
            let prefix = format!("{PREFIX}/{name}");
            let config = format!(
                r#"{{"Network":"10.{number}.0.0/16","SubnetMin":"10.{number}.128.0","Backend":{{"Type":"vxlan","VNI":{}}}}}"#,
                number + 1
            );
            let leases = (0..peers).map(|peer| lease(&prefix, number + 1, number, peer));
            store.put_all(leases.chain([(format!("{prefix}/config"), config)]))?;
        }
    }
    let mut host = lab.host("many")?;
    let started = Instant::now();
    let flag = format!("--networks={}", names.join(","));
    let flags: &[&str] = if names.is_empty() { &[] } else { &[&flag] };
    host.spawn_agent(flags)?;
    host.wait_for_agent_within(LIMIT)?;
    for name in &names {
        wait::until(&format!("network {name} to be ready"), LIMIT, || host.subnet_env_of(name))?;
    }
    let ready_seconds = started.elapsed().as_secs_f64();
    let routes = host.ip("-4 route show proto 102")?.lines().count();
    ensure!(routes == (networks.max(1) * peers) as usize, "{routes} routes");

    thread::sleep(SETTLING);
    let pid = host.agent_pid().context("no agent runs")?;
    let before = vitals::cpu_seconds(pid)?;
    thread::sleep(Duration::from_secs(idle_seconds.into()));
    let idle_percent = 100.0 * (vitals::cpu_seconds(pid)? - before) / f64::from(idle_seconds);
    let memory_megabytes = Vitals::of(pid)?.resident_kib as f64 * 1024.0 / 1e6;
    Ok(Values { ready_seconds, memory_megabytes, idle_percent })
}

/// A lease of flannel's form: its key and value.
fn lease(prefix: &str, vni: u32, second: u32, third: u32) -> (String, String) {
    let value = format!(
        r#"{{"PublicIP":"192.168.{second}.{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"02:00:00:00:{second:02x}:{third:02x}"}}}}"#,
        third + 100
    );
    (format!("{prefix}/subnets/10.{second}.{third}.0-24"), value)
}
