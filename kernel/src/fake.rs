//! A kernel and a packet filter in memory, for tests of what stands on top of them: they enforce what the real ones
//! enforce, remember what was asked, and can be told to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::diff::{LinkChange, Mac, Operation};
use crate::firewall::{Firewall, FirewallError, Ruleset};
use crate::state::{Link, LinkName, Ownership, ROUTE_PROTOCOL, Route, RouteKey, State};
use crate::{FailedOperation, Kernel, KernelError};

/// A [`Kernel`] over a [`State`] in memory. A clone is another handle to the same kernel, so that a test can watch
/// and disturb what the code under test works on.
///
/// It refuses what Linux refuses: anything on a device that does not exist, a route through one that is down, a route
/// where one of the same [`RouteKey`] stands. Devices take with them what is theirs when they are deleted, go down or
/// change their MAC. Every device name that no link operation and no [`Ownership`] has mentioned is taken for an
/// interface of the host that exists and is up.
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

    /// Changes the state as another program would, past every check, and reports a change.
    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock().state);
        self.notify();
    }

    /// Deletes a device with everything on it, as another program would, and reports a change.
    pub fn delete_link(&self, name: LinkName) {
        self.lock().drop_link(name);
        self.notify();
    }

    /// Puts a route of another program in our way, or takes it away again, and reports a change.
    pub fn edit_foreign_routes(&self, change: impl FnOnce(&mut BTreeMap<RouteKey, Route>)) {
        change(&mut self.lock().foreign);
        self.notify();
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

    /// Ends a pending, or else the next, [`Kernel::changed`].
    pub fn notify(&self) {
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
    async fn snapshot(&mut self, ownership: &Ownership) -> Result<State, KernelError> {
        let mut inner = self.lock();
        inner.snapshots += 1;
        if !inner.snapshot_failures.is_empty() {
            return Err(inner.snapshot_failures.remove(0));
        }
        inner.ours.extend(&ownership.links);
        Ok(owned(&inner.state, ownership))
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
        // As in Linux, where our own changes are reported to us too.
        if operations.len() > failed.len() {
            self.notify();
        }
        failed
    }

    async fn changed(&mut self) {
        self.shared.changed.notified().await;
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
    seen.routes.retain(|_, route| {
        route.protocol == ROUTE_PROTOCOL || route.target.link().is_some_and(|link| ours(&link))
    });
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
            Operation::AddAddress(address) => {
                self.existing_link(address.link)?;
                self.state.addresses.insert(*address);
                Ok(())
            }
            Operation::DeleteAddress(address) => {
                self.state.addresses.remove(address);
                Ok(())
            }
            Operation::SetNeighbour { neighbour, mac } => {
                self.existing_link(neighbour.link)?;
                self.state.neighbours.insert(*neighbour, *mac);
                Ok(())
            }
            Operation::DeleteNeighbour(neighbour) => {
                self.state.neighbours.remove(neighbour);
                Ok(())
            }
            Operation::SetFdb { entry, destination } => {
                self.existing_link(entry.link)?;
                self.state.fdb.insert(*entry, *destination);
                Ok(())
            }
            Operation::DeleteFdb(entry) => {
                self.state.fdb.remove(entry);
                Ok(())
            }
            Operation::AddRoute { key, route } => self.add_route(*key, *route),
            Operation::ReplaceRoute { key, route } => self.replace_route(*key, *route),
            Operation::DeleteRoute { key, route } => {
                if self.state.routes.get(key) == Some(route) {
                    self.state.routes.remove(key);
                }
                Ok(())
            }
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
        self.state.routes.retain(|_, route| route.target.link() != Some(name));
        self.foreign.retain(|_, route| route.target.link() != Some(name));
    }

    fn add_route(&mut self, key: RouteKey, route: Route) -> Result<(), KernelError> {
        self.usable(&route)?;
        if self.foreign.contains_key(&key) || self.state.routes.contains_key(&key) {
            return Err(KernelError::Errno(libc::EEXIST));
        }
        self.state.routes.insert(key, route);
        Ok(())
    }

    fn replace_route(&mut self, key: RouteKey, route: Route) -> Result<(), KernelError> {
        self.usable(&route)?;
        let standing = self.state.routes.get_mut(&key).ok_or(KernelError::Errno(libc::ENOENT))?;
        *standing = route;
        Ok(())
    }

    fn usable(&self, route: &Route) -> Result<(), KernelError> {
        let Some(name) = route.target.link() else { return Ok(()) };
        match self.state.links.get(&name) {
            Some(link) if !link.up => Err(KernelError::Errno(libc::ENETDOWN)),
            None if self.ours.contains(&name) => Err(KernelError::NoSuchLink(name)),
            _ => Ok(()),
        }
    }
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
        assert_eq!(reasons(&failed), ["add route 10.5.3.0/24 dev eth0: File exists (os error 17)"]);
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
        let ours = Ownership { links: [name("flannel.1")].into() };
        assert_eq!(kernel.snapshot(&ours).await.unwrap(), kernel.state());
        let seen = kernel.snapshot(&Ownership::default()).await.unwrap();
        assert_eq!((seen.links.len(), seen.addresses.len(), seen.routes.len()), (0, 0, 1));
        kernel.fail_next_snapshot(KernelError::Socket("gone".into()));
        assert!(kernel.snapshot(&ours).await.is_err());
        assert!(kernel.snapshot(&ours).await.is_ok());
        assert_eq!(kernel.snapshots(), 4);
    }

    #[tokio::test]
    async fn a_change_is_reported_once_even_if_nobody_waited() {
        let mut kernel = FakeKernel::new();
        assert!(kernel.changed().now_or_never().is_none());
        kernel.notify();
        kernel.notify();
        assert!(kernel.changed().now_or_never().is_some());
        assert!(kernel.changed().now_or_never().is_none());
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
