//! Values that the planners' tests share.

use flan_kernel::State;
use flan_subnet_lease::{Family, Lease, LeaseAttributes, NetworkConfig, PerFamily, SubnetPool};

use crate::{Abilities, Backend, Gateways, Underlay, Unreachable};

/// Returns eth0 with 192.168.64.11/24 and fd64::11/64.
pub(crate) fn underlay() -> Underlay {
    let addresses =
        PerFamily { v4: Some("192.168.64.11".parse().unwrap()), v6: Some("fd64::11".parse().unwrap()) };
    let on_link = ["192.168.64.0/24", "fd64::/64"].map(|network| network.parse().unwrap()).into();
    Underlay { link: "eth0".parse().unwrap(), mtu: 1500, addresses, on_link }
}

/// The abilities of a modern host.
pub(crate) const ABLE: Abilities = Abilities { gateways: Gateways::Objects, checks_senders: true };

/// Returns the pools 10.5.0.0/16 with /24 and fd00:5::/48 with /64 for these families.
pub(crate) fn pools(families: &[Family]) -> PerFamily<SubnetPool> {
    let both = br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let both = NetworkConfig::parse(both).unwrap().pools;
    let mut pools = PerFamily::default();
    for (family, pool) in both.iter().filter(|(family, _)| families.contains(family)) {
        pools.set(family, *pool);
    }
    pools
}

pub(crate) fn lease(subnets: &str, value: &str) -> Lease {
    Lease {
        subnets: subnets.parse().unwrap(),
        attributes: LeaseAttributes::from_json(value.as_bytes()).unwrap(),
        etcd_lease: Some(7),
        create_revision: 1,
        mod_revision: 1,
    }
}

/// Returns a lease of the host-gw backend.
pub(crate) fn host_gw(subnets: &str, v4: &str, v6: Option<&str>) -> Lease {
    let v6 = v6.map_or_else(|| "null".to_owned(), |ip| format!("{ip:?}"));
    lease(subnets, &format!(r#"{{"PublicIP":"{v4}","PublicIPv6":{v6},"BackendType":"host-gw"}}"#))
}

pub(crate) fn host(backend: &dyn Backend, own: &str) -> State {
    let mut state = State::default();
    backend.plan_host(&own.parse().unwrap(), &mut state);
    state
}

pub(crate) fn peer(backend: &dyn Backend, peer: &Lease) -> Result<State, Unreachable> {
    let mut state = State::default();
    backend.plan_peer(peer, &mut state).map(|()| state)
}
