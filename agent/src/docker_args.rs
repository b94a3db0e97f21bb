//! Flags of Docker's networks.

use std::path::{Path, PathBuf};

use clap::Args;
use flan_docker::Settings;
use flan_subnet_lease::NodeIdentity;
use ipnetwork::Ipv4Network;

/// How this agent serves Docker.
#[derive(Debug, Clone, Args)]
pub struct DockerArgs {
    /// Offer Docker the network driver and the IPAM driver flan, and show each network of the store in docker network ls.
    /// On by itself if systemd passes the socket of --docker-plugin
    #[arg(long, env = "FLAND_DOCKER", default_value = "false")]
    pub docker: bool,

    /// Unix socket on which Docker calls the driver flan
    #[arg(
        long,
        value_name = "FILE",
        env = "FLAND_DOCKER_PLUGIN",
        default_value = "/run/docker/plugins/flan.sock"
    )]
    pub docker_plugin: PathBuf,

    /// Unix socket of Docker's API
    #[arg(long, value_name = "FILE", env = "FLAND_DOCKER_API", default_value = "/run/docker.sock")]
    pub docker_api: PathBuf,

    /// IPv4 addresses of which each network that is created in Docker without --subnet gets a /16
    #[arg(long, value_name = "CIDR", env = "FLAND_DOCKER_ADDRESS_POOL", default_value = "10.128.0.0/9")]
    pub docker_address_pool: Ipv4Network,
}

impl DockerArgs {
    /// Returns the settings of the driver.
    pub fn settings(&self, state_dir: &Path, node: NodeIdentity, names: bool) -> Settings {
        Settings {
            records: state_dir.join("docker.json"),
            address_pool: self.docker_address_pool,
            api: self.docker_api.clone(),
            node,
            names,
        }
    }
}
