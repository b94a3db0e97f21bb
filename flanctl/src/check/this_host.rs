//! What is known of this host and of its network once the first parts have been looked at.

use std::collections::BTreeSet;

use flan_agent_api::{NodeId, Status, SubnetEnv, SubnetEnvError};
use flan_backends::{ownership, routes_directly};
use flan_host::interface::External;
use flan_kernel::LinkName;
use flan_subnet_lease::{Lease, LeaseSet, NetworkConfig, Subnets};

/// This host, as its agent and its files say.
pub(super) struct ThisHost {
    /// The agent's status, if it answers. What it says counts: its flags may differ from what is known here.
    pub(super) running: Option<Status>,
    /// The subnet file, if it is there and good.
    pub(super) env: Option<SubnetEnv>,
    /// Whether this host is in the network, or was: then fland has set it up.
    pub(super) has_joined: bool,
    node_id: Option<Box<str>>,
}

/// This host in its network.
pub(super) struct Examination<'a> {
    pub(super) config: &'a NetworkConfig,
    /// `None` if there is none.
    pub(super) external: Option<&'a External>,
    pub(super) host: &'a ThisHost,
    /// All leases, this host's among them.
    pub(super) leases: &'a LeaseSet,
}

impl Examination<'_> {
    /// Returns the devices by which packets of the overlay leave and arrive.
    pub(super) fn devices(&self) -> BTreeSet<LinkName> {
        let mut devices = ownership(self.config, true).links;
        if devices.is_empty() || routes_directly(self.config) {
            devices.extend(self.external.map(|external| external.underlay.link));
        }
        devices.into_iter().collect()
    }
}

impl ThisHost {
    pub(super) fn new(
        running: Option<Status>,
        file: Result<Option<SubnetEnv>, SubnetEnvError>,
        node_id: &NodeId,
    ) -> Self {
        let has_joined =
            !matches!(file, Ok(None)) || running.as_ref().is_some_and(|status| status.default.ready);
        Self { running, env: file.ok().flatten(), has_joined, node_id: node_id.id() }
    }

    /// Returns its subnets, as the agent says, else as the subnet file does.
    pub(super) fn subnets(&self) -> Option<Subnets> {
        let told = self.running.as_ref().map(|status| status.default.subnets.join(","));
        told.and_then(|told| told.parse().ok()).or_else(|| self.env.as_ref()?.subnets())
    }

    /// Returns whether a lease is this host's: by its subnets or its node id.
    pub(super) fn holds(&self, lease: &Lease) -> bool {
        Some(lease.subnets) == self.subnets() || self.has_node_id(lease)
    }

    /// Returns whether a lease has the node id of this host.
    pub(super) fn has_node_id(&self, lease: &Lease) -> bool {
        self.node_id.is_some() && lease.attributes.node.id == self.node_id
    }
}
