//! Finds the leases of this host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flan_subnet_lease::{Lease, Listing, NodeIdentity, Subnets};

/// This host, as leases name it.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) node: NodeIdentity,
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The subnets in the subnet file.
    pub(super) previous: Option<Subnets>,
}

impl Holder {
    /// Returns the leases that an agent on this host would take as its own: those with one of its addresses and, if
    /// both have one, its node id; and the previous subnet, if it carries that id.
    pub(super) fn leases(&self, listing: &Listing<Lease>) -> Vec<Lease> {
        listing.readable().filter(|lease| self.holds(lease)).cloned().collect()
    }

    fn holds(&self, lease: &Lease) -> bool {
        let same_address = lease.attributes.public_ips.values().any(|ip| self.addresses.contains(ip));
        match (&lease.attributes.node.id, &self.node.id) {
            (Some(theirs), Some(ours)) => {
                theirs == ours && (same_address || Some(lease.subnets) == self.previous)
            }
            _ => same_address,
        }
    }
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::Entry;

    use super::*;

    fn listing(leases: &[(&str, &str, Option<&str>)]) -> Listing<Lease> {
        let entry = |(key, ip, node): &(&str, &str, Option<&str>)| {
            let node = node.map(|id| format!(r#","NodeID":"{id}""#)).unwrap_or_default();
            let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null{node}}}"#);
            let (key, value) = ((*key).to_owned(), value.into_bytes());
            Entry { key, value, create_revision: 1, mod_revision: 2, etcd_lease: Some(3) }
        };
        Listing::of(leases.iter().map(entry).collect(), 9, 1)
    }

    fn found(leases: &[(&str, &str, Option<&str>)]) -> Vec<String> {
        let holder = Holder {
            node: NodeIdentity { host: None, id: Some("us".into()) },
            addresses: ["192.168.64.11".parse().unwrap()].into(),
            previous: Some("10.5.3.0/24".parse().unwrap()),
        };
        holder.leases(&listing(leases)).iter().map(|lease| lease.subnets.to_string()).collect()
    }

    #[test]
    fn a_lease_is_ours_by_address_and_node_id_whichever_subnet_it_is() {
        assert_eq!(found(&[("10.5.9.0-24", "192.168.64.11", Some("us"))]), ["10.5.9.0/24"]);
        assert_eq!(found(&[("10.5.9.0-24", "192.168.64.11", None)]), ["10.5.9.0/24"], "flannel's");
    }

    #[test]
    fn after_our_address_changed_the_previous_subnet_is_ours_by_the_node_id() {
        assert_eq!(found(&[("10.5.3.0-24", "192.168.64.99", Some("us"))]), ["10.5.3.0/24"]);
        assert_eq!(found(&[("10.5.4.0-24", "192.168.64.99", Some("us"))]), [""; 0], "another host's of ours");
        assert_eq!(found(&[("10.5.3.0-24", "192.168.64.99", None)]), [""; 0]);
    }

    #[test]
    fn another_machine_at_our_address_keeps_its_lease() {
        assert_eq!(found(&[("10.5.3.0-24", "192.168.64.11", Some("them"))]), [""; 0]);
    }
}
