//! What follows from the network config alone.

use flan_kernel::Ownership;
use flan_subnet_lease::{BackendConfig, NetworkConfig, WireguardMode};

use crate::{Udp, Vxlan, Wireguard};

/// Returns which kernel objects are ours under this config.
pub fn ownership(config: &NetworkConfig, nftables: bool) -> Ownership {
    let ownership = match &config.backend {
        BackendConfig::Vxlan(vxlan) => Vxlan::ownership_of(vxlan),
        BackendConfig::Udp(udp) => Udp::ownership_of(udp),
        BackendConfig::Wireguard(_) => Wireguard::ownership_of(),
        BackendConfig::HostGw(_) | BackendConfig::Alloc => Ownership::default(),
    };
    Ownership { senders: nftables, ..ownership }
}

/// Returns the UDP port for packets from other hosts, if the backend encapsulates in UDP.
pub fn udp_port(config: &NetworkConfig) -> Option<u16> {
    match &config.backend {
        BackendConfig::Vxlan(vxlan) => Some(vxlan.port),
        BackendConfig::Udp(udp) => Some(udp.port),
        BackendConfig::Wireguard(wireguard) => {
            let is_alone = config.pools.v4.is_none() && wireguard.mode == WireguardMode::Separate;
            Some(if is_alone { wireguard.listen_port_v6 } else { wireguard.listen_port })
        }
        _ => None,
    }
}

/// Returns whether packets reach some peers without encapsulation although there is an overlay device.
pub fn routes_directly(config: &NetworkConfig) -> bool {
    matches!(&config.backend, BackendConfig::Vxlan(vxlan) if vxlan.direct_routing)
}

/// Returns whether only the kernel's check of senders tells a peer's datagrams from anybody's.
pub fn relies_on_sender_checks(config: &NetworkConfig) -> bool {
    matches!(config.backend, BackendConfig::Vxlan(_) | BackendConfig::Udp(_))
}

/// Returns the size in bytes that the config gives to outer packets; by default it is the MTU of the external interface.
pub fn outer_mtu(config: &NetworkConfig) -> Option<u32> {
    match &config.backend {
        BackendConfig::Vxlan(vxlan) => vxlan.mtu,
        BackendConfig::Wireguard(wireguard) => wireguard.mtu,
        BackendConfig::Udp(_) | BackendConfig::HostGw(_) | BackendConfig::Alloc => None,
    }
}
