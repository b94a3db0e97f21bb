//! Chooses the backend that the network config asks for.

use flan_backends::{Abilities, Alloc, Backend, BackendError, HostGw, Udp, Underlay, Vxlan};
use flan_kernel::{Ownership, State};
use flan_subnet_lease::{BackendConfig, NetworkConfig, UdpConfig};

use super::datapath::Datapath;
use crate::args::UdpMode;

/// The backend of this network.
pub(crate) struct Chosen {
    pub(super) backend: Box<dyn Backend>,
    /// The data path, if packets pass through this process.
    pub(super) datapath: Option<Box<dyn Datapath>>,
}

impl Chosen {
    /// Replaces the backend. A running data path is kept if the new one is equivalent.
    pub(super) fn replace_by(&mut self, other: Self) {
        let before = self.datapath.take();
        *self = other;
        if let (Some(before), Some(now)) = (before, &self.datapath)
            && before.does_the_same_as(&**now)
        {
            self.datapath = Some(before);
        }
    }
}

/// Returns which kernel objects are ours under this config.
pub(super) fn ownership(config: &NetworkConfig, nftables: bool) -> Ownership {
    let ownership = match &config.backend {
        BackendConfig::Vxlan(vxlan) => Vxlan::ownership_of(vxlan),
        BackendConfig::Udp(_) => Udp::ownership(),
        BackendConfig::HostGw(_) | BackendConfig::Alloc | BackendConfig::Wireguard(_) => Ownership::default(),
    };
    Ownership { senders: nftables, ..ownership }
}

/// Returns the UDP port for packets from other hosts, if the backend encapsulates in UDP.
pub(super) fn udp_port(config: &NetworkConfig) -> Option<u16> {
    match &config.backend {
        BackendConfig::Vxlan(vxlan) => Some(vxlan.port),
        BackendConfig::Udp(udp) => Some(udp.port),
        _ => None,
    }
}

/// Returns whether packets reach some peers without encapsulation although there is an overlay device.
pub(super) fn routes_directly(config: &NetworkConfig) -> bool {
    matches!(&config.backend, BackendConfig::Vxlan(vxlan) if vxlan.direct_routing)
}

/// Chooses the backend for this config and host.
///
/// # Errors
/// If this host cannot run it.
pub(super) fn choose(
    config: &NetworkConfig,
    udp_without: &[UdpMode],
    underlay: &Underlay,
    abilities: Abilities,
    node_id: &str,
    devices: &State,
    make_datapath: fn(Udp) -> Box<dyn Datapath>,
) -> Result<Chosen, BackendError> {
    let of_kernel = |backend| Ok(Chosen { backend, datapath: None });
    match &config.backend {
        BackendConfig::Udp(udp) => {
            let udp = without(udp.clone(), udp_without);
            let backend = Udp::new(udp, config.networks(), underlay, abilities.checks_senders)?;
            let datapath = Some(make_datapath(backend.clone()));
            Ok(Chosen { backend: Box::new(backend), datapath })
        }
        BackendConfig::Vxlan(vxlan) => {
            let backend = Vxlan::new(vxlan.clone(), &config.pools, underlay, abilities, node_id, devices)?;
            of_kernel(Box::new(backend))
        }
        BackendConfig::HostGw(host_gw) => {
            let backend = HostGw::new(host_gw, &config.pools, underlay, abilities.checks_senders)?;
            of_kernel(Box::new(backend))
        }
        BackendConfig::Alloc => of_kernel(Box::new(Alloc::new(underlay))),
        // `NetworkConfig::supported` has refused this before.
        BackendConfig::Wireguard(_) => Err(BackendError::Unknown { backend: config.backend.name() }),
    }
}

/// Returns the config without the modes that this host disables.
fn without(mut config: UdpConfig, modes: &[UdpMode]) -> UdpConfig {
    config.tun_offload &= !modes.contains(&UdpMode::TunOffload);
    config.gso &= !modes.contains(&UdpMode::Gso);
    config.gro &= !modes.contains(&UdpMode::Gro);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_in_force_only_where_config_and_host_want_it() {
        let config = UdpConfig { gro: false, ..UdpConfig::default() };
        let left = without(config, &[UdpMode::Gso]);
        assert_eq!((left.tun_offload, left.gso, left.gro), (true, false, false));
    }
}
