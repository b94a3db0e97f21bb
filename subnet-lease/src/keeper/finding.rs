//! What happened to our key.

use std::net::IpAddr;

use super::claim::{Claim, HeldLease};
use crate::entry::Entry;
use crate::family::PerFamily;
use crate::lease::{LeaseAttributes, NodeIdentity};
use crate::twin::Twin;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Unchanged,
    /// Somebody wrote an equivalent value.
    Touched {
        etcd_lease: Option<i64>,
        mod_revision: i64,
    },
    /// As we left it, but we want another value by now.
    Outdated(Entry),
    /// Still ours, but another machine with our node id claims it.
    Claimed(Twin, Entry),
    /// Still ours, but with other values.
    Altered(Entry),
    Gone,
    /// Another host's lease, described.
    Foreign(String),
}

/// The values that we may have written: those that we claim now and, until they have been seen in the store, those that
/// we claimed before.
pub(super) struct Published {
    addresses: Vec<PerFamily<IpAddr>>,
    /// Whether what we claim now has not been seen in the store yet.
    outdated: bool,
}

impl Published {
    pub(super) fn new(now: &LeaseAttributes) -> Self {
        Self { addresses: vec![now.public_ips], outdated: false }
    }

    pub(super) fn wants(&mut self, next: &LeaseAttributes) {
        self.outdated = true;
        if !self.addresses.contains(&next.public_ips) {
            self.addresses.push(next.public_ips);
        }
    }

    fn is_ours(&self, attributes: &LeaseAttributes, node: &NodeIdentity) -> bool {
        self.addresses.iter().any(|ips| attributes.is_held_by(ips, node))
    }
}

pub(super) fn judge(held: &HeldLease, claim: &Claim, published: &Published, found: Option<Entry>) -> Finding {
    let Some(entry) = found else { return Finding::Gone };
    if entry.mod_revision == held.mod_revision {
        return if published.outdated { Finding::Outdated(entry) } else { Finding::Unchanged };
    }
    match LeaseAttributes::from_json(&entry.value) {
        Ok(attributes) if !published.is_ours(&attributes, &claim.attributes.node) => {
            Finding::Foreign(attributes.holder_and_node())
        }
        Ok(attributes) => match attributes.claimant() {
            Some(twin) => Finding::Claimed(twin, entry),
            None if attributes.says_the_same(&claim.attributes) => {
                Finding::Touched { etcd_lease: entry.etcd_lease, mod_revision: entry.mod_revision }
            }
            None => Finding::Altered(entry),
        },
        Err(_) => Finding::Altered(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{claim, held};
    use super::*;
    use crate::samples::entry;

    #[test]
    fn what_became_of_our_key_is_told_apart() {
        let claim = claim();
        let value = String::from_utf8(claim.attributes.to_json()).unwrap();
        let published = Published::new(&claim.attributes);
        let find = |entry: Option<Entry>| judge(&held(), &claim, &published, entry);
        assert_eq!(find(None), Finding::Gone);
        assert_eq!(find(Some(entry("10.5.3.0-24", &value, 10))), Finding::Unchanged);
        let reserved = Entry { etcd_lease: None, ..entry("10.5.3.0-24", &value, 11) };
        assert_eq!(find(Some(reserved)), Finding::Touched { etcd_lease: None, mod_revision: 11 });
        let foreign = entry("10.5.3.0-24", r#"{"PublicIP":"192.168.64.12","HostName":"h2"}"#, 11);
        assert_eq!(find(Some(foreign)), Finding::Foreign("192.168.64.12 (h2)".to_owned()));
        let altered = entry("10.5.3.0-24", r#"{"PublicIP":"192.168.64.11","BackendType":"udp"}"#, 11);
        assert_eq!(find(Some(altered.clone())), Finding::Altered(altered));
        let broken = entry("10.5.3.0-24", "{", 11);
        assert_eq!(find(Some(broken.clone())), Finding::Altered(broken));
    }

    #[test]
    fn a_key_that_still_says_what_we_said_before_is_ours() {
        let before = claim();
        let mut after = claim();
        after.attributes.public_ips.v4 = Some("192.168.64.77".parse().unwrap());
        let mut published = Published::new(&before.attributes);
        published.wants(&after.attributes);
        let value = |claim: &Claim| String::from_utf8(claim.attributes.to_json()).unwrap();
        let find = |value: &str, revision| {
            judge(&held(), &after, &published, Some(entry("10.5.3.0-24", value, revision)))
        };
        assert!(matches!(find(&value(&before), 10), Finding::Outdated(_)));
        assert!(matches!(find(&value(&before), 11), Finding::Altered(_)));
        // The write may have happened although no answer arrived.
        assert_eq!(find(&value(&after), 11), Finding::Touched { etcd_lease: Some(7), mod_revision: 11 });
        assert!(matches!(find(&value(&before).replace("\"a\"", "\"b\""), 11), Finding::Foreign(_)));
        let standing = Published::new(&after.attributes);
        let old = entry("10.5.3.0-24", &value(&before), 11);
        assert!(matches!(judge(&held(), &after, &standing, Some(old)), Finding::Foreign(_)));
    }

    #[test]
    fn a_claim_of_our_twin_is_told_from_an_alteration_and_from_a_loss() {
        let claim = claim();
        let published = Published::new(&claim.attributes);
        let find = |entry: Entry| judge(&held(), &claim, &published, Some(entry));
        let said = |json: &str| LeaseAttributes::from_json(json.as_bytes()).unwrap();
        let twin = said(r#"{"PublicIP":"192.168.64.12","HostName":"h2","NodeID":"a"}"#);
        let claimed = |words: &LeaseAttributes| {
            entry("10.5.3.0-24", &String::from_utf8(words.claimed_by(&twin, 1).to_json()).unwrap(), 11)
        };
        let ours = claimed(&claim.attributes);
        assert_eq!(find(ours.clone()), Finding::Claimed(Twin::of(&twin), ours));
        let altered = claimed(&said(r#"{"PublicIP":"192.168.64.11","BackendType":"udp","NodeID":"a"}"#));
        assert!(matches!(find(altered), Finding::Claimed(..)));
        // Its new holder must object, not we.
        let foreign = claimed(&said(r#"{"PublicIP":"192.168.64.99","NodeID":"c"}"#));
        assert_eq!(find(foreign), Finding::Foreign("192.168.64.99, node id c".to_owned()));
    }
}
