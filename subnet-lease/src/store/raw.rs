//! A key and a value as etcd gives them.

use etcd_client::KeyValue;

use crate::entry::{Entry, bounded, name};

/// What is kept of it; `None` for a key that does not begin with the prefix.
pub(super) fn entry(prefix: &str, kv: KeyValue) -> Option<Entry> {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let etcd_lease = Some(kv.lease()).filter(|lease| *lease != 0);
    let (key, value) = kv.into_key_value();
    let (key, value) = (name(key.strip_prefix(prefix.as_bytes())?), bounded(value));
    Some(Entry { key, value, create_revision, mod_revision, etcd_lease })
}
