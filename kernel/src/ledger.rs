//! What is wanted, and where the kernel differs from it.
//!
//! Both change one object at a time: a lease adds or drops a wish, a notification reports what the kernel now holds.
//! Differences are stored beside what is wanted, so that a change among 50,000 peers costs as much as one peer, and
//! what the kernel holds is not stored a second time.

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
            /// Wants one object. An object that is wanted several times must be given up as often.
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
            /// Drops all wishes.
            pub fn give_up_all(&mut self) {
                $(self.$field.give_up_all();)*
            }

            /// Records a fact from the kernel; call it in the order of the notifications. Returns the object if the
            /// fact is news, which the echo of a [carried out](Self::carried_out) operation is not.
            pub fn observe(&mut self, fact: &Fact) -> Option<Object> {
                match fact {
                    $(Fact::$name(key, held) => {
                        self.$field.observe(*key, held.clone()).then_some(Object::$name(*key))
                    })*
                }
            }

            /// Records that the kernel may have lost everything in nftables. All of it is added again in one go,
            /// because a rule without the senders blocks everybody. Returns every object for which this is news.
            pub fn nftables_gone(&mut self) -> Vec<Object> {
                let mut lost = Vec::new();
                $(
                    if <$kind as Kind>::CHANGED == Changed::ByNftables {
                        lost.extend(self.$field.lose(|_, _| true).into_iter().map(Object::$name));
                    }
                )*
                lost
            }

            /// Remembers from now on which objects were observed, until [`reset`](Self::reset): a reading may be older.
            pub fn begin_reading(&mut self) {
                $(self.$field.begin_reading();)*
            }

            /// Replaces what the kernel holds with `actual`, which was read since
            /// [`begin_reading`](Self::begin_reading). Objects observed since then keep the observed value. Returns
            /// every object for which this is news.
            pub fn reset(&mut self, actual: State) -> Vec<Object> {
                let mut news = Vec::new();
                $(news.extend(self.$field.reset(actual.$field).into_iter().map(Object::$name));)*
                news
            }

            /// Returns the operations that bring the kernel in line, in the order of [`diff`].
            pub fn operations(&self) -> Vec<Operation> {
                // A change of an existing device may remove anything on it; otherwise only the differences matter.
                let whole = self.links.holds_what_differs();
                let (mut wanted, mut held) = (State::default(), State::default());
                $(
                    let on_devices = <$kind as Kind>::CHANGED != Changed::ByNftables;
                    (wanted.$field, held.$field) = self.$field.sides(whole && on_devices);
                )*
                diff(&wanted, &held)
            }

            /// Records that the kernel has carried out `operation`.
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

            /// Releases unused memory, for after large changes.
            pub fn compact(&mut self) {
                $(self.$field.compact();)*
            }

            /// Returns whether the kernel holds what is wanted of `object`, as far as we know.
            pub fn is_in_line(&self, object: &Object) -> bool {
                match object {
                    $(Object::$name(key) => !self.$field.differs(key),)*
                }
            }

            /// Returns whether the kernel does not hold what is wanted of `object`, by the doing of another program.
            pub fn is_disturbed(&self, object: &Object) -> bool {
                match object {
                    $(Object::$name(key) => self.$field.is_disturbed(key),)*
                }
            }

            /// Returns whether the kernel holds what was wanted and is not wanted any more. Allowed senders do not count:
            /// somebody else may want the same sender.
            pub fn is_given_up(&self, object: &Object) -> bool {
                match object {
                    $(Object::$name(key) => {
                        <$kind as Kind>::CHANGED != Changed::ByNftables && self.$field.is_given_up(key)
                    })*
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
    /// Returns a plan that gives up what is added to it. Ignores what was not wanted.
    pub fn giving_up(&mut self) -> GivingUp<'_> {
        GivingUp(self)
    }

    /// Returns whether a device is as wanted, so that objects can be added on it.
    pub fn stands(&self, link: LinkName) -> bool {
        self.links.held(&link).is_some_and(|link| link.up)
    }

    /// Returns those of these devices that the kernel holds.
    pub fn devices(&self, names: impl Iterator<Item = LinkName>) -> State {
        let held = |name| Some((name, self.links.held(&name)?.clone()));
        State { links: names.filter_map(held).collect(), ..State::default() }
    }
}

/// A ledger that gives up what is planned.
#[derive(Debug)]
pub struct GivingUp<'a>(&'a mut Ledger);

#[cfg(test)]
mod tests;
