//! What a network is told, and what it has done.

use std::path::PathBuf;

use flan_agent_api::SubnetEnv;
use flan_subnet_lease::{Claim, Holding, Lease, OwnKey, Terms, WatchEvent};
use flan_wireguard_keys::PrivateKey;
use tokio::sync::watch;

/// An event of a network.
#[derive(Debug)]
pub enum NetworkEvent {
    /// The config in the store as JSON, if there is any; or why it could not be read.
    Config(Result<Option<Vec<u8>>, String>),
    /// No lease is available yet, for this reason.
    NoLease(String),
    /// This host has a lease.
    Leased(Holding),
    /// The lease or its state has changed.
    Holding(Holding),
    /// The store reported leases.
    Leases(WatchEvent<Lease>),
    /// This host's WireGuard key as its file has it, or why there is none.
    Key(Result<PrivateKey, String>),
    /// The subnet file was written, or why not.
    Saved(Result<(), String>),
    /// Containers are to be attached to a bridge that we make, or no longer.
    Bridge(bool),
}

/// An action for a network.
#[derive(Debug)]
pub enum NetworkEffect {
    /// Read the config from the store, now and whenever it changes. Answered by [`NetworkEvent::Config`] indefinitely.
    FollowConfig,
    /// Read the file of this host's WireGuard key. Answered by [`NetworkEvent::Key`].
    ReadKey,
    /// Start to list the leases, which the claim will need.
    ListLeases,
    /// Take a lease, keep it, and watch all leases. Answered by [`NetworkEvent::Leased`], then by others indefinitely.
    Claim(Box<LeaseClaim>),
    /// Write the subnet file. Answered by [`NetworkEvent::Saved`].
    Save {
        /// Its path.
        file: PathBuf,
        /// Its content.
        env: SubnetEnv,
    },
}

/// Input for taking and keeping a lease.
#[derive(Debug)]
pub struct LeaseClaim {
    /// What this host claims.
    pub claim: Claim,
    /// What of it changes while it stands.
    pub terms: watch::Receiver<Terms>,
    /// What the watch sees under our key.
    pub own_key: watch::Receiver<OwnKey>,
}
