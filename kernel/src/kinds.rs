//! The list of all kinds of objects, and what follows from it: states, and one object, operation or fact of any kind.

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

/// The list, in the order in which objects are added, so that nothing is added before what it needs: no route leads to a
/// next hop that cannot be resolved, and no rule drops packets before every sender is known. They are deleted the other way
/// round.
///
/// Of each: its place in a [`State`], its name in an [`Object`], and its [`Kind`].
macro_rules! kinds {
    ($then:ident) => {
        $then! {
            links: Link(crate::kind::link::Links),
            addresses: Address(crate::kind::address::Addresses),
            sources: Source(crate::kind::source::Sources),
            neighbours: Neighbour(crate::kind::neighbour::Neighbours),
            fdb: Fdb(crate::kind::fdb::Fdb),
            next_hops: NextHop(crate::kind::next_hop::NextHops),
            routes: Route(crate::kind::route::Routes),
            checks: Check(crate::kind::check::Checks),
        }
    };
}
pub(crate) use kinds;

/// Objects of one kind, by what the kernel itself takes as identity, so that they cannot contradict each other.
pub type Objects<K> = BTreeMap<<K as Kind>::Key, <K as Kind>::Value>;

/// A kind that is in the list.
pub trait Listed: Kind {
    /// The objects of this kind in a state.
    fn of(state: &State) -> &Objects<Self>;
    /// The same, to be changed.
    fn of_mut(state: &mut State) -> &mut Objects<Self>;
    /// The name of one.
    fn object(key: Self::Key) -> Object;
    /// One, with what it is.
    fn entry(key: Self::Key, value: Self::Value) -> Entry;
    /// What the kernel holds under a name.
    fn fact(key: Self::Key, held: Option<Self::Value>) -> Fact;
    /// An operation on one.
    fn operation(edit: Edit<Self>) -> Operation;
}

/// Does something with an operation on an object of any kind.
#[cfg(any(test, feature = "fake"))]
pub(crate) trait OnEdit {
    /// What comes of it.
    type Output;
    /// Does it with this one.
    fn edit<K: Listed>(self, edit: &Edit<K>) -> Self::Output;
}

/// Does something for every kind.
pub(crate) trait ForEach {
    /// Does it for this one.
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

        /// The name of anything that the kernel holds, whatever is there.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Object {
            $(
                #[doc = concat!("One of [`", stringify!($kind), "`].")]
                $name(<$kind as Kind>::Key),
            )*
        }

        /// An object with what it is, as it is wanted.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Entry {
            $(
                #[doc = concat!("One of [`", stringify!($kind), "`].")]
                $name(<$kind as Kind>::Key, <$kind as Kind>::Value),
            )*
        }

        /// What the kernel holds under one name; `None` says that it holds nothing there, or nothing of ours.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Fact {
            $(
                #[doc = concat!("Of [`", stringify!($kind), "`].")]
                $name(<$kind as Kind>::Key, Option<<$kind as Kind>::Value>),
            )*
        }

        /// One change to the kernel. Displayed as one readable line in the words of `ip(8)` and `bridge(8)`.
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

        /// Does it in the order in which objects are added.
        pub(crate) fn for_each(each: &mut impl ForEach) {
            $(each.kind::<$kind>();)*
        }

        impl State {
            /// Everything in it.
            pub fn entries(&self) -> impl Iterator<Item = Entry> {
                std::iter::empty()$(.chain(
                    self.$field.iter().map(|(key, value)| Entry::$name(*key, value.clone()))
                ))*
            }

            /// How many objects there are.
            pub fn count(&self) -> usize {
                0 $(+ self.$field.len())*
            }

            /// Adds one, in place of another of the same name.
            pub fn insert(&mut self, entry: Entry) {
                match entry {
                    $(Entry::$name(key, value) => drop(self.$field.insert(key, value)),)*
                }
            }
        }

        impl Object {
            /// What its kind is called.
            pub fn name(&self) -> Name {
                match self {
                    $(Self::$name(_) => <$kind as Kind>::NAME,)*
                }
            }

            /// The device that it is, if it is one.
            pub fn as_device(&self) -> Option<LinkName> {
                match self {
                    $(Self::$name(key) => <$kind as Kind>::as_device(key),)*
                }
            }

            /// What all kinds are called, in the order of the list.
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
            /// Whether it says that something went that takes others with it, of which the kernel does not tell.
            pub fn takes_others_along(&self) -> bool {
                match self {
                    $(Self::$name(_, held) => held.is_none() && <$kind as Kind>::TAKES_OTHERS_ALONG,)*
                }
            }

            /// What it is about.
            pub fn object(&self) -> Object {
                match self {
                    $(Self::$name(key, _) => Object::$name(*key),)*
                }
            }
        }

        impl Operation {
            /// What it is about.
            pub fn object(&self) -> Object {
                match self {
                    $(Self::$name(edit) => Object::$name(*edit.key()),)*
                }
            }

            /// The device that must be there for it; `None` for one on a device itself, and for what needs none.
            pub fn device(&self) -> Option<LinkName> {
                match self {
                    $(Self::$name(edit) => edit.device(),)*
                }
            }

            /// Does something with it, as its kind would have it.
            #[cfg(any(test, feature = "fake"))]
            pub(crate) fn dispatch<D: OnEdit>(&self, on_edit: D) -> D::Output {
                match self {
                    $(Self::$name(edit) => on_edit.edit(edit),)*
                }
            }

            /// How it is carried out.
            pub fn changed(&self) -> Changed {
                match self {
                    $(Self::$name(_) => <$kind as Kind>::CHANGED,)*
                }
            }

            /// Whether it takes something away.
            pub fn is_deletion(&self) -> bool {
                match self {
                    $(Self::$name(edit) => edit.is_deletion(),)*
                }
            }

            /// What it does to what stands on a device, which it names. See [`Kind::upheaval`].
            pub fn upheaval(&self) -> Option<(LinkName, Upheaval)> {
                match self {
                    $(Self::$name(edit) => <$kind as Kind>::upheaval(edit),)*
                }
            }

            /// Whether there is a new device afterwards.
            pub fn makes_device(&self) -> bool {
                let is_device = self.object().as_device().is_some() && !self.is_deletion();
                is_device && self.upheaval().is_none_or(|(_, upheaval)| upheaval.anew)
            }

            /// The next hop object that it is about, with where that leads, or led before it is deleted.
            pub(crate) fn as_next_hop(&self) -> Option<(NextHopId, Gateway)> {
                match self {
                    $(Self::$name(edit) => <$kind as Kind>::as_next_hop(edit.key(), edit.value()),)*
                }
            }

            /// The next hop object that its object names.
            pub(crate) fn next_hop(&self) -> Option<NextHopId> {
                match self {
                    $(Self::$name(edit) => <$kind as Kind>::next_hop(edit.value()),)*
                }
            }

            /// The same without a next hop object.
            pub(crate) fn inline(&self, gateway: &Gateway) -> Self {
                match self {
                    $(Self::$name(edit) => Self::$name(edit.inline(gateway)),)*
                }
            }

            /// Adds what this one would replace; `None` for others.
            pub(crate) fn adding(&self) -> Option<Self> {
                match self {
                    $(Self::$name(edit) => edit.adding().map(Self::$name),)*
                }
            }

            /// Replaces what this one would add; `None` for others.
            pub(crate) fn replacing(&self) -> Option<Self> {
                match self {
                    $(Self::$name(edit) => edit.replacing().map(Self::$name),)*
                }
            }

            /// Whether `errno` says that what is to be done is so already.
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

        /// Of operations that could not add something because something is there: what that is, by number. See
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
        /// When the kernel does not answer. `ENODEV` means that a device went meanwhile.
        pub(crate) fn read(reading: &mut Reading<'_>) -> Result<State, KernelError> {
            let mut state = State::default();
            $(
                // Made of all at once and in their order, a map is filled to the last place.
                let mut all = <$kind as NetlinkObject>::read(reading)?;
                all.sort_by_key(|(key, _)| *key);
                state.$field = all.into_iter().collect();
            )*
            Ok(state)
        }

        /// Tells what a message says.
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

/// What the kernel tells of by itself.
pub type Change = Notification<Fact>;

#[cfg(test)]
mod tests;
