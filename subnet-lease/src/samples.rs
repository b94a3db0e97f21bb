//! Values that tests share.

use crate::config::NetworkConfig;
use crate::entry::Entry;

pub(crate) fn config() -> NetworkConfig {
    NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap()
}

/// Returns an entry created and last written at this revision, with etcd lease 7.
pub(crate) fn entry(key: &str, value: &str, revision: i64) -> Entry {
    Entry {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        create_revision: revision,
        mod_revision: revision,
        etcd_lease: Some(7),
    }
}
