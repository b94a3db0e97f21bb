//! What the wireguard backend needs of this host: its key, and whether the kernel encrypts.

mod silence;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use flan_agent_api::{FLANNELS_WIREGUARD_KEY, WireguardKeyFile};
use flan_backends::wireguard::Peers;
use flan_kernel::{KernelError, LinkName, netlink};
use flan_wireguard_keys::{KeyFileError, Origin, PrivateKey, PublicKey};
use ipnetwork::IpNetwork;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing::{debug, info, warn};

pub(crate) use self::silence::Silence;

/// Reads this host's key, and makes one if there is none. From now on, this process leaves no core.
///
/// # Errors
/// If the file cannot be read or written, or holds no key.
pub(crate) fn key(wanted: &WireguardKeyFile) -> Result<PrivateKey, KeyFileError> {
    if let Err(reason) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%reason, "a core of this process would contain the WireGuard key");
    }
    let file = wanted.file();
    let (key, origin) = file.read_or_make(Some(Path::new(FLANNELS_WIREGUARD_KEY)))?;
    let (path, public_key) = (file.path().display(), key.public());
    match origin {
        Origin::Kept => debug!(%path, %public_key, "this host's WireGuard key"),
        Origin::TakenOver(from) => {
            info!(%path, %public_key, from = %from.display(), "took over this host's WireGuard key");
        }
        Origin::New => info!(%path, %public_key, "made a WireGuard key for this host"),
    }
    if file.is_readable_by_others() {
        warn!(%path, "others can read this host's WireGuard key: chmod 0600 it, and change it with flanctl wireguard rotate-key");
    }
    Ok(key)
}

/// Returns what the kernel lacks, if anything.
///
/// # Errors
/// What it lacks.
pub(crate) fn check_kernel() -> Result<(), String> {
    match netlink::has_wireguard() {
        Ok(true) => Ok(()),
        Ok(false) => Err("the kernel has no WireGuard (modprobe wireguard)".to_owned()),
        Err(reason) => Err(format!("the kernel does not say whether it has WireGuard: {reason}")),
    }
}

/// Where to ask what WireGuard peers do.
#[derive(Clone)]
pub enum WireguardSource {
    /// These devices of the kernel.
    Kernel(Vec<LinkName>),
    /// This process.
    User(Vec<Peers>),
}

/// What a peer does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardReport {
    /// The number of the device: a peer may be known to two, one for each family.
    pub device: usize,
    /// The peer.
    pub public_key: PublicKey,
    /// Where its datagrams go now.
    pub endpoint: Option<SocketAddr>,
    /// The subnets behind it.
    pub allowed: BTreeSet<IpNetwork>,
    /// The time of the last handshake; `None` if there was none.
    pub latest_handshake: Option<SystemTime>,
    /// Bytes of datagrams from it.
    pub received_bytes: u64,
    /// Bytes of datagrams to it.
    pub sent_bytes: u64,
}

impl WireguardSource {
    /// Asks.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub(crate) fn ask(&self) -> Result<Vec<WireguardReport>, KernelError> {
        let mut all = Vec::new();
        match self {
            Self::Kernel(links) => {
                for (device, link) in links.iter().enumerate() {
                    let peers = netlink::wireguard_peers(*link)?.into_iter();
                    all.extend(peers.map(|(public_key, peer, traffic)| WireguardReport {
                        device,
                        public_key,
                        endpoint: peer.endpoint,
                        allowed: peer.allowed,
                        latest_handshake: traffic.latest_handshake,
                        received_bytes: traffic.received_bytes,
                        sent_bytes: traffic.sent_bytes,
                    }));
                }
            }
            Self::User(devices) => {
                let now = SystemTime::now();
                for (device, peers) in devices.iter().enumerate() {
                    all.extend(peers.reports().into_iter().map(|report| WireguardReport {
                        device,
                        public_key: report.key,
                        endpoint: report.endpoint,
                        allowed: report.allowed,
                        latest_handshake: report.latest_handshake.and_then(|ago| now.checked_sub(ago)),
                        received_bytes: report.received_bytes,
                        sent_bytes: report.sent_bytes,
                    }));
                }
            }
        }
        Ok(all)
    }
}
