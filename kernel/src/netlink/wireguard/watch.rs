//! WireGuard's settings and peers that somebody else changes. The kernel sends no notifications about them, so it is
//! asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{Found, read, socket};
use crate::KernelError;
use crate::kind::link_name::LinkName;
use crate::kind::wireguard_device::WireguardDevice;
use crate::kind::wireguard_peer::{WireguardPeer, WireguardPeerKey};
use crate::kinds::{Change, Fact, Operation};
use crate::netlink::generic::Generic;

/// Shortest time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks at a kernel without WireGuard, which tries to load the module each time.
const LACKING: Duration = Duration::from_secs(60);
/// A look takes at most one part of this many of the time.
const SPARING: u32 = 50;

/// Asks regularly for the WireGuard devices that are ours.
#[derive(Debug)]
pub(in crate::netlink) struct Watch {
    links: BTreeSet<LinkName>,
    /// `None` until it is needed, and after it broke.
    socket: Option<Generic>,
    devices: BTreeMap<LinkName, WireguardDevice>,
    peers: BTreeMap<WireguardPeerKey, WireguardPeer>,
    /// What we changed since the last look: somebody may have undone it at once.
    changed: BTreeSet<WireguardPeerKey>,
    next: Instant,
}

impl Watch {
    pub(in crate::netlink) fn new() -> Self {
        Self {
            links: BTreeSet::new(),
            socket: None,
            devices: BTreeMap::new(),
            peers: BTreeMap::new(),
            changed: BTreeSet::new(),
            next: Instant::now(),
        }
    }

    /// Sets which devices are ours.
    pub(in crate::netlink) fn set_ours(&mut self, links: BTreeSet<LinkName>) {
        if self.links != links {
            self.links = links;
            self.next = Instant::now();
        }
    }

    /// Notes an operation of ours.
    pub(in crate::netlink) fn carried_out(&mut self, operation: &Operation) {
        match operation {
            Operation::WireguardPeer(edit) => drop(self.changed.insert(*edit.key())),
            Operation::WireguardDevice(edit) => drop(self.devices.remove(edit.key())),
            _ => {}
        }
    }

    /// Waits until it is time to ask; for ever if no device is ours. Cancel-safe.
    pub(in crate::netlink) async fn due(&self) {
        if self.links.is_empty() {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.next).await;
    }

    /// Returns what changed since the last call, if it is time to ask.
    pub(in crate::netlink) fn look(&mut self) -> Vec<Change> {
        let begin = Instant::now();
        if self.links.is_empty() || begin < self.next {
            return Vec::new();
        }
        let asked = self.ask();
        self.next = begin + INTERVAL.max(begin.elapsed() * SPARING);
        match asked {
            Ok(None) => {
                self.next = begin + LACKING;
                Vec::new()
            }
            Ok(Some(found)) => self.compare(found),
            Err(reason) => {
                self.socket = None;
                tracing::debug!(%reason, "cannot ask for the WireGuard peers");
                Vec::new()
            }
        }
    }

    /// Returns nothing if the kernel has no WireGuard.
    fn ask(&mut self) -> Result<Option<Vec<(LinkName, Found)>>, KernelError> {
        if self.socket.is_none() {
            self.socket = socket()?;
        }
        let Some(socket) = &mut self.socket else { return Ok(None) };
        let mut all = Vec::new();
        for &link in &self.links {
            all.extend(read(socket, link)?.map(|found| (link, found)));
        }
        Ok(Some(all))
    }

    fn compare(&mut self, found: Vec<(LinkName, Found)>) -> Vec<Change> {
        let (mut devices, mut peers) = (BTreeMap::new(), BTreeMap::new());
        // The kernel reports a device that is gone, and with it go its peers.
        let stand: BTreeSet<LinkName> = found.iter().map(|(link, _)| *link).collect();
        for (link, found) in found {
            devices.extend(found.device.map(|device| (link, device)));
            let key = |public_key| WireguardPeerKey { link, public_key };
            peers.extend(found.peers.into_iter().map(|(public_key, peer)| (key(public_key), peer)));
        }
        let mut told = Vec::new();
        for (&link, device) in devices.iter().filter(|(link, device)| self.devices.get(link) != Some(device))
        {
            told.push(Fact::WireguardDevice(link, Some(device.clone())));
        }
        for &link in self.devices.keys().filter(|link| stand.contains(link) && !devices.contains_key(link)) {
            told.push(Fact::WireguardDevice(link, None));
        }
        let missing = |key: &&WireguardPeerKey| stand.contains(&key.link) && !peers.contains_key(*key);
        for &key in self.peers.keys().chain(&self.changed).filter(missing) {
            told.push(Fact::WireguardPeer(key, None));
        }
        for (key, peer) in &peers {
            if self.changed.contains(key) || self.peers.get(key) != Some(peer) {
                told.push(Fact::WireguardPeer(*key, Some(peer.clone())));
            }
        }
        (self.devices, self.peers) = (devices, peers);
        self.changed.clear();
        told.into_iter().map(Change::Fact).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Edit;

    fn key(byte: u8) -> WireguardPeerKey {
        WireguardPeerKey { link: "flannel-wg".parse().unwrap(), public_key: [byte; 32].into() }
    }

    fn peer() -> WireguardPeer {
        WireguardPeer::default()
    }

    fn look(watch: &mut Watch, peers: &[u8]) -> Vec<(u8, bool)> {
        let peers = peers.iter().map(|byte| (key(*byte).public_key, peer())).collect();
        let told = watch.compare(vec![(key(0).link, Found { peers, ..Found::default() })]);
        told.into_iter()
            .filter_map(|change| match change {
                Change::Fact(Fact::WireguardPeer(key, held)) => {
                    Some((key.public_key.as_bytes()[0], held.is_some()))
                }
                _ => None,
            })
            .collect()
    }

    #[tokio::test]
    async fn only_what_changed_is_told() {
        let mut watch = Watch::new();
        assert_eq!(look(&mut watch, &[1, 2]), [(1, true), (2, true)]);
        assert_eq!(look(&mut watch, &[1, 2]), []);
        assert_eq!(look(&mut watch, &[2, 3]), [(1, false), (3, true)]);
    }

    #[tokio::test]
    async fn a_key_that_was_taken_away_is_told_and_a_device_that_is_gone_is_not() {
        let mut watch = Watch::new();
        let link = key(0).link;
        let device = WireguardDevice { private_key: [64; 32].into(), port: 51820 };
        let found = |device| vec![(link, Found { device, ..Found::default() })];
        let told = |held| Change::Fact(Fact::WireguardDevice(link, held));
        assert_eq!(watch.compare(found(Some(device.clone()))), [told(Some(device))]);
        assert_eq!(watch.compare(found(None)), [told(None)]);
        look(&mut watch, &[1]);
        assert_eq!(watch.compare(Vec::new()), []);
    }

    #[tokio::test]
    async fn what_was_repaired_and_undone_between_two_looks_is_told_again() {
        let mut watch = Watch::new();
        look(&mut watch, &[1]);
        assert_eq!(look(&mut watch, &[]), [(1, false)]);
        watch.carried_out(&Operation::WireguardPeer(Edit::Add { key: key(1), value: peer() }));
        assert_eq!(look(&mut watch, &[]), [(1, false)]);
        assert_eq!(look(&mut watch, &[]), []);
    }
}
