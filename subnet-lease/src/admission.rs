//! Judges one lease: a peer to reach, or a bad lease to keep from the kernel. Leases in the store are unchecked input.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::backend_config::WrongVni;
use crate::config::NetworkConfig;
use crate::family::{Family, PerFamily, encloses, is_host_address};
use crate::identity::Identity;
use crate::key::Subnets;
use crate::lease::{InvalidLease, Lease};
use crate::shown::shown;

/// What leases are judged against.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The network config.
    pub config: NetworkConfig,
    /// What we hold ourselves; `None` for an observer.
    pub own: Option<OwnLease>,
}

/// What no peer may claim, because it is ours.
#[derive(Debug, Clone)]
pub struct OwnLease {
    /// Our subnets.
    pub subnets: Subnets,
    /// Our addresses: those that we publish, and those that our packets come from.
    pub addresses: BTreeSet<IpAddr>,
    /// What identifies us to peers.
    pub identities: PerFamily<Identity>,
    /// Our node id.
    pub node_id: Option<Box<str>>,
}

/// What a lease is if it is not bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Our own lease.
    Own,
    /// A peer's lease.
    Peer,
    /// A reservation that no host has claimed yet.
    Unclaimed,
}

/// What is wrong with a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuarantineReason {
    /// Key or value is unreadable.
    #[error("{0}")]
    Unreadable(InvalidLease),
    /// The subnet is not part of the network.
    #[error("{subnet} is outside Network {network}")]
    OutsideNetwork {
        /// The subnet.
        subnet: IpNetwork,
        /// The network of that family.
        network: IpNetwork,
    },
    /// The lease lacks a family of the network, or has an extra one.
    #[error("the network uses {expected}, the lease {found}")]
    Families {
        /// The network's families.
        expected: String,
        /// The lease's families.
        found: String,
    },
    /// The subnet is larger than the subnets of this network.
    #[error("{subnet} is larger than this network's subnets of length /{subnet_len}")]
    TooLarge {
        /// The subnet.
        subnet: IpNetwork,
        /// The length in the config.
        subnet_len: u8,
    },
    /// The subnet overlaps ours.
    #[error(
        "{holder} holds it, and it overlaps our own subnet {ours}; release one of the two with flanctl subnets release, \
         and restart fland and Docker there"
    )]
    OverlapsOurs {
        /// Our subnets.
        ours: Subnets,
        /// The holder of the lease.
        holder: String,
    },
    /// The subnet overlaps an older lease.
    #[error(
        "overlaps the older lease {older}; release one of the two with flanctl subnets release, and restart fland and \
         Docker on its host"
    )]
    Overlaps {
        /// The older lease.
        older: Subnets,
    },
    /// There is no address of the required family.
    #[error("has no public {0} address")]
    NoPublicAddress(Family),
    /// The address cannot receive packets.
    #[error("public address {0} is not a usable host address")]
    UnusablePublicAddress(IpAddr),
    /// A lease with our own address and node id that is not the one we hold.
    #[error(
        "it is a former lease of this host, which holds {held} now; it expires by itself, or at once with \
         flanctl subnets release"
    )]
    OurFormerLease {
        /// The lease that we hold.
        held: Subnets,
    },
    /// Our own address.
    #[error(
        "public address {ip} is our own, but {holder} holds the lease: two machines have one address, or that machine \
         no longer exists; give one of them another address or --public-ip, or delete the lease with flanctl subnets release"
    )]
    OurPublicAddress {
        /// The address.
        ip: IpAddr,
        /// The holder of the lease.
        holder: String,
    },
    /// The address is inside the overlay network: its packets would be encapsulated endlessly.
    #[error("public address {0} lies inside Network {1}")]
    PublicAddressInOverlay(IpAddr, IpNetwork),
    /// The holder uses another backend.
    #[error("backend is {theirs}, this network's is {ours}")]
    WrongBackend {
        /// The backend in the lease.
        theirs: String,
        /// The backend in the config.
        ours: &'static str,
    },
    /// The backend's data is missing or unreadable.
    #[error("has no readable {family} {what}")]
    NoBackendData {
        /// The family that lacks it.
        family: Family,
        /// Its name for people.
        what: &'static str,
    },
    /// No host can have this identity.
    #[error("{0} {why}", why = .0.why_unusable())]
    UnusableIdentity(Identity),
    /// Our own identity.
    #[error(
        "{identity} is our own, but {holder} holds the lease: one machine is a clone of the other; {}",
        identity.remedy()
    )]
    OurIdentity {
        /// The shared identity.
        identity: Identity,
        /// The holder of the lease.
        holder: String,
    },
    /// An older lease has the same identity: two such hosts cannot both be reached.
    #[error(
        "{identity} of {holder} is that of the older lease {older}: one machine is a clone of the other; {}",
        identity.remedy()
    )]
    IdentityTaken {
        /// The holder of the lease.
        holder: String,
        /// The shared identity.
        identity: Identity,
        /// The older lease.
        older: Subnets,
    },
    /// Other leases have the same identity, more than one host needs.
    #[error(
        "{identity} has {leases} older leases; release those that its host no longer holds with flanctl subnets release"
    )]
    TooManyLeases {
        /// The identity.
        identity: Identity,
        /// How many older leases have it.
        leases: usize,
    },
    /// The holder uses different settings for the backend.
    #[error(transparent)]
    WrongVni(#[from] WrongVni),
}

impl Admission {
    /// Judges one lease by itself, without regard to other peers' leases.
    ///
    /// # Errors
    /// The reason why it is bad.
    pub(crate) fn standing(&self, lease: &Lease) -> Result<Standing, QuarantineReason> {
        if self.own.as_ref().is_some_and(|own| own.subnets == lease.subnets) {
            return Ok(Standing::Own);
        }
        self.check_subnets(lease)?;
        if self.waits_for_us(lease) {
            return Ok(Standing::Unclaimed);
        }
        for (family, _) in self.config.over_underlay() {
            self.check_public_ip(family, lease)?;
        }
        let attributes = &lease.attributes;
        // With a backend that writes nothing, claimed and unclaimed reservations look the same.
        let writes_something = self.config.backend.lease_type().is_some();
        let says_nothing = attributes.backend.is_none() && attributes.data.is_empty();
        if lease.is_reservation() && says_nothing && writes_something {
            return Ok(Standing::Unclaimed);
        }
        self.check_backend(lease)?;
        Ok(Standing::Peer)
    }

    /// Returns whether the lease is a reservation that this host moves to at the next start of its agent.
    fn waits_for_us(&self, lease: &Lease) -> bool {
        let attributes = &lease.attributes;
        let says_nothing = attributes.backend.is_none() && attributes.node.id.is_none();
        let is_for_us = |own: &OwnLease| attributes.public_ips.values().any(|ip| own.addresses.contains(ip));
        lease.is_reservation() && says_nothing && self.own.as_ref().is_some_and(is_for_us)
    }

    fn check_subnets(&self, lease: &Lease) -> Result<(), QuarantineReason> {
        let subnets = &lease.subnets;
        for (family, subnet) in subnets.iter() {
            let Some(pool) = self.config.pools.get(family) else { continue };
            if !encloses(&pool.network(), &subnet) {
                return Err(QuarantineReason::OutsideNetwork { subnet, network: pool.network() });
            }
            if subnet.prefix() < pool.subnet_len() {
                return Err(QuarantineReason::TooLarge { subnet, subnet_len: pool.subnet_len() });
            }
        }
        let families = |family| (self.config.pools.get(family).is_some(), subnets.get(family).is_some());
        if Family::ALL.into_iter().map(families).any(|(expected, found)| expected != found) {
            let expected = names(self.config.networks().map(|(family, _)| family));
            return Err(QuarantineReason::Families {
                expected,
                found: names(subnets.iter().map(|(family, _)| family)),
            });
        }
        match &self.own {
            Some(own) if own.subnets.overlaps(subnets) => Err(QuarantineReason::OverlapsOurs {
                ours: own.subnets,
                holder: lease.attributes.holder_and_node(),
            }),
            _ => Ok(()),
        }
    }

    fn check_public_ip(&self, family: Family, lease: &Lease) -> Result<(), QuarantineReason> {
        let ip = *lease.attributes.public_ips.get(family).ok_or(QuarantineReason::NoPublicAddress(family))?;
        if !is_host_address(ip) {
            return Err(QuarantineReason::UnusablePublicAddress(ip));
        }
        if let Some(own) = self.own.as_ref().filter(|own| own.addresses.contains(&ip)) {
            let node_id = &lease.attributes.node.id;
            if node_id.is_some() && *node_id == own.node_id {
                return Err(QuarantineReason::OurFormerLease { held: own.subnets });
            }
            if !self.config.backend.shares_addresses() {
                let holder = lease.attributes.holder_and_node();
                return Err(QuarantineReason::OurPublicAddress { ip, holder });
            }
        }
        match self.config.networks().find(|(_, network)| network.contains(ip)) {
            Some((_, network)) => Err(QuarantineReason::PublicAddressInOverlay(ip, network)),
            None => Ok(()),
        }
    }

    fn check_backend(&self, lease: &Lease) -> Result<(), QuarantineReason> {
        let (backend, attributes) = (&self.config.backend, &lease.attributes);
        // A backend that writes no type, such as flannel's udp, accepts peers of any backend.
        let Some(ours) = backend.lease_type() else { return Ok(()) };
        let theirs = attributes.backend.as_deref();
        if theirs != Some(ours) {
            let theirs = shown(theirs.unwrap_or("none")).into_owned();
            return Err(QuarantineReason::WrongBackend { theirs, ours });
        }
        let Some(what) = backend.data_is_called() else { return Ok(()) };
        for (family, _) in self.config.networks() {
            let none = QuarantineReason::NoBackendData { family, what };
            let Some(data) = attributes.data.get(family) else { return Err(none) };
            let identity = backend.identity(Some(data)).ok_or(none)?;
            if !identity.is_usable() {
                return Err(QuarantineReason::UnusableIdentity(identity));
            }
            if self.own.as_ref().is_some_and(|own| own.identities.values().any(|ours| *ours == identity)) {
                let holder = attributes.holder_and_node();
                return Err(QuarantineReason::OurIdentity { identity, holder });
            }
            backend.check(data)?;
        }
        Ok(())
    }
}

fn names(families: impl Iterator<Item = Family>) -> String {
    families.map(|family| family.to_string()).collect::<Vec<_>>().join(" and ")
}
