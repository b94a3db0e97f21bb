//! Remembers reservations in keys of our own beside the leases: `<prefix>/reservations/10.5.52.0-24`.
//!
//! A reservation is a lease without an etcd lease. A flanneld that finds one with its address turns it into an ordinary
//! lease, which expires a day after that host disappears. These keys, which flannel never reads, show what was lost.

use std::net::IpAddr;

use etcd_client::TxnOp;

use super::client::{Store, unchanged};
use super::collection::Collection;
use super::error::StoreError;
use crate::entry::Entry;
use crate::family::PerFamily;
use crate::key::Subnets;
use crate::lease::{InvalidLease, Lease, LeaseAttributes};
use crate::stored::Stored;

/// A subnet that is permanently reserved for one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The reserved subnets.
    pub subnets: Subnets,
    /// The underlay addresses of the host.
    pub public_ips: PerFamily<IpAddr>,
}

impl Reservation {
    /// Returns the value of a lease that waits for the host, in flannel's form.
    pub fn to_json(&self) -> Vec<u8> {
        LeaseAttributes { public_ips: self.public_ips, ..LeaseAttributes::default() }.to_json()
    }

    /// Returns whether a lease of these subnets with these attributes belongs to the host but expires, so that the
    /// reservation was lost.
    pub fn is_lost_in(&self, attributes: &LeaseAttributes, etcd_lease: Option<i64>) -> bool {
        let same = |(family, ip)| self.public_ips.get(family) == Some(ip);
        etcd_lease.is_some() && attributes.public_ips.iter().any(same)
    }
}

impl Stored for Reservation {
    const PLURAL: &'static str = "reservations";
    type Invalid = InvalidLease;

    fn read(entry: &Entry) -> Result<Self, InvalidLease> {
        let Lease { subnets, attributes, .. } = Lease::from_entry(entry)?;
        Ok(Self { subnets, public_ips: attributes.public_ips })
    }
}

impl Store {
    /// Returns the remembered reservation of exactly these subnets. An unreadable one counts as none.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn reservation(&self, subnets: &Subnets) -> Result<Option<Reservation>, StoreError> {
        let found = self.remembered().get(&subnets.key()).await?;
        Ok(found.and_then(|entry| Reservation::read(&entry).ok()))
    }

    /// Returns all remembered reservations.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        Ok(self.remembered().list().await?.readable().cloned().collect())
    }

    /// Writes a lease without an etcd lease, and remembers it; in the same transaction deletes the lease that the host
    /// holds `instead`, so that the host moves to the reserved one. Requires that the last writes are still those that
    /// the caller saw; `seen` is 0 for none. Returns the revision, or `None` if somebody else wrote first.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn reserve(
        &self,
        reservation: &Reservation,
        value: &[u8],
        seen: i64,
        instead: &[&Lease],
    ) -> Result<Option<i64>, StoreError> {
        let (leases, remembered) = (self.leases(), self.remembered());
        let path = leases.path(&reservation.subnets.key());
        let memory = remembered.path(&reservation.subnets.key());
        let mut provided = vec![unchanged(&path, seen)];
        let mut operations =
            vec![TxnOp::put(path, value, None), TxnOp::put(memory, reservation.to_json(), None)];
        for lease in instead {
            let key = lease.subnets.key();
            provided.push(unchanged(&leases.path(&key), lease.mod_revision));
            operations
                .extend([leases.path(&key), remembered.path(&key)].map(|path| TxnOp::delete(path, None)));
        }
        self.commit(provided, operations).await
    }

    /// Remembers an existing reservation.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn remember(&self, reservation: &Reservation) -> Result<(), StoreError> {
        let path = self.remembered().path(&reservation.subnets.key());
        self.commit(Vec::new(), vec![TxnOp::put(path, reservation.to_json(), None)]).await.map(drop)
    }

    /// Deletes a lease if its last write is still the one at `seen`, 0 for none, with any remembered reservation.
    /// Returns whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn release(&self, subnets: &Subnets, seen: i64) -> Result<bool, StoreError> {
        let key = subnets.key();
        let paths = [self.leases().path(&key), self.remembered().path(&key)];
        let seen = vec![unchanged(&paths[0], seen)];
        self.commit(seen, paths.map(|path| TxnOp::delete(path, None)).into()).await.map(|done| done.is_some())
    }

    fn remembered(&self) -> Collection<Reservation> {
        Collection::below(self, "reservations")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_lost_in_an_ordinary_lease_of_its_own_host() {
        let reservation = Reservation {
            subnets: "10.5.77.0/24".parse().unwrap(),
            public_ips: PerFamily { v4: Some("192.168.64.11".parse().unwrap()), v6: None },
        };
        let held = |json: &str| LeaseAttributes::from_json(json.as_bytes()).unwrap();
        let by_flannel = held(r#"{"PublicIP":"192.168.64.11","PublicIPv6":null,"BackendType":"vxlan"}"#);
        assert!(reservation.is_lost_in(&by_flannel, Some(7)));
        assert!(!reservation.is_lost_in(&by_flannel, None));
        assert!(!reservation.is_lost_in(&held(r#"{"PublicIP":"192.168.64.12"}"#), Some(7)));
        assert_eq!(reservation.to_json(), br#"{"PublicIP":"192.168.64.11","PublicIPv6":null}"#);
    }
}
