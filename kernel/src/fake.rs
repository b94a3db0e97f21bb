//! A kernel and a packet filter in memory, for tests of what stands on top of them: they enforce what the real ones
//! enforce, remember what was asked, and can be told to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::change::{Change, Fact};
use crate::diff::{LinkChange, Mac, Operation};
use crate::firewall::{Firewall, FirewallError, Ruleset};
use crate::state::{
    Link, LinkName, NextHop, NextHopId, Ownership, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, State,
};
use crate::{FailedOperation, Kernel, KernelError};

/// A [`Kernel`] over a [`State`] in memory. A clone is another handle to the same kernel, so that a test can watch
/// and disturb what the code under test works on.
///
/// It refuses what [`Linux`](crate::netlink::Linux) refuses: anything on a device that does not exist, a route through
/// one that is down, a route where one of the same [`RouteKey`] stands, one that names a next hop object that is not
/// there. Devices take with them what is theirs when they are deleted, go down or change their MAC. Every device name
/// that no link operation and no [`Ownership`] has mentioned is taken for an interface of the host that exists and is up.
///
/// It tells of what happens as Linux does: what goes with a device or with a next hop object goes without a word.
///
/// Its output with `{}` is a readable dump in the manner of `ip(8)`, to compare as a whole.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// Routes of others, by what makes them collide with ours.
    foreign: BTreeMap<RouteKey, Route>,
    /// Next hop objects of others.
    foreign_next_hops: BTreeMap<NextHopId, NextHop>,
    /// What we wanted where others have one: routes that name it carry its gateway themselves.
    taken: BTreeMap<NextHopId, NextHop>,
    /// What was not asked for yet.
    told: Vec<Change>,
    /// Devices that would be ours.
    ours: BTreeSet<LinkName>,
    failures: Vec<(Predicate, KernelError)>,
    snapshot_failures: Vec<KernelError>,
    applied: Vec<Operation>,
    snapshots: usize,
}

type Predicate = Box<dyn Fn(&Operation) -> bool + Send>;

impl FakeKernel {
    /// A kernel with nothing of ours in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A kernel that holds `state` already, as after a restart of the agent.
    pub fn holding(state: State) -> Self {
        let kernel = Self::new();
        kernel.lock().state = state;
        kernel
    }

    /// Everything that is there, whoever asks.
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// Changes the state as another program would, past every check, and tells of each difference.
    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        let mut inner = self.lock();
        let before = inner.state.clone();
        change(&mut inner.state);
        inner.tell_of_differences(&before);
        drop(inner);
        self.shared.changed.notify_one();
    }

    /// Deletes a device with everything on it, as another program would, and tells that it is gone.
    pub fn delete_link(&self, name: LinkName) {
        let mut inner = self.lock();
        inner.drop_link(name);
        inner.told.push(Change::Link(name));
        drop(inner);
        self.shared.changed.notify_one();
    }

    /// Puts a route of another program in our way, or takes it away again. It is told of if it is a default route.
    pub fn edit_foreign_routes(&self, change: impl FnOnce(&mut BTreeMap<RouteKey, Route>)) {
        let mut inner = self.lock();
        let defaults = |routes: &BTreeMap<RouteKey, Route>| -> BTreeMap<RouteKey, Route> {
            routes.iter().filter(|(key, _)| is_default(key)).map(|(&key, &route)| (key, route)).collect()
        };
        let before = defaults(&inner.foreign);
        change(&mut inner.foreign);
        if defaults(&inner.foreign) != before {
            inner.told.push(Change::DefaultRoute);
        }
        drop(inner);
        self.shared.changed.notify_one();
    }

    /// Puts a next hop object of another program in our way, or takes it away again.
    pub fn edit_foreign_next_hops(&self, change: impl FnOnce(&mut BTreeMap<NextHopId, NextHop>)) {
        change(&mut self.lock().foreign_next_hops);
    }

    /// Lets the next operation that `matching` accepts fail with `reason`, once. May be called several times; the
    /// oldest that matches goes first.
    pub fn fail_next(&self, matching: impl Fn(&Operation) -> bool + Send + 'static, reason: KernelError) {
        self.lock().failures.push((Box::new(matching), reason));
    }

    /// Lets the next snapshot fail with `reason`, once; called several times, as many snapshots.
    pub fn fail_next_snapshot(&self, reason: KernelError) {
        self.lock().snapshot_failures.push(reason);
    }

    /// Tells that everything may have changed.
    pub fn notify(&self) {
        self.tell(Change::Unknown);
    }

    /// Tells of anything.
    pub fn tell(&self, change: Change) {
        self.lock().told.push(change);
        self.shared.changed.notify_one();
    }

    /// Every operation that was carried out, oldest first; those that failed are not among them.
    pub fn applied(&self) -> Vec<Operation> {
        self.lock().applied.clone()
    }

    /// Forgets what [`applied`](Self::applied) has listed, and lists it a last time.
    pub fn take_applied(&self) -> Vec<Operation> {
        std::mem::take(&mut self.lock().applied)
    }

    /// How many snapshots were asked for, with those that failed.
    pub fn snapshots(&self) -> usize {
        self.lock().snapshots
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked elsewhere has failed already; its state is as good as any.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    /// What is there when the future is first polled.
    fn snapshot(&mut self, ownership: &Ownership) -> BoxFuture<'static, Result<State, KernelError>> {
        let kernel = self.clone();
        let ownership = ownership.clone();
        let mut inner = self.lock();
        inner.snapshots += 1;
        inner.ours.extend(&ownership.links);
        drop(inner);
        Box::pin(async move {
            let mut inner = kernel.lock();
            if !inner.snapshot_failures.is_empty() {
                return Err(inner.snapshot_failures.remove(0));
            }
            Ok(owned(&inner.state, &ownership))
        })
    }

    async fn apply(&mut self, operations: &[Operation]) -> Vec<FailedOperation> {
        let mut inner = self.lock();
        let mut failed = Vec::new();
        for operation in operations {
            match inner.apply(operation) {
                Ok(()) => inner.applied.push(operation.clone()),
                Err(reason) => failed.push(FailedOperation { operation: operation.clone(), reason }),
            }
        }
        drop(inner);
        self.shared.changed.notify_one();
        failed
    }

    async fn changes(&mut self) -> Vec<Change> {
        loop {
            let told = std::mem::take(&mut self.lock().told);
            if !told.is_empty() {
                return told;
            }
            self.shared.changed.notified().await;
        }
    }
}

/// The part of `state` that a snapshot of `ownership` sees.
fn owned(state: &State, ownership: &Ownership) -> State {
    let ours = |link: &LinkName| ownership.links.contains(link);
    let mut seen = state.clone();
    seen.links.retain(|name, _| ours(name));
    seen.addresses.retain(|address| ours(&address.link));
    seen.neighbours.retain(|neighbour, _| ours(&neighbour.link));
    seen.fdb.retain(|entry, _| ours(&entry.link));
    seen.next_hops.retain(|_, next_hop| next_hop.protocol == ROUTE_PROTOCOL || ours(&next_hop.link));
    seen.routes.retain(|_, route| {
        route.protocol == ROUTE_PROTOCOL || route.target.link().is_some_and(|link| ours(&link))
    });
    if !ownership.senders {
        seen.sources.clear();
        seen.checks.clear();
    }
    seen
}

impl Inner {
    fn apply(&mut self, operation: &Operation) -> Result<(), KernelError> {
        if let Some(next) = self.failures.iter().position(|(matches, _)| matches(operation)) {
            let (_, reason) = self.failures.remove(next);
            // That the link operation failed must not make its name one of the host's interfaces.
            self.mention(operation);
            return Err(reason);
        }
        self.mention(operation);
        match operation {
            Operation::CreateLink { name, .. }
            | Operation::ReplaceLink { name, .. }
            | Operation::UpdateLink { name, .. }
            | Operation::DeleteLink { name } => {
                self.change_link(operation)?;
                self.told.push(Change::Link(*name));
            }
            _ => {
                for fact in self.change_on_link(operation)? {
                    self.tell_fact(fact);
                }
            }
        }
        Ok(())
    }

    fn change_link(&mut self, operation: &Operation) -> Result<(), KernelError> {
        match operation {
            Operation::CreateLink { name, link } => self.create_link(*name, link),
            Operation::ReplaceLink { name, link, .. } => {
                self.existing_link(*name)?;
                self.drop_link(*name);
                self.create_link(*name, link)
            }
            Operation::UpdateLink { name, change } => self.update_link(*name, change),
            Operation::DeleteLink { name } => {
                self.drop_link(*name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Answers what is new: of a change that changes nothing, Linux says nothing.
    fn change_on_link(&mut self, operation: &Operation) -> Result<Vec<Fact>, KernelError> {
        let state = &mut self.state;
        let told = match *operation {
            Operation::AddAddress(address) => {
                self.existing_link(address.link)?;
                self.state.addresses.insert(address).then_some(Fact::Address(address, true))
            }
            Operation::DeleteAddress(address) => {
                state.addresses.remove(&address).then_some(Fact::Address(address, false))
            }
            Operation::SetNeighbour { neighbour, mac } => {
                self.existing_link(neighbour.link)?;
                let before = self.state.neighbours.insert(neighbour, mac);
                (before != Some(mac)).then_some(Fact::Neighbour(neighbour, Some(mac)))
            }
            Operation::DeleteNeighbour(neighbour) => {
                state.neighbours.remove(&neighbour).map(|_| Fact::Neighbour(neighbour, None))
            }
            Operation::SetFdb { entry, destination } => {
                self.existing_link(entry.link)?;
                let before = self.state.fdb.insert(entry, destination);
                (before != Some(destination)).then_some(Fact::Fdb(entry, Some(destination)))
            }
            Operation::DeleteFdb(entry) => state.fdb.remove(&entry).map(|_| Fact::Fdb(entry, None)),
            Operation::AddNextHop { id, next_hop } => Some(self.add_next_hop(id, next_hop)?),
            Operation::ReplaceNextHop { id, next_hop } => return self.replace_next_hop(id, next_hop),
            Operation::DeleteNextHop(id) => self.delete_next_hop(id),
            Operation::AddRoute { key, route } => Some(self.add_route(key, self.inline(route))?),
            Operation::ReplaceRoute { key, route } => self.replace_route(key, self.inline(route))?,
            Operation::DeleteRoute { key, route } => {
                let there = self
                    .state
                    .routes
                    .get(&key)
                    .is_some_and(|standing| is_the_same(standing, &self.inline(route)));
                there.then(|| self.state.routes.remove(&key)).map(|_| Fact::Route(key, None))
            }
            Operation::AddSource(source) => {
                state.sources.insert(source).then_some(Fact::Source(source, true))
            }
            Operation::DeleteSource(source) => {
                state.sources.remove(&source).then_some(Fact::Source(source, false))
            }
            Operation::AddCheck(check) => state.checks.insert(check).then_some(Fact::Check(check, true)),
            Operation::DeleteCheck(check) => state.checks.remove(&check).then_some(Fact::Check(check, false)),
            Operation::CreateLink { .. }
            | Operation::ReplaceLink { .. }
            | Operation::UpdateLink { .. }
            | Operation::DeleteLink { .. } => None,
        };
        Ok(told.into_iter().collect())
    }

    /// Tells of what concerns us.
    fn tell_fact(&mut self, fact: Fact) {
        let ours = |link: &LinkName| self.ours.contains(link);
        let change = match &fact {
            Fact::Address(address, _) if !ours(&address.link) => Some(Change::HostAddress(address.link)),
            Fact::Neighbour(neighbour, _) if !ours(&neighbour.link) => None,
            Fact::Fdb(entry, _) if !ours(&entry.link) => None,
            Fact::NextHop(_, Some(next_hop))
                if !ours(&next_hop.link) && next_hop.protocol != ROUTE_PROTOCOL =>
            {
                None
            }
            Fact::Route(key, route) => {
                if is_default(key) {
                    self.told.push(Change::DefaultRoute);
                }
                let is_ours = |route: &Route| {
                    route.protocol == ROUTE_PROTOCOL || route.target.link().is_some_and(|link| ours(&link))
                };
                route.as_ref().is_none_or(is_ours).then_some(Change::Fact(fact))
            }
            _ => Some(Change::Fact(fact)),
        };
        self.told.extend(change);
    }

    fn tell_of_differences(&mut self, before: &State) {
        let after = self.state.clone();
        for (name, _) in differences(&before.links, &after.links) {
            self.told.push(Change::Link(name));
        }
        for address in before.addresses.symmetric_difference(&after.addresses) {
            self.tell_fact(Fact::Address(*address, after.addresses.contains(address)));
        }
        for (neighbour, mac) in differences(&before.neighbours, &after.neighbours) {
            self.tell_fact(Fact::Neighbour(neighbour, mac));
        }
        for (entry, destination) in differences(&before.fdb, &after.fdb) {
            self.tell_fact(Fact::Fdb(entry, destination));
        }
        for (id, next_hop) in differences(&before.next_hops, &after.next_hops) {
            self.tell_fact(Fact::NextHop(id, next_hop));
        }
        for (key, route) in differences(&before.routes, &after.routes) {
            self.tell_fact(Fact::Route(key, route));
        }
        for source in before.sources.symmetric_difference(&after.sources) {
            self.tell_fact(Fact::Source(*source, after.sources.contains(source)));
        }
        for check in before.checks.symmetric_difference(&after.checks) {
            self.tell_fact(Fact::Check(*check, after.checks.contains(check)));
        }
    }

    fn mention(&mut self, operation: &Operation) {
        if let Operation::CreateLink { name, .. }
        | Operation::ReplaceLink { name, .. }
        | Operation::UpdateLink { name, .. }
        | Operation::DeleteLink { name } = operation
        {
            self.ours.insert(*name);
        }
    }

    fn existing_link(&mut self, name: LinkName) -> Result<&mut Link, KernelError> {
        self.state.links.get_mut(&name).ok_or(KernelError::NoSuchLink(name))
    }

    fn create_link(&mut self, name: LinkName, link: &Link) -> Result<(), KernelError> {
        if self.state.links.contains_key(&name) {
            return Err(KernelError::Errno(libc::EEXIST));
        }
        self.state.links.insert(name, link.clone());
        Ok(())
    }

    fn update_link(&mut self, name: LinkName, change: &LinkChange) -> Result<(), KernelError> {
        let link = self.existing_link(name)?;
        link.mac = change.mac.or(link.mac);
        link.mtu = change.mtu.unwrap_or(link.mtu);
        link.up = change.up.unwrap_or(link.up);
        let down = change.up == Some(false);
        if change.mac.is_some() || down {
            self.state.neighbours.retain(|neighbour, _| neighbour.link != name);
        }
        if down {
            self.state.addresses.retain(|address| address.link != name || address.address.is_ipv4());
            self.drop_routes(name);
        }
        Ok(())
    }

    fn drop_link(&mut self, name: LinkName) {
        self.state.links.remove(&name);
        self.state.addresses.retain(|address| address.link != name);
        self.state.neighbours.retain(|neighbour, _| neighbour.link != name);
        self.state.fdb.retain(|entry, _| entry.link != name);
        self.drop_routes(name);
    }

    fn drop_routes(&mut self, name: LinkName) {
        self.state.next_hops.retain(|_, next_hop| next_hop.link != name);
        self.foreign_next_hops.retain(|_, next_hop| next_hop.link != name);
        self.state.routes.retain(|_, route| route.target.link() != Some(name));
        self.foreign.retain(|_, route| route.target.link() != Some(name));
    }

    fn add_next_hop(&mut self, id: NextHopId, next_hop: NextHop) -> Result<Fact, KernelError> {
        self.usable(next_hop.link)?;
        if let Some(foreign) = self.foreign_next_hops.get(&id) {
            self.taken.insert(id, next_hop);
            return Err(KernelError::Taken(format!("nexthop {id} {foreign}")));
        }
        if self.state.next_hops.contains_key(&id) {
            return Err(KernelError::Errno(libc::EEXIST));
        }
        self.taken.remove(&id);
        self.state.next_hops.insert(id, next_hop);
        Ok(Fact::NextHop(id, Some(next_hop)))
    }

    /// The routes that name it are told of as well, as they are from now on.
    fn replace_next_hop(&mut self, id: NextHopId, next_hop: NextHop) -> Result<Vec<Fact>, KernelError> {
        self.usable(next_hop.link)?;
        let standing = self.state.next_hops.get_mut(&id).ok_or(KernelError::Errno(libc::ENOENT))?;
        *standing = next_hop;
        self.taken.remove(&id);
        let mut told = vec![Fact::NextHop(id, Some(next_hop))];
        for (key, route) in &mut self.state.routes {
            if let RouteTarget::NextHop { id: named, link } = &mut route.target
                && *named == id
            {
                *link = next_hop.link;
                told.push(Fact::Route(*key, Some(*route)));
            }
        }
        Ok(told)
    }

    fn delete_next_hop(&mut self, id: NextHopId) -> Option<Fact> {
        self.state.next_hops.remove(&id)?;
        self.state.routes.retain(
            |_, route| !matches!(route.target, RouteTarget::NextHop { id: named, .. } if named == id),
        );
        Some(Fact::NextHop(id, None))
    }

    /// The route with the gateway in it, if another program has the id of its next hop object.
    fn inline(&self, route: Route) -> Route {
        match route.target {
            RouteTarget::NextHop { id, .. } => self.taken.get(&id).map_or(route, |next_hop| {
                let NextHop { gateway, link, onlink, .. } = *next_hop;
                Route { target: RouteTarget::Via { gateway, link, onlink }, ..route }
            }),
            _ => route,
        }
    }

    fn add_route(&mut self, key: RouteKey, route: Route) -> Result<Fact, KernelError> {
        self.leads_somewhere(&route)?;
        if let Some(foreign) = self.foreign.get(&key) {
            return Err(KernelError::Taken(format!("{key} {foreign}")));
        }
        if self.state.routes.contains_key(&key) {
            return Err(KernelError::Errno(libc::EEXIST));
        }
        self.state.routes.insert(key, route);
        Ok(Fact::Route(key, Some(route)))
    }

    fn replace_route(&mut self, key: RouteKey, route: Route) -> Result<Option<Fact>, KernelError> {
        self.leads_somewhere(&route)?;
        let standing = self.state.routes.get_mut(&key).ok_or(KernelError::Errno(libc::ENOENT))?;
        let before = std::mem::replace(standing, route);
        Ok((before != route).then_some(Fact::Route(key, Some(route))))
    }

    fn leads_somewhere(&self, route: &Route) -> Result<(), KernelError> {
        match route.target {
            // Where an object leads is for the object to say.
            RouteTarget::NextHop { id, .. } if self.state.next_hops.contains_key(&id) => Ok(()),
            RouteTarget::NextHop { .. } => Err(KernelError::Errno(libc::EINVAL)),
            target => target.link().map_or(Ok(()), |link| self.usable(link)),
        }
    }

    fn usable(&self, name: LinkName) -> Result<(), KernelError> {
        match self.state.links.get(&name) {
            Some(link) if !link.up => Err(KernelError::Errno(libc::ENETDOWN)),
            None if self.ours.contains(&name) => Err(KernelError::NoSuchLink(name)),
            _ => Ok(()),
        }
    }
}

/// As the kernel compares: the device of a next hop object is not part of the route.
fn is_the_same(one: &Route, other: &Route) -> bool {
    match (one.target, other.target) {
        (RouteTarget::NextHop { id, .. }, RouteTarget::NextHop { id: other_id, .. }) => {
            id == other_id && one.protocol == other.protocol
        }
        (target, other_target) => target == other_target && one.protocol == other.protocol,
    }
}

fn is_default(key: &RouteKey) -> bool {
    key.destination.prefix() == 0
}

/// Every key under which something else stands, with what stands there after.
fn differences<K: Ord + Copy, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> Vec<(K, Option<V>)> {
    let gone = before.keys().filter(|key| !after.contains_key(key)).map(|&key| (key, None));
    let new = after.iter().filter(|(key, value)| before.get(key) != Some(value));
    gone.chain(new.map(|(&key, value)| (key, Some(value.clone())))).collect()
}

impl fmt::Display for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        let state = &inner.state;
        for (name, link) in &state.links {
            writeln!(f, "link {name} {link}")?;
        }
        for address in &state.addresses {
            writeln!(f, "address {address}")?;
        }
        for (neighbour, mac) in &state.neighbours {
            writeln!(f, "neighbour {neighbour} lladdr {}", Mac(mac))?;
        }
        for (entry, destination) in &state.fdb {
            writeln!(f, "fdb {entry} dst {destination}")?;
        }
        for (id, next_hop) in &state.next_hops {
            writeln!(f, "nexthop {id} {next_hop}")?;
        }
        for (id, next_hop) in &inner.foreign_next_hops {
            writeln!(f, "foreign nexthop {id} {next_hop}")?;
        }
        for (key, route) in &state.routes {
            writeln!(f, "route {key} {route}")?;
        }
        for (key, route) in &inner.foreign {
            writeln!(f, "foreign route {key} {route}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("state", &self.state)
            .field("foreign", &self.foreign)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

/// A [`Firewall`] that remembers. A clone is another handle to the same packet filter.
#[derive(Debug, Clone, Default)]
pub struct FakeFirewall {
    inner: Arc<Mutex<Filter>>,
}

#[derive(Debug, Default)]
struct Filter {
    standing: Ruleset,
    applied: usize,
    failures: Vec<FirewallError>,
}

impl FakeFirewall {
    /// A packet filter without rules of ours.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rules that stand.
    pub fn standing(&self) -> Ruleset {
        self.lock().standing.clone()
    }

    /// How often the rules were asked for, with the times that nothing changed or that failed.
    pub fn applied(&self) -> usize {
        self.lock().applied
    }

    /// Takes all rules away, as another program would.
    pub fn flush(&self) {
        self.lock().standing = Ruleset::default();
    }

    /// Lets the next [`Firewall::apply`] fail with `reason`, once; called several times, as many.
    pub fn fail_next(&self, reason: FirewallError) {
        self.lock().failures.push(reason);
    }

    fn lock(&self) -> MutexGuard<'_, Filter> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Firewall for FakeFirewall {
    async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, FirewallError> {
        let mut filter = self.lock();
        filter.applied += 1;
        if !filter.failures.is_empty() {
            return Err(filter.failures.remove(0));
        }
        let changes = filter.standing != *ruleset;
        filter.standing = ruleset.clone();
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use macaddr::MacAddr6;

    use super::*;
    use crate::state::{Address, LinkKind, RouteTarget, Vxlan};

    fn name(text: &str) -> LinkName {
        text.parse().unwrap()
    }

    fn create() -> Operation {
        let vxlan = Vxlan {
            vni: 1,
            port: 8472,
            underlay: Some(name("eth0")),
            local: None,
            learning: false,
            gbp: false,
        };
        let mac = Some(MacAddr6::new(2, 0, 0, 0, 0, 1));
        let link = Link { kind: LinkKind::Vxlan(vxlan), mac, mtu: 1450, up: true };
        Operation::CreateLink { name: name("flannel.1"), link }
    }

    fn address() -> Operation {
        Operation::AddAddress(Address { link: name("flannel.1"), address: "10.5.1.0/32".parse().unwrap() })
    }

    fn route(device: &str) -> Operation {
        let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
        let route = Route { target: RouteTarget::Link(name(device)), protocol: ROUTE_PROTOCOL };
        Operation::AddRoute { key, route }
    }

    fn reasons(failed: &[FailedOperation]) -> Vec<String> {
        failed.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn one_failure_stops_nothing_but_what_needs_it() {
        let mut kernel = FakeKernel::new();
        kernel
            .fail_next(|operation| matches!(operation, Operation::CreateLink { .. }), KernelError::Errno(12));
        let operations = [create(), address(), route("flannel.1"), route("eth0")];
        assert_eq!(
            reasons(&kernel.apply(&operations).await),
            [
                "create link flannel.1 type vxlan id 1 port 8472 dev eth0 nolearning address \
                 02:00:00:00:00:01 mtu 1450 up: Cannot allocate memory (os error 12)",
                "add address 10.5.1.0/32 dev flannel.1: device flannel.1 does not exist",
                "add route 10.5.3.0/24 dev flannel.1: device flannel.1 does not exist",
            ]
        );
        assert_eq!(kernel.to_string(), "route 10.5.3.0/24 dev eth0\n");
        assert!(kernel.apply(&operations[..2]).await.is_empty(), "only the next one was to fail");
    }

    #[tokio::test]
    async fn a_foreign_route_is_in_the_way() {
        let mut kernel = FakeKernel::new();
        let Operation::AddRoute { key, route: ours } = route("eth0") else { unreachable!() };
        kernel.edit_foreign_routes(|routes| {
            routes.insert(key, Route { protocol: 3, ..ours });
        });
        let failed = kernel.apply(&[route("eth0")]).await;
        assert_eq!(
            reasons(&failed),
            ["add route 10.5.3.0/24 dev eth0: it is taken: 10.5.3.0/24 dev eth0 proto 3"]
        );
        assert_eq!(kernel.to_string(), "foreign route 10.5.3.0/24 dev eth0 proto 3\n");
    }

    #[tokio::test]
    async fn a_deleted_device_takes_everything_with_it() {
        let mut kernel = FakeKernel::new();
        assert!(kernel.apply(&[create(), address(), route("flannel.1")]).await.is_empty());
        kernel.delete_link(name("flannel.1"));
        assert_eq!(kernel.state(), State::default());
    }

    #[tokio::test]
    async fn a_snapshot_sees_what_is_ours_and_can_fail() {
        let mut kernel = FakeKernel::new();
        kernel.apply(&[create(), address(), route("eth0")]).await;
        let ours = Ownership { links: [name("flannel.1")].into(), senders: false };
        assert_eq!(kernel.snapshot(&ours).await.unwrap(), kernel.state());
        let seen = kernel.snapshot(&Ownership::default()).await.unwrap();
        assert_eq!((seen.links.len(), seen.addresses.len(), seen.routes.len()), (0, 0, 1));
        kernel.fail_next_snapshot(KernelError::Socket("gone".into()));
        assert!(kernel.snapshot(&ours).await.is_err());
        assert!(kernel.snapshot(&ours).await.is_ok());
        assert_eq!(kernel.snapshots(), 4);
    }

    fn told(kernel: &mut FakeKernel) -> Vec<Change> {
        kernel.changes().now_or_never().unwrap_or_default()
    }

    #[tokio::test]
    async fn everything_is_told_once_even_if_nobody_waited() {
        let mut kernel = FakeKernel::new();
        assert!(kernel.changes().now_or_never().is_none());
        kernel.notify();
        kernel.delete_link(name("flannel.1"));
        assert_eq!(told(&mut kernel), [Change::Unknown, Change::Link(name("flannel.1"))]);
        assert!(kernel.changes().now_or_never().is_none());
    }

    #[tokio::test]
    async fn what_we_do_ourselves_is_told_too_and_what_changes_nothing_is_not() {
        let mut kernel = FakeKernel::new();
        kernel.apply(&[create(), address(), address(), route("eth0")]).await;
        let Operation::AddAddress(added) = address() else { unreachable!() };
        let Operation::AddRoute { key, route } = route("eth0") else { unreachable!() };
        assert_eq!(
            told(&mut kernel),
            [
                Change::Link(name("flannel.1")),
                Change::Fact(Fact::Address(added, true)),
                Change::Fact(Fact::Route(key, Some(route))),
            ]
        );
    }

    #[tokio::test]
    async fn what_others_do_is_told_as_what_is_there_now() {
        let mut kernel = FakeKernel::new();
        kernel.apply(&[create(), address()]).await;
        told(&mut kernel);
        let Operation::AddAddress(added) = address() else { unreachable!() };
        let elsewhere = Address { link: name("eth0"), ..added };
        kernel.edit(|state| {
            state.addresses.remove(&added);
            state.addresses.insert(elsewhere);
        });
        let changes = told(&mut kernel);
        assert!(changes.contains(&Change::Fact(Fact::Address(added, false))), "{changes:?}");
        assert!(changes.contains(&Change::HostAddress(name("eth0"))), "{changes:?}");
        assert_eq!(changes.len(), 2);
    }

    /// The next hop of 10.5.3.0/24 and the route that names it.
    fn by_object() -> (NextHopId, NextHop, [Operation; 2]) {
        let (id, link) = (NextHopId(168_100_608), name("flannel.1"));
        let gateway = "10.5.3.0".parse().unwrap();
        let next_hop = NextHop { gateway, link, onlink: true, protocol: ROUTE_PROTOCOL };
        let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
        let route = Route { target: RouteTarget::NextHop { id, link }, protocol: ROUTE_PROTOCOL };
        (id, next_hop, [Operation::AddNextHop { id, next_hop }, Operation::AddRoute { key, route }])
    }

    #[tokio::test]
    async fn a_next_hop_takes_its_routes_with_it_without_a_word() {
        let mut kernel = FakeKernel::new();
        let (id, _, [add, route]) = by_object();
        let failed = kernel.apply(&[create(), route.clone(), add, route]).await;
        assert_eq!(
            reasons(&failed),
            ["add route 10.5.3.0/24 nhid 168100608 dev flannel.1: Invalid argument (os error 22)"]
        );
        told(&mut kernel);
        assert!(kernel.apply(&[Operation::DeleteNextHop(id)]).await.is_empty());
        assert_eq!(told(&mut kernel), [Change::Fact(Fact::NextHop(id, None))]);
        assert!(kernel.state().routes.is_empty());
    }

    #[tokio::test]
    async fn a_next_hop_goes_with_its_device() {
        let mut kernel = FakeKernel::new();
        let (_, _, [add, route]) = by_object();
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        let down = Operation::UpdateLink { name: name("flannel.1"), change: down };
        assert!(kernel.apply(&[create(), add, route, down]).await.is_empty());
        let state = kernel.state();
        assert_eq!((state.next_hops.len(), state.routes.len(), state.links.len()), (0, 0, 1));
    }

    #[tokio::test]
    async fn routes_do_without_a_next_hop_whose_id_is_anothers() {
        let mut kernel = FakeKernel::new();
        let (id, next_hop, operations) = by_object();
        kernel.edit_foreign_next_hops(|objects| {
            objects.insert(id, NextHop { link: name("eth0"), protocol: 11, ..next_hop });
        });
        kernel.apply(&[create()]).await;
        let failed = kernel.apply(&operations).await;
        assert_eq!(
            reasons(&failed),
            [
                "add nexthop id 168100608 via 10.5.3.0 dev flannel.1 onlink: it is taken: nexthop id 168100608 via \
              10.5.3.0 dev eth0 onlink proto 11"
            ]
        );
        assert!(kernel.to_string().ends_with("\nroute 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink\n"));
        kernel.edit_foreign_next_hops(BTreeMap::clear);
        let [add, Operation::AddRoute { key, route }] = operations else { unreachable!() };
        assert!(kernel.apply(&[add, Operation::ReplaceRoute { key, route }]).await.is_empty());
        assert_eq!(kernel.state().routes[&key], route);
    }

    #[tokio::test]
    async fn the_firewall_says_whether_it_changed_anything() {
        let mut firewall = FakeFirewall::new();
        let rules = Ruleset { masquerade: true, ..Ruleset::default() };
        assert!(firewall.apply(&rules).await.unwrap());
        assert!(!firewall.apply(&rules).await.unwrap());
        firewall.flush();
        assert!(firewall.apply(&rules).await.unwrap());
        assert_eq!((firewall.standing(), firewall.applied()), (rules, 3));
    }
}
