//! A kernel and a packet filter in memory, for tests. They enforce what the real ones enforce, record what they were
//! asked, and can be told to fail.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::firewall::{Firewall, FirewallError, Ruleset};
use crate::kind::gateway::{Gateway, NextHopId};
use crate::kind::link_name::LinkName;
use crate::kind::{Changed, Edit, Kind, Upheaval};
use crate::kinds::{Change, ForEach, Listed, OnEdit, Operation, State, for_each};
use crate::{FailedOperation, Kernel, KernelError, Ownership};

/// A [`Kernel`] over a [`State`] in memory. A clone is another handle to the same kernel, so that a test can watch and
/// disturb what the code under test works on.
///
/// It refuses what [`Linux`](crate::netlink::Linux) refuses: objects on a device that does not exist, a route through a
/// device that is down, a route whose [`RouteKey`] exists already, and a route that names a missing next hop object. A
/// device that is deleted, goes down or changes its MAC loses what Linux would drop. A device name that neither a link
/// operation nor an [`Ownership`] has mentioned counts as an interface of the host that exists and is up.
///
/// Its notifications match those of Linux: none for objects that disappear with a device or a next hop object.
///
/// `{}` prints a readable dump in the style of `ip(8)`, to compare as a whole.
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
    /// Objects of other programs, which collide with ours of the same name.
    foreign: State,
    /// Next hop ids that other programs use, with where our object would lead. Routes that name one of these ids carry
    /// the gateway inline.
    taken: BTreeMap<NextHopId, Gateway>,
    /// Notifications that nobody has read yet.
    told: Vec<Change>,
    /// What counts as ours.
    ours: Ownership,
    failures: Vec<(Predicate, KernelError)>,
    snapshot_failures: Vec<KernelError>,
    applied: Vec<Operation>,
    snapshots: usize,
}

type Predicate = Box<dyn Fn(&Operation) -> bool + Send>;

impl FakeKernel {
    /// Creates a kernel that holds nothing of ours.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a kernel that already holds `state`, as after a restart of the agent.
    pub fn holding(state: State) -> Self {
        let kernel = Self::new();
        kernel.lock().state = state;
        kernel
    }

    /// Returns everything that it holds, whatever the ownership.
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// Changes the state as another program would, without checks, and notifies about each difference.
    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        let mut inner = self.lock();
        let before = inner.state.clone();
        change(&mut inner.state);
        for_each(&mut TellOfDifferences { inner: &mut inner, before: &before });
        drop(inner);
        self.shared.changed.notify_one();
    }

    /// Deletes a device with everything on it, as another program would, and notifies about the device.
    pub fn delete_link(&self, name: LinkName) {
        let mut inner = self.lock();
        inner.state.links.remove(&name);
        let upheaval = Upheaval { anew: true, ..Upheaval::default() };
        for_each(&mut Lose { state: &mut inner.state, device: name, upheaval });
        inner.told.push(Change::Link(name));
        drop(inner);
        self.shared.changed.notify_one();
    }

    /// Adds or removes objects of another program that collide with ours. Notifies about default routes among them.
    pub fn edit_foreign(&self, change: impl FnOnce(&mut State)) {
        let mut inner = self.lock();
        let before = inner.foreign.clone();
        change(&mut inner.foreign);
        let mut default_routes = DefaultRoutes { before: &before, after: &inner.foreign, differ: false };
        for_each(&mut default_routes);
        if default_routes.differ {
            inner.told.push(Change::DefaultRoute);
        }
        drop(inner);
        self.shared.changed.notify_one();
    }

    /// Makes the next operation that `matching` accepts fail with `reason`, once. May be called several times; the
    /// oldest match applies first.
    pub fn fail_next(&self, matching: impl Fn(&Operation) -> bool + Send + 'static, reason: KernelError) {
        self.lock().failures.push((Box::new(matching), reason));
    }

    /// Makes the next snapshot fail with `reason`. Each call fails one snapshot.
    pub fn fail_next_snapshot(&self, reason: KernelError) {
        self.lock().snapshot_failures.push(reason);
    }

    /// Notifies that everything may have changed.
    pub fn notify(&self) {
        self.tell(Change::Unknown);
    }

    /// Sends a notification.
    pub fn tell(&self, change: Change) {
        self.lock().told.push(change);
        self.shared.changed.notify_one();
    }

    /// Returns every operation that succeeded, oldest first.
    pub fn applied(&self) -> Vec<Operation> {
        self.lock().applied.clone()
    }

    /// Returns what [`applied`](Self::applied) lists, and clears that list.
    pub fn take_applied(&self) -> Vec<Operation> {
        std::mem::take(&mut self.lock().applied)
    }

    /// Returns how many snapshots were requested, including those that failed.
    pub fn snapshots(&self) -> usize {
        self.lock().snapshots
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked elsewhere has failed already; its state is still usable.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    /// Returns the state at the time when the future is first polled.
    fn snapshot(&mut self, ownership: &Ownership) -> BoxFuture<'static, Result<State, KernelError>> {
        let kernel = self.clone();
        let ownership = ownership.clone();
        let mut inner = self.lock();
        inner.snapshots += 1;
        inner.ours.add(&ownership);
        drop(inner);
        Box::pin(async move {
            let mut inner = kernel.lock();
            if !inner.snapshot_failures.is_empty() {
                return Err(inner.snapshot_failures.remove(0));
            }
            let mut seen = inner.state.clone();
            for_each(&mut Owned { state: &mut seen, ownership: &ownership });
            Ok(seen)
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

/// Collects the part of a state that a snapshot of `ownership` sees.
struct Owned<'a> {
    state: &'a mut State,
    ownership: &'a Ownership,
}

impl ForEach for Owned<'_> {
    fn kind<K: Listed>(&mut self) {
        let is_read = K::CHANGED != Changed::ByNftables || self.ownership.senders;
        K::of_mut(self.state).retain(|key, value| is_read && is_ours::<K>(key, value, self.ownership));
    }
}

/// Implements [`Ownership`]. Objects without a device are ours.
fn is_ours<K: Kind>(key: &K::Key, value: &K::Value, ours: &Ownership) -> bool {
    if let Some(number) = K::fou_number(key) {
        return ours.fou_ports.contains(&number);
    }
    let device = K::as_device(key).or_else(|| K::device(key, value));
    K::is_marked(value)
        || device.map_or(K::CHANGED == Changed::ByNftables, |device| ours.links.contains(&device))
}

/// Removes what does not survive a change of a device, without notifications.
struct Lose<'a> {
    state: &'a mut State,
    device: LinkName,
    upheaval: Upheaval,
}

impl ForEach for Lose<'_> {
    fn kind<K: Listed>(&mut self) {
        let stays = |key: &K::Key, value: &K::Value| {
            K::device(key, value) != Some(self.device) || K::survives(key, value, &self.upheaval)
        };
        K::of_mut(self.state).retain(|key, value| stays(key, value));
    }
}

/// Updates everything that names a next hop object: it moves, with a notification, or disappears, without one.
struct Follow<'a> {
    inner: &'a mut Inner,
    id: NextHopId,
    gateway: Option<Gateway>,
}

impl ForEach for Follow<'_> {
    fn kind<K: Listed>(&mut self) {
        let named = K::of(&self.inner.state).iter().filter(|(_, value)| K::next_hop(value) == Some(self.id));
        for (key, value) in named.map(|(key, value)| (*key, value.clone())).collect::<Vec<_>>() {
            match &self.gateway {
                Some(gateway) => self.inner.set::<K>(key, Some(K::moved(&value, gateway))),
                None => drop(K::of_mut(&mut self.inner.state).remove(&key)),
            }
        }
    }
}

struct HasNextHop<'a> {
    state: &'a State,
    id: NextHopId,
    found: bool,
}

impl ForEach for HasNextHop<'_> {
    fn kind<K: Listed>(&mut self) {
        let mut next_hops = K::of(self.state).iter().filter_map(|(key, value)| K::as_next_hop(key, value));
        self.found |= next_hops.any(|(id, _)| id == self.id);
    }
}

/// Finds out whether the default routes changed.
struct DefaultRoutes<'a> {
    before: &'a State,
    after: &'a State,
    differ: bool,
}

impl ForEach for DefaultRoutes<'_> {
    fn kind<K: Listed>(&mut self) {
        let [before, after] = [self.before, self.after]
            .map(|state| K::of(state).iter().filter(|(key, _)| K::is_default_route(key)));
        self.differ |= !before.eq(after);
    }
}

struct TellOfDifferences<'a> {
    inner: &'a mut Inner,
    before: &'a State,
}

impl ForEach for TellOfDifferences<'_> {
    fn kind<K: Listed>(&mut self) {
        let (before, after) = (K::of(self.before), K::of(&self.inner.state));
        let gone = before.keys().filter(|key| !after.contains_key(key)).map(|key| (*key, None));
        let new = after.iter().filter(|(key, value)| before.get(key) != Some(value));
        let new = new.map(|(key, value)| (*key, Some(value.clone())));
        let differences: Vec<_> = gone.chain(new).collect();
        for (key, held) in differences {
            self.inner.tell::<K>(key, held, before.get(&key));
        }
    }
}

/// Writes every object on its own line.
struct Dump<'a, 'f> {
    state: &'a State,
    before: &'static str,
    out: &'a mut fmt::Formatter<'f>,
    outcome: fmt::Result,
}

impl ForEach for Dump<'_, '_> {
    fn kind<K: Listed>(&mut self) {
        for (key, value) in K::of(self.state) {
            self.outcome = self.outcome.and_then(|()| {
                write!(self.out, "{}{} ", self.before, K::NAME.short)?;
                K::show(key, value, self.out)?;
                self.out.write_str("\n")
            });
        }
    }
}

impl OnEdit for &mut Inner {
    type Output = Result<(), KernelError>;

    fn edit<K: Listed>(self, edit: &Edit<K>) -> Result<(), KernelError> {
        let inline = K::next_hop(edit.value()).and_then(|id| self.taken.get(&id));
        let edit = inline.map_or_else(|| edit.clone(), |gateway| edit.inline(gateway));
        let key = *edit.key();
        let standing = K::of(&self.state).get(&key).cloned();
        self.find_what_it_needs(&edit)?;
        match (&edit, &standing) {
            (Edit::Delete { held, .. }, Some(standing)) if !K::is_named_by(standing, held) => return Ok(()),
            (Edit::Add { key, value }, _) if K::of(&self.foreign).contains_key(key) => {
                self.taken.extend(K::as_next_hop(key, value));
                return Err(KernelError::Taken(shown::<K>(key, &K::of(&self.foreign)[key])));
            }
            (Edit::Add { .. }, Some(_)) if !K::ADD_OVERWRITES => {
                return Err(KernelError::Errno(libc::EEXIST));
            }
            // A device that is replaced as a whole need not exist.
            (Edit::Replace { .. }, None)
                if !K::ADD_OVERWRITES && !K::upheaval(&edit).is_some_and(|(_, upheaval)| upheaval.anew) =>
            {
                let device = K::as_device(&key).map(KernelError::NoSuchLink);
                return Err(device.unwrap_or(KernelError::Errno(libc::ENOENT)));
            }
            _ => {}
        }
        if let Some((device, upheaval)) = K::upheaval(&edit) {
            for_each(&mut Lose { state: &mut self.state, device, upheaval });
            for_each(&mut Lose { state: &mut self.foreign, device, upheaval });
        }
        self.set::<K>(key, edit.outcome().cloned());
        if let Some(device) = K::lets_ipv4_on(&key).filter(|_| edit.is_deletion() && standing.is_some())
            && !K::of(&self.state).keys().any(|other| K::lets_ipv4_on(other) == Some(device))
        {
            let upheaval = Upheaval { loses_ipv4: true, ..Upheaval::default() };
            for_each(&mut Lose { state: &mut self.state, device, upheaval });
        }
        if let Some((id, gateway)) = K::as_next_hop(&key, edit.value()) {
            self.taken.remove(&id);
            let gateway = Some(gateway).filter(|_| !edit.is_deletion());
            for_each(&mut Follow { inner: self, id, gateway });
        }
        Ok(())
    }
}

fn shown<K: Kind>(key: &K::Key, value: &K::Value) -> String {
    struct Shown<'a, K: Kind>(&'a K::Key, &'a K::Value);
    impl<K: Kind> fmt::Display for Shown<'_, K> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            K::show(self.0, self.1, f)
        }
    }
    Shown::<K>(key, value).to_string()
}

impl Inner {
    fn apply(&mut self, operation: &Operation) -> Result<(), KernelError> {
        // Failed operations count too: one must not turn its device into an interface of the host.
        self.ours.links.extend(operation.object().as_device());
        if let Some(next) = self.failures.iter().position(|(matches, _)| matches(operation)) {
            return Err(self.failures.remove(next).1);
        }
        operation.dispatch(&mut *self)
    }

    /// Returns an error if something that the object needs is missing. A next hop object itself decides where it leads.
    fn find_what_it_needs<K: Listed>(&self, edit: &Edit<K>) -> Result<(), KernelError> {
        let device = edit.device().map(|device| (device, self.state.links.get(&device)));
        match device {
            Some((device, None)) if self.ours.links.contains(&device) => match edit.is_deletion() {
                true => return Ok(()),
                false => return Err(KernelError::NoSuchLink(device)),
            },
            _ => {}
        }
        if let Some(id) = K::next_hop(edit.value()) {
            let mut next_hop = HasNextHop { state: &self.state, id, found: false };
            for_each(&mut next_hop);
            return if next_hop.found { Ok(()) } else { Err(KernelError::Errno(libc::EINVAL)) };
        }
        match device {
            Some((_, Some(link))) if K::NEEDS_DEVICE_UP && !link.up && !edit.is_deletion() => {
                Err(KernelError::Errno(libc::ENETDOWN))
            }
            _ => Ok(()),
        }
    }

    /// Sets what is held under `key`, and notifies.
    fn set<K: Listed>(&mut self, key: K::Key, value: Option<K::Value>) {
        let all = K::of_mut(&mut self.state);
        let before = match value.clone() {
            Some(value) => all.insert(key, value),
            None => all.remove(&key),
        };
        // Linux sends no notification for a change without effect, except about devices.
        let is_device = K::as_device(&key).is_some();
        if before != value || (is_device && before.is_some()) {
            self.tell::<K>(key, value, before.as_ref());
        }
    }

    /// Queues the notification for a change, if it concerns us.
    fn tell<K: Listed>(&mut self, key: K::Key, held: Option<K::Value>, before: Option<&K::Value>) {
        if let Some(device) = K::as_device(&key) {
            return self.told.push(Change::Link(device));
        }
        if K::is_default_route(&key) {
            self.told.push(Change::DefaultRoute);
        }
        let Some(value) = held.as_ref().or(before) else { return };
        let device = K::device(&key, value);
        if is_ours::<K>(&key, value, &self.ours) || (held.is_none() && !K::TELLS_OF_HOST) {
            self.told.push(Change::Fact(K::fact(key, held)));
        } else if K::TELLS_OF_HOST {
            self.told.extend(device.map(Change::HostAddress));
        }
    }
}

impl fmt::Display for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        for (state, before) in [(&inner.state, ""), (&inner.foreign, "foreign ")] {
            let mut dump = Dump { state, before, out: f, outcome: Ok(()) };
            for_each(&mut dump);
            dump.outcome?;
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

/// A [`Firewall`] that records its rules. A clone is another handle to the same packet filter.
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
    /// Creates a packet filter without rules of ours.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the current rules.
    pub fn standing(&self) -> Ruleset {
        self.lock().standing.clone()
    }

    /// Returns how often rules were applied, including calls that changed nothing or failed.
    pub fn applied(&self) -> usize {
        self.lock().applied
    }

    /// Removes all rules, as another program would.
    pub fn flush(&self) {
        self.lock().standing = Ruleset::default();
    }

    /// Makes the next [`Firewall::apply`] fail with `reason`. Each call fails one.
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
    use crate::{
        Address, Fact, Link, LinkKind, NextHop, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Vxlan,
    };

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
        Operation::Link(Edit::Add { key: name("flannel.1"), value: link.into() })
    }

    fn address() -> Operation {
        let key = Address { link: name("flannel.1"), address: "10.5.1.0/32".parse().unwrap() };
        Operation::Address(Edit::Add { key, value: () })
    }

    fn route(device: &str) -> Operation {
        let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
        let route = Route { target: RouteTarget::Link(name(device)), protocol: ROUTE_PROTOCOL };
        Operation::Route(Edit::Add { key, value: route })
    }

    fn reasons(failed: &[FailedOperation]) -> Vec<String> {
        failed.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn one_failure_stops_nothing_but_what_needs_it() {
        let mut kernel = FakeKernel::new();
        kernel.fail_next(
            |operation| matches!(operation, Operation::Link(Edit::Add { .. })),
            KernelError::Errno(12),
        );
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
        let Operation::Route(Edit::Add { key, value: ours }) = route("eth0") else { unreachable!() };
        kernel.edit_foreign(|foreign| {
            foreign.routes.insert(key, Route { protocol: 3, ..ours });
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
        let ours = Ownership { links: [name("flannel.1")].into(), senders: false, ..Ownership::default() };
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
        let Operation::Address(Edit::Add { key: added, .. }) = address() else { unreachable!() };
        let Operation::Route(Edit::Add { key, value: route }) = route("eth0") else { unreachable!() };
        assert_eq!(
            told(&mut kernel),
            [
                Change::Link(name("flannel.1")),
                Change::Fact(Fact::Address(added, Some(()))),
                Change::Fact(Fact::Route(key, Some(route))),
            ]
        );
    }

    #[tokio::test]
    async fn what_others_do_is_told_as_what_is_there_now() {
        let mut kernel = FakeKernel::new();
        kernel.apply(&[create(), address()]).await;
        told(&mut kernel);
        let Operation::Address(Edit::Add { key: added, .. }) = address() else { unreachable!() };
        let elsewhere = Address { link: name("eth0"), ..added };
        kernel.edit(|state| {
            state.addresses.remove(&added);
            state.addresses.insert(elsewhere, ());
        });
        let changes = told(&mut kernel);
        assert!(changes.contains(&Change::Fact(Fact::Address(added, None))), "{changes:?}");
        assert!(changes.contains(&Change::HostAddress(name("eth0"))), "{changes:?}");
        assert_eq!(changes.len(), 2);
    }

    /// Returns the next hop of 10.5.3.0/24 and the route that names it.
    fn by_object() -> (NextHopId, NextHop, [Operation; 2]) {
        let (id, link) = (NextHopId(168_100_608), name("flannel.1"));
        let gateway = "10.5.3.0".parse().unwrap();
        let next_hop = NextHop { gateway, link, onlink: true, protocol: ROUTE_PROTOCOL };
        let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric: 0 };
        let route = Route { target: RouteTarget::NextHop { id, link }, protocol: ROUTE_PROTOCOL };
        (
            id,
            next_hop,
            [
                Operation::NextHop(Edit::Add { key: id, value: next_hop }),
                Operation::Route(Edit::Add { key, value: route }),
            ],
        )
    }

    #[tokio::test]
    async fn a_next_hop_takes_its_routes_with_it_without_a_word() {
        let mut kernel = FakeKernel::new();
        let (id, next_hop, [add, route]) = by_object();
        let failed = kernel.apply(&[create(), route.clone(), add, route]).await;
        assert_eq!(
            reasons(&failed),
            ["add route 10.5.3.0/24 nhid 168100608 dev flannel.1: Invalid argument (os error 22)"]
        );
        told(&mut kernel);
        assert!(
            kernel.apply(&[Operation::NextHop(Edit::Delete { key: id, held: next_hop })]).await.is_empty()
        );
        assert_eq!(told(&mut kernel), [Change::Fact(Fact::NextHop(id, None))]);
        assert!(kernel.state().routes.is_empty());
    }

    #[tokio::test]
    async fn a_next_hop_goes_with_its_device() {
        let mut kernel = FakeKernel::new();
        let (_, _, [add, route]) = by_object();
        let Operation::Link(Edit::Add { key, value: up }) = create() else { unreachable!() };
        let down = Box::new(Link { up: false, ..(*up).clone() });
        let down = Operation::Link(Edit::Replace { key, held: up, value: down });
        assert!(kernel.apply(&[create(), add, route, down]).await.is_empty());
        let state = kernel.state();
        assert_eq!((state.next_hops.len(), state.routes.len(), state.links.len()), (0, 0, 1));
    }

    #[tokio::test]
    async fn routes_do_without_a_next_hop_whose_id_is_anothers() {
        let mut kernel = FakeKernel::new();
        let (id, next_hop, operations) = by_object();
        kernel.edit_foreign(|foreign| {
            foreign.next_hops.insert(id, NextHop { link: name("eth0"), protocol: 11, ..next_hop });
        });
        kernel.apply(&[create()]).await;
        let failed = kernel.apply(&operations).await;
        assert_eq!(
            reasons(&failed),
            ["add nexthop id 168100608 via 10.5.3.0 dev flannel.1 onlink: it is taken: id 168100608 via \
              10.5.3.0 dev eth0 onlink proto 11"]
        );
        assert!(kernel.to_string().contains("\nroute 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink\n"));
        kernel.edit_foreign(|foreign| foreign.next_hops.clear());
        let [add, Operation::Route(Edit::Add { key, value: route })] = operations else { unreachable!() };
        let replace = Operation::Route(Edit::Replace { key, held: route, value: route });
        assert!(kernel.apply(&[add, replace]).await.is_empty());
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
