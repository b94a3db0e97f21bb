//! The backend's part of the network config.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::config::{ConfigError, Fields, SubnetPool};
use crate::family::PerFamily;

/// How packets reach a peer, with the settings that all hosts share.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendConfig {
    /// The kernel's VXLAN.
    Vxlan(VxlanConfig),
    /// One inner packet in each UDP datagram.
    Udp(UdpConfig),
    /// Routes by way of the peer's own address.
    HostGw,
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
}

/// Settings of the udp backend. flannel knows the port alone and ignores the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpConfig {
    /// UDP port that every host listens on; 8285 by default.
    pub port: u16,
    /// Take an inner packet only from the peer whose subnet holds its source; off by default, as flannel takes it
    /// from anybody.
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

impl BackendConfig {
    /// The name by which configs and leases call this backend.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Udp(_) => "udp",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
            Self::Wireguard(_) => "wireguard",
        }
    }

    /// Reads the `Backend` object; without one, or without a type in it, the backend is vxlan.
    pub(crate) fn parse(
        object: Option<Map<String, Value>>,
        pools: &PerFamily<SubnetPool>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let mut fields = Fields::new("Backend.", object.unwrap_or_default());
        let kind = fields.take::<String>("Type")?.unwrap_or_else(|| "vxlan".to_owned());
        let backend = match kind.to_ascii_lowercase().as_str() {
            "vxlan" => Self::Vxlan(VxlanConfig::parse(&mut fields, pools)?),
            "udp" => Self::Udp(UdpConfig::parse(&mut fields)?),
            "host-gw" => Self::HostGw,
            "alloc" => Self::Alloc,
            "wireguard" => Self::Wireguard(WireguardConfig::parse(&mut fields)?),
            _ => {
                let problem = "is not a backend; one of vxlan, udp, host-gw, alloc, wireguard is";
                return Err(ConfigError::invalid("Backend.Type", &format!("{kind:?}"), problem));
            }
        };
        Ok((backend, fields.rest()))
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
        })
    }
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self { vni: 1, port: 8472, gbp: false, direct_routing: false, learning: false, mtu: None }
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
