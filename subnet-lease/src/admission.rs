//! The judgement on one lease: a peer to reach, or a bad lease to keep from the kernel. A lease in the store is input that
//! nobody has checked.

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

/// What a lease is measured by.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The network config.
    pub config: NetworkConfig,
    /// What we hold ourselves; `None` for an onlooker.
    pub own: Option<OwnLease>,
}

/// What no peer may claim, because it is ours.
#[derive(Debug, Clone)]
pub struct OwnLease {
    /// Our subnets.
    pub subnets: Subnets,
    /// Our addresses: those that we publish, and those that our packets come from.
    pub addresses: BTreeSet<IpAddr>,
    /// What peers tell us from others by.
    pub identities: PerFamily<Identity>,
    /// Our node id.
    pub node_id: Option<Box<str>>,
}

/// What a lease is that is not bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Our own.
    Own,
    /// A peer's.
    Peer,
    /// A reservation that waits for its host.
    Unclaimed,
}

/// What is wrong with a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuarantineReason {
    /// Key or value cannot be read.
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
    /// The lease lacks a family of the network, or has one that the network lacks.
    #[error("the network uses {expected}, the lease {found}")]
    Families {
        /// The network's families.
        expected: String,
        /// The lease's families.
        found: String,
    },
    /// The subnet is larger than any that this network leases.
    #[error("{subnet} is larger than this network's subnets of length /{subnet_len}")]
    TooLarge {
        /// The subnet.
        subnet: IpNetwork,
        /// The length in the config.
        subnet_len: u8,
    },
    /// The subnet shares addresses with ours.
    #[error(
        "it is that of {holder} and overlaps our own subnet {ours}; release one of the two with flanctl subnets release, \
         and restart fland and Docker there"
    )]
    OverlapsOurs {
        /// Our subnets.
        ours: Subnets,
        /// Whose the lease is.
        holder: String,
    },
    /// The subnet shares addresses with a lease that was there first.
    #[error(
        "overlaps the older lease {older}; release one of the two with flanctl subnets release, and restart fland and \
         Docker on its host"
    )]
    Overlaps {
        /// The lease that was there first.
        older: Subnets,
    },
    /// No address of the needed family.
    #[error("has no public {0} address")]
    NoPublicAddress(Family),
    /// An address that no packet can be sent to.
    #[error("public address {0} is not a usable host address")]
    UnusablePublicAddress(IpAddr),
    /// A lease that bears our own address and node id, and is not the one that we hold.
    #[error(
        "it is a former lease of this host, which holds {held} now; it ends by itself, or at once with \
         flanctl subnets release"
    )]
    OurFormerLease {
        /// What we hold.
        held: Subnets,
    },
    /// Our own address.
    #[error(
        "public address {ip} is our own, and the lease is that of {holder}: two machines have one address, or that machine \
         is no more; give one of them another address or --public-ip, or end the lease with flanctl subnets release"
    )]
    OurPublicAddress {
        /// The address.
        ip: IpAddr,
        /// Whose the lease is.
        holder: String,
    },
    /// An address inside the overlay network: its packets would be wrapped again and again.
    #[error("public address {0} lies inside Network {1}")]
    PublicAddressInOverlay(IpAddr, IpNetwork),
    /// The holder runs another backend.
    #[error("backend is {theirs}, this network's is {ours}")]
    WrongBackend {
        /// The lease's.
        theirs: String,
        /// The config's.
        ours: &'static str,
    },
    /// The backend's data is missing or unreadable.
    #[error("has no readable {family} {what}")]
    NoBackendData {
        /// Of which family.
        family: Family,
        /// What people call it.
        what: &'static str,
    },
    /// What identifies the holder can be nobody's.
    #[error("{0} is not a unicast address")]
    UnusableIdentity(Identity),
    /// Our own identity.
    #[error(
        "{identity} is our own, and the lease is that of {holder}: one machine is a copy of the other; {}",
        identity.remedy()
    )]
    OurIdentity {
        /// What we have in common.
        identity: Identity,
        /// Whose the lease is.
        holder: String,
    },
    /// The identity of a peer that was there first: two hosts with one cannot both be reached.
    #[error(
        "{identity} of {holder} is that of the older lease {older}: one machine is a copy of the other; {}",
        identity.remedy()
    )]
    IdentityTaken {
        /// Whose the lease is.
        holder: String,
        /// What both have.
        identity: Identity,
        /// Who had it first.
        older: Subnets,
    },
    /// The holder runs the backend with other settings.
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
        for (family, _) in self.config.networks() {
            self.check_public_ip(family, lease)?;
        }
        let attributes = &lease.attributes;
        // Of a backend that writes nothing, a claimed reservation looks the same as one that waits.
        let writes_something = self.config.backend.lease_type().is_some();
        let says_nothing = attributes.backend.is_none() && attributes.data.is_empty();
        if lease.is_reservation() && says_nothing && writes_something {
            return Ok(Standing::Unclaimed);
        }
        self.check_backend(lease)?;
        Ok(Standing::Peer)
    }

    /// Whether the lease is a reservation that this host moves to when its agent starts again.
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
            return Err(match node_id.is_some() && *node_id == own.node_id {
                true => QuarantineReason::OurFormerLease { held: own.subnets },
                false => {
                    QuarantineReason::OurPublicAddress { ip, holder: lease.attributes.holder_and_node() }
                }
            });
        }
        match self.config.networks().find(|(_, network)| network.contains(ip)) {
            Some((_, network)) => Err(QuarantineReason::PublicAddressInOverlay(ip, network)),
            None => Ok(()),
        }
    }

    fn check_backend(&self, lease: &Lease) -> Result<(), QuarantineReason> {
        let (backend, attributes) = (&self.config.backend, &lease.attributes);
        // One that writes no type, such as flannel's udp, takes peers of any backend.
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
