//! A WireGuard peer that no longer answers is told of after three minutes.

use std::time::Duration;

use anyhow::Result;

use crate::obstacles::{wait_for_problem, wait_until_solved};
use crate::stage::hosts_that_reach;
use crate::wireguard::{NO_FLAGS, network};

/// Without a handshake for three minutes, looked at every half.
const SILENT: Duration = Duration::from_secs(240);
const BACK: Duration = Duration::from_secs(90);

#[test]
#[ignore = "takes minutes: make soak"]
fn a_wireguard_peer_that_falls_silent_is_named_until_it_is_back() -> Result<()> {
    flan_integration::Lab::run(flan_integration::LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts_that_reach(lab, &network("user"), &[NO_FLAGS; 2])?;
        let ping = hosts[0].ping_from_end(&ends[0], ends[1].address)?;
        hosts[1].kill_agent()?;
        let its = hosts[1].address().to_string();
        wait_for_problem(&hosts[0], "silent-peer", &[&its, "its agent does not run"], SILENT)?;
        hosts[1].start_agent_with(&flan_integration::host::STATUS_FLAGS)?;
        wait_until_solved(&hosts[0], "silent-peer", BACK)?;
        drop(ping);
        Ok(())
    })
}
