//! What the kernel holds, and the only way to change it.
//!
//! A caller says what it wants as a [`State`], reads what is there with [`Kernel::snapshot`], lets [`diff`] compute
//! the ordered [`Operation`]s between the two, and hands them to [`Kernel::apply`]. Packet filter rules are a
//! [`Ruleset`], replaced as a whole through [`Firewall::apply`].
//!
//! This crate knows nothing of leases or etcd. It is the only one with netlink, nftables, sysctl and `unsafe`.

mod diff;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod firewall;
pub mod kind;
mod kinds;
mod ledger;
mod mac;
pub mod memory;
pub mod netlink;
mod ownership;
mod plan;
pub mod process;
pub mod scheduling;
mod source;
pub mod sysctl;
pub mod tun;
pub mod udp_socket;
pub mod wait;

use futures::future::BoxFuture;

pub use diff::diff;
pub use firewall::{FamilyRules, Firewall, FirewallError, OwnRules, Ruleset};
pub use kind::address::{Address, Addresses};
pub use kind::check::Checks;
pub use kind::fdb::{Fdb, FdbEntry};
pub use kind::gateway::{Gateway, NextHopId, ROUTE_PROTOCOL};
pub use kind::link::{Link, LinkChange, LinkKind, Links, Vxlan};
pub use kind::link_name::{InvalidLinkName, LinkName};
pub use kind::neighbour::{Neighbour, Neighbours};
pub use kind::next_hop::{NextHop, NextHops};
pub use kind::route::{Route, RouteKey, RouteTarget, Routes};
pub use kind::source::Sources;
pub use kind::{Edit, Kind, Name};
pub use kinds::{Change, Entry, Fact, Listed, Object, Objects, Operation, State};
pub use ledger::{GivingUp, Ledger};
pub use ownership::Ownership;
pub use plan::Plan;
pub use source::{Check, Plain, Source, Wire};

/// The part of the kernel that an agent reads and writes. Adapters: [`netlink::Linux`], and one in memory for tests
/// (feature `fake`).
pub trait Kernel: Send {
    /// Reads everything that `ownership` says is ours, beside whatever else the kernel is asked for meanwhile.
    /// Idempotent. An error means that nothing is known: a caller must not take it for an empty kernel.
    fn snapshot(&mut self, ownership: &Ownership) -> BoxFuture<'static, Result<State, KernelError>>;

    /// Carries out `operations` in their order, and goes on after one that fails. Not idempotent by itself:
    /// operations are what a diff said.
    ///
    /// The answer names each operation that failed, with the reason; an empty answer means that all succeeded.
    fn apply(&mut self, operations: &[Operation]) -> impl Future<Output = Vec<FailedOperation>> + Send;

    /// Waits until the kernel has something to tell, and returns all that it has told since the last time, in its
    /// order. Does not wait when there is something already, so that `changes().now_or_never()` after an
    /// [`apply`](Self::apply) gives what that caused. Cancel-safe: nothing is lost.
    fn changes(&mut self) -> impl Future<Output = Vec<Change>> + Send;
}

/// An operation that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {reason}")]
pub struct FailedOperation {
    /// What was asked.
    pub operation: Operation,
    /// What the kernel answered.
    #[source]
    pub reason: KernelError,
}

/// Why the kernel could not be read or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KernelError {
    /// The netlink socket could not be opened or broke; nothing can be said about the kernel's state.
    #[error("netlink socket: {0}")]
    Socket(String),
    /// The kernel answered a request with an error number (`errno(3)`, positive).
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// The same, and the kernel said why in words (`NLMSGERR_ATTR_MSG`).
    #[error("{}: {text}", std::io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// The error number (`errno(3)`, positive).
        errno: i32,
        /// The kernel's words.
        text: String,
    },
    /// What was to be read changed all the while, so that nothing that fits together could be read. It is worth another
    /// try when things have calmed down.
    #[error("the kernel's tables changed all the while they were read")]
    Interrupted,
    /// No answer within the time limit.
    #[error("no answer from the kernel within {0:?}")]
    TimedOut(std::time::Duration),
    /// The name is taken by an object of another program, which is left alone.
    #[error("it is taken: {0}")]
    Taken(
        /// Whose it is, in the words of `ip(8)`: `10.5.3.0/24 via 192.168.64.1 dev eth0 proto static`.
        String,
    ),
    /// Another program or device has the UDP port that a device needs.
    #[error("UDP port {port} is taken by {holder}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        holder: netlink::Holder,
    },
    /// A device that the operation names does not exist.
    #[error("device {0} does not exist")]
    NoSuchLink(LinkName),
    /// The request could not be made into a message, or an answer could not be understood.
    #[error("{0}")]
    Message(String),
}

impl KernelError {
    /// The error number that the kernel answered with, if it did.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno(errno) | Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether a device that the operation needs is down.
    pub fn is_device_down(&self) -> bool {
        self.errno() == Some(libc::ENETDOWN)
    }
}
