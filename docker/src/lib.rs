//! Docker's networks: the network and IPAM driver `flan`, and Docker's own list of networks on every host.
//!
//! dockerd calls the [`Driver`] over a unix socket ([`serve`]). While it waits for an answer it holds locks, so no answer
//! waits for Docker itself, and none waits without a limit. Beside that, [`follow`] compares Docker's networks with those in
//! the store, names new ones, and creates and removes what other hosts created and removed.

mod addresses;
mod driver;
mod engine;
mod follow;
mod ipam;
mod mirror;
mod options;
mod protocol;
mod records;
mod server;

use flan_agent_api::SubnetEnv;
use flan_kernel::LinkName;
use flan_subnet_lease::NetworkName;
use tokio::sync::{oneshot, watch};

pub use driver::{Driver, Settings};
pub use follow::follow;
pub use records::RecordsError;
pub use server::serve;

/// What containers need of this host's agent.
#[derive(Debug)]
pub enum Demand {
    /// Join the network, and make a bridge for containers.
    Attach {
        /// The network.
        network: NetworkName,
        /// Receives how far that is.
        answer: oneshot::Sender<Attachment>,
    },
    /// No container of this host needs the network any more.
    Detach {
        /// The network.
        network: NetworkName,
    },
}

/// Where containers of a network are attached.
pub struct Attachment {
    /// The bridge.
    pub bridge: LinkName,
    /// The addresses and the MTU, once packets flow. Its sender is gone when this host leaves the network.
    pub ready: watch::Receiver<Option<SubnetEnv>>,
    /// Says what the network waits for.
    pub waits_for: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment").field("bridge", &self.bridge).finish_non_exhaustive()
    }
}
