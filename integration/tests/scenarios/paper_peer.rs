//! Peers that need no host.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use flan_integration::flannel::{LEASE_SECONDS, lease_value};
use flan_integration::{Host, Store};

/// A peer that exists as a lease alone.
#[derive(Clone, Copy)]
pub(crate) struct PaperPeer {
    pub(crate) third: u8,
    pub(crate) mac: &'static str,
}

impl PaperPeer {
    pub(crate) fn base(self) -> String {
        format!("10.5.{}.0", self.third)
    }

    /// `10.5.200.0/24`.
    pub(crate) fn subnet(self) -> String {
        format!("{}/24", self.base())
    }

    pub(crate) fn public_ip(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 64, self.third)
    }

    pub(crate) fn key(self) -> String {
        format!("subnets/{}-24", self.base())
    }

    pub(crate) fn put(self, store: &Store) -> Result<()> {
        store.put_leased(&self.key(), &lease_value(self.public_ip(), self.mac), LEASE_SECONDS).map(drop)
    }

    /// An error unless the host's kernel holds this peer as its lease says.
    pub(crate) fn is_known_to(self, host: &Host) -> Result<()> {
        let overlay = host.overlay()?;
        let known = overlay.routes.contains(&format!("{}/24", self.base()))
            && overlay.neighbours.get(&self.base()).is_some_and(|mac| mac == self.mac)
            && overlay.fdb.get(self.mac) == Some(&self.public_ip().to_string());
        ensure!(known, "{} does not know {} at {}: {overlay:?}", host.name(), self.base(), self.mac);
        Ok(())
    }

    /// An error if the host's kernel holds anything of this peer.
    pub(crate) fn is_unknown_to(self, host: &Host) -> Result<()> {
        let overlay = host.overlay()?;
        let known = overlay.routes.contains(&format!("{}/24", self.base()))
            || overlay.neighbours.contains_key(&self.base())
            || overlay.fdb.contains_key(self.mac);
        ensure!(!known, "{} knows {} still: {overlay:?}", host.name(), self.base());
        Ok(())
    }
}
