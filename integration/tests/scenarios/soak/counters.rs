//! What kernel and agent have counted.

use anyhow::{Context, Result, ensure};
use flan_integration::Host;
use flan_integration::command::Place;
use serde_json::{Map, Value};

/// The kernel's counters of wrong checksums, for IPv4.
const CHECKSUM_ERRORS: [&str; 4] =
    ["TcpInCsumErrors", "UdpInCsumErrors", "IcmpInCsumErrors", "IpExtInCsumErrors"];

/// Packets with a wrong checksum that the kernel has met in a namespace since it was made, told by kind if there were
/// any.
pub(crate) fn ensure_no_checksum_errors(place: &Place) -> Result<()> {
    // Absolute, all of them, without a file that remembers them.
    let text = place.run("nstat", ["--json", "--ignore", "--zeros", "--noupdate"])?;
    let all: Value = serde_json::from_str(&text).with_context(|| format!("nstat printed {text:?}"))?;
    let count = |name: &str| {
        all["kernel"][name].as_u64().with_context(|| format!("nstat does not know {name}: {text}"))
    };
    ensure!(count("IpInReceives")? > 0, "no packet has come here, which proves little");
    for name in CHECKSUM_ERRORS {
        let count = count(name)?;
        ensure!(count == 0, "{count} {name}");
    }
    Ok(())
}

/// What the agent's status tells of its data path, without what is 0.
pub(crate) fn datapath(host: &Host) -> Result<Value> {
    let status = host.status()?;
    let datapath = status["datapath"].as_object().with_context(|| format!("no datapath: {status}"))?;
    let told = datapath.iter().filter(|(_, value)| value.as_u64() != Some(0));
    Ok(Value::Object(told.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>()))
}

/// Packets that found the queue of the host's overlay device full, before the agent could read them.
pub(crate) fn dropped_at_device(host: &Host) -> Result<u64> {
    let text = host.ip("-json -statistics link show dev flannel0")?;
    let links: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text:?}"))?;
    let dropped = links[0]["stats64"]["tx"]["dropped"].as_u64();
    dropped.with_context(|| format!("no count of dropped packets: {text}"))
}
