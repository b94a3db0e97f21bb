//! etcd's own leases, which expire keys that nobody renews.

use std::time::Duration;

use etcd_client::{Client, LeaseGrantOptions};

use super::client::Store;
use super::error::StoreError;

impl Store {
    /// Creates an etcd lease of `ttl`, in whole seconds.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = whole_seconds(ttl);
        let response =
            self.call(|mut client: Client| async move { client.lease_grant(seconds, None).await }).await?;
        Ok(response.id())
    }

    /// Creates an etcd lease of `ttl`, in whole seconds, with the caller's id. Returns `false` if the id is in use.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn grant_as(&self, etcd_lease: i64, ttl: Duration) -> Result<bool, StoreError> {
        let seconds = whole_seconds(ttl);
        let result = self
            .attempt(false, |mut client: Client| async move {
                let options = LeaseGrantOptions::new().with_id(etcd_lease);
                client.lease_grant(seconds, Some(options)).await.map(|_| ())
            })
            .await;
        match result {
            Ok(()) => Ok(true),
            Err(StoreError::Refused { reason, .. }) if reason.contains("lease already exists") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Revokes an etcd lease, and deletes its keys.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn revoke(&self, etcd_lease: i64) -> Result<(), StoreError> {
        self.call(|mut client: Client| async move { client.lease_revoke(etcd_lease).await.map(|_| ()) }).await
    }

    /// Renews an etcd lease to its full time.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] if it has expired, or any other.
    pub async fn keep_alive(&self, etcd_lease: i64) -> Result<(), StoreError> {
        let result = self
            .call(|mut client: Client| async move { client.lease_keep_alive(etcd_lease).await.map(|_| ()) })
            .await;
        match result {
            Err(StoreError::Refused { reason, .. }) if reason.contains("lease not found") => {
                Err(StoreError::LeaseGone(etcd_lease))
            }
            other => other,
        }
    }

    /// Returns the remaining and the granted time of an etcd lease.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] if it has expired, or any other.
    pub async fn time_to_live(&self, etcd_lease: i64) -> Result<(Duration, Duration), StoreError> {
        let response = self
            .call(|mut client: Client| async move { client.lease_time_to_live(etcd_lease, None).await })
            .await?;
        match (u64::try_from(response.ttl()), u64::try_from(response.granted_ttl())) {
            (Ok(left), Ok(granted)) => Ok((Duration::from_secs(left), Duration::from_secs(granted))),
            _ => Err(StoreError::LeaseGone(etcd_lease)),
        }
    }
}

fn whole_seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}
