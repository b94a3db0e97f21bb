//! How packets reach a peer.
//!
//! A backend is a planner: from the leases of the network it computes what the kernel should hold. It changes nothing
//! itself; the agent's reconciler closes the gap between plan and kernel. One planner per file.

mod alloc;
pub mod bridge;
mod facts;
mod holdings;
mod host_gw;
mod host_networks;
mod route;
#[cfg(test)]
mod samples;
mod senders;
pub mod udp;
mod userspace;
mod vxlan;
pub mod wireguard;

use std::net::IpAddr;

use flan_kernel::{LinkName, Plan};
use flan_subnet_lease::{BackendData, Family, Lease, PerFamily, Subnets};
use ipnetwork::IpNetwork;

pub use alloc::Alloc;
pub use facts::{outer_mtu, ownership, relies_on_sender_checks, routes_directly, udp_port};
pub use holdings::Holdings;
pub use host_gw::HostGw;
pub use host_networks::{HostNetworks, collisions, enclosing};
pub use route::Gateways;
pub use udp::{KernelPath, Udp};
pub use vxlan::Vxlan;
pub use wireguard::{Wireguard, WireguardHost};

/// A way to reach peers. All methods are pure: the same arguments give the same result.
pub trait Backend: Send {
    /// Returns what peers need to know besides our address: `BackendData` and `BackendV6Data` of our lease.
    fn lease_data(&self) -> PerFamily<BackendData> {
        PerFamily::default()
    }

    /// Plans what the kernel should hold on a host with these subnets, whoever its peers are.
    fn plan_host(&self, own: &Subnets, plan: &mut dyn Plan);

    /// Plans what else the kernel should hold for packets to reach `peer`. Peers at one address may share objects.
    ///
    /// # Errors
    /// [`Unreachable`] if this backend cannot reach it from this host; then nothing was planned.
    fn plan_peer(&self, peer: &Lease, plan: &mut dyn Plan) -> Result<(), Unreachable>;

    /// Returns the largest inner IP packet in bytes, for all families in use.
    fn mtu(&self) -> u32;
}

/// What this host's kernel supports and its settings allow, beyond the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// How routes name their gateways.
    pub gateways: Gateways,
    /// Whether the kernel can check senders: it has nftables, and the check is not disabled.
    pub checks_senders: bool,
}

/// The device and addresses that carry the outer packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The external interface.
    pub link: LinkName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses that outer packets are sent from.
    pub addresses: PerFamily<IpAddr>,
    /// The networks that it reaches without a router.
    pub on_link: Vec<IpNetwork>,
}

impl Underlay {
    /// Returns whether packets to `ip` need no router.
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        self.on_link.iter().any(|network| network.contains(ip))
    }
}

/// Why a good lease's peer cannot be reached from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The lease lacks what the backend needs.
    #[error("its lease lacks what the backend needs for {family}")]
    Incomplete {
        /// The family.
        family: Family,
    },
    /// There is a router in between.
    #[error(
        "{gateway} is not on the link of {link}, and a router would not know its subnet; \
         the vxlan backend reaches it, with DirectRouting it treats peers on the link as host-gw does"
    )]
    NotOnLink {
        /// The peer's address.
        gateway: IpAddr,
        /// The external interface.
        link: LinkName,
    },
}

/// Why a backend cannot work on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The config requires `StrictSource`, but senders are not checked here.
    #[error(
        "the network config sets Backend.StrictSource for {backend}, but this host does not check senders: start fland with \
         --source-check on a kernel with nftables, or remove StrictSource from the config"
    )]
    UncheckedSource {
        /// The backend.
        backend: &'static str,
    },
    /// The external interface lacks an address of a family in use.
    #[error("external interface {link} has no {family} address, and the network uses {family}")]
    NoAddress {
        /// The interface.
        link: LinkName,
        /// The family.
        family: Family,
    },
    /// The kernel was asked for, and cannot.
    #[error(
        "{by} asks for {backend} by the kernel, and this host cannot: {lack}; with auto or user it works without"
    )]
    NoKernelPath {
        /// The setting.
        by: &'static str,
        /// The backend.
        backend: &'static str,
        /// What it lacks.
        lack: String,
    },
    /// This host lacks the backend.
    #[error("there is no backend {backend} here")]
    Unknown {
        /// The backend.
        backend: &'static str,
    },
    /// The backend's wire format cannot carry IPv6.
    #[error("backend {backend} carries only IPv4, but the network uses IPv6")]
    Ipv4Only {
        /// The backend.
        backend: &'static str,
    },
    /// The kernel does not allow device names of that length.
    #[error("VNI {vni} makes a device name of more than 15 bytes; up to 9999999 works, with IPv6 up to 9999")]
    DeviceName {
        /// The VNI.
        vni: u32,
    },
    /// The inner packets would be too small.
    #[error("external interface {link} carries {mtu} bytes; at least {least} are needed")]
    MtuTooSmall {
        /// The interface.
        link: LinkName,
        /// Bytes of its packets, or the config's `MTU`.
        mtu: u32,
        /// The minimum.
        least: u32,
    },
}
