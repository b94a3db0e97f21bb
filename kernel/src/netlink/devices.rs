//! The devices that are ours, and the names of devices, which messages give by index.

use std::collections::{BTreeMap, BTreeSet};

use crate::Ownership;
use crate::kind::link::LinkKind;
use crate::kind::link_name::LinkName;

/// The devices seen so far.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    ours: BTreeSet<LinkName>,
    names: BTreeMap<u32, LinkName>,
    /// Devices of ours that were created or seen, by the name that they should have.
    known: BTreeMap<LinkName, Known>,
}

/// Recognises a device of ours after somebody has renamed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) index: u32,
    pub(crate) kind: LinkKind,
}

impl Devices {
    /// Sets which names are ours.
    pub(crate) fn set_ours(&mut self, ownership: &Ownership) {
        self.ours.clone_from(&ownership.links);
    }

    /// Returns whether a device of that name would be ours.
    pub(crate) fn is_ours(&self, name: LinkName) -> bool {
        self.ours.contains(&name)
    }

    /// Records the name of a device, and returns its previous name if it differs.
    pub(crate) fn name_is(&mut self, index: u32, name: LinkName) -> Option<LinkName> {
        self.names.insert(index, name).filter(|before| *before != name)
    }

    /// Forgets a deleted device, and returns its name.
    pub(crate) fn is_gone(&mut self, index: u32) -> Option<LinkName> {
        self.names.remove(&index)
    }

    /// Forgets all names, after they may have changed unnoticed.
    pub(crate) fn forget_names(&mut self) {
        self.names.clear();
    }

    /// Returns the name of the device, if known.
    pub(crate) fn name(&self, index: u32) -> Option<LinkName> {
        self.names.get(&index).copied()
    }

    /// Records a device of ours that has its proper name.
    pub(crate) fn stands(&mut self, name: LinkName, index: u32, kind: LinkKind) {
        self.names.insert(index, name);
        self.known.insert(name, Known { index, kind });
    }

    /// Returns the device that once had this name of ours, and may have another now.
    pub(crate) fn known(&self, name: LinkName) -> Option<&Known> {
        self.known.get(&name)
    }
}

impl Known {
    /// Returns whether a device of `kind` can be this one. Its underlay may be gone, and changeable settings may
    /// differ.
    pub(crate) fn is_of(&self, kind: &LinkKind) -> bool {
        match (&self.kind, kind) {
            (LinkKind::Vxlan(known), LinkKind::Vxlan(found)) => {
                (known.vni, known.port) == (found.vni, found.port)
            }
            (LinkKind::Tun { .. }, LinkKind::Tun { .. })
            | (LinkKind::Ipip(_), LinkKind::Ipip(_))
            | (LinkKind::Wireguard, LinkKind::Wireguard)
            | (LinkKind::Bridge, LinkKind::Bridge) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::link::Vxlan;

    fn name(text: &str) -> LinkName {
        text.parse().unwrap()
    }

    fn vxlan(vni: u32) -> LinkKind {
        let (underlay, local) = (Some(name("eth0")), None);
        LinkKind::Vxlan(Vxlan { vni, port: 8472, underlay, local, learning: false, gbp: false })
    }

    #[test]
    fn a_device_that_was_renamed_is_known_by_its_index_and_kind() {
        let mut devices = Devices::default();
        devices.set_ours(&Ownership {
            links: [name("flannel.1")].into(),
            senders: false,
            ..Ownership::default()
        });
        devices.stands(name("flannel.1"), 4, vxlan(1));
        assert_eq!(devices.name_is(4, name("mine")), Some(name("flannel.1")));
        assert_eq!(devices.name_is(4, name("mine")), None);
        assert!(!devices.name(4).is_some_and(|name| devices.is_ours(name)));
        let known = devices.known(name("flannel.1")).unwrap();
        assert_eq!(known.index, 4);
        assert!(known.is_of(&vxlan(1)));
        assert!(!known.is_of(&vxlan(2)), "another device by now");
        assert!(!known.is_of(&LinkKind::Tun { vnet_header: true }));
    }

    #[test]
    fn a_device_that_went_has_no_name() {
        let mut devices = Devices::default();
        devices.name_is(4, name("veth0"));
        assert_eq!(devices.is_gone(4), Some(name("veth0")));
        assert_eq!(devices.name(4), None);
    }
}
