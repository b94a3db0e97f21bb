//! How a kind of object is written to the kernel, read from it, and reported by it.

use super::devices::Devices;
use super::lookup::Lookup;
use super::message::Request;
use super::nft::Part;
use super::reading::Reading;
use super::socket::Socket;
use super::wire::Frame;
use crate::KernelError;
use crate::kind::link_name::LinkName;
use crate::kind::{Edit, Kind};

/// A kind of object that netlink handles.
pub(crate) trait NetlinkObject: Kind {
    /// `RTM_*` types of the messages about it.
    const MESSAGES: &'static [u16];

    /// Returns the request for an operation. `None` if `index` does not know the device, or the kind is not changed [by
    /// one request](crate::kind::Changed::ByOneRequest).
    fn request(edit: &Edit<Self>, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request>;

    /// Carries out an operation of a kind that is changed [by device](crate::kind::Changed::ByDevice). Returns whether
    /// a renamed device of ours had to be deleted for it, with everything on it.
    ///
    /// # Errors
    /// If the kernel refuses or does not answer.
    fn change_device(
        _edit: &Edit<Self>,
        _socket: &mut Socket,
        _devices: &mut Devices,
    ) -> Result<bool, KernelError> {
        Ok(false)
    }

    /// Returns the changes for an operation of a kind that is changed [by nftables](crate::kind::Changed::ByNftables).
    ///
    /// # Errors
    /// If a question that must be answered first was not.
    fn transaction(_edit: &Edit<Self>, _nftables: &mut Socket) -> Result<Part, KernelError> {
        Ok(Part::default())
    }

    /// Returns the attributes of the request for an operation of a kind that is changed
    /// [by WireGuard](crate::kind::Changed::ByWireguard).
    fn wireguard_change(_edit: &Edit<Self>) -> Vec<u8> {
        Vec::new()
    }

    /// Returns what blocks each operation that could not add an object, if that belongs to another program.
    ///
    /// # Errors
    /// If the kernel does not answer.
    fn in_the_way(
        edits: &[&Edit<Self>],
        _lookup: &mut Lookup<'_>,
    ) -> Result<Vec<Option<InTheWay>>, KernelError> {
        Ok(edits.iter().map(|_| None).collect())
    }

    /// Reads all objects that are ours.
    ///
    /// # Errors
    /// If the kernel does not answer. `ENODEV` means that a device disappeared meanwhile.
    fn read(reading: &mut Reading<'_>) -> Result<Found<Self>, KernelError>;

    /// Passes what a message says to `tell`.
    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>);
}

/// Objects of one kind as read.
pub(crate) type Found<K> = Vec<(<K as Kind>::Key, <K as Kind>::Value)>;

/// An object of another program that has the name of one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// It is something else, described in the style of `ip(8)`.
    Taken(String),
    /// It does what ours would; ours may replace it.
    AsGood,
}

/// The receiver of notifications about one kind.
pub(crate) type Told<'a, K> = dyn FnMut(Notification<(<K as Kind>::Key, Option<<K as Kind>::Value>)>) + 'a;

/// A notification from the kernel. Those about our operations precede the return of
/// [`Kernel::apply`](crate::Kernel::apply).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification<F> {
    /// What the kernel now holds of ours under one name.
    Fact(F),
    /// A device appeared, changed or disappeared. Objects on it may have disappeared without notifications.
    Link(LinkName),
    /// An address was added to or removed from a device that is not ours.
    HostAddress(LinkName),
    /// A default route was added or removed.
    DefaultRoute,
    /// Some or all allowed senders and their checks disappeared, without one notification each.
    SendersGone,
    /// Notifications were lost: everything may have changed.
    Unknown,
}

impl<F> Notification<F> {
    /// Converts the fact.
    pub(crate) fn map<G>(self, fact: impl FnOnce(F) -> G) -> Notification<G> {
        match self {
            Self::Fact(known) => Notification::Fact(fact(known)),
            Self::Link(name) => Notification::Link(name),
            Self::HostAddress(name) => Notification::HostAddress(name),
            Self::DefaultRoute => Notification::DefaultRoute,
            Self::SendersGone => Notification::SendersGone,
            Self::Unknown => Notification::Unknown,
        }
    }
}
