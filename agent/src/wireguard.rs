//! What the wireguard backend needs of this host: its key, and whether the kernel encrypts.

use std::path::Path;

use flan_agent_api::WireguardKeyFile;
use flan_kernel::netlink;
use flan_wireguard_keys::{KeyFileError, Origin, PrivateKey};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing::{debug, info, warn};

/// Where flannel keeps its key, unless told otherwise. It is gone after a reboot.
const FLANNELS_KEY: &str = "/run/flannel/wgkey";

/// Reads this host's key, and makes one if there is none. From now on, this process leaves no core.
///
/// # Errors
/// If the file cannot be read or written, or holds no key.
pub(crate) fn key(wanted: &WireguardKeyFile) -> Result<PrivateKey, KeyFileError> {
    if let Err(reason) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%reason, "a core of this process would contain the WireGuard key");
    }
    let file = wanted.file();
    let (key, origin) = file.read_or_make(Some(Path::new(FLANNELS_KEY)))?;
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
