//! The same number of peers on udp, whose packets the kernel carries: from exec to the last route.

use std::time::Instant;

use anyhow::{Result, ensure};
use flan_integration::Lab;
use flan_integration::flannel::udp_lease_value;
use flan_integration::process::last_lines;
use flan_integration::witness::Witness;

use crate::leases::Leases;
use crate::measure::{Measure, Values};
use crate::peers::{Peer, Programmed};
use crate::subject::limit;

/// Its network is another one than that of the other measures.
const PREFIX: &str = "/flan-bench/udp";

const NETWORK: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.254.0.0",
    "Backend":{"Type":"udp","Path":"kernel"}}"#;

const DEVICE: &str = "flannel0";

/// Starts fland from nothing so often.
pub(crate) fn run(lab: &Lab, store: &Leases, peers: u32, rounds: u32, values: &mut Values) -> Result<()> {
    lab.set_network_at(PREFIX, NETWORK)?;
    store.load(
        Peer::residents(peers).map(|peer| (peer.key_below(PREFIX), udp_lease_value(peer.public_ip()))),
    )?;
    for round in 1..=rounds {
        let mut host = lab.host_at(PREFIX, &format!("udp{round}"))?;
        let witness = Witness::start(host.netns())?;
        let mark = witness.mark();
        let started = Instant::now();
        host.spawn_agent(&[])?;
        let mut programmed = Programmed::default();
        let last = witness.wait_for("the last route", mark, limit(peers), |change| {
            programmed.follow(change);
            programmed.routes_are(peers)
        });
        let last = last.map_err(|error| error.context(last_lines(&host.agent_log())))?;
        host.wait_for_agent()?;
        let routes = host.ip(&format!("-4 route show dev {DEVICE}"))?;
        let held = routes.lines().filter(|line| line.contains("/24 ")).count();
        ensure!(held == peers as usize, "the kernel holds {held} routes for {peers} peers");
        values.entry(Measure::ProgrammedForUdp).or_default().push(last.duration_since(started).as_secs_f64());

        let key = host.subnet_env()?.key();
        host.kill_agent()?;
        host.ip(&format!("link del {DEVICE}"))?;
        store.delete(format!("{PREFIX}/subnets/{key}"))?;
    }
    Ok(())
}
