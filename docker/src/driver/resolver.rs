//! The way of containers to this host's DNS server for names.

use std::net::{IpAddr, Ipv4Addr};

use flan_agent_api::SubnetEnv;
use ipnetwork::IpNetwork;
use tracing::warn;

use super::Driver;
use crate::protocol::{ById, StaticRoute};

impl Driver {
    /// Returns the routes by which a container reaches this host's DNS server, with its address in the network, which says
    /// whose names it may know. A container has them once: dockerd fails if a route is there already.
    pub(super) fn resolver_routes(&self, call: &ById, env: &SubnetEnv) -> Vec<StaticRoute> {
        let Some(resolver) = self.resolver.get().map(|resolver| IpAddr::V4(*resolver)) else {
            return Vec::new();
        };
        let routes = self.change(|records| {
            let sandbox = Some(call.sandbox_key.clone()).filter(|sandbox| !sandbox.is_empty());
            if records.endpoints.values().any(|endpoint| endpoint.resolver_of == sandbox) {
                return Ok(Vec::new());
            }
            let Some(endpoint) = records.endpoints.get_mut(&call.endpoint_id) else { return Ok(Vec::new()) };
            let bridge = env.bridges.v4.filter(|_| endpoint.addresses.iter().any(IpAddr::is_ipv4));
            let Some(bridge) = bridge else { return Ok(Vec::new()) };
            endpoint.resolver_of = sandbox;
            let (destination, next_hop) = (IpNetwork::from(resolver).to_string(), bridge.ip().to_string());
            Ok(vec![StaticRoute { destination, route_type: 0, next_hop }])
        });
        // A container without names is better than none.
        routes.unwrap_or_else(|reason| {
            warn!(%reason, endpoint = %call.endpoint_id, "a container cannot ask for names");
            Vec::new()
        })
    }

    /// Containers that start from now on reach a DNS server for their names at this address of this host, which is no
    /// gateway of theirs.
    pub fn resolver_is(&self, resolver: Ipv4Addr) {
        // It is always the same.
        let _ = self.resolver.set(resolver);
    }
}
