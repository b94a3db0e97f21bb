//! Whose packets a backend accepts: plans the rules by which the kernel drops all others.

use std::net::IpAddr;

use flan_kernel::{Check, Checks, Plain, Plan, Source, Sources, Wire};
use flan_subnet_lease::SubnetPool;
use ipnetwork::IpNetwork;

use crate::BackendError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Senders {
    /// Accepts every sender.
    Anybody,
    /// Accepts datagrams of peers, whatever they carry.
    Peers,
    /// Accepts a peer's packets if they come from its subnet and go to ours (`StrictSource`).
    Strict,
}

impl Senders {
    /// Returns what the config and this host require.
    ///
    /// # Errors
    /// [`BackendError::UncheckedSource`] if the config requires a check that this host cannot, or may not, make.
    pub(crate) fn of(backend: &'static str, strict: bool, can_check: bool) -> Result<Self, BackendError> {
        match (strict, can_check) {
            (true, false) => Err(BackendError::UncheckedSource { backend }),
            (true, true) => Ok(Self::Strict),
            (false, true) => Ok(Self::Peers),
            (false, false) => Ok(Self::Anybody),
        }
    }

    /// Plans the rules that drop foreign datagrams, on a host with this subnet in `pool`.
    pub(crate) fn check_datagrams(self, wire: Wire, pool: &SubnetPool, own: IpNetwork, plan: &mut dyn Plan) {
        match self {
            Self::Anybody => {}
            Self::Peers => check_peers(wire, plan),
            Self::Strict => {
                if wire.vni.is_some() {
                    plan.add::<Checks>(Check::Carries(wire), ());
                }
                plan.add::<Checks>(Check::InnerSource(wire, pool.subnet_len()), ());
                plan.add::<Checks>(Check::InnerDestination(wire, network(own)), ());
                if wire.ipv6 {
                    plan.add::<Checks>(Check::Whole(Wire { vni: None, ..wire }), ());
                }
            }
        }
    }

    /// Plans the rules that drop foreign unencapsulated packets. Without `StrictSource` anybody on the link may send
    /// them, as a router may.
    pub(crate) fn check_plain(self, plain: Plain, pool: &SubnetPool, own: IpNetwork, plan: &mut dyn Plan) {
        if self == Self::Strict {
            plan.add::<Checks>(Check::PlainSource(plain, pool.subnet_len()), ());
            plan.add::<Checks>(Check::PlainDestination(plain, network(own)), ());
        }
    }

    /// Plans to accept the datagrams of a peer with this subnet in `pool`.
    pub(crate) fn let_in(self, peer: IpAddr, subnet: IpNetwork, pool: &SubnetPool, plan: &mut dyn Plan) {
        match self {
            Self::Anybody => {}
            Self::Peers => plan.add::<Sources>(Source::Peer(peer), ()),
            Self::Strict => plan.add::<Sources>(Source::Inner { peer, subnet: base(subnet, pool) }, ()),
        }
    }

    /// Plans to accept unencapsulated packets of a peer with this subnet in `pool`.
    pub(crate) fn let_in_plain(self, subnet: IpNetwork, pool: &SubnetPool, plan: &mut dyn Plan) {
        if self == Self::Strict {
            plan.add::<Sources>(Source::Plain(base(subnet, pool)), ());
        }
    }
}

/// Plans the rules that drop datagrams from anybody but peers.
pub(crate) fn check_peers(wire: Wire, plan: &mut dyn Plan) {
    plan.add::<Checks>(Check::Shortcut { ipv6: wire.ipv6 }, ());
    plan.add::<Checks>(Check::Peers(wire), ());
    if wire.ipv6 {
        plan.add::<Checks>(Check::PeersPieces(Wire { vni: None, ..wire }), ());
    }
}

/// Removes the host bits of a subnet.
fn network(subnet: IpNetwork) -> IpNetwork {
    IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(subnet)
}

/// Returns the first address of the subnet that allocation would give: the kernel looks up senders with one prefix
/// length, so a lease for a part of such a subnet admits all of it.
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
