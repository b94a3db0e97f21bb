//! What is wanted, and where the kernel differs from it.
//!
//! Both change one object at a time: a lease wants or no longer wants something, a notification tells what the kernel
//! now holds. What differs is remembered beside what is wanted, so a change among 50,000 peers costs what one peer
//! costs, and what the kernel holds is not kept a second time.

mod table;

use std::net::IpAddr;

use macaddr::MacAddr6;

use self::table::Table;
use crate::change::{Fact, Object};
use crate::diff::{LinkChange, Operation, diff};
use crate::source::{Check, Source};
use crate::state::{
    Address, FdbEntry, Link, LinkName, Neighbour, NextHop, NextHopId, Route, RouteKey, State,
};

/// What is wanted, and where the kernel differs.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    links: Table<LinkName, Link>,
    addresses: Table<Address, ()>,
    neighbours: Table<Neighbour, MacAddr6>,
    fdb: Table<FdbEntry, IpAddr>,
    next_hops: Table<NextHopId, NextHop>,
    routes: Table<RouteKey, Route>,
    sources: Table<Source, ()>,
    checks: Table<Check, ()>,
}

impl Ledger {
    /// Wants everything in `more`. What is wanted several times must be given up as often.
    pub fn want(&mut self, more: State) {
        let State { links, addresses, neighbours, fdb, next_hops, routes, sources, checks } = more;
        self.links.want(links);
        self.addresses.want(addresses.into_iter().map(|address| (address, ())));
        self.neighbours.want(neighbours);
        self.fdb.want(fdb);
        self.next_hops.want(next_hops);
        self.routes.want(routes);
        self.sources.want(sources.into_iter().map(|source| (source, ())));
        self.checks.want(checks.into_iter().map(|check| (check, ())));
    }

    /// Gives up everything in `less`, which was wanted before.
    pub fn give_up(&mut self, less: &State) {
        let State { links, addresses, neighbours, fdb, next_hops, routes, sources, checks } = less;
        self.links.give_up(links.keys());
        self.addresses.give_up(addresses);
        self.neighbours.give_up(neighbours.keys());
        self.fdb.give_up(fdb.keys());
        self.next_hops.give_up(next_hops.keys());
        self.routes.give_up(routes.keys());
        self.sources.give_up(sources);
        self.checks.give_up(checks);
    }

    /// Wants nothing any more.
    pub fn give_up_all(&mut self) {
        self.links.give_up_all();
        self.addresses.give_up_all();
        self.neighbours.give_up_all();
        self.fdb.give_up_all();
        self.next_hops.give_up_all();
        self.routes.give_up_all();
        self.sources.give_up_all();
        self.checks.give_up_all();
    }

    /// Takes in what the kernel tells of one object, in the order in which it tells. Answers the object if that is news:
    /// the echo of an operation that was [carried out](Self::carried_out) is none.
    pub fn observe(&mut self, fact: &Fact) -> Option<Object> {
        match *fact {
            Fact::Address(key, there) => {
                self.addresses.observe(key, there.then_some(())).then_some(Object::Address(key))
            }
            Fact::Neighbour(key, mac) => self.neighbours.observe(key, mac).then_some(Object::Neighbour(key)),
            Fact::Fdb(key, destination) => self.fdb.observe(key, destination).then_some(Object::Fdb(key)),
            Fact::NextHop(key, next_hop) => {
                self.next_hops.observe(key, next_hop).then_some(Object::NextHop(key))
            }
            Fact::Route(key, route) => self.routes.observe(key, route).then_some(Object::Route(key)),
            Fact::Source(key, there) => {
                self.sources.observe(key, there.then_some(())).then_some(Object::Source(key))
            }
            Fact::Check(key, there) => {
                self.checks.observe(key, there.then_some(())).then_some(Object::Check(key))
            }
        }
    }

    /// Takes in that the kernel may hold no sender any more, and no rule that measures them: they are added anew together,
    /// for a rule without the senders stops everybody. Answers every object of which that is news.
    pub fn senders_gone(&mut self) -> Vec<Object> {
        let sources = self.sources.lose(|_, ()| true).into_iter().map(Object::Source);
        sources.chain(self.checks.lose(|_, ()| true).into_iter().map(Object::Check)).collect()
    }

    /// From now on, remembers what is heard of, until [`reset`](Self::reset): what is read meanwhile may be older.
    pub fn begin_reading(&mut self) {
        self.links.begin_reading();
        self.addresses.begin_reading();
        self.neighbours.begin_reading();
        self.fdb.begin_reading();
        self.next_hops.begin_reading();
        self.routes.begin_reading();
        self.sources.begin_reading();
        self.checks.begin_reading();
    }

    /// Takes in all that the kernel holds of ours, as it was read since [`begin_reading`](Self::begin_reading); what was
    /// heard of since then stays. Answers every object of which that is news.
    pub fn reset(&mut self, actual: State) -> Vec<Object> {
        let mut news = Vec::new();
        news.extend(self.links.reset(actual.links).into_iter().map(Object::Link));
        let addresses = actual.addresses.into_iter().map(|address| (address, ())).collect();
        news.extend(self.addresses.reset(addresses).into_iter().map(Object::Address));
        news.extend(self.neighbours.reset(actual.neighbours).into_iter().map(Object::Neighbour));
        news.extend(self.fdb.reset(actual.fdb).into_iter().map(Object::Fdb));
        news.extend(self.next_hops.reset(actual.next_hops).into_iter().map(Object::NextHop));
        news.extend(self.routes.reset(actual.routes).into_iter().map(Object::Route));
        let sources = actual.sources.into_iter().map(|source| (source, ())).collect();
        news.extend(self.sources.reset(sources).into_iter().map(Object::Source));
        let checks = actual.checks.into_iter().map(|check| (check, ())).collect();
        news.extend(self.checks.reset(checks).into_iter().map(Object::Check));
        news
    }

    /// What would bring the kernel in line, as [`diff`] orders it.
    pub fn operations(&self) -> Vec<Operation> {
        // What is done to a device that is there may take away whatever stands on it; else only what differs matters.
        let whole = self.links.holds_what_differs();
        let (links, held_links) = self.links.sides(whole);
        let (addresses, held_addresses) = self.addresses.sides(whole);
        let (neighbours, held_neighbours) = self.neighbours.sides(whole);
        let (fdb, held_fdb) = self.fdb.sides(whole);
        let (next_hops, held_next_hops) = self.next_hops.sides(whole);
        let (routes, held_routes) = self.routes.sides(whole);
        let (sources, held_sources) = self.sources.sides(false);
        let (checks, held_checks) = self.checks.sides(false);
        let wanted = State {
            links,
            addresses: addresses.into_keys().collect(),
            neighbours,
            fdb,
            next_hops,
            routes,
            sources: sources.into_keys().collect(),
            checks: checks.into_keys().collect(),
        };
        let held = State {
            links: held_links,
            addresses: held_addresses.into_keys().collect(),
            neighbours: held_neighbours,
            fdb: held_fdb,
            next_hops: held_next_hops,
            routes: held_routes,
            sources: held_sources.into_keys().collect(),
            checks: held_checks.into_keys().collect(),
        };
        diff(&wanted, &held)
    }

    /// Takes in that the kernel has carried out `operation`.
    pub fn carried_out(&mut self, operation: &Operation) {
        use Operation::*;
        match *operation {
            CreateLink { name, ref link } => self.links.observe(name, Some(link.clone())),
            ReplaceLink { name, ref link, .. } => {
                self.lose_all_on(name);
                self.links.observe(name, Some(link.clone()))
            }
            UpdateLink { name, ref change } => self.link_updated(name, change),
            DeleteLink { name } => {
                self.lose_all_on(name);
                self.links.observe(name, None)
            }
            AddAddress(address) => self.addresses.observe(address, Some(())),
            DeleteAddress(address) => self.addresses.observe(address, None),
            SetNeighbour { neighbour, mac } => self.neighbours.observe(neighbour, Some(mac)),
            DeleteNeighbour(neighbour) => self.neighbours.observe(neighbour, None),
            SetFdb { entry, destination } => self.fdb.observe(entry, Some(destination)),
            DeleteFdb(entry) => self.fdb.observe(entry, None),
            AddNextHop { id, next_hop } | ReplaceNextHop { id, next_hop } => {
                self.next_hops.observe(id, Some(next_hop))
            }
            DeleteNextHop(id) => self.next_hops.observe(id, None),
            AddRoute { key, route } | ReplaceRoute { key, route } => self.routes.observe(key, Some(route)),
            DeleteRoute { key, .. } => self.routes.observe(key, None),
            AddSource(source) => self.sources.observe(source, Some(())),
            DeleteSource(source) => self.sources.observe(source, None),
            AddCheck(check) => self.checks.observe(check, Some(())),
            DeleteCheck(check) => self.checks.observe(check, None),
        };
    }

    /// Takes as little memory as it can, as after very much has changed.
    pub fn compact(&mut self) {
        self.links.compact();
        self.addresses.compact();
        self.neighbours.compact();
        self.fdb.compact();
        self.next_hops.compact();
        self.routes.compact();
        self.sources.compact();
        self.checks.compact();
    }

    /// Whether the kernel holds what is wanted of `object`, as far as is known.
    pub fn is_in_line(&self, object: &Object) -> bool {
        match object {
            Object::Link(key) => !self.links.differs(key),
            Object::Address(key) => !self.addresses.differs(key),
            Object::Neighbour(key) => !self.neighbours.differs(key),
            Object::Fdb(key) => !self.fdb.differs(key),
            Object::NextHop(key) => !self.next_hops.differs(key),
            Object::Route(key) => !self.routes.differs(key),
            Object::Source(key) => !self.sources.differs(key),
            Object::Check(key) => !self.checks.differs(key),
        }
    }

    /// Whether a device stands as it is wanted, and so can carry what is wanted on it.
    pub fn stands(&self, link: LinkName) -> bool {
        self.links.held(&link).is_some_and(|link| link.up)
    }

    /// Whether our devices and their addresses are as wanted.
    pub fn has_devices(&self) -> bool {
        self.links.is_in_line() && self.addresses.is_in_line()
    }

    fn link_updated(&mut self, name: LinkName, change: &LinkChange) -> bool {
        let mut news = false;
        if let Some(link) = self.links.held(&name) {
            let up = change.up.unwrap_or(link.up);
            let updated = Link {
                mac: change.mac.or(link.mac),
                mtu: change.mtu.unwrap_or(link.mtu),
                up,
                ..link.clone()
            };
            news = self.links.observe(name, Some(updated));
        }
        let goes_down = change.up == Some(false);
        if change.mac.is_some() || goes_down {
            self.neighbours.lose(|neighbour, _| neighbour.link == name);
        }
        if goes_down {
            self.addresses.lose(|address, ()| address.link == name && address.address.is_ipv6());
        }
        // Those of a device that was down had gone before.
        if change.up.is_some() {
            self.lose_routes_over(name);
        }
        news
    }

    fn lose_all_on(&mut self, name: LinkName) {
        self.addresses.lose(|address, ()| address.link == name);
        self.neighbours.lose(|neighbour, _| neighbour.link == name);
        self.fdb.lose(|entry, _| entry.link == name);
        self.lose_routes_over(name);
    }

    fn lose_routes_over(&mut self, name: LinkName) {
        self.next_hops.lose(|_, next_hop| next_hop.link == name);
        self.routes.lose(|_, route| route.target.link() == Some(name));
    }
}

#[cfg(test)]
mod tests;
