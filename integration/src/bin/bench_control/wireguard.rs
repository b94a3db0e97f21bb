//! The same number of peers on wireguard, whoever encrypts: from exec to an agent that knows all of them.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flan_integration::Lab;
use serde_json::Value;

use crate::leases::Leases;
use crate::measure::{Measure, Values};
use crate::peers::Peer;
use crate::subject::limit;

/// Its network is another one than that of the other measures.
const PREFIX: &str = "/flan-bench/wireguard";

const NETWORK: &str =
    r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.254.0.0","Backend":{"Type":"wireguard"}}"#;

const DEVICE: &str = "flannel-wg";

/// Starts fland from nothing so often. The kernel tells of no peer, so the agent's word that it is ready is taken, and
/// then it is asked how many peers it has.
pub(crate) fn run(lab: &Lab, store: &Leases, peers: u32, rounds: u32, values: &mut Values) -> Result<()> {
    lab.set_network_at(PREFIX, NETWORK)?;
    store.load(Peer::residents(peers).map(|peer| (peer.key_below(PREFIX), value(peer))))?;
    for round in 1..=rounds {
        let mut host = lab.host_at(PREFIX, &format!("wg{round}"))?;
        let started = Instant::now();
        host.spawn_agent(&[])?;
        let ready = host.wait_for_agent_within(limit(peers))?;
        let shown = host.flanctl(&["peers", "-o", "json"])?;
        let shown: Value = serde_json::from_str(&shown.stdout).with_context(|| format!("{shown:?}"))?;
        let known = shown["peers"].as_array().context("no list of peers")?;
        let held = known.iter().filter(|peer| !peer["wireguard"]["endpoint"].is_null()).count();
        ensure!(held == peers as usize, "{held} peers have an endpoint, of {peers}");
        let seconds = ready.duration_since(started).as_secs_f64();
        values.entry(Measure::ReadyOnWireguard).or_default().push(seconds);

        let key = host.subnet_env()?.key();
        host.kill_agent()?;
        host.ip(&format!("link del {DEVICE}"))?;
        store.delete(format!("{PREFIX}/subnets/{key}"))?;
    }
    Ok(())
}

/// A lease as flannel writes it, with a key that nobody has the other half of.
fn value(peer: Peer) -> String {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&peer.base().octets());
    format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{}","Port":51820}}}}"#,
        peer.public_ip(),
        STANDARD.encode(key)
    )
}
