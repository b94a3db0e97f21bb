//! How a kind of object is written to the kernel, read from it and heard of.

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

/// A kind of object that is spoken of over netlink.
pub(crate) trait NetlinkObject: Kind {
    /// `RTM_*` of the messages that tell of it.
    const MESSAGES: &'static [u16];

    /// The request that carries out an operation. `None` if `index` does not know the device, or the kind is not changed
    /// [by one request](crate::kind::Changed::ByOneRequest).
    fn request(edit: &Edit<Self>, index: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request>;

    /// Carries out an operation of a kind that is changed [by device](crate::kind::Changed::ByDevice). Says whether a device of
    /// ours that had been renamed had to go for it, with everything on it.
    ///
    /// # Errors
    /// What the kernel refused, or that it does not answer.
    fn change_device(
        _edit: &Edit<Self>,
        _socket: &mut Socket,
        _devices: &mut Devices,
    ) -> Result<bool, KernelError> {
        Ok(false)
    }

    /// What carries out an operation of a kind that is changed [by nftables](crate::kind::Changed::ByNftables).
    ///
    /// # Errors
    /// What was to be asked before was not answered.
    fn transaction(_edit: &Edit<Self>, _nftables: &mut Socket) -> Result<Part, KernelError> {
        Ok(Part::default())
    }

    /// What is there of each that could not be added because something is, if that is another program's.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn in_the_way(
        edits: &[&Edit<Self>],
        _lookup: &mut Lookup<'_>,
    ) -> Result<Vec<Option<InTheWay>>, KernelError> {
        Ok(edits.iter().map(|_| None).collect())
    }

    /// Reads all that are ours.
    ///
    /// # Errors
    /// When the kernel does not answer. `ENODEV` means that a device went meanwhile.
    fn read(reading: &mut Reading<'_>) -> Result<Found<Self>, KernelError>;

    /// Tells what a message says.
    fn heard(frame: &Frame<'_>, lookup: &mut Lookup<'_>, tell: &mut Told<'_, Self>);
}

/// Objects of a kind, as they were found.
pub(crate) type Found<K> = Vec<(<K as Kind>::Key, <K as Kind>::Value)>;

/// An object of another program that has the name of one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// It is something else, in the words of `ip(8)`.
    Taken(String),
    /// It does what ours would, which may replace it.
    AsGood,
}

/// Who is told of a kind of object.
pub(crate) type Told<'a, K> = dyn FnMut(Notification<(<K as Kind>::Key, Option<<K as Kind>::Value>)>) + 'a;

/// What the kernel tells of by itself. The notifications of our own operations are among them, before
/// [`Kernel::apply`](crate::Kernel::apply) comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification<F> {
    /// What the kernel holds of ours under one name, from now on.
    Fact(F),
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

impl<F> Notification<F> {
    /// The same with another word for the fact.
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
