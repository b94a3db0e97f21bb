//! Gives a lease back.

use tracing::{info, warn};

use super::claim::{FIRST_WAIT, HeldLease, LONGEST_WAIT};
use crate::backoff::Backoff;
use crate::store::{Store, StoreError};

/// Releases a lease that this host no longer needs, however long the store takes. A reservation stays, and so does what
/// another program wrote over our key.
pub async fn release(store: &Store, lease: &HeldLease) {
    let Some(etcd_lease) = lease.etcd_lease else { return };
    let subnets = lease.subnets;
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match store.revoke(etcd_lease).await {
            Ok(()) => return info!(%subnets, "released the lease"),
            // It has expired.
            Err(StoreError::Refused { reason, .. }) if reason.contains("lease not found") => return,
            Err(reason @ StoreError::Refused { .. }) => {
                return warn!(%reason, %subnets, "cannot release the lease; it will expire");
            }
            Err(reason) => {
                let wait = backoff.next();
                warn!(%reason, %subnets, retry_in = ?wait, "cannot release a lease that this host no longer needs");
                tokio::time::sleep(wait).await;
            }
        }
    }
}
