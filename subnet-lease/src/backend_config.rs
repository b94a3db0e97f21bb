//! The backend's part of the network config.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::config_error::{ConfigError, ConfigWarning};
use crate::family::{Family, PerFamily};
use crate::fields::Fields;
use crate::subnet_pool::SubnetPool;

/// How packets reach a peer, with the settings that all hosts share.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendConfig {
    /// The kernel's VXLAN.
    Vxlan(VxlanConfig),
    /// One inner packet in each UDP datagram.
    Udp(UdpConfig),
    /// Routes by way of the peer's own address.
    HostGw(HostGwConfig),
    /// Leases alone; somebody else forwards.
    Alloc,
    /// flannel's WireGuard.
    Wireguard(WireguardConfig),
}

/// Settings of the vxlan backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier; 1 by default. It names the devices as well, `flannel.<VNI>` and `flannel-v6.<VNI>`,
    /// and as the kernel allows 15 bytes for that, it is at most 9999999, with IPv6 at most 9999.
    pub vni: u32,
    /// UDP port of the outer packets; 8472 by default.
    pub port: u16,
    /// Carry group policy ids; off by default.
    pub gbp: bool,
    /// Route peers on the same link without encapsulation; off by default.
    pub direct_routing: bool,
    /// Learn MACs from what is received; off by default.
    pub learning: bool,
    /// Bytes of the outer packets; the external interface's MTU by default.
    pub mtu: Option<u32>,
    /// Take an inner packet only from the peer whose subnet holds its source, and for this host's subnet; off by
    /// default, as flannel takes it from anybody. flannel ignores it.
    pub strict_source: bool,
}

/// Settings of the host-gw backend. flannel knows none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostGwConfig {
    /// Take a packet of the overlay network only if a peer's subnet holds its source, and for this host's subnet; off by
    /// default.
    pub strict_source: bool,
}

/// Settings of the udp backend. flannel knows the port alone and ignores the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpConfig {
    /// UDP port that every host listens on; 8285 by default.
    pub port: u16,
    /// Take an inner packet only from the peer whose subnet holds its source, and for this host's subnet; off by
    /// default, as flannel takes it from anybody.
    pub strict_source: bool,
    /// Exchange packets larger than the MTU with the device (virtio-net headers); on by default, where the kernel
    /// has it.
    pub tun_offload: bool,
    /// Send many datagrams in one piece (`UDP_SEGMENT`); on by default, where the kernel has it.
    pub gso: bool,
    /// Receive many datagrams in one piece (`UDP_GRO`); on by default, where the kernel has it.
    pub gro: bool,
}

/// Settings of flannel's wireguard backend.
#[derive(Debug, Clone, PartialEq)]
pub struct WireguardConfig {
    /// UDP port for IPv4; 51820 by default.
    pub listen_port: u16,
    /// UDP port for IPv6 in mode `separate`; 51821 by default.
    pub listen_port_v6: u16,
}

/// What there is to know of a backend beside its settings.
struct Kind {
    name: &'static str,
    /// The families that it carries in this version of fland; none where fland does not have the backend.
    carries: &'static [Family],
    parse: fn(&mut Fields, &PerFamily<SubnetPool>) -> Result<BackendConfig, ConfigError>,
}

static VXLAN: Kind = Kind {
    name: "vxlan",
    carries: &Family::ALL,
    parse: |fields, pools| VxlanConfig::parse(fields, pools).map(BackendConfig::Vxlan),
};
static UDP: Kind = Kind {
    name: "udp",
    carries: &[Family::V4],
    parse: |fields, _| UdpConfig::parse(fields).map(BackendConfig::Udp),
};
static HOST_GW: Kind = Kind {
    name: "host-gw",
    carries: &Family::ALL,
    parse: |fields, _| HostGwConfig::parse(fields).map(BackendConfig::HostGw),
};
static ALLOC: Kind = Kind { name: "alloc", carries: &Family::ALL, parse: |_, _| Ok(BackendConfig::Alloc) };
static WIREGUARD: Kind = Kind {
    name: "wireguard",
    carries: &[],
    parse: |fields, _| WireguardConfig::parse(fields).map(BackendConfig::Wireguard),
};
/// All backends whose settings can be read.
static KINDS: [&Kind; 5] = [&VXLAN, &UDP, &HOST_GW, &ALLOC, &WIREGUARD];

impl BackendConfig {
    /// The name by which configs and leases call this backend.
    pub fn name(&self) -> &'static str {
        self.kind().name
    }

    /// The names of the backends that this version of fland runs.
    pub fn supported_names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().filter(|kind| !kind.carries.is_empty()).map(|kind| kind.name)
    }

    /// The names of those that carry this family.
    pub(crate) fn names_that_carry(family: Family) -> impl Iterator<Item = &'static str> {
        KINDS.iter().filter(move |kind| kind.carries.contains(&family)).map(|kind| kind.name)
    }

    /// The families that this version of fland carries with the backend; none where it does not have it.
    pub(crate) fn carries(&self) -> &'static [Family] {
        self.kind().carries
    }

    /// What a config without a `Backend` means to flannel.
    pub(crate) fn of_flannel() -> Self {
        Self::Udp(UdpConfig::default())
    }

    /// Reads the `Backend` object.
    pub(crate) fn parse(
        mut fields: Fields,
        pools: &PerFamily<SubnetPool>,
    ) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let name: String = fields.take("Type")?.ok_or_else(|| ConfigError::Missing {
            field: "Backend.Type",
            hint: format!("fland has {}", listed(Self::supported_names())),
        })?;
        let kind = KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(&name));
        let kind = kind.ok_or_else(|| Self::unknown(&name))?;
        let backend = (kind.parse)(&mut fields, pools)?;
        Ok((backend, fields.finish()))
    }

    /// Why a backend of this name is refused, where fland does not have it.
    pub(crate) fn unknown(name: &str) -> ConfigError {
        let problem = format!("is not one that this fland has; {} are", listed(Self::supported_names()));
        ConfigError::invalid("Backend.Type", &format!("{name:?}"), &problem)
    }

    fn kind(&self) -> &'static Kind {
        match self {
            Self::Vxlan(_) => &VXLAN,
            Self::Udp(_) => &UDP,
            Self::HostGw(_) => &HOST_GW,
            Self::Alloc => &ALLOC,
            Self::Wireguard(_) => &WIREGUARD,
        }
    }
}

impl VxlanConfig {
    fn parse(fields: &mut Fields, pools: &PerFamily<SubnetPool>) -> Result<Self, ConfigError> {
        let default = Self::default();
        Ok(Self {
            vni: fields.take_in("VNI", 1..=longest_vni(pools))?.unwrap_or(default.vni),
            port: port(fields, "Port", default.port)?,
            gbp: fields.take("GBP")?.unwrap_or(default.gbp),
            direct_routing: fields.take("DirectRouting")?.unwrap_or(default.direct_routing),
            learning: fields.take("Learning")?.unwrap_or(default.learning),
            mtu: fields.take_in("MTU", outer_mtu(pools))?,
            strict_source: fields.take("StrictSource")?.unwrap_or(default.strict_source),
        })
    }
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self {
            vni: 1,
            port: 8472,
            gbp: false,
            direct_routing: false,
            learning: false,
            mtu: None,
            strict_source: false,
        }
    }
}

impl HostGwConfig {
    fn parse(fields: &mut Fields) -> Result<Self, ConfigError> {
        Ok(Self { strict_source: fields.take("StrictSource")?.unwrap_or_default() })
    }
}

impl UdpConfig {
    fn parse(fields: &mut Fields) -> Result<Self, ConfigError> {
        let default = Self::default();
        Ok(Self {
            port: port(fields, "Port", default.port)?,
            strict_source: fields.take("StrictSource")?.unwrap_or(default.strict_source),
            tun_offload: fields.take("TunOffload")?.unwrap_or(default.tun_offload),
            gso: fields.take("GSO")?.unwrap_or(default.gso),
            gro: fields.take("GRO")?.unwrap_or(default.gro),
        })
    }
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { port: 8285, strict_source: false, tun_offload: true, gso: true, gro: true }
    }
}

impl WireguardConfig {
    fn parse(fields: &mut Fields) -> Result<Self, ConfigError> {
        for known in ["PSK", "MTU", "Mode", "PersistentKeepaliveInterval"] {
            let _: Option<Value> = fields.take(known)?;
        }
        Ok(Self {
            listen_port: port(fields, "ListenPort", 51820)?,
            listen_port_v6: port(fields, "ListenPortV6", 51821)?,
        })
    }
}

/// A UDP port; 0 stands for the default, as in flannel.
fn port(fields: &mut Fields, name: &str, default: u16) -> Result<u16, ConfigError> {
    Ok(fields.take_in(name, 0..=u16::MAX)?.filter(|port| *port != 0).unwrap_or(default))
}

/// The highest VNI whose device names fit.
fn longest_vni(pools: &PerFamily<SubnetPool>) -> u32 {
    if pools.v6.is_some() { 9_999 } else { 9_999_999 }
}

/// What the outer packets may measure: an inner packet must still hold the smallest MTU of its family, 576 bytes
/// (RFC 791) or 1280 (RFC 8200), behind at most 70 bytes of headers.
fn outer_mtu(pools: &PerFamily<SubnetPool>) -> RangeInclusive<u32> {
    let inner = if pools.v6.is_some() { 1280 } else { 576 };
    inner + 70..=65535
}

/// `vxlan, udp and alloc`.
pub(crate) fn listed(names: impl Iterator<Item = &'static str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
