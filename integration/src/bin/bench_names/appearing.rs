//! How soon after `docker run` another host knows the name.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::host::on_all;
use flan_integration::inside::Inside;
use flan_integration::statistics::median;
use flan_integration::{Bridge, Lab, LabOptions};

use crate::question::Asker;

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// Returns the median of milliseconds from the end of `docker run` on one host to an answer on another.
pub(crate) fn measure(containers: u32) -> Result<f64> {
    let mut measured = None;
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut hosts = vec![lab.host("h1")?, lab.host("h2")?];
        on_all(&mut hosts, |host| {
            host.start_agent_with(&["--ip-masq", "--docker", "--names-upstream=none"])
        })?;
        on_all(&mut hosts, |host| host.start_docker(Bridge::WholeSubnet))?;
        let server = IpAddr::V4(hosts[0].subnet_env()?.subnet.ip());
        let asker = Inside::of(hosts[0].netns())?.run(LIMIT, async move { Asker::new(server, server) })?;
        let mut times = Vec::new();
        for number in 0..containers {
            let name = format!("c{number}");
            hosts[1].run_container(&name, &[])?;
            let started = Instant::now();
            while !asker.knows(&format!("{name}.flan.internal"))? {
                ensure!(started.elapsed() < LIMIT, "{name} is not known after {LIMIT:?}");
                thread::sleep(LOOK);
            }
            times.push(started.elapsed().as_secs_f64() * 1000.0);
            hosts[1].docker(&["rm", "-f", &name])?;
        }
        measured = Some(median(&times).context("no container")?);
        Ok(())
    })?;
    measured.context("nothing was measured")
}
