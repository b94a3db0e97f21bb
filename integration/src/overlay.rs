//! What the kernel of a host holds for its peers: routes, neighbours and FDB entries on the VXLAN device.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::Place;
use crate::netns::Netns;

/// The VXLAN device of VNI 1.
pub const DEVICE: &str = "flannel.1";

/// The peers as the kernel sees them. Peers with all three parts in place appear in all three fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Destinations routed into the device: `10.5.52.0/24`.
    pub routes: BTreeSet<String>,
    /// Permanent neighbours: overlay address -> MAC.
    pub neighbours: BTreeMap<String, String>,
    /// Permanent FDB entries: MAC -> underlay address.
    pub fdb: BTreeMap<String, String>,
}

impl Overlay {
    /// Reads the state; empty if the device does not exist.
    pub fn of(netns: &Netns) -> Result<Overlay> {
        let mut overlay = Overlay::default();
        for route in json(netns, "ip", "route show")? {
            if route["dev"] == DEVICE
                && let Some(destination) = route["dst"].as_str()
            {
                overlay.routes.insert(destination.to_owned());
            }
        }
        for neighbour in json(netns, "ip", "neighbour show")? {
            if neighbour["dev"] == DEVICE
                && has(&neighbour["state"], "PERMANENT")
                && let (Some(address), Some(mac)) = (neighbour["dst"].as_str(), neighbour["lladdr"].as_str())
            {
                overlay.neighbours.insert(address.to_owned(), mac.to_owned());
            }
        }
        for entry in json(netns, "bridge", "fdb show")? {
            if entry["ifname"] == DEVICE
                && let (Some(mac), Some(address)) = (entry["mac"].as_str(), entry["dst"].as_str())
            {
                overlay.fdb.insert(mac.to_owned(), address.to_owned());
            }
        }
        Ok(overlay)
    }

    /// The subnets of the peers of which route, neighbour and FDB entry are all there.
    pub fn complete_peers(&self) -> BTreeSet<String> {
        let reached = |destination: &&String| {
            let base = destination.split('/').next().unwrap_or_default();
            self.neighbours.get(base).is_some_and(|mac| self.fdb.contains_key(mac))
        };
        self.routes.iter().filter(reached).cloned().collect()
    }

    /// True if every part belongs to one of the complete peers: nothing is left over of peers that went.
    pub fn has_no_remains(&self) -> bool {
        let complete = self.complete_peers().len();
        self.routes.len() == complete && self.neighbours.len() == complete && self.fdb.len() == complete
    }
}

/// The MAC of a device.
pub fn mac_of(netns: &Netns, device: &str) -> Result<String> {
    let links = json(netns, "ip", &format!("link show dev {device}"))?;
    let mac = links.first().and_then(|link| link["address"].as_str());
    Ok(mac.with_context(|| format!("{device} has no MAC"))?.to_owned())
}

/// What `ip -json` or `bridge -json` prints in the namespace; nothing where it prints nothing.
pub(crate) fn json(netns: &Netns, program: &str, words: &str) -> Result<Vec<Value>> {
    let args = ["-json", "-netns", netns.name()].into_iter().chain(words.split(' '));
    let text = Place::default().run(program, args)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text)
        .with_context(|| format!("cannot parse what {program} {words} printed: {text}"))
}

fn has(list: &Value, wanted: &str) -> bool {
    list.as_array().is_some_and(|items| items.iter().any(|item| item == wanted))
}
