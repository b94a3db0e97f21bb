//! Carries out operations: objects on devices in batches, and devices one by one in between.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::devices::Devices;
use super::lookup::Lookup;
use super::object::InTheWay;
use super::socket::{Batch, Socket, breaks_socket};
use crate::kind::Changed;
use crate::kind::gateway::{Gateway, NextHopId};
use crate::kind::link_name::LinkName;
use crate::kinds::{Operation, in_the_way};
use crate::{FailedOperation, KernelError};

/// Ids that our next hop objects should have but other programs use, with where ours would lead. Routes that name one
/// of these carry the gateway inline.
#[derive(Debug, Default)]
pub(super) struct TakenIds(BTreeMap<NextHopId, Gateway>);

impl TakenIds {
    /// Returns what to do instead of `operation`.
    fn without<'a>(&self, operation: &'a Operation) -> Cow<'a, Operation> {
        let gateway = operation.next_hop().and_then(|id| self.0.get(&id));
        gateway.map_or(Cow::Borrowed(operation), |gateway| Cow::Owned(operation.inline(gateway)))
    }

    /// Returns whether the operation would remove another program's object.
    fn is_anothers(&self, operation: &Operation) -> bool {
        operation.is_deletion() && operation.as_next_hop().is_some_and(|(id, _)| self.0.contains_key(&id))
    }
}

/// The kernel socket and what is known of the kernel, while operations are carried out.
#[derive(Debug)]
pub(super) struct Access<'a> {
    pub(super) socket: &'a mut Socket,
    pub(super) devices: &'a Mutex<Devices>,
    pub(super) taken: &'a mut TakenIds,
}

/// Operations in progress, in order.
#[derive(Debug)]
pub(super) struct Round<'a> {
    operations: &'a [Operation],
    /// How many were started: the rest was neither sent nor refused.
    begun: usize,
    batch: Batch,
    /// Whether the batch creates a next hop object, whose id may turn out to be in use.
    makes_next_hops: bool,
    /// Whether a renamed device was deleted, and with it objects that were to be replaced.
    pub(super) took_renamed: bool,
    /// The devices looked up so far; those that do not exist have no index.
    indices: BTreeMap<LinkName, Option<u32>>,
    failed: BTreeMap<usize, KernelError>,
    /// Operations that could not add an object because one exists.
    in_the_way: Vec<usize>,
}

impl<'a> Round<'a> {
    /// Starts with `operations`; with `took_renamed` if an earlier round deleted a renamed device.
    pub(super) fn new(operations: &'a [Operation], took_renamed: bool) -> Self {
        Self {
            operations,
            begun: 0,
            batch: Batch::default(),
            makes_next_hops: false,
            took_renamed,
            indices: BTreeMap::new(),
            failed: BTreeMap::new(),
            in_the_way: Vec::new(),
        }
    }

    /// Continues until something was sent. Returns whether anything is left.
    ///
    /// # Errors
    /// If the socket broke. See [`give_up`](Self::give_up).
    pub(super) fn go_on(&mut self, access: &mut Access<'_>) -> Result<bool, KernelError> {
        while let Some(operation) = self.operations.get(self.begun) {
            let number = self.begun;
            let sent = if operation.changed() == Changed::ByDevice {
                let sent = self.flush(access)?;
                self.begun += 1;
                self.change_device(number, operation, access)?;
                sent
            } else {
                let sent = self.push(number, operation, access)?;
                self.begun += 1;
                sent
            };
            if sent {
                return Ok(true);
            }
        }
        self.flush(access)?;
        let in_the_way = std::mem::take(&mut self.in_the_way);
        self.name_who_is_in_the_way(&in_the_way, access)?;
        Ok(false)
    }

    /// Fails everything whose outcome is unknown: without a socket, or with a kernel that does not answer, the rest
    /// would take ten seconds per batch.
    pub(super) fn give_up(&mut self, reason: &KernelError) {
        // Operations refused because something exists have a known outcome, if not yet a known cause.
        let unknown = self.batch.owners().iter().copied().chain(self.begun..self.operations.len());
        for number in unknown.collect::<Vec<_>>() {
            self.failed.entry(number).or_insert_with(|| reason.clone());
        }
    }

    /// Returns the operations that failed, in order.
    pub(super) fn into_failed(self) -> Vec<FailedOperation> {
        let operation = |number: usize| self.operations[number].clone();
        self.failed
            .into_iter()
            .map(|(number, reason)| FailedOperation { operation: operation(number), reason })
            .collect()
    }

    fn change_device(
        &mut self,
        number: usize,
        operation: &Operation,
        access: &mut Access<'_>,
    ) -> Result<(), KernelError> {
        self.indices.clear();
        let mut devices = access.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let result = operation.change_device(access.socket, &mut devices);
        drop(devices);
        match result {
            Ok(renamed) => {
                self.took_renamed |= renamed;
                Ok(())
            }
            Err(reason) if breaks_socket(&reason) => {
                self.failed.insert(number, reason.clone());
                Err(reason)
            }
            Err(reason) => self.settle(number, reason, access),
        }
    }

    /// Adds an operation to the batch. Returns whether a batch had to be sent first.
    fn push(
        &mut self,
        number: usize,
        operation: &Operation,
        access: &mut Access<'_>,
    ) -> Result<bool, KernelError> {
        // An object may be named only once it is known to be ours.
        let mut sent = self.makes_next_hops
            && operation.next_hop().is_some()
            && !operation.is_deletion()
            && self.flush(access)?;
        if access.taken.is_anothers(operation) {
            return Ok(sent);
        }
        let operation = access.taken.without(operation);
        if let Some(missing) = self.missing_device(&operation, access)? {
            self.settle(number, KernelError::NoSuchLink(missing), access)?;
            return Ok(sent);
        }
        let Some(request) = operation.request(&|name| self.indices.get(&name).copied().flatten()) else {
            return Ok(sent);
        };
        if self.batch.is_full_for(&request, access.socket) {
            sent |= self.flush(access)?;
        }
        self.makes_next_hops |= operation.as_next_hop().is_some() && !operation.is_deletion();
        self.batch.push(number, request);
        Ok(sent)
    }

    /// Returns the missing device that the operation needs, if any.
    fn missing_device(
        &mut self,
        operation: &Operation,
        access: &mut Access<'_>,
    ) -> Result<Option<LinkName>, KernelError> {
        let Some(name) = operation.device() else { return Ok(None) };
        if let Some(known) = self.indices.get(&name) {
            return Ok(known.is_none().then_some(name));
        }
        let index = access.socket.link(name)?.map(|message| message.header.index);
        self.indices.insert(name, index);
        Ok(index.is_none().then_some(name))
    }

    /// Sends the batch. Returns whether it held anything.
    fn flush(&mut self, access: &mut Access<'_>) -> Result<bool, KernelError> {
        self.makes_next_hops = false;
        let owners = self.batch.owners().to_vec();
        if owners.is_empty() {
            return Ok(false);
        }
        let refusals = match access.socket.change(&mut self.batch) {
            Ok(refusals) => refusals,
            Err(broken) => {
                self.failed.extend(broken.refusals);
                for number in owners {
                    self.failed.entry(number).or_insert_with(|| broken.reason.clone());
                }
                return Err(broken.reason);
            }
        };
        if !access.taken.0.is_empty() {
            let refused: BTreeSet<usize> = refusals.iter().map(|(number, _)| *number).collect();
            for number in owners.iter().filter(|number| !refused.contains(number)) {
                if let Some((id, _)) = self.operations[*number].as_next_hop() {
                    access.taken.0.remove(&id);
                }
            }
        }
        for (number, reason) in refusals {
            self.settle(number, reason, access)?;
        }
        Ok(true)
    }

    /// Records a refusal, unless the operation has taken effect anyway.
    fn settle(
        &mut self,
        number: usize,
        reason: KernelError,
        access: &mut Access<'_>,
    ) -> Result<(), KernelError> {
        let operation = &self.operations[number];
        if reason.errno().is_some_and(|errno| operation.is_so_already(errno)) {
            return Ok(());
        }
        if matches!(reason, KernelError::NoSuchLink(_)) && operation.is_deletion() {
            return Ok(());
        }
        if self.took_renamed
            && reason.errno() == Some(libc::ENOENT)
            && let Some(add) = access.taken.without(operation).adding()
        {
            self.failed.insert(number, reason);
            return self.do_instead(number, &add, access);
        }
        let is_there = reason.errno() == Some(libc::EEXIST);
        self.failed.insert(number, reason);
        match operation.as_next_hop() {
            // Only an object that was to be added can collide with another program's.
            _ if !is_there || operation.replacing().is_none() => Ok(()),
            // What names it comes soon.
            Some(_) => self.name_who_is_in_the_way(&[number], access),
            None => {
                self.in_the_way.push(number);
                Ok(())
            }
        }
    }

    /// Carries out another operation instead of a refused one; if that fails too, the refusal stands.
    fn do_instead(
        &mut self,
        number: usize,
        instead: &Operation,
        access: &mut Access<'_>,
    ) -> Result<(), KernelError> {
        if self.missing_device(instead, access)?.is_some() {
            return Ok(());
        }
        let Some(request) = instead.request(&|name| self.indices.get(&name).copied().flatten()) else {
            return Ok(());
        };
        match access.socket.change_one(request) {
            Err(reason) if breaks_socket(&reason) => Err(reason),
            Err(reason) => {
                self.failed.insert(number, reason);
                Ok(())
            }
            Ok(()) => {
                self.failed.remove(&number);
                Ok(())
            }
        }
    }

    /// Finds the object of another program that blocked each addition, and replaces those that are as good.
    fn name_who_is_in_the_way(
        &mut self,
        numbers: &[usize],
        access: &mut Access<'_>,
    ) -> Result<(), KernelError> {
        let refused: Vec<(usize, &Operation)> =
            numbers.iter().map(|number| (*number, &self.operations[*number])).collect();
        let mut lookup = Lookup::new(access.devices, Some(&mut *access.socket));
        for (number, found) in in_the_way(&refused, &mut lookup)? {
            let operation = &self.operations[number];
            match found {
                InTheWay::Taken(holder) => {
                    access.taken.0.extend(operation.as_next_hop());
                    self.failed.insert(number, KernelError::Taken(holder));
                }
                InTheWay::AsGood => {
                    if let Some(replace) = access.taken.without(operation).replacing() {
                        self.do_instead(number, &replace, access)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
