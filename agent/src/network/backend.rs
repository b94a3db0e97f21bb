//! Chooses the backend that the network config asks for.

use flan_agent_api::PathInForce;
use flan_backends::{
    Abilities, Alloc, Backend, BackendError, HostGw, KernelPath, Udp, Vxlan, Wireguard, WireguardHost,
};
use flan_kernel::State;
use flan_subnet_lease::{BackendConfig, NetworkConfig, PathChoice, UdpConfig, WireguardConfig};
use flan_wireguard_keys::PrivateKey;

use super::datapath::Datapath;
use crate::args::{Args, UdpMode};
use crate::wireguard::WireguardSource;
use flan_host::interface::External;

/// The backend of this network.
pub(crate) struct Chosen {
    pub(super) backend: Box<dyn Backend>,
    /// The data path, if packets pass through this process.
    pub(super) datapath: Option<Box<dyn Datapath>>,
    /// Who moves the packets of a backend that has two ways, and why.
    pub(super) path: Option<PathInForce>,
    /// Where to ask what WireGuard peers do.
    pub(super) wireguard: Option<WireguardSource>,
}

impl Chosen {
    /// Replaces the backend. A running data path is kept if the new one is equivalent.
    pub(super) fn replace_by(&mut self, other: Self) {
        let before = self.datapath.take().zip(Some(self.wireguard.take()));
        *self = other;
        if let (Some((before, source)), Some(now)) = (before, &self.datapath)
            && before.does_the_same_as(&**now)
        {
            (self.datapath, self.wireguard) = (Some(before), source);
        }
    }
}

/// Returns whether what datagrams carry is checked; `None` if no sender is checked.
pub(super) fn strict_source(config: &NetworkConfig) -> Option<bool> {
    match &config.backend {
        BackendConfig::Vxlan(vxlan) => Some(vxlan.strict_source),
        BackendConfig::Udp(udp) => Some(udp.strict_source),
        BackendConfig::HostGw(_) | BackendConfig::Alloc | BackendConfig::Wireguard(_) => None,
    }
}

/// Returns what carries packets between hosts, for people; `None` if nothing does.
pub(super) fn encapsulation(config: &NetworkConfig) -> Option<String> {
    let name = match &config.backend {
        BackendConfig::Vxlan(_) => "VXLAN",
        BackendConfig::Udp(_) => "udp",
        BackendConfig::Wireguard(_) => "WireGuard",
        BackendConfig::HostGw(_) | BackendConfig::Alloc => return None,
    };
    Some(
        flan_backends::udp_port(config)
            .map_or_else(|| name.to_owned(), |port| format!("{name} (UDP {port})")),
    )
}

/// What this host has for a backend.
pub(super) struct HostMeans<'a> {
    /// Its flags.
    pub(super) args: &'a Args,
    /// Says whether the kernel can move the packets, or what it lacks.
    pub(super) kernel_path: &'a dyn Fn() -> Result<(), String>,
    /// Its WireGuard key, if the backend needs one.
    pub(super) wireguard_key: Option<&'a PrivateKey>,
    /// Creates the data path of udp's other way.
    pub(super) make_datapath: fn(Udp) -> Box<dyn Datapath>,
    /// The same of wireguard's.
    pub(super) make_wireguard_datapath: fn(Wireguard) -> Box<dyn Datapath>,
}

/// Chooses the backend for this config and host.
///
/// # Errors
/// If this host cannot run it.
pub(super) fn choose(
    config: &NetworkConfig,
    means: &HostMeans<'_>,
    external: &External,
    abilities: Abilities,
    node_id: &str,
    devices: &State,
) -> Result<Chosen, BackendError> {
    let (args, underlay) = (means.args, &external.underlay);
    let of_kernel = |backend| Ok(Chosen { backend, datapath: None, path: None, wireguard: None });
    match &config.backend {
        BackendConfig::Udp(udp) => {
            let path = udp_path(udp, args.udp_path, abilities.checks_senders, means.kernel_path)?;
            let (backend, datapath): (Box<dyn Backend>, _) = if path.path == KERNEL {
                (Box::new(KernelPath::new(udp.clone(), &config.pools, underlay, abilities)?), None)
            } else {
                let udp = without(udp.clone(), &args.udp_without);
                let backend = Udp::new(udp, config.networks(), underlay, abilities.checks_senders)?;
                (Box::new(backend.clone()), Some((means.make_datapath)(backend)))
            };
            Ok(Chosen { backend, datapath, path: Some(path), wireguard: None })
        }
        BackendConfig::Wireguard(wireguard) => {
            let wish = Wish::of("--wireguard-path", args.wireguard_path, wireguard.path);
            let path = decide(wish, WireguardConfig::NAME, "the kernel has WireGuard", means.kernel_path)?;
            let private_key =
                means.wireguard_key.ok_or(BackendError::Unknown { backend: WireguardConfig::NAME })?.clone();
            let is_own = |family, ip| underlay.addresses.get(family) == Some(ip);
            let of_others = external.public_ips.iter().filter(|(family, ip)| !is_own(*family, ip));
            let host = WireguardHost {
                private_key,
                public_port: args.public_port,
                behind_nat: of_others.map(|(_, ip)| *ip).collect(),
                by_kernel: path.path == KERNEL,
            };
            let backend = Wireguard::new(wireguard.clone(), &config.pools, underlay, host)?;
            let (datapath, source) = if path.path == KERNEL {
                (None, WireguardSource::Kernel(backend.devices().map(|(link, _)| link).collect()))
            } else {
                let datapath = (means.make_wireguard_datapath)(backend.clone());
                let source = WireguardSource::User(datapath.wireguard_peers());
                (Some(datapath), source)
            };
            Ok(Chosen { backend: Box::new(backend), datapath, path: Some(path), wireguard: Some(source) })
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
    }
}

const KERNEL: &str = "kernel";

fn user(reason: String) -> PathInForce {
    PathInForce { path: "user".into(), reason }
}

/// Who is to move the packets, and the setting that says so.
#[derive(Debug, Clone, Copy)]
struct Wish {
    path: PathChoice,
    by: &'static str,
}

impl Wish {
    /// A flag overrides the config.
    fn of(name: &'static str, flag: Option<PathChoice>, config: PathChoice) -> Self {
        match flag {
            Some(path) => Self { path, by: name },
            None => Self { path: config, by: "Backend.Path in the network config" },
        }
    }
}

/// Decides who moves the packets of the udp backend.
fn udp_path(
    config: &UdpConfig,
    flag: Option<PathChoice>,
    checks_senders: bool,
    kernel: impl FnOnce() -> Result<(), String>,
) -> Result<PathInForce, BackendError> {
    let wish = Wish::of("--udp-path", flag, config.path);
    if wish.path == PathChoice::Auto && config.strict_source && !checks_senders {
        return Ok(user("the kernel may not check what StrictSource asks for".to_owned()));
    }
    decide(wish, UdpConfig::NAME, "the kernel has FOU and IPIP", kernel)
}

/// Decides who moves the packets of a backend. `has` says what a kernel has that can.
fn decide(
    Wish { path, by }: Wish,
    backend: &'static str,
    has: &str,
    kernel: impl FnOnce() -> Result<(), String>,
) -> Result<PathInForce, BackendError> {
    let asked = || format!("{by} asks for it");
    let in_force = |reason: String| PathInForce { path: KERNEL.into(), reason };
    if path == PathChoice::User {
        return Ok(user(asked()));
    }
    match (kernel(), path) {
        (Ok(()), PathChoice::Kernel) => Ok(in_force(asked())),
        (Ok(()), _) => Ok(in_force(has.to_owned())),
        (Err(lack), PathChoice::Kernel) => Err(BackendError::NoKernelPath { by, backend, lack }),
        (Err(lack), _) => Ok(user(lack)),
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
    fn the_kernel_moves_the_packets_where_it_can_and_nobody_objects() {
        let path = |config, flag, kernel: Result<(), &str>| {
            let kernel = kernel.map_err(ToOwned::to_owned);
            decide(Wish::of("--udp-path", flag, config), "udp", "the kernel has FOU and IPIP", || kernel)
                .map(|found| (found.path.into_owned(), found.reason))
                .map_err(|refused| refused.to_string())
        };
        let (auto, by_kernel, by_user) = (PathChoice::Auto, PathChoice::Kernel, PathChoice::User);
        let kernel = |reason: &str| Ok(("kernel".to_owned(), reason.to_owned()));
        let user = |reason: &str| Ok(("user".to_owned(), reason.to_owned()));
        assert_eq!(path(auto, None, Ok(())), kernel("the kernel has FOU and IPIP"));
        assert_eq!(path(by_user, Some(by_kernel), Ok(())), kernel("--udp-path asks for it"));
        assert_eq!(path(auto, None, Err("modprobe fou")), user("modprobe fou"));
        assert_eq!(path(by_user, None, Ok(())), user("Backend.Path in the network config asks for it"));
        let refused = path(auto, Some(by_kernel), Err("modprobe fou")).unwrap_err();
        assert_eq!(
            refused,
            "--udp-path asks for udp by the kernel, and this host cannot: modprobe fou; with auto or user it works without"
        );
    }

    #[test]
    fn strict_source_that_the_kernel_may_not_check_leaves_the_packets_to_the_agent() {
        let config = UdpConfig { strict_source: true, ..UdpConfig::default() };
        assert_eq!(udp_path(&config, None, false, || Ok(())).unwrap().path, "user");
        assert_eq!(udp_path(&config, None, true, || Ok(())).unwrap().path, "kernel");
    }
}
