//! What was reserved for whom, remembered in keys of our own beside the leases: `<prefix>/reservations/10.5.52.0-24`.
//!
//! A reservation proper is a lease without an etcd lease. A flanneld that finds one under its address makes an ordinary
//! lease of it, which ends a day after that host does. What is remembered here, and flannel never reads, tells.

use std::net::IpAddr;

use etcd_client::{Client, TxnOp};

use super::client::Store;
use super::error::StoreError;
use super::keys::unchanged;
use super::raw::entry;
use crate::entry::Entry;
use crate::family::PerFamily;
use crate::key::Subnets;
use crate::lease::LeaseAttributes;

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

    fn from_entry(entry: &Entry) -> Option<Self> {
        let subnets = Subnets::from_key(&entry.key).ok()?;
        Some(Self { subnets, public_ips: LeaseAttributes::from_json(&entry.value).ok()?.public_ips })
    }
}

impl Store {
    /// What is remembered of a reservation of exactly these subnets. One that cannot be read is none.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn reservation(&self, subnets: &Subnets) -> Result<Option<Reservation>, StoreError> {
        let path = self.reservation_key(subnets);
        let mut response = self
            .call(|mut client: Client| {
                let path = path.clone();
                async move { client.get(path, None).await }
            })
            .await?;
        let found = response.take_kvs().into_iter().next();
        Ok(found.and_then(|kv| Reservation::from_entry(&entry(&self.reservations_prefix(), kv)?)))
    }

    /// All reservations that are remembered.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        let listing = self.list_below(&self.reservations_prefix()).await?;
        Ok(listing.entries.iter().filter_map(Reservation::from_entry).collect())
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
        instead: &[&Entry],
    ) -> Result<Option<i64>, StoreError> {
        let path = self.subnet_key(&reservation.subnets.key());
        let memory = self.reservation_key(&reservation.subnets);
        let mut provided = vec![unchanged(&path, seen)];
        let mut operations =
            vec![TxnOp::put(path, value, None), TxnOp::put(memory, reservation.to_json(), None)];
        for entry in instead {
            let other = self.subnet_key(&entry.key);
            provided.push(unchanged(&other, entry.mod_revision));
            operations.push(TxnOp::delete(other, None));
            let remembered = Subnets::from_key(&entry.key).map(|subnets| self.reservation_key(&subnets));
            operations.extend(remembered.map(|key| TxnOp::delete(key, None)));
        }
        self.commit_all(provided, operations).await
    }

    /// Remembers a reservation that stands already.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn remember(&self, reservation: &Reservation) -> Result<(), StoreError> {
        let put = TxnOp::put(self.reservation_key(&reservation.subnets), reservation.to_json(), None);
        self.commit_all(Vec::new(), vec![put]).await.map(drop)
    }

    /// Deletes a lease if its last write still is the one at `seen`, 0 for none, and what is remembered of a reservation.
    /// Answers whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn release(&self, subnets: &Subnets, seen: i64) -> Result<bool, StoreError> {
        let path = self.subnet_key(&subnets.key());
        let operations = [path.clone(), self.reservation_key(subnets)].map(|key| TxnOp::delete(key, None));
        self.commit_all(vec![unchanged(&path, seen)], operations.into()).await.map(|done| done.is_some())
    }

    fn reservations_prefix(&self) -> String {
        format!("{}/reservations/", self.config.prefix)
    }

    fn reservation_key(&self, subnets: &Subnets) -> String {
        format!("{}{}", self.reservations_prefix(), subnets.key())
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
