//! Which backend the network config asks for, and the data path that one of them runs.

use std::sync::Arc;

use flan_backends::udp::{Datapath, ForwardingTable, Gauge};
use flan_backends::{Abilities, Alloc, Backend, BackendError, HostGw, Udp, Underlay, Vxlan};
use flan_kernel::{Ownership, State, sysctl};
use flan_subnet_lease::{BackendConfig, Lease, NetworkConfig, PeerChange, Subnets, UdpConfig};
use tracing::warn;

use crate::args::UdpMode;
use crate::ports;

/// The backend of this network.
pub(super) struct Chosen {
    pub(super) backend: Box<dyn Backend>,
    /// The data path, where packets pass through this program.
    pub(super) datapath: Option<UdpRunner>,
}

/// What in the kernel is ours under this config, on a kernel with nftables or without.
pub(super) fn ownership(config: &NetworkConfig, nftables: bool) -> Ownership {
    let ownership = match &config.backend {
        BackendConfig::Vxlan(vxlan) => Vxlan::ownership_of(vxlan),
        BackendConfig::Udp(_) => Udp::ownership(),
        BackendConfig::HostGw(_) | BackendConfig::Alloc | BackendConfig::Wireguard(_) => Ownership::default(),
    };
    Ownership { senders: nftables, ..ownership }
}

/// The UDP port that packets of other hosts arrive at, where they are wrapped in UDP.
pub(super) fn udp_port(config: &NetworkConfig) -> Option<u16> {
    match &config.backend {
        BackendConfig::Vxlan(vxlan) => Some(vxlan.port),
        BackendConfig::Udp(udp) => Some(udp.port),
        _ => None,
    }
}

/// Whether packets reach some peers as they are although there is a device that wraps them.
pub(super) fn routes_directly(config: &NetworkConfig) -> bool {
    matches!(&config.backend, BackendConfig::Vxlan(vxlan) if vxlan.direct_routing)
}

/// The backend that the config asks for, decided on for this host.
///
/// # Errors
/// When this host cannot run it.
pub(super) fn choose(
    config: &NetworkConfig,
    udp_without: &[UdpMode],
    underlay: &Underlay,
    abilities: Abilities,
    node_id: &str,
    actual: &State,
) -> Result<Chosen, BackendError> {
    let of_kernel = |backend| Ok(Chosen { backend, datapath: None });
    match &config.backend {
        BackendConfig::Udp(udp) => {
            let udp = without(udp.clone(), udp_without);
            let backend = Udp::new(udp, config.networks(), underlay, abilities.checks_senders)?;
            let datapath = Some(UdpRunner::new(backend.clone()));
            Ok(Chosen { backend: Box::new(backend), datapath })
        }
        BackendConfig::Vxlan(vxlan) => {
            let backend = Vxlan::new(vxlan.clone(), &config.pools, underlay, abilities, node_id, actual)?;
            of_kernel(Box::new(backend))
        }
        BackendConfig::HostGw(host_gw) => {
            let backend = HostGw::new(host_gw, &config.pools, underlay, abilities.checks_senders)?;
            of_kernel(Box::new(backend))
        }
        BackendConfig::Alloc => of_kernel(Box::new(Alloc::new(underlay))),
        // `NetworkConfig::supported` lets no such config come this far.
        BackendConfig::Wireguard(_) => Err(BackendError::Unknown { backend: config.backend.name() }),
    }
}

/// What is left of the config's modes on this host.
fn without(mut config: UdpConfig, modes: &[UdpMode]) -> UdpConfig {
    config.tun_offload &= !modes.contains(&UdpMode::TunOffload);
    config.gso &= !modes.contains(&UdpMode::Gso);
    config.gro &= !modes.contains(&UdpMode::Gro);
    config
}

/// Keeps the udp backend's data path running, and its forwarding table up to date.
pub(super) struct UdpRunner {
    backend: Udp,
    table: ForwardingTable,
    running: Option<(Subnets, Datapath)>,
    /// Who has what it needs to start.
    taken: Option<String>,
}

impl UdpRunner {
    fn new(backend: Udp) -> Self {
        Self { backend, table: ForwardingTable::default(), running: None, taken: None }
    }

    /// Takes in what became of some peers.
    pub(super) fn change(&mut self, changes: &[PeerChange]) {
        self.table.change(changes);
    }

    /// Takes in all peers of this moment, in place of those that there were.
    pub(super) fn replace<'a>(&mut self, peers: impl Iterator<Item = &'a Lease>) {
        self.table.replace(peers);
    }

    /// Starts the data path, or another one where the device was made anew or our subnet has changed.
    ///
    /// # Errors
    /// When it cannot be started; try again later.
    pub(super) fn keep_running(&mut self, own: &Subnets, device_is_new: bool) -> Result<(), String> {
        let stands = |(subnets, datapath): &(Subnets, Datapath)| {
            subnets == own && !datapath.is_over() && !device_is_new
        };
        if self.running.as_ref().is_some_and(stands) {
            return Ok(());
        }
        self.running = None; // ends its threads, and frees the port
        let before = self.taken.take();
        // The errors that the data path sends to senders on this host come from the device's own address.
        if let Err(reason) = sysctl::accept_local(self.backend.device()) {
            warn!(%reason, "senders will not be told when no peer has a destination");
        }
        let datapath = self.backend.start(own, &self.table).map_err(|reason| {
            self.taken = ports::keeps_from_starting(&reason, before);
            // Who is in the way is a problem with a code of its own.
            if self.taken.is_none() {
                warn!(%reason, "cannot start the data path");
            }
            self.taken.clone().unwrap_or_else(|| reason.to_string())
        })?;
        self.running = Some((*own, datapath));
        Ok(())
    }

    /// Whether the other one would do what this one does.
    pub(super) fn does_the_same_as(&self, other: &Self) -> bool {
        self.backend == other.backend
    }

    /// Who has what the data path needs to start, and what to do.
    pub(super) fn taken(&self) -> Option<String> {
        self.taken.clone()
    }

    /// Whether there is a data path.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What it does, for the status.
    pub(super) fn gauge(&self) -> Option<Arc<Gauge>> {
        let (_, datapath) = self.running.as_ref()?;
        Some(datapath.gauge())
    }
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
