//! Where a planner writes what it wants.

use crate::kind::Kind;
use crate::kinds::{Entry, Listed, State};

/// Receives what is wanted, one object at a time: a [`Ledger`](crate::Ledger) wants it or [gives it
/// up](crate::GivingUp), a [`State`] collects it.
pub trait Plan {
    /// Adds one object.
    fn want(&mut self, entry: Entry);
}

impl dyn Plan + '_ {
    /// Adds one object of a kind.
    pub fn add<K: Listed>(&mut self, key: <K as Kind>::Key, value: <K as Kind>::Value) {
        self.want(K::entry(key, value));
    }
}

impl Plan for State {
    fn want(&mut self, entry: Entry) {
        self.insert(entry);
    }
}
