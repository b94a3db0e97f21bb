//! The host-gw backend: packets go to the peer as they are, with its underlay address as the gateway. So the peer must
//! be on the link: a router between the two would not know where the packet belongs.

use flan_kernel::{Ownership, State};
use flan_subnet_lease::{Family, Lease, PerFamily, Subnets};

use crate::route;
use crate::{Backend, BackendError, LeaseFields, Underlay, Unreachable};

/// Plans a route for each peer and family.
#[derive(Debug, Clone)]
pub struct HostGw {
    families: Vec<Family>,
    underlay: Underlay,
}

impl HostGw {
    /// Decides on nothing but that `underlay` has an address of each of `families`.
    ///
    /// # Errors
    /// [`BackendError::NoAddress`] when it has not.
    pub fn new(families: impl Iterator<Item = Family>, underlay: &Underlay) -> Result<Self, BackendError> {
        let families: Vec<Family> = families.collect();
        match families.iter().find(|family| underlay.addresses.get(**family).is_none()) {
            Some(&family) => Err(BackendError::NoAddress { link: underlay.link, family }),
            None => Ok(Self { families, underlay: underlay.clone() }),
        }
    }

    /// What in the kernel belongs to a host-gw backend: no device, only routes with our protocol number.
    pub fn ownership() -> Ownership {
        Ownership::default()
    }
}

impl Backend for HostGw {
    fn name(&self) -> &'static str {
        "host-gw"
    }

    fn lease_fields(&self) -> LeaseFields {
        LeaseFields { backend: Some(self.name()), data: PerFamily::default() }
    }

    fn host(&self, _own: &Subnets) -> State {
        State::default()
    }

    fn peer(&self, peer: &Lease) -> Result<State, Unreachable> {
        let mut state = State::default();
        for &family in &self.families {
            let (Some(subnet), Some(&gateway)) =
                (peer.subnets.get(family), peer.attributes.public_ips.get(family))
            else {
                return Err(Unreachable::Incomplete { family });
            };
            if !self.underlay.is_on_link(gateway) {
                return Err(Unreachable::NotOnLink { gateway, link: self.underlay.link });
            }
            route::plan_direct(subnet, gateway, self.underlay.link, &mut state);
        }
        Ok(state)
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu
    }
}

#[cfg(test)]
mod tests {
    use flan_kernel::diff;

    use super::*;
    use crate::samples;

    const BOTH: [Family; 2] = Family::ALL;

    fn planned(backend: &HostGw, peer: &Lease) -> Result<Vec<String>, String> {
        let state = backend.peer(peer).map_err(|reason| reason.to_string())?;
        Ok(diff(&state, &State::default()).iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_peer_on_the_link_is_the_gateway_to_its_subnet() {
        let backend = HostGw::new(BOTH.into_iter(), &samples::underlay()).unwrap();
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
    fn a_peer_behind_a_router_is_refused_with_what_would_work() {
        let backend = HostGw::new([Family::V4].into_iter(), &samples::underlay()).unwrap();
        let peer = samples::host_gw("10.5.2.0/24", "192.168.65.12", None);
        assert_eq!(
            planned(&backend, &peer).unwrap_err(),
            "192.168.65.12 is not on the link of eth0, and a router would not know its subnet; \
             the vxlan backend reaches it, with DirectRouting it treats those on the link as host-gw does"
        );
    }
}
