//! Finds the leases that are ours already.

use tracing::warn;

use super::claim::Claim;
use super::contest::Contest;
use crate::lease::{Lease, NodeIdentity};
use crate::stored::Listing;

/// A lease that is ours, or may be.
#[derive(Debug)]
pub(super) struct Own<'a> {
    pub(super) lease: &'a Lease,
    /// Whether only the node id says so: it is ours if its holder is dead.
    pub(super) by_node: bool,
}

/// Chooses the lease that is ours already: first a reservation, then the previous subnet, else the oldest.
///
/// A lease with our address is ours. At the start, so is that of the previous subnet if it has our node id and an
/// address of this host on any interface. If it has another address, it may be ours: either this host's address has
/// changed, or the holder is a clone of this host. A running host looks only for its own address, because two clones
/// would take the subnet from each other forever. A `contest` exists only at the start, and knows which leases were
/// claimed in vain.
pub(super) fn choose_own<'a>(
    listing: &'a Listing<Lease>,
    claim: &Claim,
    contest: Option<&Contest>,
) -> Option<Own<'a>> {
    let (ips, node) = (&claim.attributes.public_ips, &claim.attributes.node);
    let mut own = Vec::new();
    let mut doubles = 0;
    for lease in listing.readable() {
        if is_double(lease, claim) {
            doubles += 1;
            warn_of_double(lease, doubles);
        }
        if !claim.config.admits(&lease.subnets) {
            continue;
        }
        let attributes = &lease.attributes;
        let is_previous = Some(lease.subnets) == claim.previous;
        let same_node = node.id.is_some() && attributes.node.id == node.id;
        let is_here = attributes.public_ips.values().any(|ip| claim.addresses.contains(ip));
        // Where hosts share addresses, that of a host without a node id may be anybody's.
        let backend = &claim.config.backend;
        let is_known = !backend.shares_addresses()
            || attributes.node.id.is_some()
            || is_previous
            || backend.identities(&attributes.data) == backend.identities(&claim.attributes.data);
        if (attributes.is_held_by(ips, node) && is_known)
            || (contest.is_some() && is_previous && same_node && is_here)
        {
            own.push(Own { lease, by_node: false });
        } else if is_previous && same_node && contest.is_some_and(|contest| contest.is_open(&lease.subnets)) {
            own.push(Own { lease, by_node: true });
        }
    }
    if doubles > SHOWN_DOUBLES {
        warn!(leases = doubles - SHOWN_DOUBLES, "more leases of other machines with our public address");
    }
    own.into_iter().min_by_key(|Own { lease, .. }| {
        (!lease.is_reservation(), Some(lease.subnets) != claim.previous, lease.create_revision)
    })
}

/// Most leases with our address that are logged one by one.
const SHOWN_DOUBLES: usize = 5;

/// Returns whether the lease belongs to another machine with our address.
fn is_double(lease: &Lease, claim: &Claim) -> bool {
    let (ips, node) = (&claim.attributes.public_ips, &claim.attributes.node);
    let attributes = &lease.attributes;
    let shares = claim.config.backend.shares_addresses();
    !shares && attributes.is_held_by(ips, &NodeIdentity::default()) && !attributes.is_held_by(ips, node)
}

/// Warns that two machines with one address cannot both be reached.
fn warn_of_double(lease: &Lease, number: usize) {
    if number <= SHOWN_DOUBLES {
        warn!(
            subnets = %lease.subnets, holder = %lease.attributes.holder(),
            "another machine holds a lease with our public address; peers can reach only one of us, unless that machine no longer exists",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{claim, lease};
    use super::*;
    use crate::config::NetworkConfig;
    use crate::entry::Entry;
    use crate::lease::LeaseAttributes;
    use crate::samples::entry;

    /// Returns the subnets of our lease, and whether only the node id says that it is ours.
    fn chosen(entries: &[Entry], claim: &Claim) -> Option<String> {
        let listing = Listing::of(entries.to_vec(), 9, 1);
        choose_own(&listing, claim, Some(&Contest::default())).map(|Own { lease, by_node }| {
            format!("{}{}", lease.subnets, if by_node { " by its node id" } else { "" })
        })
    }

    #[test]
    fn the_lease_with_our_address_is_ours_unless_another_node_signed_it() {
        let leases = [
            lease("10.5.2.0-24", "192.168.64.12", None, 1),
            lease("10.5.3.0-24", "192.168.64.11", Some("b"), 2),
            lease("10.5.4.0-24", "192.168.64.11", None, 3),
        ];
        assert_eq!(chosen(&leases, &claim()).as_deref(), Some("10.5.4.0/24"));
    }

    #[test]
    fn behind_one_nat_a_lease_without_a_node_id_is_ours_only_by_its_key_or_its_subnet() {
        let json = br#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#;
        let value = |key: &str| {
            format!(
                r#"{{"PublicIP":"192.168.64.11","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}"}}}}"#
            )
        };
        let ours = value("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        let theirs = value("3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=");
        let mut claim = Claim { config: NetworkConfig::parse(json).unwrap(), ..claim() };
        let node = claim.attributes.node.clone();
        claim.attributes = LeaseAttributes { node, ..LeaseAttributes::from_json(ours.as_bytes()).unwrap() };
        let leases = [entry("10.5.4.0-24", &theirs, 3)];
        assert_eq!(chosen(&leases, &claim), None);
        assert_eq!(chosen(&[entry("10.5.4.0-24", &ours, 3)], &claim).as_deref(), Some("10.5.4.0/24"));
        let claim = Claim { previous: Some("10.5.4.0/24".parse().unwrap()), ..claim };
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.4.0/24"));
    }

    #[test]
    fn of_several_own_leases_the_previous_subnet_wins_then_the_oldest() {
        let leases =
            [lease("10.5.3.0-24", "192.168.64.11", None, 5), lease("10.5.4.0-24", "192.168.64.11", None, 3)];
        assert_eq!(chosen(&leases, &claim()).as_deref(), Some("10.5.4.0/24"));
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.3.0/24"));
    }

    #[test]
    fn a_reservation_comes_before_what_is_held() {
        let reserved = Entry { etcd_lease: None, ..lease("10.5.77.0-24", "192.168.64.11", None, 9) };
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        let leases = [lease("10.5.3.0-24", "192.168.64.11", Some("a"), 5), reserved.clone()];
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.77.0/24"));
        // Of two leases, the one that was held wins.
        let held = Entry { etcd_lease: None, ..lease("10.5.3.0-24", "192.168.64.11", Some("a"), 10) };
        assert_eq!(chosen(&[held, reserved], &claim).as_deref(), Some("10.5.3.0/24"));
    }

    #[test]
    fn after_a_change_of_address_the_previous_subnet_may_be_ours_by_its_node_id() {
        let leases = [
            lease("10.5.3.0-24", "192.168.64.99", Some("a"), 5),
            lease("10.5.4.0-24", "192.168.64.98", Some("a"), 3),
        ];
        assert_eq!(chosen(&leases, &claim()), None);
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.3.0/24 by its node id"));
        let stranger = [lease("10.5.3.0-24", "192.168.64.99", Some("b"), 5)];
        assert_eq!(chosen(&stranger, &claim), None);
        let listing = Listing::of(leases.to_vec(), 9, 1);
        assert!(choose_own(&listing, &claim, None).is_none(), "a running host takes nobody's subnet");
        // The address is one of this host's: no clone can have it.
        let claim = Claim { addresses: ["192.168.64.99".parse().unwrap()].into(), ..claim };
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.3.0/24"));
    }

    #[test]
    fn a_clone_that_starts_again_finds_what_it_took_beside_what_it_may_not_have() {
        let leases = [
            lease("10.5.3.0-24", "192.168.64.99", Some("a"), 5),
            lease("10.5.4.0-24", "192.168.64.11", Some("a"), 7),
        ];
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.3.0/24 by its node id"));
        let listing = Listing::of(leases.to_vec(), 9, 1);
        let contest = Contest::lost("10.5.3.0/24".parse().unwrap());
        let own = choose_own(&listing, &claim, Some(&contest)).unwrap();
        assert_eq!((own.lease.subnets.to_string().as_str(), own.by_node), ("10.5.4.0/24", false));
    }

    #[test]
    fn an_own_lease_that_the_config_no_longer_admits_is_left() {
        assert_eq!(chosen(&[lease("10.6.3.0-24", "192.168.64.11", None, 5)], &claim()), None);
    }
}
