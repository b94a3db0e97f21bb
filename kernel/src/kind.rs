//! Kinds of kernel objects: what identifies one, what it holds, and how it behaves.
//!
//! A kind is one file below this one, and one line in the list (`kinds.rs`). Nothing else names a kind: state, plan,
//! ledger, diff, operation, fake and netlink are written once for all kinds.

pub mod address;
pub mod check;
pub mod checksums;
pub mod fdb;
pub mod fou_port;
pub mod gateway;
pub mod link;
pub mod link_name;
pub mod neighbour;
pub mod next_hop;
pub mod route;
pub mod source;
pub mod wireguard_device;
pub mod wireguard_peer;

use std::fmt;
use std::hash::Hash;

use self::gateway::{Gateway, NextHopId};
use self::link_name::LinkName;

/// A kind of object.
pub trait Kind: Copy + Eq + fmt::Debug + 'static {
    /// The object's identity, as the kernel sees it.
    type Key: Copy + Ord + Hash + fmt::Debug + fmt::Display + Send + Sync;
    /// The rest of the object; `()` if the key says everything.
    type Value: Clone + Eq + fmt::Debug + Send + Sync;

    /// The kind's name.
    const NAME: Name;
    /// How objects are changed.
    const CHANGED: Changed = Changed::ByOneRequest;
    /// Whether adding an object that exists already works as a change. If not, the kernel refuses with `EEXIST`, and
    /// the existing object is not ours.
    const ADD_OVERWRITES: bool = true;
    /// Whether objects that name this one disappear with it, without notifications.
    const TAKES_OTHERS_ALONG: bool = false;
    /// Whether objects on devices that are not ours are reported too, because they describe the host.
    const TELLS_OF_HOST: bool = false;
    /// Whether an object needs its device up, not only present.
    const NEEDS_DEVICE_UP: bool = false;

    /// Writes an object as `ip(8)` prints it: `10.5.3.0/24 nhid 168100608 dev flannel.1`.
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

    /// Returns whether it carries the mark by which a restarted agent recognises its objects on any device.
    fn is_marked(_value: &Self::Value) -> bool {
        false
    }

    /// Returns whether it is a default route.
    fn is_default_route(_key: &Self::Key) -> bool {
        false
    }

    /// Returns the device that this object is.
    fn as_device(_key: &Self::Key) -> Option<LinkName> {
        None
    }

    /// Returns the number by which a FOU port is ours or not.
    fn fou_number(_key: &Self::Key) -> Option<u16> {
        None
    }

    /// Returns the device that the object is on or leads to, and cannot exist without.
    fn device(_key: &Self::Key, _value: &Self::Value) -> Option<LinkName> {
        None
    }

    /// Returns the device on which this object enables IPv4.
    fn lets_ipv4_on(_key: &Self::Key) -> Option<LinkName> {
        None
    }

    /// Returns what an operation on a device does to the objects on it; `None` for new devices and anything else.
    fn upheaval(_edit: &Edit<Self>) -> Option<(LinkName, Upheaval)> {
        None
    }

    /// Returns whether it still exists after `upheaval` of its device.
    fn survives(_key: &Self::Key, _value: &Self::Value, upheaval: &Upheaval) -> bool {
        !upheaval.anew
    }

    /// Returns whether the kernel removes it with its device, when that is deleted after everything else.
    fn goes_with_device(_value: &Self::Value) -> bool {
        true
    }

    /// Returns whether a deletion of `named` refers to the object that the kernel holds under the same key.
    fn is_named_by(_standing: &Self::Value, _named: &Self::Value) -> bool {
        true
    }

    /// Returns the next hop object that this is, and where it leads. Objects that [name](Self::next_hop) it lead there.
    fn as_next_hop(_key: &Self::Key, _value: &Self::Value) -> Option<(NextHopId, Gateway)> {
        None
    }

    /// Returns the next hop object that it names, which determines its device.
    fn next_hop(_value: &Self::Value) -> Option<NextHopId> {
        None
    }

    /// Returns the same object with the gateway inline instead of a next hop object.
    fn inline(value: &Self::Value, _gateway: &Gateway) -> Self::Value {
        value.clone()
    }

    /// Returns the same object after the next hop object that it names was moved.
    fn moved(value: &Self::Value, _gateway: &Gateway) -> Self::Value {
        value.clone()
    }

    /// Returns whether what the kernel holds is as good as what is wanted.
    fn is_as_wanted(held: &Self::Value, wanted: &Self::Value) -> bool {
        held == wanted
    }

    /// Returns whether what is held, which is not as wanted, came about without another program.
    fn changes_by_itself(_held: &Self::Value, _wanted: &Self::Value) -> bool {
        false
    }

    /// Merges several wishes for one object, oldest first: two leases of one host want the same forwarding entry. There
    /// is at least one.
    fn merge(wishes: &[Self::Value]) -> Self::Value {
        wishes[wishes.len() - 1].clone()
    }
}

/// What happens to a device, as far as it affects the objects on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upheaval {
    /// It is deleted or replaced.
    pub anew: bool,
    /// Its MAC changes.
    pub new_mac: bool,
    /// It goes down.
    pub goes_down: bool,
    /// It is down before or after.
    pub is_down: bool,
    /// It loses its last IPv4 address, and with it the kernel's IPv4 state on the device.
    pub loses_ipv4: bool,
}

/// The names of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// As `ip(8)` and `bridge(8)` call it, for operations.
    pub short: &'static str,
    /// Singular, for people.
    pub one: &'static str,
    /// Plural, for people.
    pub many: &'static str,
}

/// How objects of a kind are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// One request each; many are sent at once.
    ByOneRequest,
    /// Several requests each, in sequence. Objects that are changed later may depend on it.
    ByDevice,
    /// Many in one nftables transaction.
    ByNftables,
    /// One request each over generic netlink; many are sent at once.
    ByWireguard,
}

/// A change to one object.
#[derive(Clone, PartialEq)]
pub enum Edit<K: Kind> {
    /// Add it.
    Add {
        /// The object.
        key: K::Key,
        /// Its wanted value.
        value: K::Value,
    },
    /// Change it in one step, without a moment in which it does not exist.
    Replace {
        /// The object.
        key: K::Key,
        /// Its current value.
        held: K::Value,
        /// Its wanted value.
        value: K::Value,
    },
    /// Delete it.
    Delete {
        /// The object.
        key: K::Key,
        /// Its current value.
        held: K::Value,
    },
}

impl<K: Kind> Edit<K> {
    /// Returns the object.
    pub fn key(&self) -> &K::Key {
        match self {
            Self::Add { key, .. } | Self::Replace { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// Returns the value afterwards; `None` after a deletion.
    pub fn outcome(&self) -> Option<&K::Value> {
        match self {
            Self::Add { value, .. } | Self::Replace { value, .. } => Some(value),
            Self::Delete { .. } => None,
        }
    }

    /// Returns the wanted value, or the last one before a deletion.
    pub fn value(&self) -> &K::Value {
        match self {
            Self::Add { value, .. } | Self::Replace { value, .. } => value,
            Self::Delete { held, .. } => held,
        }
    }

    /// Returns the device that must exist for it. A next hop object is deleted by its id alone.
    pub fn device(&self) -> Option<LinkName> {
        let by_id = self.is_deletion() && K::as_next_hop(self.key(), self.value()).is_some();
        if by_id { None } else { K::device(self.key(), self.value()) }
    }

    /// Returns whether it removes something, so that a missing object counts as success.
    pub fn is_deletion(&self) -> bool {
        matches!(self, Self::Delete { .. })
    }

    /// Returns the same edit with the gateway inline instead of a next hop object.
    pub(crate) fn inline(&self, gateway: &Gateway) -> Self {
        match self {
            Self::Add { key, value } => Self::Add { key: *key, value: K::inline(value, gateway) },
            Self::Replace { key, held, value } => {
                Self::Replace { key: *key, held: held.clone(), value: K::inline(value, gateway) }
            }
            Self::Delete { key, held } => Self::Delete { key: *key, held: K::inline(held, gateway) },
        }
    }

    /// Turns a replacement into an addition; `None` for other edits.
    pub(crate) fn adding(&self) -> Option<Self> {
        match self {
            Self::Replace { key, value, .. } => Some(Self::Add { key: *key, value: value.clone() }),
            _ => None,
        }
    }

    /// Turns an addition into a replacement of whatever exists; `None` for other edits.
    pub(crate) fn replacing(&self) -> Option<Self> {
        match self {
            Self::Add { key, value } => {
                Some(Self::Replace { key: *key, held: value.clone(), value: value.clone() })
            }
            _ => None,
        }
    }

    /// Returns whether `errno` means that the edit has already taken effect.
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
