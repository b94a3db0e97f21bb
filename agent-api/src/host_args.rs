//! Flags that identify this host, shared by the agent and `flanctl`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::Args;
use flan_subnet_lease::{NetworkName, PerFamily};
use sha2::{Digest, Sha256};

/// The path of `subnet.env`.
#[derive(Debug, Clone, Args)]
pub struct SubnetFile {
    /// File in which fland writes the leased subnet, for dockerd and the CNI plugin
    #[arg(
        id = "subnet_file",
        long = "subnet-file",
        value_name = "FILE",
        env = "FLAND_SUBNET_FILE",
        default_value = "/run/flannel/subnet.env"
    )]
    pub path: PathBuf,
}

/// The directory of the subnet files of networks beside the default one.
#[derive(Debug, Clone, Args)]
pub struct SubnetDir {
    /// Directory with a subnet file for each network beside the default one, NAME.env
    #[arg(
        id = "subnet_dir",
        long = "subnet-dir",
        value_name = "DIR",
        env = "FLAND_SUBNET_DIR",
        default_value = "/run/flannel/networks"
    )]
    pub path: PathBuf,
}

impl SubnetDir {
    /// Returns the file of a network.
    pub fn file(&self, network: &NetworkName) -> PathBuf {
        self.path.join(format!("{network}.env"))
    }

    /// Returns the networks that have a file, with it.
    ///
    /// # Errors
    /// If the directory exists and cannot be read.
    pub fn files(&self) -> io::Result<Vec<(NetworkName, PathBuf)>> {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(reason) => return Err(reason),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let is_ours = path.extension().is_some_and(|extension| extension == "env");
            let name = path.file_stem().filter(|_| is_ours).and_then(|name| name.to_str()?.parse().ok());
            files.extend(name.map(|name| (name, path)));
        }
        files.sort();
        Ok(files)
    }
}

/// The addresses that peers send to, as given.
#[derive(Debug, Clone, Copy, Args)]
pub struct PublicIps {
    /// IPv4 address that peers send packets to: one of this host's, or the outside address of a NAT. By default an
    /// address of the external interface
    #[arg(long, value_name = "IP", env = "FLAND_PUBLIC_IP")]
    pub public_ip: Option<Ipv4Addr>,

    /// IPv6 address that peers send packets to, like --public-ip
    #[arg(long, value_name = "IP", env = "FLAND_PUBLIC_IPV6")]
    pub public_ipv6: Option<Ipv6Addr>,
}

impl PublicIps {
    /// Returns the given addresses.
    pub fn given(&self) -> PerFamily<IpAddr> {
        PerFamily { v4: self.public_ip.map(IpAddr::V4), v6: self.public_ipv6.map(IpAddr::V6) }
    }
}

/// The identity by which a lease is recognised as this machine's, whatever its address.
#[derive(Debug, Clone, Args)]
pub struct NodeId {
    /// Identity of this machine, which tells its lease from that of another machine with the same address. Derived from
    /// /etc/machine-id by default
    #[arg(id = "node_id", long = "node-id", value_name = "ID", env = "FLAND_NODE_ID")]
    pub given: Option<String>,
}

/// The machine id of systemd (`machine-id(5)`).
const MACHINE_ID: &str = "/etc/machine-id";

impl NodeId {
    /// Returns the given id, else a hash of the machine id, which is confidential (`machine-id(5)`) and must not leave
    /// the host. `None` on a machine without one.
    pub fn id(&self) -> Option<Box<str>> {
        let id = self.given.clone().or_else(|| {
            let machine = std::fs::read_to_string(MACHINE_ID).ok()?;
            Some(hash(machine.trim())).filter(|_| !machine.trim().is_empty())
        });
        id.filter(|id| !id.is_empty()).map(String::into_boxed_str)
    }
}

fn hash(machine_id: &str) -> String {
    let digest = Sha256::digest(format!("flan node {machine_id}"));
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_id_is_hashed_to_32_digits_and_does_not_show() {
        let id = hash("0123456789abcdef0123456789abcdef");
        assert_eq!(id.len(), 32);
        assert!(!id.contains("0123456789"));
        assert_ne!(id, hash("1123456789abcdef0123456789abcdef"));
    }
}
