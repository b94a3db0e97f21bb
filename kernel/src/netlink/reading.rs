//! One reading of everything that is ours, kind by kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::devices::Devices;
use super::generic::Generic;
use super::socket::Socket;
use super::{features, fou, nft, wireguard};
use crate::kind::gateway::NextHopId;
use crate::kind::link::LinkKind;
use crate::kind::link_name::LinkName;
use crate::{KernelError, Ownership};

/// The sockets of a reading.
#[derive(Debug)]
pub(crate) struct Sockets {
    route: Socket,
    /// For the senders, if they are ours.
    nftables: Option<Socket>,
    /// For FOU ports, if some are ours and the kernel has them.
    fou: Option<Generic>,
    ethtool: Option<Generic>,
    /// For WireGuard, if a device of ours may be one.
    wireguard: Option<Generic>,
}

impl Sockets {
    /// Opens them in the current network namespace.
    pub(super) fn open(ownership: &Ownership) -> Result<Self, KernelError> {
        let with_fou = !ownership.fou_ports.is_empty();
        Ok(Self {
            route: Socket::open()?,
            nftables: ownership.senders.then(nft::socket).transpose()?,
            fou: if with_fou { fou::socket()? } else { None },
            ethtool: if with_fou { features::socket()? } else { None },
            wireguard: if ownership.wireguard { wireguard::socket()? } else { None },
        })
    }
}

/// The state of a reading. Devices come first, and next hop objects before routes.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) socket: &'a mut Socket,
    pub(crate) nftables: Option<&'a mut Socket>,
    pub(crate) fou: Option<&'a mut Generic>,
    pub(crate) ethtool: Option<&'a mut Generic>,
    wireguard: Option<&'a mut Generic>,
    devices: &'a Mutex<Devices>,
    /// The names that our devices should have.
    pub(crate) wanted: Vec<LinkName>,
    /// The numbers that our FOU ports have.
    pub(crate) fou_ports: &'a BTreeSet<u16>,
    /// The devices that next hop objects lead to, whoever made these.
    pub(crate) next_hops: BTreeMap<NextHopId, u32>,
    /// Our devices that exist, by index.
    pub(crate) ours: BTreeMap<u32, LinkName>,
    /// Those that send FOU datagrams.
    pub(crate) tunnels: BTreeMap<u32, LinkName>,
    /// Our WireGuard devices, read when first needed.
    wireguards: Option<BTreeMap<LinkName, wireguard::Found>>,
    /// Device names by index, looked up when first needed.
    names: BTreeMap<u32, LinkName>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(
        sockets: &'a mut Sockets,
        devices: &'a Mutex<Devices>,
        ownership: &'a Ownership,
    ) -> Self {
        Self {
            socket: &mut sockets.route,
            nftables: sockets.nftables.as_mut(),
            fou: sockets.fou.as_mut(),
            ethtool: sockets.ethtool.as_mut(),
            wireguard: sockets.wireguard.as_mut(),
            devices,
            wanted: ownership.links.iter().copied().collect(),
            fou_ports: &ownership.fou_ports,
            next_hops: BTreeMap::new(),
            ours: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            wireguards: None,
            names: BTreeMap::new(),
        }
    }

    /// Records a device of ours that exists.
    pub(crate) fn is_there(&mut self, name: LinkName, index: u32, kind: &LinkKind) {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).stands(name, index, kind.clone());
        self.ours.insert(index, name);
        self.names.insert(index, name);
        if matches!(kind, LinkKind::Ipip(_)) {
            self.tunnels.insert(index, name);
        }
    }

    /// Returns our devices that exist.
    pub(crate) fn ours(&self) -> Vec<(u32, LinkName)> {
        self.ours.iter().map(|(index, name)| (*index, *name)).collect()
    }

    /// Returns our WireGuard devices with their peers.
    pub(crate) fn wireguards(&mut self) -> Result<&BTreeMap<LinkName, wireguard::Found>, KernelError> {
        if self.wireguards.is_none() {
            let mut all = BTreeMap::new();
            if let Some(socket) = &mut self.wireguard {
                for &link in self.ours.values() {
                    all.extend(wireguard::read(socket, link)?.map(|found| (link, found)));
                }
            }
            self.wireguards = Some(all);
        }
        Ok(self.wireguards.get_or_insert_default())
    }

    pub(crate) fn is_ours(&self, index: u32) -> bool {
        self.ours.contains_key(&index)
    }

    /// Returns the name of a device, if it exists.
    pub(crate) fn find(&mut self, index: u32) -> Result<Option<LinkName>, KernelError> {
        if let Some(&name) = self.names.get(&index) {
            return Ok(Some(name));
        }
        let Some(name) = self.socket.link_name(index)? else { return Ok(None) };
        self.names.insert(index, name);
        Ok(Some(name))
    }

    /// Returns the name of a device that something leads to, so it existed a moment ago.
    pub(crate) fn must_find(&mut self, index: u32) -> Result<LinkName, KernelError> {
        self.find(index)?.ok_or(KernelError::Errno(libc::ENODEV))
    }
}

/// Returns an empty table if the kernel lacks the family or table: it creates IPv4's main table with its first route.
pub(crate) fn without_family<T>(dumped: Result<Vec<T>, KernelError>) -> Result<Vec<T>, KernelError> {
    match dumped {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        dumped => dumped,
    }
}
