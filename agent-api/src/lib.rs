//! What `fland` and `flanctl` share: flags and their parser, the documents and files that one writes and the other
//! reads, and the identity of this host.

pub mod command_line;
mod host_args;
mod interface_args;
mod only_agent;
mod peers;
mod problem;
pub mod shipped;
mod socket;
mod status;
mod store_args;
mod subnet_env;
mod summary;
pub mod urls;
mod whole_file;
mod wireguard_args;

pub use host_args::{NodeId, PublicIps, SubnetDir, SubnetFile};
pub use interface_args::InterfaceArgs;
pub use only_agent::OnlyAgent;
pub use peers::{Peer, PeerHealth, PeerState, Peers, ProbeSource, WireguardPeer};
pub use problem::{Code, Problem, Severity};
pub use socket::AgentSocket;
pub use status::{
    API_VERSION, Datapath, EmbeddedStore, HostStatus, NamedNetwork, NetworkStatus, PathInForce, Probed,
    QuarantinedLease, Repairs, SHOWN_IN_LISTS, Status, UnreachablePeer,
};
pub use store_args::{DEFAULT_ENDPOINT, StoreArgs};
pub use subnet_env::{SubnetEnv, SubnetEnvError};
pub use summary::{HostSummary, SummaryProblem};
pub use urls::{Urls, UserSettings};
pub use whole_file::write_whole;
pub use wireguard_args::{FLANNELS_WIREGUARD_KEY, WireguardKeyFile};
