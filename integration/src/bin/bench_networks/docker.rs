//! How long `docker run` takes in a network of flan and in one of Docker's own bridge driver.

use std::time::Instant;

use anyhow::{Context, Result};
use flan_integration::docker::IMAGE;
use flan_integration::statistics::median;
use flan_integration::{Bridge, Host, Lab, LabOptions};
use serde::Serialize;

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// What was measured, as medians in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DockerRuns {
    /// On Docker's own bridge.
    pub(crate) bridge_seconds: f64,
    /// In a network that the host is in.
    pub(crate) flan_seconds: f64,
    /// The median ratio of the two in one round.
    pub(crate) ratio: f64,
    /// In a network that the host joins for this container.
    pub(crate) joining_seconds: f64,
}

/// Runs containers that end at once, in turn in each kind of network.
pub(crate) fn measure(rounds: u32) -> Result<DockerRuns> {
    let mut measured = None;
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("docker")?;
        host.start_agent_with(&["--ip-masq", "--docker"])?;
        host.start_docker(Bridge::WholeSubnet)?;
        host.docker(&["network", "create", "plain"])?;
        for name in ["stays", "joins"] {
            host.docker(&["network", "create", "-d", "flan", "--ipam-driver", "flan", name])?;
        }
        host.run_container("keeper", &["--network", "stays"])?;
        let joining_seconds = seconds(&host, "joins")?;
        let mut rows = Vec::new();
        for _ in 0..rounds {
            rows.push((seconds(&host, "plain")?, seconds(&host, "stays")?));
        }
        let of = |value: fn(&(f64, f64)) -> f64| median(&rows.iter().map(value).collect::<Vec<_>>());
        measured = Some(DockerRuns {
            bridge_seconds: of(|row| row.0).context("no round")?,
            flan_seconds: of(|row| row.1).context("no round")?,
            ratio: of(|row| row.1 / row.0).context("no round")?,
            joining_seconds,
        });
        Ok(())
    })?;
    measured.context("nothing was measured")
}

fn seconds(host: &Host, network: &str) -> Result<f64> {
    let started = Instant::now();
    host.docker(&["run", "--rm", "--network", network, IMAGE, "/bin/ls"])?;
    Ok(started.elapsed().as_secs_f64())
}
