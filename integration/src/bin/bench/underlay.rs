//! What the veths of the underlay can do, set and read by ethtool.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use flan_integration::command::Place;
use flan_integration::{Host, Lab};
use serde::Serialize;

/// A setting of the underlay's veths, the hosts' eth0 and their peers on the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Underlay {
    /// As the kernel makes a veth: it takes super-packets of TCP, UDP and VXLAN.
    Offloads,
    /// It takes neither UDP nor VXLAN but packet by packet, as a card that knows nothing of tunnels.
    NoTunnelOffloads,
}

/// The features that matter here, as `ethtool -k` names them.
const SHOWN: [&str; 6] = [
    "tcp-segmentation-offload",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "generic-receive-offload",
    "rx-udp-gro-forwarding",
];

/// Feature, and `on` or `off`.
pub(crate) type Features = BTreeMap<String, String>;

impl Underlay {
    /// What is set; everything else is as the kernel makes it.
    fn features(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Underlay::Offloads => &[],
            Underlay::NoTunnelOffloads => &[
                ("generic-receive-offload", "on"),
                ("tx-udp-segmentation", "off"),
                ("tx-udp_tnl-segmentation", "off"),
                ("tx-udp_tnl-csum-segmentation", "off"),
            ],
        }
    }

    /// The command that made it; `None` if nothing was set.
    pub(crate) fn set_by(self) -> Option<String> {
        let words: Vec<&str> = self.words().collect();
        (!words.is_empty()).then(|| format!("ethtool -K DEVICE {}", words.join(" ")))
    }

    /// Sets both ends of the host's link, and makes sure that it worked.
    pub(crate) fn apply(self, lab: &Lab, host: &Host) -> Result<()> {
        // A host's link ends on the bridge in a device of the host's name.
        for (place, device) in [(host.netns().place(), "eth0"), (lab.underlay().place(), host.name())] {
            if self.set_by().is_some() {
                place.run("ethtool", ["-K", device].into_iter().chain(self.words()))?;
            }
            let features = features_at(&place, device)?;
            for (feature, wanted) in self.features() {
                let found = features.get(*feature).map(String::as_str);
                ensure!(
                    found == Some(wanted),
                    "{feature} of {device} is {} after ethtool -K",
                    found.unwrap_or("unknown")
                );
            }
        }
        Ok(())
    }

    fn words<'a>(self) -> impl Iterator<Item = &'a str> {
        self.features().iter().flat_map(|(feature, value)| [*feature, *value])
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
        .filter(|(name, _)| SHOWN.contains(name))
        .filter_map(|(name, value)| Some((name.to_owned(), value.split_whitespace().next()?.to_owned())))
        .collect()
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Underlay::Offloads => "offloads",
            Underlay::NoTunnelOffloads => "no tunnel offloads",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From ethtool 6.1 on a veth.
    const TEXT: &str = "Features for eth0:\nrx-checksumming: on\ntcp-segmentation-offload: on\n\
        \ttx-tcp-segmentation: on\ngeneric-receive-offload: off\ntx-udp_tnl-segmentation: on\n\
        tx-udp-segmentation: off [requested on]\ntx-udp_tnl-csum-segmentation: on\nrx-gro-hw: off [fixed]\nrx-udp-gro-forwarding: off\n";

    #[test]
    fn features_are_read_without_their_remarks() {
        let features = parse(TEXT);
        assert_eq!(features.len(), SHOWN.len());
        assert_eq!(features["tx-udp-segmentation"], "off");
        assert_eq!(features["tx-udp_tnl-segmentation"], "on");
    }
}
