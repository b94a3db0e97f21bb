//! A kind of object that the kernel holds: what names one, what it is, and how it behaves.
//!
//! A kind is one file below this one, and one line in the list (`kinds.rs`). Nothing else knows it by name: state, plan,
//! ledger, diff, operation, fake and netlink are written once for all kinds.

pub mod address;
pub mod check;
pub mod fdb;
pub mod gateway;
pub mod link;
pub mod link_name;
pub mod neighbour;
pub mod next_hop;
pub mod route;
pub mod source;

use std::fmt;
use std::hash::Hash;

use self::gateway::{Gateway, NextHopId};
use self::link_name::LinkName;

/// A kind of object.
pub trait Kind: Copy + Eq + fmt::Debug + 'static {
    /// What the kernel itself takes for an object's identity.
    type Key: Copy + Ord + Hash + fmt::Debug + fmt::Display + Send + Sync;
    /// What else there is to an object; `()` where the key says it all.
    type Value: Clone + Eq + fmt::Debug + Send + Sync;

    /// What it is called.
    const NAME: Name;
    /// How it is changed.
    const CHANGED: Changed = Changed::ByOneRequest;
    /// Whether adding one that the kernel holds already is as good as changing it. If not, the kernel refuses with `EEXIST`,
    /// and the one that it holds is not ours.
    const ADD_OVERWRITES: bool = true;
    /// Whether what names one goes with it, and the kernel does not say so.
    const TAKES_OTHERS_ALONG: bool = false;
    /// Whether those on devices that are not ours are told of as well, for they tell of the host.
    const TELLS_OF_HOST: bool = false;
    /// Whether it needs its device up, not only there.
    const NEEDS_DEVICE_UP: bool = false;

    /// Writes an object in the words of `ip(8)`: `10.5.3.0/24 nhid 168100608 dev flannel.1`.
    fn show(key: &Self::Key, value: &Self::Value, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Writes what an operation does.
    fn show_edit(edit: &Edit<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, value) = match edit {
            Edit::Add { value, .. } => ("add", value),
            Edit::Replace { value, .. } => ("replace", value),
            Edit::Delete { held, .. } => ("delete", held),
        };
        write!(f, "{verb} {} ", Self::NAME.short)?;
        Self::show(edit.key(), value, f)
    }

    /// Whether it bears the mark by which a restarted agent knows what it made, whatever its device.
    fn is_marked(_value: &Self::Value) -> bool {
        false
    }

    /// Whether it leads to wherever no other one does.
    fn is_default_route(_key: &Self::Key) -> bool {
        false
    }

    /// The device that it is.
    fn as_device(_key: &Self::Key) -> Option<LinkName> {
        None
    }

    /// The device that it stands on or leads to, and cannot be there without.
    fn device(_key: &Self::Key, _value: &Self::Value) -> Option<LinkName> {
        None
    }

    /// The device that it lets have to do with IPv4.
    fn lets_ipv4_on(_key: &Self::Key) -> Option<LinkName> {
        None
    }

    /// What an operation on a device does to what stands on the device; `None` for operations on anything else, and for
    /// devices that are new.
    fn upheaval(_edit: &Edit<Self>) -> Option<(LinkName, Upheaval)> {
        None
    }

    /// Whether it is still there when this has happened to its device.
    fn survives(_key: &Self::Key, _value: &Self::Value, upheaval: &Upheaval) -> bool {
        !upheaval.anew
    }

    /// Whether it goes by itself when its device is deleted after everything else was put right.
    fn goes_with_device(_value: &Self::Value) -> bool {
        true
    }

    /// Whether a deletion that names `named` means the one that the kernel holds under the same key.
    fn is_named_by(_standing: &Self::Value, _named: &Self::Value) -> bool {
        true
    }

    /// The next hop object that it is, and where that leads: there leads what [names](Self::next_hop) it.
    fn as_next_hop(_key: &Self::Key, _value: &Self::Value) -> Option<(NextHopId, Gateway)> {
        None
    }

    /// The next hop object that it names, and by which it finds its device.
    fn next_hop(_value: &Self::Value) -> Option<NextHopId> {
        None
    }

    /// The same without a next hop object, by the gateway itself.
    fn inline(value: &Self::Value, _gateway: &Gateway) -> Self::Value {
        value.clone()
    }

    /// The same where the next hop object that it names leads elsewhere now.
    fn moved(value: &Self::Value, _gateway: &Gateway) -> Self::Value {
        value.clone()
    }

    /// Whether one that the kernel holds is as good as the one that is wanted.
    fn is_as_wanted(held: &Self::Value, wanted: &Self::Value) -> bool {
        held == wanted
    }

    /// What is wanted where several wishes name one object, the oldest first: two leases of one host want the same
    /// forwarding entry. There is at least one.
    fn merge(wishes: &[Self::Value]) -> Self::Value {
        wishes[wishes.len() - 1].clone()
    }
}

/// What happens to a device, as far as what stands on it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upheaval {
    /// It is deleted, or made anew.
    pub anew: bool,
    /// It gets another MAC.
    pub new_mac: bool,
    /// It goes down.
    pub goes_down: bool,
    /// It is down before or after.
    pub is_down: bool,
    /// It loses its last IPv4 address, and with it whatever the kernel does with IPv4 there.
    pub loses_ipv4: bool,
}

/// What a kind is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// As `ip(8)` and `bridge(8)` call it, for operations.
    pub short: &'static str,
    /// One of them, for people.
    pub one: &'static str,
    /// Several of them.
    pub many: &'static str,
}

/// How objects of a kind are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// One request each; many go at once.
    ByOneRequest,
    /// Several requests each, one after the other. Objects that are changed later may stand on it.
    ByDevice,
    /// Many in one transaction of nftables.
    ByNftables,
}

/// What is to be done about one object.
#[derive(Clone, PartialEq)]
pub enum Edit<K: Kind> {
    /// Add it.
    Add {
        /// Which.
        key: K::Key,
        /// What it shall be.
        value: K::Value,
    },
    /// Change it in one step, without a moment in which there is none.
    Replace {
        /// Which.
        key: K::Key,
        /// What it is now.
        held: K::Value,
        /// What it shall be.
        value: K::Value,
    },
    /// Delete it.
    Delete {
        /// Which.
        key: K::Key,
        /// What it is now.
        held: K::Value,
    },
}

impl<K: Kind> Edit<K> {
    /// Which object.
    pub fn key(&self) -> &K::Key {
        match self {
            Self::Add { key, .. } | Self::Replace { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// What the object is afterwards; `None` if it is gone.
    pub fn outcome(&self) -> Option<&K::Value> {
        match self {
            Self::Add { value, .. } | Self::Replace { value, .. } => Some(value),
            Self::Delete { .. } => None,
        }
    }

    /// What the object shall be, or is before it is deleted.
    pub fn value(&self) -> &K::Value {
        match self {
            Self::Add { value, .. } | Self::Replace { value, .. } => value,
            Self::Delete { held, .. } => held,
        }
    }

    /// The device that must be there for it. A next hop object is deleted by its id alone.
    pub fn device(&self) -> Option<LinkName> {
        let by_id = self.is_deletion() && K::as_next_hop(self.key(), self.value()).is_some();
        if by_id { None } else { K::device(self.key(), self.value()) }
    }

    /// Whether it takes something away, so that it is as good as done if that is not there.
    pub fn is_deletion(&self) -> bool {
        matches!(self, Self::Delete { .. })
    }

    /// The same without a next hop object, by the gateway itself.
    pub(crate) fn inline(&self, gateway: &Gateway) -> Self {
        match self {
            Self::Add { key, value } => Self::Add { key: *key, value: K::inline(value, gateway) },
            Self::Replace { key, held, value } => {
                Self::Replace { key: *key, held: held.clone(), value: K::inline(value, gateway) }
            }
            Self::Delete { key, held } => Self::Delete { key: *key, held: K::inline(held, gateway) },
        }
    }

    /// Adds what this one would replace; `None` for others.
    pub(crate) fn adding(&self) -> Option<Self> {
        match self {
            Self::Replace { key, value, .. } => Some(Self::Add { key: *key, value: value.clone() }),
            _ => None,
        }
    }

    /// Replaces what this one would add, whatever that is; `None` for others.
    pub(crate) fn replacing(&self) -> Option<Self> {
        match self {
            Self::Add { key, value } => {
                Some(Self::Replace { key: *key, held: value.clone(), value: value.clone() })
            }
            _ => None,
        }
    }

    /// Whether `errno` says that what is to be done is so already.
    pub(crate) fn is_so_already(&self, errno: i32) -> bool {
        match self {
            Self::Add { .. } => K::ADD_OVERWRITES && errno == libc::EEXIST,
            Self::Replace { .. } => false,
            Self::Delete { .. } => {
                matches!(errno, libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)
            }
        }
    }
}

impl<K: Kind> fmt::Display for Edit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        K::show_edit(self, f)
    }
}

impl<K: Kind> fmt::Debug for Edit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}
