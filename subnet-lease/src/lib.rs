//! Who owns which subnet: the network config, the leases in etcd, and the life of our own.
//!
//! The store has one protocol, the etcd v3 API, and one module that speaks it: `store`. Everything else works on plain
//! values, and takes the time and the random source as arguments. Keys, values and the config are flannel's, so that
//! hosts of both kinds share one network. This crate knows nothing of the kernel.

mod admission;
mod allocate;
mod backend_config;
mod backend_data;
mod backoff;
mod config;
mod config_error;
mod container;
mod endpoint;
mod entry;
mod family;
mod fields;
mod held_key;
mod host_network;
mod identity;
mod keeper;
mod key;
mod lease;
mod lease_set;
mod living_host;
mod network_name;
mod new_network;
#[cfg(test)]
mod samples;
mod shown;
mod store;
mod store_config;
mod stored;
mod subnet_pool;
mod twin;
mod watch;

pub use admission::{Admission, OwnLease, QuarantineReason};
pub use allocate::{NoSubnet, OverlapPolicy, Situation, allocate};
pub use backend_config::{
    BackendConfig, HostGwConfig, PathChoice, UdpConfig, VxlanConfig, WireguardConfig, WireguardMode, WrongVni,
};
pub use backend_data::{BackendData, VxlanData, WireguardData};
pub use config::{NetworkConfig, without_byte_order_mark};
pub use config_error::{ConfigError, ConfigWarning};
pub use container::Container;
pub use endpoint::{Endpoint, InvalidEndpoint, split_urls, without_user};
pub use entry::Entry;
#[cfg(fuzzing)]
pub use entry::kept;
pub use family::{Family, PerFamily, encloses, is_host_address, overlap};
pub use held_key::HeldKey;
pub use host_network::HostNetwork;
pub use identity::Identity;
pub use keeper::{Claim, HeldLease, Holding, Keeper, KeeperError, Sighting, Terms, release};
pub use key::{InvalidKey, Subnets};
pub use lease::{InvalidLease, Lease, LeaseAttributes, NodeIdentity};
pub use lease_set::{Caution, Changes, LeaseSet, OwnKey, PeerChange, QuarantineChange, Quarantined};
pub use living_host::{LivingHost, stay_alive};
pub use network_name::{InvalidNetworkName, NetworkName};
pub use new_network::{CannotCreate, Known, NewNetwork, check_beside, vni_of};
pub use shown::{cut, printable, shown, shown_bytes, without_controls};
pub use store::{
    Cause, ClockSkew, Collection, ConfigWritten, KnownNetworks, MemberStatus, Networks, NotCreated,
    Reservation, Snapshot, Store, StoreError, StoreFigures, StoredConfig, StoredNetwork, Unanswered,
    clock_skew,
};
pub use store_config::{Credentials, Password, StoreConfig};
pub use stored::{KeyChange, Listing, Read, Stored, Unreadable};
pub use subnet_pool::SubnetPool;
pub use twin::Twin;
pub use watch::{WatchEvent, Watcher};
