//! What a lab gives a new host.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::netns::Netns;
use crate::process::Lifetime;

/// What a lab gives a new host.
#[derive(Debug)]
pub(crate) struct HostSpec {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
    pub(crate) netns: Netns,
    pub(crate) dir: PathBuf,
    pub(crate) etcd_endpoints: String,
    pub(crate) etcd_prefix: String,
    pub(crate) cgroup: String,
    pub(crate) image: PathBuf,
    /// The root of Debian forky whose programs it has; `None` for those of the machine.
    pub(crate) forky_root: Option<&'static Path>,
    pub(crate) lifetime: Lifetime,
}
