//! The data paths that are compared, each a row of the bench.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// A data path between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// No overlay: eth0 to eth0.
    Underlay,
    /// The kernel's VXLAN, set up by hand as flannel does, without an agent: what all rows are compared with.
    VxlanControl,
    /// fland with the vxlan backend.
    FlanVxlan,
    /// fland with the udp backend, whose packets the kernel encapsulates. Only where it can.
    FlanUdpKernel,
    /// fland with the udp backend, which encapsulates the packets itself.
    FlanUdp,
    /// The same without TunOffload, GSO and GRO.
    FlanUdpPlain,
    /// A WireGuard device of the kernel, set up by hand: what the next row is compared with. Only where it has WireGuard.
    WireguardControl,
    /// fland with the wireguard backend, whose packets the kernel encrypts. Only where it can.
    FlanWireguardKernel,
    /// wireguard-go of Debian forky, set up by hand: what the next row is compared with.
    WireguardGo,
    /// fland with the wireguard backend, which encrypts the packets itself.
    FlanWireguard,
}

/// What this kernel has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) has_fou: bool,
    pub(crate) has_wireguard: bool,
}

impl Row {
    /// The row that the ratios refer to.
    pub(crate) const CONTROL: Row = Row::VxlanControl;

    /// Whether a kernel with these has it.
    pub(crate) fn is_there(self, kernel: Kernel) -> bool {
        match self {
            Row::FlanUdpKernel => kernel.has_fou,
            Row::WireguardControl | Row::FlanWireguardKernel => kernel.has_wireguard,
            _ => true,
        }
    }

    /// The `Backend` of the network config; `None` where no agent runs.
    pub(crate) fn backend(self) -> Option<&'static str> {
        match self {
            Row::Underlay | Row::VxlanControl | Row::WireguardControl | Row::WireguardGo => None,
            Row::FlanVxlan => Some(r#"{"Type":"vxlan"}"#),
            Row::FlanUdpKernel => Some(r#"{"Type":"udp","Path":"kernel"}"#),
            Row::FlanUdp => Some(r#"{"Type":"udp","Path":"user"}"#),
            Row::FlanUdpPlain => {
                Some(r#"{"Type":"udp","Path":"user","TunOffload":false,"GSO":false,"GRO":false}"#)
            }
            Row::FlanWireguardKernel => Some(r#"{"Type":"wireguard","Path":"kernel"}"#),
            Row::FlanWireguard => Some(r#"{"Type":"wireguard","Path":"user"}"#),
        }
    }

    /// What the names of its hosts begin with. They name network devices, so they are short.
    pub(crate) fn host_name(self) -> &'static str {
        match self {
            Row::Underlay => "underlay",
            Row::VxlanControl => "control",
            Row::FlanVxlan => "vxlan",
            Row::FlanUdpKernel => "udpkernel",
            Row::FlanUdp => "udp",
            Row::FlanUdpPlain => "udpplain",
            Row::WireguardControl => "wg",
            Row::FlanWireguardKernel => "wgkernel",
            Row::WireguardGo => "wggo",
            Row::FlanWireguard => "wguser",
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Row::Underlay => "underlay",
            Row::VxlanControl => "vxlan control",
            Row::FlanVxlan => "flan vxlan",
            Row::FlanUdpKernel => "flan udp kernel",
            Row::FlanUdp => "flan udp",
            Row::FlanUdpPlain => "flan udp plain",
            Row::WireguardControl => "wireguard control",
            Row::FlanWireguardKernel => "flan wireguard kernel",
            Row::WireguardGo => "wireguard-go",
            Row::FlanWireguard => "flan wireguard",
        })
    }
}
