//! The list of all kinds of objects, and types derived from it: states, and an object, operation or fact of any kind.

use std::collections::BTreeMap;
use std::fmt;

use crate::KernelError;
use crate::kind::gateway::{Gateway, NextHopId};
use crate::kind::link_name::LinkName;
use crate::kind::{Changed, Edit, Kind, Name, Upheaval};
use crate::netlink::devices::Devices;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::nft::Part;
use crate::netlink::object::{InTheWay, NetlinkObject, Notification};
use crate::netlink::reading::Reading;
use crate::netlink::socket::Socket;
use crate::netlink::wire::Frame;

/// The list, in the order in which objects are added, so that nothing precedes what it needs: no route leads to a next
/// hop that cannot be resolved, and no rule drops packets before every sender is known. Deletion reverses it.
///
/// Each line has its field in a [`State`], its name in an [`Object`], and its [`Kind`].
macro_rules! kinds {
    ($then:ident) => {
        $then! {
            links: Link(crate::kind::link::Links),
            fou_ports: FouPort(crate::kind::fou_port::FouPorts),
            wireguards: WireguardDevice(crate::kind::wireguard_device::WireguardDevices),
            checksums: Checksum(crate::kind::checksums::Checksums),
            addresses: Address(crate::kind::address::Addresses),
            sources: Source(crate::kind::source::Sources),
            wireguard_peers: WireguardPeer(crate::kind::wireguard_peer::WireguardPeers),
            neighbours: Neighbour(crate::kind::neighbour::Neighbours),
            fdb: Fdb(crate::kind::fdb::Fdb),
            next_hops: NextHop(crate::kind::next_hop::NextHops),
            routes: Route(crate::kind::route::Routes),
            checks: Check(crate::kind::check::Checks),
        }
    };
}
pub(crate) use kinds;

/// Objects of one kind by their kernel identity, so that they cannot contradict each other.
pub type Objects<K> = BTreeMap<<K as Kind>::Key, <K as Kind>::Value>;

/// A kind that is in the list.
pub trait Listed: Kind {
    /// Returns the objects of this kind in a state.
    fn of(state: &State) -> &Objects<Self>;
    /// Returns the same, mutably.
    fn of_mut(state: &mut State) -> &mut Objects<Self>;
    /// Wraps the name of an object.
    fn object(key: Self::Key) -> Object;
    /// Wraps an object.
    fn entry(key: Self::Key, value: Self::Value) -> Entry;
    /// Wraps what the kernel holds under a name.
    fn fact(key: Self::Key, held: Option<Self::Value>) -> Fact;
    /// Wraps an operation.
    fn operation(edit: Edit<Self>) -> Operation;
}

/// A visitor of operations on objects of any kind.
#[cfg(any(test, feature = "fake"))]
pub(crate) trait OnEdit {
    type Output;
    fn edit<K: Listed>(self, edit: &Edit<K>) -> Self::Output;
}

/// A visitor of all kinds.
pub(crate) trait ForEach {
    fn kind<K: Listed>(&mut self);
}

macro_rules! define {
    ($($field:ident: $name:ident($kind:ty),)*) => {
        /// The part of the kernel's network state that the agent is responsible for, wanted or actual.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct State {
            $(
                #[doc = concat!("All [`", stringify!($kind), "`].")]
                pub $field: Objects<$kind>,
            )*
        }

        /// The name of a kernel object, whether or not it exists.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Object {
            $(
                #[doc = concat!("One of [`", stringify!($kind), "`].")]
                $name(<$kind as Kind>::Key),
            )*
        }

        /// A wanted object with its value.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Entry {
            $(
                #[doc = concat!("One of [`", stringify!($kind), "`].")]
                $name(<$kind as Kind>::Key, <$kind as Kind>::Value),
            )*
        }

        /// What the kernel holds under one name; `None` if it holds nothing there, or nothing of ours.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Fact {
            $(
                #[doc = concat!("Of [`", stringify!($kind), "`].")]
                $name(<$kind as Kind>::Key, Option<<$kind as Kind>::Value>),
            )*
        }

        /// One change to the kernel. `{}` prints one readable line in the style of `ip(8)` and `bridge(8)`.
        #[derive(Clone, PartialEq)]
        pub enum Operation {
            $(
                #[doc = concat!("On one of [`", stringify!($kind), "`].")]
                $name(Edit<$kind>),
            )*
        }

        $(
            impl Listed for $kind {
                fn of(state: &State) -> &Objects<Self> {
                    &state.$field
                }
                fn of_mut(state: &mut State) -> &mut Objects<Self> {
                    &mut state.$field
                }
                fn object(key: Self::Key) -> Object {
                    Object::$name(key)
                }
                fn entry(key: Self::Key, value: Self::Value) -> Entry {
                    Entry::$name(key, value)
                }
                fn fact(key: Self::Key, held: Option<Self::Value>) -> Fact {
                    Fact::$name(key, held)
                }
                fn operation(edit: Edit<Self>) -> Operation {
                    Operation::$name(edit)
                }
            }
        )*

        /// Visits every kind in the order in which objects are added.
        pub(crate) fn for_each(each: &mut impl ForEach) {
            $(each.kind::<$kind>();)*
        }

        impl State {
            /// Returns all objects.
            pub fn entries(&self) -> impl Iterator<Item = Entry> {
                std::iter::empty()$(.chain(
                    self.$field.iter().map(|(key, value)| Entry::$name(*key, value.clone()))
                ))*
            }

            /// Returns the number of objects.
            pub fn count(&self) -> usize {
                0 $(+ self.$field.len())*
            }

            /// Adds an object, replacing another of the same name.
            pub fn insert(&mut self, entry: Entry) {
                match entry {
                    $(Entry::$name(key, value) => drop(self.$field.insert(key, value)),)*
                }
            }
        }

        impl Object {
            /// Returns the names of its kind.
            pub fn name(&self) -> Name {
                match self {
                    $(Self::$name(_) => <$kind as Kind>::NAME,)*
                }
            }

            /// Returns the device, if it is one.
            pub fn as_device(&self) -> Option<LinkName> {
                match self {
                    $(Self::$name(key) => <$kind as Kind>::as_device(key),)*
                }
            }

            /// The names of all kinds, in the order of the list.
            pub const NAMES: &'static [Name] = &[$(<$kind as Kind>::NAME),*];
        }

        impl fmt::Display for Object {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name(key) => write!(f, "{} {key}", <$kind as Kind>::NAME.short),)*
                }
            }
        }

        impl Fact {
            /// Returns whether it reports a disappearance that takes other objects along without notifications.
            pub fn takes_others_along(&self) -> bool {
                match self {
                    $(Self::$name(_, held) => held.is_none() && <$kind as Kind>::TAKES_OTHERS_ALONG,)*
                }
            }

            /// Returns the object that it is about.
            pub fn object(&self) -> Object {
                match self {
                    $(Self::$name(key, _) => Object::$name(*key),)*
                }
            }
        }

        impl Operation {
            /// Returns the object that it changes.
            pub fn object(&self) -> Object {
                match self {
                    $(Self::$name(edit) => Object::$name(*edit.key()),)*
                }
            }

            /// Returns the device that must exist for it; `None` for an operation on a device itself, or without one.
            pub fn device(&self) -> Option<LinkName> {
                match self {
                    $(Self::$name(edit) => edit.device(),)*
                }
            }

            /// Passes it to a visitor.
            #[cfg(any(test, feature = "fake"))]
            pub(crate) fn dispatch<D: OnEdit>(&self, on_edit: D) -> D::Output {
                match self {
                    $(Self::$name(edit) => on_edit.edit(edit),)*
                }
            }

            /// Returns how it is carried out.
            pub fn changed(&self) -> Changed {
                match self {
                    $(Self::$name(_) => <$kind as Kind>::CHANGED,)*
                }
            }

            /// Returns whether it removes something.
            pub fn is_deletion(&self) -> bool {
                match self {
                    $(Self::$name(edit) => edit.is_deletion(),)*
                }
            }

            /// Returns the device that it changes, and the effect on the objects there. See [`Kind::upheaval`].
            pub fn upheaval(&self) -> Option<(LinkName, Upheaval)> {
                match self {
                    $(Self::$name(edit) => <$kind as Kind>::upheaval(edit),)*
                }
            }

            /// Returns whether it creates a device.
            pub fn makes_device(&self) -> bool {
                let is_device = self.object().as_device().is_some() && !self.is_deletion();
                is_device && self.upheaval().is_none_or(|(_, upheaval)| upheaval.anew)
            }

            /// Returns the next hop object that it is about, with where that leads, or led before the deletion.
            pub(crate) fn as_next_hop(&self) -> Option<(NextHopId, Gateway)> {
                match self {
                    $(Self::$name(edit) => <$kind as Kind>::as_next_hop(edit.key(), edit.value()),)*
                }
            }

            /// Returns the next hop object that its object names.
            pub(crate) fn next_hop(&self) -> Option<NextHopId> {
                match self {
                    $(Self::$name(edit) => <$kind as Kind>::next_hop(edit.value()),)*
                }
            }

            /// Returns the same operation with the gateway inline instead of a next hop object.
            pub(crate) fn inline(&self, gateway: &Gateway) -> Self {
                match self {
                    $(Self::$name(edit) => Self::$name(edit.inline(gateway)),)*
                }
            }

            /// Turns a replacement into an addition; `None` for other operations.
            pub(crate) fn adding(&self) -> Option<Self> {
                match self {
                    $(Self::$name(edit) => edit.adding().map(Self::$name),)*
                }
            }

            /// Turns an addition into a replacement; `None` for other operations.
            pub(crate) fn replacing(&self) -> Option<Self> {
                match self {
                    $(Self::$name(edit) => edit.replacing().map(Self::$name),)*
                }
            }

            /// Returns whether `errno` means that the operation has already taken effect.
            pub(crate) fn is_so_already(&self, errno: i32) -> bool {
                match self {
                    $(Self::$name(edit) => edit.is_so_already(errno),)*
                }
            }

            /// See [`NetlinkObject::request`].
            pub(crate) fn request(&self, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
                match self {
                    $(Self::$name(edit) => <$kind as NetlinkObject>::request(edit, index),)*
                }
            }

            /// See [`NetlinkObject::change_device`].
            pub(crate) fn change_device(
                &self,
                socket: &mut Socket,
                devices: &mut Devices,
            ) -> Result<bool, KernelError> {
                match self {
                    $(Self::$name(edit) => <$kind as NetlinkObject>::change_device(edit, socket, devices),)*
                }
            }

            /// See [`NetlinkObject::wireguard_change`].
            pub(crate) fn wireguard_change(&self) -> Vec<u8> {
                match self {
                    $(Self::$name(edit) => <$kind as NetlinkObject>::wireguard_change(edit),)*
                }
            }

            /// See [`NetlinkObject::transaction`].
            pub(crate) fn transaction(&self, nftables: &mut Socket) -> Result<Part, KernelError> {
                match self {
                    $(Self::$name(edit) => <$kind as NetlinkObject>::transaction(edit, nftables),)*
                }
            }

        }

        impl fmt::Display for Operation {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name(edit) => edit.fmt(f),)*
                }
            }
        }

        impl fmt::Debug for Operation {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "`{self}`")
            }
        }

        /// Returns what blocks each operation that failed because something exists, by number. See
        /// [`NetlinkObject::in_the_way`].
        pub(crate) fn in_the_way(
            refused: &[(usize, &Operation)],
            lookup: &mut Lookup<'_>,
        ) -> Result<Vec<(usize, InTheWay)>, KernelError> {
            let mut found = Vec::new();
            $(
                let of_kind: Vec<(usize, &Edit<$kind>)> = refused.iter().filter_map(|(number, operation)| {
                    match operation {
                        Operation::$name(edit) => Some((*number, edit)),
                        _ => None,
                    }
                }).collect();
                if !of_kind.is_empty() {
                    let edits: Vec<&Edit<$kind>> = of_kind.iter().map(|(_, edit)| *edit).collect();
                    let there = <$kind as NetlinkObject>::in_the_way(&edits, lookup)?;
                    let numbers = of_kind.iter().map(|(number, _)| *number);
                    found.extend(numbers.zip(there).filter_map(|(number, there)| Some((number, there?))));
                }
            )*
            Ok(found)
        }

        /// Reads everything that is ours, of all kinds.
        ///
        /// # Errors
        /// If the kernel does not answer. `ENODEV` means that a device disappeared meanwhile.
        pub(crate) fn read(reading: &mut Reading<'_>) -> Result<State, KernelError> {
            let mut state = State::default();
            $(
                // A map collected from sorted items has no gaps.
                let mut all = <$kind as NetlinkObject>::read(reading)?;
                all.sort_by_key(|(key, _)| *key);
                state.$field = all.into_iter().collect();
            )*
            Ok(state)
        }

        /// Translates a message into changes.
        pub(crate) fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, changes: &mut Vec<Change>) {
            $(
                if <$kind as NetlinkObject>::MESSAGES.contains(&frame.kind) {
                    <$kind as NetlinkObject>::heard(frame, lookup, &mut |told| {
                        changes.push(told.map(|(key, held)| Fact::$name(key, held)));
                    });
                }
            )*
        }
    };
}
kinds!(define);

/// A notification from the kernel.
pub type Change = Notification<Fact>;

#[cfg(test)]
mod tests;
