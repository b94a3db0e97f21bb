//! What the kernel holds, and the only ways to change it.
//!
//! A caller describes what it wants as a [`State`], reads what exists with [`Kernel::snapshot`], lets [`diff`] compute
//! the ordered [`Operation`]s between the two, and passes them to [`Kernel::apply`]. Packet filter rules are a
//! [`Ruleset`], replaced as a whole through [`Firewall::apply`]. Links of containers to the host's LAN are not part of the
//! overlay and have no desired state: [`lan`] makes and removes each by itself.
//!
//! This crate knows nothing of leases or etcd. It is the only one with netlink, nftables, sysctl and `unsafe`.

mod diff;
pub mod echo;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod firewall;
pub mod kind;
mod kinds;
pub mod lan;
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
pub use kind::checksums::Checksums;
pub use kind::fdb::{Fdb, FdbEntry};
pub use kind::fou_port::{FouPort, FouPorts};
pub use kind::gateway::{Gateway, NextHopId, ROUTE_PROTOCOL};
pub use kind::link::{Ipip, Link, LinkChange, LinkKind, Links, Vxlan};
pub use kind::link_name::{InvalidLinkName, LinkName};
pub use kind::neighbour::{Neighbour, Neighbours};
pub use kind::next_hop::{NextHop, NextHops};
pub use kind::route::{Route, RouteKey, RouteTarget, Routes};
pub use kind::source::Sources;
pub use kind::wireguard_device::{WireguardDevice, WireguardDevices};
pub use kind::wireguard_peer::{WireguardPeer, WireguardPeerKey, WireguardPeers};
pub use kind::{Edit, Kind, Name};
pub use kinds::{Change, Entry, Fact, Listed, Object, Objects, Operation, State};
pub use ledger::{GivingUp, Ledger};
pub use ownership::Ownership;
pub use plan::Plan;
pub use source::{Check, Plain, Source, Wire};

/// The part of the kernel that an agent reads and writes. Adapters: [`netlink::Linux`], and one in memory for tests
/// (feature `fake`).
pub trait Kernel: Send {
    /// Reads everything that `ownership` covers, concurrently with other requests to the kernel. Idempotent. After an
    /// error nothing is known: a caller must not treat it as an empty kernel.
    fn snapshot(&mut self, ownership: &Ownership) -> BoxFuture<'static, Result<State, KernelError>>;

    /// Carries out `operations` in order, and continues after failures. Not idempotent: operations come from a diff.
    ///
    /// Returns each operation that failed, with the reason; empty if all succeeded.
    fn apply(&mut self, operations: &[Operation]) -> impl Future<Output = Vec<FailedOperation>> + Send;

    /// Waits for notifications, and returns all since the last call, in order. Does not wait if there are some already,
    /// so that `changes().now_or_never()` after an [`apply`](Self::apply) returns what that caused. Cancel-safe:
    /// nothing is lost.
    fn changes(&mut self) -> impl Future<Output = Vec<Change>> + Send;
}

/// An operation that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {reason}")]
pub struct FailedOperation {
    /// The operation.
    pub operation: Operation,
    /// The kernel's answer.
    #[source]
    pub reason: KernelError,
}

/// Why the kernel could not be read or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KernelError {
    /// The netlink socket could not be opened or broke; the kernel's state is unknown.
    #[error("netlink socket: {0}")]
    Socket(String),
    /// The kernel answered a request with an error number (`errno(3)`, positive).
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// As [`Errno`](Self::Errno), with the kernel's explanation (`NLMSGERR_ATTR_MSG`).
    #[error("{}: {text}", std::io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// The error number (`errno(3)`, positive).
        errno: i32,
        /// The kernel's explanation.
        text: String,
    },
    /// The tables changed during every reading, so that no consistent state could be read. Worth another try later.
    #[error("the kernel's tables changed during every attempt to read them")]
    Interrupted,
    /// No answer within the time limit.
    #[error("no answer from the kernel within {0:?}")]
    TimedOut(std::time::Duration),
    /// An object of another program has the name. It is left in place.
    #[error("it is taken: {0}")]
    Taken(
        /// That object in the style of `ip(8)`: `10.5.3.0/24 via 192.168.64.1 dev eth0 proto static`.
        String,
    ),
    /// Another program or device uses the UDP port that a device needs.
    #[error("UDP port {port} is taken by {holder}")]
    PortTaken {
        /// The port.
        port: u16,
        /// The program or device that uses it.
        holder: netlink::Holder,
    },
    /// A device that the operation names does not exist.
    #[error("device {0} does not exist")]
    NoSuchLink(LinkName),
    /// The request could not be encoded, or an answer could not be decoded.
    #[error("{0}")]
    Message(String),
}

impl KernelError {
    /// Returns the error number in the kernel's answer, if it answered with one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno(errno) | Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Returns whether a device that the operation needs is down.
    pub fn is_device_down(&self) -> bool {
        self.errno() == Some(libc::ENETDOWN)
    }
}
