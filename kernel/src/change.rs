//! What the kernel tells of by itself.

use std::net::IpAddr;

use macaddr::MacAddr6;

use crate::source::{Check, Source};
use crate::state::{Address, FdbEntry, LinkName, Neighbour, NextHop, NextHopId, Route, RouteKey};

/// One notification. Those of our own operations are among them, before [`Kernel::apply`](crate::Kernel::apply) comes
/// back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// What the kernel holds of ours under one name, from now on.
    Fact(Fact),
    /// A device appeared, changed or went; what stood on it may have gone with it without a word.
    Link(LinkName),
    /// An address came to a device that is not ours, or left it.
    HostAddress(LinkName),
    /// A default route came or went.
    DefaultRoute,
    /// The senders that are let in went without a word each, with the rules that measure them, or some of them did.
    SendersGone,
    /// Notifications were lost: everything may have changed.
    Unknown,
}

/// What the kernel holds under one name; `None` and `false` say that it holds nothing there, or nothing of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// An address on one of our devices.
    Address(Address, bool),
    /// A permanent neighbour on one of our devices.
    Neighbour(Neighbour, Option<MacAddr6>),
    /// A permanent forwarding entry on one of our devices.
    Fdb(FdbEntry, Option<IpAddr>),
    /// A next hop object. When one goes, the routes that name it go without a word.
    NextHop(NextHopId, Option<NextHop>),
    /// A route in the main table.
    Route(RouteKey, Option<Route>),
    /// A sender that is let in.
    Source(Source, bool),
    /// A rule that measures senders.
    Check(Check, bool),
}

/// The name of anything that the kernel holds, whatever is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A device.
    Link(LinkName),
    /// An address on a device.
    Address(Address),
    /// A neighbour.
    Neighbour(Neighbour),
    /// A forwarding entry.
    Fdb(FdbEntry),
    /// A next hop object.
    NextHop(NextHopId),
    /// A route.
    Route(RouteKey),
    /// A sender.
    Source(Source),
    /// A rule that measures senders.
    Check(Check),
}
