//! Carrying out operations: what is on devices in batches, and devices one by one between them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use netlink_packet_route::AddressFamily;

use super::devices::Devices;
use super::entry::{RawRoute, RawTarget};
use super::lookup::Lookup;
use super::message::{self, RouteFilter};
use super::snapshot::without_family;
use super::socket::{Batch, Socket, breaks_socket};
use super::{holder, link};
use crate::diff::Operation;
use crate::state::{LinkName, NextHop, NextHopId, Route, RouteKey, RouteTarget};
use crate::{FailedOperation, KernelError};

/// Ids that a next hop object of ours should have and another program's has, with what ours would be. Routes that
/// name one of them carry their gateway themselves.
#[derive(Debug, Default)]
pub(super) struct TakenIds(BTreeMap<NextHopId, NextHop>);

impl TakenIds {
    /// What to do in place of `operation`.
    fn without<'a>(&self, operation: &'a Operation) -> Cow<'a, Operation> {
        let inline = |route: &Route| match route.target {
            RouteTarget::NextHop { id, .. } => {
                self.0.get(&id).map(|&NextHop { gateway, link, onlink, .. }| Route {
                    target: RouteTarget::Via { gateway, link, onlink },
                    ..*route
                })
            }
            _ => None,
        };
        let instead = match operation {
            Operation::AddRoute { key, route } => {
                inline(route).map(|route| Operation::AddRoute { key: *key, route })
            }
            Operation::ReplaceRoute { key, route } => {
                inline(route).map(|route| Operation::ReplaceRoute { key: *key, route })
            }
            Operation::DeleteRoute { key, route } => {
                inline(route).map(|route| Operation::DeleteRoute { key: *key, route })
            }
            _ => None,
        };
        instead.map_or(Cow::Borrowed(operation), Cow::Owned)
    }
}

/// What a round works with.
#[derive(Debug)]
pub(super) struct Hands<'a> {
    pub(super) socket: &'a mut Socket,
    pub(super) devices: &'a Mutex<Devices>,
    pub(super) taken: &'a mut TakenIds,
}

/// Some operations on their way, in their order.
#[derive(Debug)]
pub(super) struct Round<'a> {
    operations: &'a [Operation],
    /// How many were looked at: those after them were neither sent nor refused.
    begun: usize,
    batch: Batch,
    /// Whether one of the batch makes a next hop object, which may turn out to be another's.
    makes_next_hops: bool,
    /// Whether a device that somebody had renamed was deleted, and with it what was to be replaced.
    took_renamed: bool,
    /// The devices that were asked for; those that do not exist have no index.
    indices: BTreeMap<LinkName, Option<u32>>,
    failed: BTreeMap<usize, KernelError>,
    /// Routes that could not be added because one is there.
    in_the_way: Vec<usize>,
}

impl<'a> Round<'a> {
    pub(super) fn new(operations: &'a [Operation]) -> Self {
        Self {
            operations,
            begun: 0,
            batch: Batch::default(),
            makes_next_hops: false,
            took_renamed: false,
            indices: BTreeMap::new(),
            failed: BTreeMap::new(),
            in_the_way: Vec::new(),
        }
    }

    /// Goes on until something was sent. Says whether anything is left.
    ///
    /// # Errors
    /// The socket broke. See [`give_up`](Self::give_up).
    pub(super) fn go_on(&mut self, hands: &mut Hands<'_>) -> Result<bool, KernelError> {
        while let Some(operation) = self.operations.get(self.begun) {
            let number = self.begun;
            let sent = if is_about_link(operation) {
                let sent = self.flush(hands)?;
                self.begun += 1;
                self.change_link(number, operation, hands)?;
                sent
            } else {
                let sent = self.push(number, operation, hands)?;
                self.begun += 1;
                sent
            };
            if sent {
                return Ok(true);
            }
        }
        self.flush(hands)?;
        self.name_who_is_in_the_way(hands)?;
        Ok(false)
    }

    /// Fails everything whose fate is not known: without a socket, or with a kernel that does not answer, the rest
    /// would take ten seconds a batch.
    pub(super) fn give_up(&mut self, reason: &KernelError) {
        // What was refused because something is there is known, if not by whom.
        let unknown = self.batch.owners().iter().copied().chain(self.begun..self.operations.len());
        for number in unknown.collect::<Vec<_>>() {
            self.failed.entry(number).or_insert_with(|| reason.clone());
        }
    }

    /// Those that failed, in their order.
    pub(super) fn into_failed(self) -> Vec<FailedOperation> {
        let operation = |number: usize| self.operations[number].clone();
        self.failed
            .into_iter()
            .map(|(number, reason)| FailedOperation { operation: operation(number), reason })
            .collect()
    }

    fn change_link(
        &mut self,
        number: usize,
        operation: &Operation,
        hands: &mut Hands<'_>,
    ) -> Result<(), KernelError> {
        self.indices.clear();
        let mut devices = hands.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let result = link::change(hands.socket, &mut devices, operation);
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
            Err(reason) => self.settle(number, reason, hands),
        }
    }

    /// Puts an operation into the batch. Says whether a batch had to go first.
    fn push(
        &mut self,
        number: usize,
        operation: &Operation,
        hands: &mut Hands<'_>,
    ) -> Result<bool, KernelError> {
        // A route may name an object only when it is known to be ours.
        let mut sent = self.makes_next_hops && names_next_hop(operation) && self.flush(hands)?;
        let operation = hands.taken.without(operation);
        if let Operation::DeleteNextHop(id) = operation.as_ref()
            && hands.taken.0.contains_key(id)
        {
            return Ok(sent);
        }
        if let Some(missing) = self.missing_device(&operation, hands)? {
            self.settle(number, KernelError::NoSuchLink(missing), hands)?;
            return Ok(sent);
        }
        let Some(request) = message::change(&operation, |name| self.indices.get(&name).copied().flatten())
        else {
            return Ok(sent);
        };
        if self.batch.is_full_for(&request, hands.socket) {
            sent |= self.flush(hands)?;
        }
        self.makes_next_hops |= makes_next_hop(&operation);
        self.batch.push(number, request);
        Ok(sent)
    }

    /// The device that the operation needs, if it is not there.
    fn missing_device(
        &mut self,
        operation: &Operation,
        hands: &mut Hands<'_>,
    ) -> Result<Option<LinkName>, KernelError> {
        let Some(name) = operation.link() else { return Ok(None) };
        if let Some(known) = self.indices.get(&name) {
            return Ok(known.is_none().then_some(name));
        }
        let index = hands.socket.link(name)?.map(|message| message.header.index);
        self.indices.insert(name, index);
        Ok(index.is_none().then_some(name))
    }

    /// Sends the batch. Says whether there was anything in it.
    fn flush(&mut self, hands: &mut Hands<'_>) -> Result<bool, KernelError> {
        self.makes_next_hops = false;
        let owners = self.batch.owners().to_vec();
        if owners.is_empty() {
            return Ok(false);
        }
        let refusals = match hands.socket.change(&mut self.batch) {
            Ok(refusals) => refusals,
            Err(broken) => {
                self.failed.extend(broken.refusals);
                for number in owners {
                    self.failed.entry(number).or_insert_with(|| broken.reason.clone());
                }
                return Err(broken.reason);
            }
        };
        if !hands.taken.0.is_empty() {
            let refused: BTreeSet<usize> = refusals.iter().map(|(number, _)| *number).collect();
            for number in owners.iter().filter(|number| !refused.contains(number)) {
                if let Operation::AddNextHop { id, .. } | Operation::ReplaceNextHop { id, .. } =
                    &self.operations[*number]
                {
                    hands.taken.0.remove(id);
                }
            }
        }
        for (number, reason) in refusals {
            self.settle(number, reason, hands)?;
        }
        Ok(true)
    }

    /// Notes a refusal, unless what the operation wants is so already.
    fn settle(
        &mut self,
        number: usize,
        reason: KernelError,
        hands: &mut Hands<'_>,
    ) -> Result<(), KernelError> {
        let operation = &self.operations[number];
        if reason.errno().is_some_and(|errno| message::is_so_already(operation, errno)) {
            return Ok(());
        }
        if matches!(reason, KernelError::NoSuchLink(_)) && message::is_deletion(operation) {
            return Ok(());
        }
        if self.took_renamed
            && reason.errno() == Some(libc::ENOENT)
            && let Some(add) = instead_of_replacing(&hands.taken.without(operation))
        {
            return self.add_instead(number, &add, hands);
        }
        let is_there = reason.errno() == Some(libc::EEXIST);
        self.failed.insert(number, reason);
        match operation {
            Operation::AddRoute { .. } if is_there => self.in_the_way.push(number),
            Operation::AddNextHop { id, next_hop } if is_there => {
                if let Some(taken) = taken_id(*id, hands)? {
                    hands.taken.0.insert(*id, *next_hop);
                    self.failed.insert(number, taken);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds what was to be replaced and is gone.
    fn add_instead(
        &mut self,
        number: usize,
        add: &Operation,
        hands: &mut Hands<'_>,
    ) -> Result<(), KernelError> {
        let request = message::change(add, |name| self.indices.get(&name).copied().flatten());
        match request.map_or(Ok(()), |request| hands.socket.change_one(request)) {
            Err(reason) if breaks_socket(&reason) => Err(reason),
            Err(reason) => {
                self.failed.insert(number, reason);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Says of each route that could not be added which other program's is there; of one of ours that we did not know,
    /// only that it is.
    fn name_who_is_in_the_way(&mut self, hands: &mut Hands<'_>) -> Result<(), KernelError> {
        let wanted: BTreeMap<RouteKey, usize> = std::mem::take(&mut self.in_the_way)
            .into_iter()
            .filter_map(|number| match self.operations[number] {
                Operation::AddRoute { key, .. } => Some((key, number)),
                _ => None,
            })
            .collect();
        let mut same = Vec::new();
        for (family, ipv6) in [(AddressFamily::Inet, false), (AddressFamily::Inet6, true)] {
            if !wanted.keys().any(|key| key.destination.is_ipv6() == ipv6) {
                continue;
            }
            let request = message::dump_routes(family, RouteFilter::All);
            let found = hands.socket.dump(&request, Vec::new, |found, body| {
                found.extend(RawRoute::read(body).filter(|route| wanted.contains_key(&route.key)));
            });
            let found = match without_family(found) {
                Ok(found) => found,
                Err(error) if breaks_socket(&error) => return Err(error),
                Err(_) => continue,
            };
            let mut lookup = Lookup::new(hands.devices, Some(&mut *hands.socket));
            for route in found {
                let on_ours = match route.target {
                    RawTarget::Device { index, .. } | RawTarget::NextHop { index: Some(index), .. } => {
                        lookup.ours(index).is_some()
                    }
                    _ => false,
                };
                let Some(&number) = wanted.get(&route.key).filter(|_| !route.is_ours(on_ours)) else {
                    continue;
                };
                if says_the_same(&route, &self.operations[number], &mut lookup) {
                    same.push(number);
                } else {
                    let holder = holder::route(&route, |index| lookup.name(index));
                    self.failed.insert(number, KernelError::Taken(holder));
                }
            }
        }
        same.into_iter().try_for_each(|number| self.take_over(number, hands))
    }

    /// Puts our label on a route that leads where ours would. flannel's host-gw leaves such.
    fn take_over(&mut self, number: usize, hands: &mut Hands<'_>) -> Result<(), KernelError> {
        let Operation::AddRoute { key, route } = self.operations[number] else { return Ok(()) };
        let replace = Operation::ReplaceRoute { key, route };
        let replace = hands.taken.without(&replace);
        let Some(request) = message::change(&replace, |name| self.indices.get(&name).copied().flatten())
        else {
            return Ok(());
        };
        let mut batch = Batch::default();
        batch.push(number, request);
        let refusals = hands.socket.change(&mut batch).map_err(|broken| broken.reason)?;
        match refusals.into_iter().next() {
            Some((_, reason)) => drop(self.failed.insert(number, reason)),
            None => drop(self.failed.remove(&number)),
        }
        Ok(())
    }
}

/// Whether a route of another program leads where the one that could not be added would.
fn says_the_same(found: &RawRoute, operation: &Operation, lookup: &mut Lookup<'_>) -> bool {
    let Operation::AddRoute { route, .. } = operation else { return false };
    let RawTarget::Device { index, gateway: Some(found), .. } = found.target else { return false };
    let gateway = match route.target {
        RouteTarget::Via { gateway, .. } => gateway,
        RouteTarget::NextHop { id, .. } => Ipv4Addr::from_bits(id.0).into(),
        RouteTarget::Link(_) | RouteTarget::Blackhole => return false,
    };
    gateway == found && lookup.name(index) == route.target.link()
}

/// What makes anew that which `operation` would replace.
fn instead_of_replacing(operation: &Operation) -> Option<Operation> {
    match *operation {
        Operation::ReplaceNextHop { id, next_hop } => Some(Operation::AddNextHop { id, next_hop }),
        Operation::ReplaceRoute { key, route } => Some(Operation::AddRoute { key, route }),
        _ => None,
    }
}

/// Who has this id, if it is another program.
fn taken_id(id: NextHopId, hands: &mut Hands<'_>) -> Result<Option<KernelError>, KernelError> {
    let Some(shown) = hands.socket.next_hop(id)? else { return Ok(None) };
    let mut lookup = Lookup::new(hands.devices, Some(&mut *hands.socket));
    let on_ours = shown.index.is_some_and(|index| lookup.ours(index).is_some());
    if shown.is_ours(on_ours) {
        return Ok(None);
    }
    Ok(Some(KernelError::Taken(holder::next_hop(&shown, |index| lookup.name(index)))))
}

fn is_about_link(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::CreateLink { .. }
            | Operation::ReplaceLink { .. }
            | Operation::UpdateLink { .. }
            | Operation::DeleteLink { .. }
    )
}

fn makes_next_hop(operation: &Operation) -> bool {
    matches!(operation, Operation::AddNextHop { .. } | Operation::ReplaceNextHop { .. })
}

fn names_next_hop(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::AddRoute { route, .. } | Operation::ReplaceRoute { route, .. }
            if matches!(route.target, RouteTarget::NextHop { .. })
    )
}

#[cfg(test)]
mod tests;
