//! Whom a backend takes packets from: what it plans so that the kernel drops those of everybody else.

use std::net::IpAddr;

use flan_kernel::{Check, Checks, Plain, Plan, Source, Sources, Wire};
use flan_subnet_lease::SubnetPool;
use ipnetwork::IpNetwork;

use crate::BackendError;

/// How closely senders are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Senders {
    /// Whoever sends is let in.
    Anybody,
    /// Datagrams of peers are let in, whatever they carry.
    Peers,
    /// A peer's packets are let in if they come from its subnet and go to ours (`StrictSource`).
    Strict,
}

impl Senders {
    /// What the config and this host want.
    ///
    /// # Errors
    /// [`BackendError::UncheckedSource`] where the config wants more than this host can do, or may.
    pub(crate) fn of(backend: &'static str, strict: bool, can_check: bool) -> Result<Self, BackendError> {
        match (strict, can_check) {
            (true, false) => Err(BackendError::UncheckedSource { backend }),
            (true, true) => Ok(Self::Strict),
            (false, true) => Ok(Self::Peers),
            (false, false) => Ok(Self::Anybody),
        }
    }

    /// Plans what drops the VXLAN datagrams of others, on a host with this subnet in `pool`.
    pub(crate) fn check_vxlan(self, wire: Wire, pool: &SubnetPool, own: IpNetwork, plan: &mut dyn Plan) {
        match self {
            Self::Anybody => {}
            Self::Peers => check_peers(wire, plan),
            Self::Strict => {
                plan.add::<Checks>(Check::Carries(wire), ());
                plan.add::<Checks>(Check::InnerSource(wire, pool.subnet_len()), ());
                plan.add::<Checks>(Check::InnerDestination(wire, network(own)), ());
                if wire.ipv6 {
                    plan.add::<Checks>(Check::Whole(Wire { vni: None, ..wire }), ());
                }
            }
        }
    }

    /// Plans what drops packets that come as they are. Without `StrictSource` anybody on the link may send them, as a
    /// router may.
    pub(crate) fn check_plain(self, plain: Plain, pool: &SubnetPool, own: IpNetwork, plan: &mut dyn Plan) {
        if self == Self::Strict {
            plan.add::<Checks>(Check::PlainSource(plain, pool.subnet_len()), ());
            plan.add::<Checks>(Check::PlainDestination(plain, network(own)), ());
        }
    }

    /// Plans that the datagrams of a peer with this subnet in `pool` are let in.
    pub(crate) fn let_in(self, peer: IpAddr, subnet: IpNetwork, pool: &SubnetPool, plan: &mut dyn Plan) {
        match self {
            Self::Anybody => {}
            Self::Peers => plan.add::<Sources>(Source::Peer(peer), ()),
            Self::Strict => plan.add::<Sources>(Source::Inner { peer, subnet: base(subnet, pool) }, ()),
        }
    }

    /// Plans that packets of a peer with this subnet in `pool` are let in as they are.
    pub(crate) fn let_in_plain(self, subnet: IpNetwork, pool: &SubnetPool, plan: &mut dyn Plan) {
        if self == Self::Strict {
            plan.add::<Sources>(Source::Plain(base(subnet, pool)), ());
        }
    }
}

/// Plans what drops datagrams of others than peers.
pub(crate) fn check_peers(wire: Wire, plan: &mut dyn Plan) {
    plan.add::<Checks>(Check::Shortcut { ipv6: wire.ipv6 }, ());
    plan.add::<Checks>(Check::Peers(wire), ());
    if wire.ipv6 {
        plan.add::<Checks>(Check::PeersPieces(Wire { vni: None, ..wire }), ());
    }
}

/// A subnet without a host's address in it.
fn network(subnet: IpNetwork) -> IpNetwork {
    IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(subnet)
}

/// The first address of the subnet that allocation would give: the kernel looks for senders with one prefix length, so a
/// lease for a part of such a subnet lets in all of it.
fn base(subnet: IpNetwork, pool: &SubnetPool) -> IpAddr {
    IpNetwork::new(subnet.ip(), pool.subnet_len()).map_or(subnet.network(), |subnet| subnet.network())
}

#[cfg(test)]
mod tests {
    use flan_kernel::State;
    use flan_subnet_lease::NetworkConfig;

    use super::*;

    #[test]
    fn a_part_of_a_subnet_lets_in_the_whole() {
        let config =
            NetworkConfig::parse(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        let pool = config.pools.v4.as_ref().unwrap();
        let mut state = State::default();
        let peer = "192.168.64.12".parse().unwrap();
        Senders::Strict.let_in(peer, "10.5.2.64/26".parse().unwrap(), pool, &mut state);
        let source = Source::Inner { peer, subnet: "10.5.2.0".parse().unwrap() };
        assert_eq!(state.sources, [(source, ())].into());
    }

    #[test]
    fn what_this_host_cannot_check_is_refused_only_where_the_config_asks_for_it() {
        assert_eq!(Senders::of("vxlan", false, false), Ok(Senders::Anybody));
        assert_eq!(Senders::of("vxlan", false, true), Ok(Senders::Peers));
        let error = Senders::of("vxlan", true, false).unwrap_err();
        assert!(error.to_string().contains("--source-check"), "{error}");
    }
}
