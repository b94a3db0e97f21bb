//! Sample values for tests.

use std::collections::BTreeSet;

use flan_subnet_lease::{Entry, OwnLease, PerFamily};

/// Returns an entry created and last written at this revision, with an etcd lease.
pub(crate) fn entry(key: &str, value: &str, revision: i64) -> Entry {
    Entry {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        create_revision: revision,
        mod_revision: revision,
        etcd_lease: Some(7),
    }
}

/// Returns the lease of a host without addresses.
pub(crate) fn own(subnets: &str) -> OwnLease {
    let (addresses, identities) = (BTreeSet::new(), PerFamily::default());
    OwnLease { subnets: subnets.parse().unwrap(), addresses, identities, node_id: None }
}
