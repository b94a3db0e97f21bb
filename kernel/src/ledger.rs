//! What is wanted, and where the kernel differs from it.
//!
//! Both change one object at a time: a lease wants or no longer wants something, a notification tells what the kernel
//! now holds. What differs is remembered beside what is wanted, so a change among 50,000 peers costs what one peer
//! costs, and what the kernel holds is not kept a second time.

mod table;

use self::table::Table;
use crate::diff::diff;
use crate::kind::link_name::LinkName;
use crate::kind::{Changed, Kind, Upheaval};
use crate::kinds::{Entry, Fact, Object, Operation, State, kinds};
use crate::plan::Plan;

macro_rules! define {
    ($($field:ident: $name:ident($kind:ty),)*) => {
        /// What is wanted, and where the kernel differs.
        #[derive(Debug, Clone, Default)]
        pub struct Ledger {
            $($field: Table<$kind>,)*
        }

        impl Plan for Ledger {
            /// Wants one object. What is wanted several times must be given up as often.
            fn want(&mut self, entry: Entry) {
                match entry {
                    $(Entry::$name(key, value) => self.$field.want(key, value),)*
                }
            }
        }

        impl Plan for GivingUp<'_> {
            fn want(&mut self, entry: Entry) {
                match entry {
                    $(Entry::$name(key, value) => self.0.$field.give_up(key, &value),)*
                }
            }
        }

        impl Ledger {
            /// Wants nothing any more.
            pub fn give_up_all(&mut self) {
                $(self.$field.give_up_all();)*
            }

            /// Takes in what the kernel tells of one object, in the order in which it tells. Answers the object if that is
            /// news: the echo of an operation that was [carried out](Self::carried_out) is none.
            pub fn observe(&mut self, fact: &Fact) -> Option<Object> {
                match fact {
                    $(Fact::$name(key, held) => {
                        self.$field.observe(*key, held.clone()).then_some(Object::$name(*key))
                    })*
                }
            }

            /// Takes in that the kernel may hold nothing in nftables any more: it is added anew together, for a rule without
            /// the senders stops everybody. Answers every object of which that is news.
            pub fn nftables_gone(&mut self) -> Vec<Object> {
                let mut lost = Vec::new();
                $(
                    if <$kind as Kind>::CHANGED == Changed::ByNftables {
                        lost.extend(self.$field.lose(|_, _| true).into_iter().map(Object::$name));
                    }
                )*
                lost
            }

            /// From now on, remembers what is heard of, until [`reset`](Self::reset): what is read meanwhile may be older.
            pub fn begin_reading(&mut self) {
                $(self.$field.begin_reading();)*
            }

            /// Takes in all that the kernel holds of ours, as it was read since [`begin_reading`](Self::begin_reading); what
            /// was heard of since then stays. Answers every object of which that is news.
            pub fn reset(&mut self, actual: State) -> Vec<Object> {
                let mut news = Vec::new();
                $(news.extend(self.$field.reset(actual.$field).into_iter().map(Object::$name));)*
                news
            }

            /// What would bring the kernel in line, as [`diff`] orders it.
            pub fn operations(&self) -> Vec<Operation> {
                // What is done to a device that is there may take away whatever stands on it; else only what differs matters.
                let whole = self.links.holds_what_differs();
                let (mut wanted, mut held) = (State::default(), State::default());
                $(
                    let on_devices = <$kind as Kind>::CHANGED != Changed::ByNftables;
                    (wanted.$field, held.$field) = self.$field.sides(whole && on_devices);
                )*
                diff(&wanted, &held)
            }

            /// Takes in that the kernel has carried out `operation`.
            pub fn carried_out(&mut self, operation: &Operation) {
                if let Some((device, upheaval)) = operation.upheaval() {
                    self.lose_on(device, &upheaval);
                }
                match operation {
                    $(Operation::$name(edit) => {
                        self.$field.observe(*edit.key(), edit.outcome().cloned());
                    })*
                }
            }

            /// Takes as little memory as it can, as after very much has changed.
            pub fn compact(&mut self) {
                $(self.$field.compact();)*
            }

            /// Whether the kernel holds what is wanted of `object`, as far as is known.
            pub fn is_in_line(&self, object: &Object) -> bool {
                match object {
                    $(Object::$name(key) => !self.$field.differs(key),)*
                }
            }

            fn lose_on(&mut self, device: LinkName, upheaval: &Upheaval) {
                $(self.$field.lose(|key, value| {
                    <$kind as Kind>::device(key, value) == Some(device)
                        && !<$kind as Kind>::survives(key, value, upheaval)
                });)*
            }
        }
    };
}
kinds!(define);

impl Ledger {
    /// Takes what is planned for something that is no longer wanted. Nothing is given up that was not wanted before.
    pub fn giving_up(&mut self) -> GivingUp<'_> {
        GivingUp(self)
    }

    /// Whether a device stands as it is wanted, and so can carry what is wanted on it.
    pub fn stands(&self, link: LinkName) -> bool {
        self.links.held(&link).is_some_and(|link| link.up)
    }

    /// Of these devices, those that the kernel holds.
    pub fn devices(&self, names: impl Iterator<Item = LinkName>) -> State {
        let held = |name| Some((name, self.links.held(&name)?.clone()));
        State { links: names.filter_map(held).collect(), ..State::default() }
    }

    /// Whether our devices and their addresses are as wanted.
    pub fn has_devices(&self) -> bool {
        self.links.is_in_line() && self.addresses.is_in_line()
    }
}

/// A ledger that gives up what is planned.
#[derive(Debug)]
pub struct GivingUp<'a>(&'a mut Ledger);

#[cfg(test)]
mod tests;
