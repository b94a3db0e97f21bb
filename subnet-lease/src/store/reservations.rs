//! What was reserved for whom, remembered in keys of our own beside the leases: `<prefix>/reservations/10.5.52.0-24`.
//!
//! A reservation proper is a lease without an etcd lease. A flanneld that finds one under its address makes an ordinary
//! lease of it, which ends a day after that host does. What is remembered here, and flannel never reads, tells.

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

/// A subnet that is kept for one host for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// What is kept.
    pub subnets: Subnets,
    /// The underlay addresses of the host.
    pub public_ips: PerFamily<IpAddr>,
}

impl Reservation {
    /// The value of a lease that waits for the host, in flannel's form.
    pub fn to_json(&self) -> Vec<u8> {
        LeaseAttributes { public_ips: self.public_ips, ..LeaseAttributes::default() }.to_json()
    }

    /// Whether a lease of these subnets that is held as `attributes` say is that of the host, and ends when that is gone.
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
    /// What is remembered of a reservation of exactly these subnets. One that cannot be read is none.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn reservation(&self, subnets: &Subnets) -> Result<Option<Reservation>, StoreError> {
        let found = self.remembered().get(&subnets.key()).await?;
        Ok(found.and_then(|entry| Reservation::read(&entry).ok()))
    }

    /// All reservations that are remembered.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        Ok(self.remembered().list().await?.readable().cloned().collect())
    }

    /// Writes a lease without an etcd lease, and remembers that; in the same moment deletes what the host holds
    /// `instead`, so that it moves to what is reserved for it. All of that if the last writes still are those that the
    /// caller saw; `seen` is 0 where there is no such lease. Answers the revision, or `None` when somebody else came first.
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

    /// Remembers a reservation that stands already.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn remember(&self, reservation: &Reservation) -> Result<(), StoreError> {
        let path = self.remembered().path(&reservation.subnets.key());
        self.commit(Vec::new(), vec![TxnOp::put(path, reservation.to_json(), None)]).await.map(drop)
    }

    /// Deletes a lease if its last write still is the one at `seen`, 0 for none, and what is remembered of a reservation.
    /// Answers whether it was.
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
