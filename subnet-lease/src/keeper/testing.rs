//! Helpers for the keeper's tests.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;

use super::claim::{Claim, HeldLease};
use crate::allocate::OverlapPolicy;
use crate::entry::Entry;
use crate::lease::LeaseAttributes;
use crate::samples::{self, entry};

pub(super) fn claim() -> Claim {
    let json = br#"{"PublicIP":"192.168.64.11","PublicIPv6":null,"BackendType":"vxlan","NodeID":"a"}"#;
    Claim {
        config: samples::config(),
        attributes: LeaseAttributes::from_json(json).unwrap(),
        previous: None,
        addresses: BTreeSet::new(),
        networks: watch::channel(Vec::new()).1,
        overlap: OverlapPolicy::Refuse,
        ttl: Duration::from_secs(86_400),
        renew_margin: None,
    }
}

pub(super) fn lease(key: &str, ip: &str, node: Option<&str>, revision: i64) -> Entry {
    let node = node.map(|id| format!(r#","NodeID":"{id}""#)).unwrap_or_default();
    entry(key, &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null{node}}}"#), revision)
}

pub(super) fn held() -> HeldLease {
    HeldLease { subnets: "10.5.3.0/24".parse().unwrap(), etcd_lease: Some(7), mod_revision: 10 }
}
