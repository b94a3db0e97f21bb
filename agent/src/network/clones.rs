//! Detects another machine with our node id, which claimed our lease or objected when we claimed its lease.

use std::time::Duration;

use flan_agent_api::Code;
use flan_subnet_lease::{Lease, OwnLease, Sighting};
use tokio::time::Instant;

use super::joined::Joined;

/// How long a clone without a lease is expected to take one.
const GRACE: Duration = Duration::from_secs(120);

impl Joined {
    /// Reports whether another machine with our node id still exists.
    pub(crate) fn look_for_clones(&mut self, now: Instant) {
        let Some(own) = &self.leases.admission().own else { return };
        let wrong = self.twin.as_ref().and_then(|sighting| {
            is_about(sighting, own, self.leases.readable(), now).then(|| {
                format!(
                    "another machine, {}, has the node id of this one: one is a clone of the other. This host holds {}; \
                     set --node-id (FLAND_NODE_ID), or make another /etc/machine-id, on one of the two, and restart fland \
                     there",
                    sighting.twin, own.subnets
                )
            })
        });
        if wrong.is_none() {
            self.twin = None;
        }
        self.means.status.report(Code::Clone, wrong);
    }
}

/// Returns whether the machine still has our node id. It does if all its leases carry that id, or if it was seen
/// recently and has none.
fn is_about<'a>(
    sighting: &Sighting,
    own: &OwnLease,
    leases: impl Iterator<Item = &'a Lease>,
    now: Instant,
) -> bool {
    let theirs = &sighting.twin.public_ips;
    if theirs.values().any(|ip| own.addresses.contains(ip)) {
        return false; // that was this host before a restart
    }
    let mut held = leases
        .filter(|lease| lease.attributes.public_ips.iter().any(|(family, ip)| theirs.get(family) == Some(ip)))
        .filter_map(|lease| lease.attributes.node.id.as_ref())
        .map(|id| Some(id) == own.node_id.as_ref())
        .peekable();
    match held.peek() {
        None => now < sighting.at + GRACE,
        Some(_) => held.all(|same| same),
    }
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{PerFamily, Twin};

    use super::super::samples;
    use super::*;

    fn lease(subnet: &str, ip: &str, node_id: &str) -> Lease {
        let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"NodeID":"{node_id}"}}"#);
        Lease::from_entry(&samples::entry(&format!("{subnet}-24"), &value, 1)).unwrap()
    }

    #[test]
    fn a_clone_is_about_until_its_lease_bears_another_node_id() {
        let start = Instant::now();
        let twin = Twin {
            public_ips: PerFamily { v4: Some("192.168.64.12".parse().unwrap()), v6: None },
            host: None,
        };
        let sighting = Sighting { twin, at: start };
        let own = OwnLease {
            addresses: ["192.168.64.11".parse().unwrap()].into(),
            node_id: Some("a".into()),
            ..samples::own("10.5.3.0/24")
        };
        let ours = lease("10.5.3.0", "192.168.64.11", "a");
        let is_about =
            |others: &[Lease], now| super::is_about(&sighting, &own, others.iter().chain([&ours]), now);
        // It may have no subnet yet, or the operator may have stopped it.
        assert!(is_about(&[], start) && !is_about(&[], start + GRACE));
        let cloned = lease("10.5.4.0", "192.168.64.12", "a");
        assert!(is_about(std::slice::from_ref(&cloned), start + 10 * GRACE));
        // With its own node id it takes another subnet; the first lease expires.
        assert!(!is_about(&[cloned, lease("10.5.5.0", "192.168.64.12", "b")], start));
        // The address was this host's own before it changed.
        let moved = OwnLease { addresses: ["192.168.64.12".parse().unwrap()].into(), ..own.clone() };
        assert!(!super::is_about(&sighting, &moved, [].iter(), start));
    }
}
