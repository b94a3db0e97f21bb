//! What the veths of the underlay can do, set and read by ethtool.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use flan_integration::command::Place;
use flan_integration::{Host, Lab};
use serde::Serialize;

/// A setting of the underlay's veths, the hosts' eth0 and their peers on the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Underlay {
    /// As the kernel makes a veth; nothing is set.
    Offloads,
    /// UDP and VXLAN leave packet by packet, as over a network card without these offloads.
    NoUdpOffloads,
}

/// What `ethtool -K` gets for [`Underlay::NoUdpOffloads`].
const WITHOUT: [&str; 6] = ["tx-udp-segmentation", "off", "tx-udp_tnl-segmentation", "off", "gro", "on"];

/// The features that the report shows, as `ethtool -k` names them, and what they are [`WITHOUT`].
const SHOWN: [(&str, Option<&str>); 5] = [
    ("tcp-segmentation-offload", None),
    ("tx-udp-segmentation", Some("off")),
    ("tx-udp_tnl-segmentation", Some("off")),
    ("generic-receive-offload", Some("on")),
    ("rx-udp-gro-forwarding", None),
];

/// Feature, and `on` or `off`.
pub(crate) type Features = BTreeMap<String, String>;

impl Underlay {
    /// The command that made it; `None` if nothing was set.
    pub(crate) fn set_by(self) -> Option<String> {
        (self == Underlay::NoUdpOffloads).then(|| format!("ethtool -K DEVICE {}", WITHOUT.join(" ")))
    }

    /// Sets both ends of the host's link, and makes sure that it worked.
    pub(crate) fn apply(self, lab: &Lab, host: &Host) -> Result<()> {
        if self == Underlay::Offloads {
            return Ok(());
        }
        // A host's link ends on the bridge in a device of the host's name.
        for (place, device) in [(host.netns().place(), "eth0"), (lab.underlay().place(), host.name())] {
            place.run("ethtool", ["-K", device].into_iter().chain(WITHOUT))?;
            let features = features_at(&place, device)?;
            for (feature, wanted) in SHOWN {
                let found = features.get(feature).map(String::as_str);
                ensure!(
                    wanted.is_none() || found == wanted,
                    "{feature} of {device} is {} after ethtool -K",
                    found.unwrap_or("unknown")
                );
            }
        }
        Ok(())
    }
}

/// The features of a host's device that matter here.
pub(crate) fn features(host: &Host, device: &str) -> Result<Features> {
    features_at(&host.netns().place(), device)
}

fn features_at(place: &Place, device: &str) -> Result<Features> {
    let text = place.run("ethtool", ["-k", device]).with_context(|| format!("features of {device}"))?;
    Ok(parse(&text))
}

/// Reads lines like `rx-gro-hw: off [fixed]`.
fn parse(text: &str) -> Features {
    let pairs = text.lines().filter_map(|line| line.trim().split_once(": "));
    pairs
        .filter(|(name, _)| SHOWN.iter().any(|(shown, _)| shown == name))
        .filter_map(|(name, value)| Some((name.to_owned(), value.split_whitespace().next()?.to_owned())))
        .collect()
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Underlay::Offloads => "offloads",
            Underlay::NoUdpOffloads => "no UDP offloads",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From ethtool 6.1 on a veth.
    const TEXT: &str = "Features for eth0:\nrx-checksumming: on\ntcp-segmentation-offload: on\n\
        \ttx-tcp-segmentation: on\ngeneric-receive-offload: off\ntx-udp_tnl-segmentation: on\n\
        tx-udp-segmentation: off [requested on]\nrx-gro-hw: off [fixed]\nrx-udp-gro-forwarding: off\n";

    #[test]
    fn features_are_read_without_their_remarks() {
        let features = parse(TEXT);
        assert_eq!(features.len(), SHOWN.len());
        assert_eq!(features["tx-udp-segmentation"], "off");
        assert_eq!(features["tx-udp_tnl-segmentation"], "on");
    }
}
