//! Computes the ordered operations that turn the actual state into the wanted one. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::kind::link_name::LinkName;
use crate::kind::{Changed, Edit, Kind, Upheaval};
use crate::kinds::{ForEach, Listed, Operation, State, for_each};

/// Returns the operations that turn `actual` into `desired`, in an order that never leaves a gap: everything to add or
/// change first, in the order of the list of kinds (`kinds.rs`), then everything to delete, in reverse order.
///
/// What a device takes down with it is neither deleted separately nor assumed present. The routes of a device that is
/// down, everything on a replaced device, and the neighbours of a device whose MAC changes are added again.
pub fn diff(desired: &State, actual: &State) -> Vec<Operation> {
    let mut diff = Diff {
        desired,
        actual,
        upheavals: BTreeMap::new(),
        leaving: BTreeSet::new(),
        // Sized for a new host, which needs everything; growing step by step would copy it repeatedly.
        operations: Vec::with_capacity(desired.count()),
        deletions: Vec::new(),
    };
    for_each(&mut diff);
    diff.operations.extend(diff.deletions.into_iter().rev().flatten());
    diff.operations
}

struct Diff<'a> {
    desired: &'a State,
    actual: &'a State,
    /// What happens, or has happened, to each device.
    upheavals: BTreeMap<LinkName, Upheaval>,
    /// Devices to delete last, with everything on them. Until then they exist.
    leaving: BTreeSet<LinkName>,
    operations: Vec<Operation>,
    /// One list per kind, in the order of the list of kinds.
    deletions: Vec<Vec<Operation>>,
}

impl Diff<'_> {
    /// Returns whether the object exists now and will still exist when its turn comes.
    fn is_there<K: Kind>(&self, key: &K::Key, held: &K::Value) -> bool {
        let upheaval = K::device(key, held).and_then(|device| self.upheavals.get(&device));
        upheaval.is_none_or(|upheaval| K::survives(key, held, upheaval))
    }

    /// Returns whether the kernel removes the object together with its device, after everything else.
    fn leaves_with_device<K: Kind>(&self, key: &K::Key, held: &K::Value) -> bool {
        let device = K::device(key, held);
        K::goes_with_device(held) && device.is_some_and(|device| self.leaving.contains(&device))
    }

    /// Records what happens to the objects on this device.
    fn note_upheaval<K: Listed>(&mut self, key: K::Key, held: &K::Value, wanted: Option<&K::Value>) {
        let value = wanted.unwrap_or(held).clone();
        let edit = Edit::<K>::Replace { key, held: held.clone(), value };
        if let Some((device, upheaval)) = K::upheaval(&edit) {
            match wanted {
                Some(_) => drop(self.upheavals.insert(device, upheaval)),
                None => drop(self.leaving.insert(device)),
            }
        }
    }
}

impl ForEach for Diff<'_> {
    fn kind<K: Listed>(&mut self) {
        let (desired, actual) = (K::of(self.desired), K::of(self.actual));
        if K::CHANGED == Changed::ByDevice {
            for (key, held) in actual {
                self.note_upheaval::<K>(*key, held, desired.get(key));
            }
        }
        for (key, value) in desired {
            let (key, value) = (*key, value.clone());
            let edit = match actual.get(&key).filter(|held| self.is_there::<K>(&key, held)) {
                None => Edit::Add { key, value },
                Some(held) if K::is_as_wanted(held, &value) => continue,
                Some(held) => Edit::Replace { key, held: held.clone(), value },
            };
            self.operations.push(K::operation(edit));
        }
        let superfluous = actual.iter().filter(|(key, _)| !desired.contains_key(key));
        let deletions = superfluous
            .filter(|(key, held)| self.is_there::<K>(key, held) && !self.leaves_with_device::<K>(key, held))
            .map(|(key, held)| K::operation(Edit::Delete { key: *key, held: held.clone() }));
        let deletions = deletions.collect();
        self.deletions.push(deletions);
    }
}

#[cfg(test)]
mod tests;
