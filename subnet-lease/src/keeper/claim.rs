//! What this host wants to hold, what it holds, and why it holds nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::allocate::{NoSubnet, OverlapPolicy};
use crate::config::NetworkConfig;
use crate::host_network::HostNetwork;
use crate::key::Subnets;
use crate::lease::LeaseAttributes;
use crate::store::StoreError;
use crate::twin::Twin;

/// What this host wants to hold.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The network.
    pub config: NetworkConfig,
    /// What peers need to know about us.
    pub attributes: LeaseAttributes,
    /// What we held before, according to subnet.env; taken again unless somebody else has it.
    pub previous: Option<Subnets>,
    /// All addresses of this host, on any interface: a lease with one of them and our node id is not a clone's.
    pub addresses: BTreeSet<IpAddr>,
    /// This host's current networks; subnets that overlap none of them are preferred.
    pub networks: watch::Receiver<Vec<HostNetwork>>,
    /// What to do if every free subnet overlaps.
    pub overlap: OverlapPolicy,
    /// How long the lease outlives us, in whole seconds.
    pub ttl: Duration,
    /// Latest time of a keepalive before expiry; shorter than `ttl`. It is sent after a third of `ttl` anyway.
    pub renew_margin: Option<Duration>,
}

/// What of a claim may change while it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// The network.
    pub config: NetworkConfig,
    /// What peers need to know about us.
    pub attributes: LeaseAttributes,
}

impl Claim {
    /// Returns what of it may change.
    pub fn terms(&self) -> Terms {
        Terms { config: self.config.clone(), attributes: self.attributes.clone() }
    }
}

/// The lease as we hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// Our subnets.
    pub subnets: Subnets,
    /// The etcd lease of the key; `None` for a reservation, which needs no keepalive.
    pub etcd_lease: Option<i64>,
    /// Store revision of the last write of the key.
    pub mod_revision: i64,
}

/// The lease as we hold it, and its problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub lease: HeldLease,
    /// Why it could not be renewed or taken back, as long as that lasts.
    pub problem: Option<String>,
    /// The last known other machine with our node id, which claimed our lease or objected to our claim.
    pub twin: Option<Sighting>,
}

/// When another machine with our node id was last noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The machine.
    pub twin: Twin,
    /// When.
    pub at: Instant,
}

impl Sighting {
    pub(super) fn now(twin: Twin) -> Self {
        Self { twin, at: Instant::now() }
    }
}

impl Holding {
    /// Creates it without a problem.
    pub fn new(lease: HeldLease) -> Self {
        Self { lease, problem: None, twin: None }
    }
}

/// Why a lease cannot be taken now.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No subnet is free.
    #[error("{exhausted}; held by: {holders}")]
    Exhausted {
        /// The network.
        #[source]
        exhausted: NoSubnet,
        /// How many each holder has.
        holders: String,
    },
    /// All free subnets overlap this host's own networks.
    #[error(
        "{overlap}: {by}; release a lease that is no longer used, give the overlay more addresses, remove that network \
         from this host, or allow the overlap with --subnet-overlap warn"
    )]
    Overlap {
        /// The network, and the number of free subnets.
        #[source]
        overlap: NoSubnet,
        /// The host's networks, with their places.
        by: String,
    },
    /// Another host was faster.
    #[error("another host took {0} at the same moment")]
    LostRace(Subnets),
}

/// The shortest and the longest wait after a failure, before jitter.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(10);
