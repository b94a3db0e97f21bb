//! Where this host's WireGuard key is, for the agent and `flanctl`.

use std::path::PathBuf;

use clap::Args;
use flan_wireguard_keys::KeyFile;

/// Where flannel keeps its key, unless told otherwise. It is gone after a reboot.
pub const FLANNELS_WIREGUARD_KEY: &str = "/run/flannel/wgkey";

/// The path of the key.
#[derive(Debug, Clone, Args)]
pub struct WireguardKeyFile {
    /// File with this host's private key for the wireguard backend, as wg genkey prints it. fland makes it if there is
    /// none; a key that flannel left in /run/flannel/wgkey is taken over
    #[arg(
        id = "wireguard_key_file",
        long = "wireguard-key-file",
        value_name = "FILE",
        env = "FLAND_WIREGUARD_KEY_FILE",
        default_value = "/var/lib/flan/wireguard.key"
    )]
    pub path: PathBuf,
}

impl WireguardKeyFile {
    /// Returns the file.
    pub fn file(&self) -> KeyFile {
        KeyFile::new(&self.path)
    }
}
