//! The host-gw backend: sends packets to the peer unencapsulated, with its underlay address as the gateway. The peer
//! must be on the link: a router in between would not know where the packet belongs.

use flan_kernel::{Plain, Plan};
use flan_subnet_lease::{HostGwConfig, Lease, PerFamily, SubnetPool, Subnets};

use crate::route;
use crate::senders::Senders;
use crate::{Backend, BackendError, Underlay, Unreachable};

/// Plans a route for each peer and family.
#[derive(Debug, Clone)]
pub struct HostGw {
    pools: PerFamily<SubnetPool>,
    underlay: Underlay,
    senders: Senders,
}

impl HostGw {
    /// Checks only that `underlay` has an address of each family of `pools`.
    ///
    /// # Errors
    /// [`BackendError`] if it has not, or if senders cannot be checked as the config requires.
    pub fn new(
        config: &HostGwConfig,
        pools: &PerFamily<SubnetPool>,
        underlay: &Underlay,
        checks_senders: bool,
    ) -> Result<Self, BackendError> {
        let senders = Senders::of(HostGwConfig::NAME, config.strict_source, checks_senders)?;
        match pools.iter().find(|(family, _)| underlay.addresses.get(*family).is_none()) {
            Some((family, _)) => Err(BackendError::NoAddress { link: underlay.link, family }),
            None => Ok(Self { pools: *pools, underlay: underlay.clone(), senders }),
        }
    }
}

impl Backend for HostGw {
    fn plan_host(&self, own: &Subnets, plan: &mut dyn Plan) {
        for (family, pool) in self.pools.iter() {
            let plain = Plain { link: self.underlay.link, network: pool.network() };
            if let Some(own) = own.get(family) {
                self.senders.check_plain(plain, pool, own, plan);
            }
        }
    }

    fn plan_peer(&self, peer: &Lease, plan: &mut dyn Plan) -> Result<(), Unreachable> {
        let mut ways = PerFamily::default();
        for (family, pool) in self.pools.iter() {
            let (Some(subnet), Some(&gateway)) =
                (peer.subnets.get(family), peer.attributes.public_ips.get(family))
            else {
                return Err(Unreachable::Incomplete { family });
            };
            if !self.underlay.is_on_link(gateway) {
                return Err(Unreachable::NotOnLink { gateway, link: self.underlay.link });
            }
            ways.set(family, (subnet, gateway, *pool));
        }
        for (subnet, gateway, pool) in ways.values() {
            self.senders.let_in_plain(*subnet, pool, plan);
            route::plan_direct(*subnet, *gateway, self.underlay.link, plan);
        }
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu
    }
}

#[cfg(test)]
mod tests {
    use flan_kernel::{State, diff};
    use flan_subnet_lease::Family;

    use super::*;
    use crate::samples;

    fn host_gw(families: &[Family], strict_source: bool) -> HostGw {
        let config = HostGwConfig { strict_source };
        HostGw::new(&config, &samples::pools(families), &samples::underlay(), true).unwrap()
    }

    fn planned(backend: &HostGw, peer: &Lease) -> Result<Vec<String>, String> {
        let state = samples::peer(backend, peer).map_err(|reason| reason.to_string())?;
        Ok(diff(&state, &State::default()).iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_peer_on_the_link_is_the_gateway_to_its_subnet() {
        let backend = host_gw(&Family::ALL, false);
        let peer = samples::host_gw("10.5.2.0/24,fd00:5:0:2::/64", "192.168.64.12", Some("fd64::12"));
        assert_eq!(
            planned(&backend, &peer).unwrap(),
            [
                "add route 10.5.2.0/24 via 192.168.64.12 dev eth0",
                "add route fd00:5:0:2::/64 via fd64::12 dev eth0",
            ]
        );
    }

    #[test]
    fn with_strict_source_packets_come_from_a_peers_subnet_and_go_to_ours() {
        let backend = host_gw(&[Family::V4], true);
        let host = samples::host(&backend, "10.5.1.0/24");
        let checks: Vec<String> = host.checks.keys().map(ToString::to_string).collect();
        assert_eq!(
            checks,
            ["plain-source eth0 10.5.0.0/16 /24", "plain-destination eth0 10.5.0.0/16 10.5.1.0/24"]
        );
        let peer = samples::host_gw("10.5.2.0/24", "192.168.64.12", None);
        assert_eq!(planned(&backend, &peer).unwrap()[0], "add sender subnet 10.5.2.0");
        assert!(samples::host(&host_gw(&[Family::V4], false), "10.5.1.0/24").checks.is_empty());
    }

    #[test]
    fn a_peer_behind_a_router_is_refused_with_what_would_work() {
        let backend = host_gw(&[Family::V4], false);
        let peer = samples::host_gw("10.5.2.0/24", "192.168.65.12", None);
        assert_eq!(
            planned(&backend, &peer).unwrap_err(),
            "192.168.65.12 is not on the link of eth0, and a router would not know its subnet; \
             the vxlan backend reaches it, with DirectRouting it treats peers on the link as host-gw does"
        );
    }
}
