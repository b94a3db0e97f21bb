//! What the kernel holds, and the only way to change it.
//!
//! A caller says what it wants as a [`State`], reads what is there with [`Kernel::snapshot`], lets [`diff`] compute
//! the ordered [`Operation`]s between the two, and hands them to [`Kernel::apply`]. Packet filter rules are a
//! [`Ruleset`], replaced as a whole through [`Firewall::apply`].
//!
//! This crate knows nothing of leases or etcd. It is the only one with netlink, nftables, sysctl and `unsafe`.

mod diff;
pub mod fake;
pub mod firewall;
pub mod netlink;
pub mod scheduling;
mod state;
pub mod sysctl;
pub mod tun;
pub mod udp_socket;
pub mod wait;

pub use diff::{LinkChange, Operation, diff};
pub use firewall::{FamilyRules, Firewall, FirewallError, Ruleset};
pub use state::{
    Address, FdbEntry, InvalidLinkName, Link, LinkKind, LinkName, Neighbour, Ownership, ROUTE_PROTOCOL,
    Route, RouteKey, RouteTarget, State, Vxlan,
};

/// The part of the kernel that an agent reads and writes. Adapters: [`netlink::Linux`] and [`fake::FakeKernel`].
pub trait Kernel: Send {
    /// Reads everything that `ownership` says is ours. Idempotent. An error means that nothing is known: a caller
    /// must not take it for an empty kernel.
    fn snapshot(&mut self, ownership: &Ownership) -> impl Future<Output = Result<State, KernelError>> + Send;

    /// Carries out `operations` in their order, and goes on after one that fails. Not idempotent by itself:
    /// operations are what a diff against a fresh snapshot said.
    ///
    /// The answer names each operation that failed, with the reason; an empty answer means that all succeeded.
    fn apply(&mut self, operations: &[Operation]) -> impl Future<Output = Vec<FailedOperation>> + Send;

    /// Waits until the kernel reports that something of interest (a link, address, route or neighbour) may have
    /// changed, including by ourselves. Cancel-safe; may report spuriously; never reports an end.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
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
    /// No answer within the time limit.
    #[error("no answer from the kernel within {0:?}")]
    TimedOut(std::time::Duration),
    /// A device that the operation names does not exist.
    #[error("device {0} does not exist")]
    NoSuchLink(LinkName),
    /// The request could not be made into a message, or an answer could not be understood.
    #[error("{0}")]
    Message(String),
}
