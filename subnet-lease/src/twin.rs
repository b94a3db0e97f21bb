//! Another machine with our node id, and how it asks whether we are alive: by a claim in our lease.
//!
//! A host that finds its own node id and an unknown address in the lease of its previous subnet is either the same host
//! after a change of address, or a clone of a host that is alive. It adds its claim to the lease, under the same etcd
//! lease. A live holder notices the change of its key and restores its value without the claim. flannel ignores it.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::family::PerFamily;
use crate::lease::{LeaseAttributes, NodeIdentity};
use crate::shown::shown;

/// Another machine with our node id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Twin {
    /// Its underlay addresses.
    pub public_ips: PerFamily<IpAddr>,
    /// Its name, if known.
    pub host: Option<Box<str>>,
}

/// The field of a lease that holds a claim: an object with the claimant's `PublicIP`, `PublicIPv6` and `HostName` as in
/// a lease, and `At`, seconds since 1970 on the claimant's clock, which only makes claims distinct.
const CLAIM: &str = "Claim";

impl LeaseAttributes {
    /// Returns who claims this lease, if anybody. An unreadable claim belongs to a host without address and name.
    pub fn claimant(&self) -> Option<Twin> {
        let claim = self.other.as_ref()?.get(CLAIM)?;
        Some(serde_json::from_value(claim.clone()).map(|said| Twin::of(&said)).unwrap_or_default())
    }

    /// Returns the same value with a claim by the host that `claimant` describes.
    pub(crate) fn claimed_by(&self, claimant: &Self, at: u64) -> Self {
        let said = Self {
            public_ips: claimant.public_ips,
            node: NodeIdentity { host: claimant.node.host.clone(), id: None },
            other: Some(Box::new(Map::from_iter([("At".to_owned(), Value::from(at))]))),
            ..Self::default()
        };
        let mut claimed = self.clone();
        let claim = serde_json::to_value(said).unwrap_or_default();
        claimed.other.get_or_insert_default().insert(CLAIM.to_owned(), claim);
        claimed
    }

    /// Returns the same value without any claim.
    pub(crate) fn unclaimed(mut self) -> Self {
        if let Some(other) = &mut self.other {
            other.remove(CLAIM);
        }
        self.other = self.other.filter(|other| !other.is_empty());
        self
    }
}

impl Twin {
    /// Returns the holder of a lease, or the author of a claim.
    pub(crate) fn of(attributes: &LeaseAttributes) -> Self {
        Self { public_ips: attributes.public_ips, host: attributes.node.host.clone() }
    }
}

impl fmt::Display for Twin {
    /// Formats it as `192.168.64.12 (h2)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.public_ips.is_empty() {
            return f.write_str(&self.host.as_deref().map_or("a host with an unknown address".into(), shown));
        }
        for (at, ip) in self.public_ips.values().enumerate() {
            write!(f, "{}{ip}", if at == 0 { "" } else { "," })?;
        }
        self.host.as_ref().map_or(Ok(()), |host| write!(f, " ({})", shown(host)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> LeaseAttributes {
        LeaseAttributes::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_claim_stands_beside_the_holders_words_and_is_taken_out_again() {
        let holder = read(
            r#"{"PublicIP":"192.168.64.11","PublicIPv6":null,"BackendType":"vxlan","HostName":"h1","NodeID":"a"}"#,
        );
        let claimant = read(r#"{"PublicIP":"192.168.64.12","PublicIPv6":null,"HostName":"h2","NodeID":"a"}"#);
        let claimed = holder.claimed_by(&claimant, 7);
        assert_eq!(
            String::from_utf8(claimed.to_json()).unwrap(),
            r#"{"PublicIP":"192.168.64.11","PublicIPv6":null,"BackendType":"vxlan","HostName":"h1","NodeID":"a","Claim":{"At":7,"HostName":"h2","PublicIP":"192.168.64.12","PublicIPv6":null}}"#
        );
        let found = LeaseAttributes::from_json(&claimed.to_json()).unwrap();
        assert_eq!(found.claimant().unwrap().to_string(), "192.168.64.12 (h2)");
        assert!(found.says_the_same(&holder));
        assert_eq!(found.unclaimed(), holder);
        assert_eq!(holder.claimant(), None);
    }

    #[test]
    fn a_claim_that_cannot_be_read_is_one_all_the_same() {
        for claim in ["7", "{}", "null", r#"{"PublicIP":7}"#] {
            let lease = read(&format!(r#"{{"PublicIP":"192.168.64.11","Claim":{claim}}}"#));
            assert_eq!(lease.claimant(), Some(Twin::default()), "{claim}");
            assert_eq!(lease.unclaimed(), read(r#"{"PublicIP":"192.168.64.11"}"#));
        }
    }
}
