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
    /// What peers need to know of us.
    pub attributes: LeaseAttributes,
    /// What we held before, as subnet.env says; taken again if nobody else has it.
    pub previous: Option<Subnets>,
    /// All addresses of this host, on whatever interface: a lease that bears one of them and our node id is no clone's.
    pub addresses: BTreeSet<IpAddr>,
    /// This host's own networks at each moment; subnets that overlap none of them are preferred.
    pub networks: watch::Receiver<Vec<HostNetwork>>,
    /// What to do where no other subnet is free.
    pub overlap: OverlapPolicy,
    /// How long the lease outlives us, in whole seconds.
    pub ttl: Duration,
    /// A keepalive is sent at the latest this long before the end; shorter than `ttl`. It is sent after a third of
    /// `ttl` anyway.
    pub renew_margin: Option<Duration>,
}

/// The lease as we hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// Our subnets.
    pub subnets: Subnets,
    /// The etcd lease behind the key; `None` for a reservation, which needs no keepalive.
    pub etcd_lease: Option<i64>,
    /// Store revision of the last write of the key.
    pub mod_revision: i64,
}

/// The lease as we hold it, and what is wrong with that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub lease: HeldLease,
    /// Why it could not be renewed or taken back, while that lasts.
    pub problem: Option<String>,
    /// The other machine with our node id that was last heard of, because it claimed our lease or objected to our claim.
    pub twin: Option<Sighting>,
}

/// When another machine with our node id was last heard of.
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
    /// A lease with which nothing is wrong.
    pub fn new(lease: HeldLease) -> Self {
        Self { lease, problem: None, twin: None }
    }
}

/// Why a lease could not be taken at this moment.
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
        /// Who holds how many.
        holders: String,
    },
    /// Subnets are free, but only such as overlap this host's own networks.
    #[error(
        "{overlap}: {by}; release a lease that is no longer used, give the overlay more addresses, take that network off \
         this host, or have such a subnet taken with --subnet-overlap warn"
    )]
    Overlap {
        /// The network, and how many are free.
        #[source]
        overlap: NoSubnet,
        /// The host's networks, and where they are.
        by: String,
    },
    /// Another host was faster.
    #[error("another host took {0} at the same moment")]
    LostRace(Subnets),
}

/// The first and the longest wait after a failure, before jitter.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(10);
