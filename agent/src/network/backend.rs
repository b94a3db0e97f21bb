//! Chooses the backend that the network config asks for.

use flan_agent_api::UdpPathInForce;
use flan_backends::{Abilities, Alloc, Backend, BackendError, HostGw, KernelPath, Udp, Underlay, Vxlan};
use flan_kernel::netlink::FouLack;
use flan_kernel::{Ownership, State};
use flan_subnet_lease::{BackendConfig, NetworkConfig, UdpConfig, UdpPath};

use super::datapath::Datapath;
use crate::args::UdpMode;

/// The backend of this network.
pub(crate) struct Chosen {
    pub(super) backend: Box<dyn Backend>,
    /// The data path, if packets pass through this process.
    pub(super) datapath: Option<Box<dyn Datapath>>,
    /// Who moves the packets of the udp backend, and why.
    pub(super) path: Option<UdpPathInForce>,
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
        BackendConfig::Udp(udp) => Udp::ownership_of(udp),
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

/// What matters to the udp backend alone.
pub(super) struct UdpMeans<'a> {
    /// Who moves the packets, if a flag says so.
    pub(super) path: Option<UdpPath>,
    /// The modes that this host disables.
    pub(super) without: &'a [UdpMode],
    /// Says whether the kernel can move the packets.
    pub(super) kernel_path: &'a dyn Fn() -> Result<(), FouLack>,
    /// Creates the data path of the other way.
    pub(super) make_datapath: fn(Udp) -> Box<dyn Datapath>,
}

/// Chooses the backend for this config and host.
///
/// # Errors
/// If this host cannot run it.
pub(super) fn choose(
    config: &NetworkConfig,
    means: &UdpMeans<'_>,
    underlay: &Underlay,
    abilities: Abilities,
    node_id: &str,
    devices: &State,
) -> Result<Chosen, BackendError> {
    let of_kernel = |backend| Ok(Chosen { backend, datapath: None, path: None });
    match &config.backend {
        BackendConfig::Udp(udp) => {
            let path = udp_path(udp, means.path, abilities.checks_senders, means.kernel_path)?;
            let (backend, datapath): (Box<dyn Backend>, _) = if path.path == "kernel" {
                (Box::new(KernelPath::new(udp.clone(), &config.pools, underlay, abilities)?), None)
            } else {
                let udp = without(udp.clone(), means.without);
                let backend = Udp::new(udp, config.networks(), underlay, abilities.checks_senders)?;
                (Box::new(backend.clone()), Some((means.make_datapath)(backend)))
            };
            Ok(Chosen { backend, datapath, path: Some(path) })
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

/// Decides who moves the packets of the udp backend.
fn udp_path(
    config: &UdpConfig,
    flag: Option<UdpPath>,
    checks_senders: bool,
    kernel_path: impl FnOnce() -> Result<(), FouLack>,
) -> Result<UdpPathInForce, BackendError> {
    let by = if flag.is_some() { "--udp-path" } else { "Backend.Path in the network config" };
    let wanted = flag.unwrap_or(config.path);
    let in_force = |path, reason| Ok(UdpPathInForce { path, reason });
    if wanted == UdpPath::User {
        return in_force("user", format!("{by} asks for it"));
    }
    if wanted == UdpPath::Auto && config.strict_source && !checks_senders {
        return in_force("user", "the kernel may not check what StrictSource asks for".to_owned());
    }
    match (kernel_path(), wanted) {
        (Ok(()), UdpPath::Kernel) => in_force("kernel", format!("{by} asks for it")),
        (Ok(()), _) => in_force("kernel", "the kernel has FOU and IPIP".to_owned()),
        (Err(lack), UdpPath::Kernel) => Err(BackendError::NoKernelPath { by, lack }),
        (Err(lack), _) => in_force("user", lack.to_string()),
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

    #[test]
    fn the_kernel_moves_the_packets_of_udp_where_it_can_and_nobody_objects() {
        let path = |config: UdpPath, flag, lack: Option<FouLack>| {
            let config = UdpConfig { path: config, ..UdpConfig::default() };
            udp_path(&config, flag, true, || lack.map_or(Ok(()), Err))
        };
        let of =
            |found: Result<UdpPathInForce, _>| found.map(|found: UdpPathInForce| (found.path, found.reason));
        let kernel = |reason: &str| Ok(("kernel", reason.to_owned()));
        assert_eq!(of(path(UdpPath::Auto, None, None)), kernel("the kernel has FOU and IPIP"));
        assert_eq!(of(path(UdpPath::User, Some(UdpPath::Kernel), None)), kernel("--udp-path asks for it"));
        let lack = Some(FouLack::Other("tunl0".parse().unwrap()));
        assert_eq!(
            path(UdpPath::Auto, None, lack).unwrap().reason,
            FouLack::Other("tunl0".parse().unwrap()).to_string()
        );
        let user = path(UdpPath::User, None, None).unwrap();
        assert_eq!((user.path, &*user.reason), ("user", "Backend.Path in the network config asks for it"));
        let refused = path(UdpPath::Auto, Some(UdpPath::Kernel), Some(FouLack::Fou)).unwrap_err().to_string();
        assert!(refused.contains("--udp-path") && refused.contains("modprobe fou"), "{refused}");
    }

    #[test]
    fn strict_source_that_the_kernel_may_not_check_leaves_the_packets_to_the_agent() {
        let config = UdpConfig { strict_source: true, ..UdpConfig::default() };
        assert_eq!(udp_path(&config, None, false, || Ok(())).unwrap().path, "user");
        assert_eq!(udp_path(&config, None, true, || Ok(())).unwrap().path, "kernel");
    }
}
