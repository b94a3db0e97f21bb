//! What the probes need to know of a network.

use std::net::IpAddr;

use flan_probes::{Target, Way};
use flan_subnet_lease::{BackendConfig, Family, Lease, shown};

use super::backend;
use super::joined::Joined;

impl Joined {
    /// Returns how packets leave this host, and the peers to probe; `None` while it is not ready, or if its backend sends
    /// nothing.
    pub(crate) fn probed(&self) -> Option<(Way, Vec<Target>)> {
        let own = self.leases.admission().own.as_ref().filter(|_| self.is_ready)?;
        if matches!(self.config().backend, BackendConfig::Alloc) {
            return None;
        }
        let is_ours = |ip: &IpAddr| self.planned.addresses.keys().any(|address| address.address.ip() == *ip);
        let way = Way {
            encapsulation: backend::encapsulation(self.config()),
            mtu: self.means.chosen.backend.mtu().try_into().unwrap_or(u16::MAX),
            overlay: own.subnets.iter().map(|(_, subnet)| subnet.network()).filter(is_ours).collect(),
            underlay: self.means.underlay().addresses.values().copied().collect(),
        };
        let reached = self.leases.peers().filter(|peer| self.unreached.reason(peer).is_none());
        Some((way, reached.flat_map(|peer| self.targets(peer)).collect()))
    }

    fn targets(&self, peer: &Lease) -> impl Iterator<Item = Target> {
        let goes_directly = flan_backends::routes_directly(self.config());
        let attributes = &peer.attributes;
        let host = attributes.node.host.as_deref().map(shown).unwrap_or_default();
        let any = [Family::V4, Family::V6].into_iter().find_map(|family| attributes.public_ips.get(family));
        peer.subnets.iter().filter_map(move |(family, subnet)| {
            let underlay = *attributes.public_ips.get(family).or(any)?;
            Some(Target {
                subnet,
                host: host.clone().into_owned(),
                underlay,
                is_direct: goes_directly && self.means.underlay().is_on_link(underlay),
                has_agent: attributes.node.id.is_some(),
            })
        })
    }
}
