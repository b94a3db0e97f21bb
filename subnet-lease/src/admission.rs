//! The judgement on one lease: a peer to reach, or a bad lease to keep from the kernel. A lease in the store is input that
//! nobody has checked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;

use crate::backend_config::BackendConfig;
use crate::config::NetworkConfig;
use crate::family::{Family, PerFamily, encloses};
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
    /// MACs of our VXLAN devices.
    pub macs: PerFamily<MacAddr6>,
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
    #[error("has no readable {0} VTEP data")]
    NoVtep(Family),
    /// The device's MAC can be nobody's.
    #[error("VTEP MAC {} is not a unicast address", .0.to_string().to_lowercase())]
    UnusableMac(MacAddr6),
    /// Our own MAC.
    #[error(
        "VTEP MAC {} is our own, and the lease is that of {holder}: one machine is a copy of the other; delete the VXLAN \
         device of one of them (ip link del flannel.VNI), give it a --node-id of its own, and restart fland there",
        .mac.to_string().to_lowercase()
    )]
    OurMac {
        /// The MAC.
        mac: MacAddr6,
        /// Whose the lease is.
        holder: String,
    },
    /// The MAC of a peer that was there first: two hosts with one MAC cannot both be reached.
    #[error(
        "VTEP MAC {} of {holder} is that of the older lease {older}: one machine is a copy of the other; delete the VXLAN \
         device of one of them (ip link del flannel.VNI), give it a --node-id of its own, and restart fland there",
        .mac.to_string().to_lowercase()
    )]
    MacTaken {
        /// Whose the lease is.
        holder: String,
        /// The MAC.
        mac: MacAddr6,
        /// Who had it first.
        older: Subnets,
    },
    /// Another VXLAN network.
    #[error("VNI is {theirs}, this network's is {ours}")]
    WrongVni {
        /// The lease's.
        theirs: u32,
        /// The config's.
        ours: u32,
    },
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
        let writes_nothing = matches!(self.config.backend, BackendConfig::Udp(_) | BackendConfig::Alloc);
        let says_nothing = attributes.backend.is_none() && attributes.data.is_empty();
        if lease.is_reservation() && says_nothing && !writes_nothing {
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
        let attributes = &lease.attributes;
        let theirs = attributes.backend.as_deref();
        match &self.config.backend {
            // flannel's udp takes peers of any backend.
            BackendConfig::Udp(_) | BackendConfig::Alloc => return Ok(()),
            backend if theirs == Some(backend.name()) => {}
            backend => {
                let theirs = shown(theirs.unwrap_or("none")).into_owned();
                return Err(QuarantineReason::WrongBackend { theirs, ours: backend.name() });
            }
        }
        let BackendConfig::Vxlan(vxlan) = &self.config.backend else { return Ok(()) };
        for (family, _) in self.config.networks() {
            let data = attributes.vxlan(family).ok_or(QuarantineReason::NoVtep(family))?;
            if data.vtep_mac.is_nil() || data.vtep_mac.is_multicast() {
                return Err(QuarantineReason::UnusableMac(data.vtep_mac));
            }
            if self.own.as_ref().is_some_and(|own| own.macs.values().any(|mac| *mac == data.vtep_mac)) {
                let holder = attributes.holder_and_node();
                return Err(QuarantineReason::OurMac { mac: data.vtep_mac, holder });
            }
            if let Some(theirs) = data.vni.filter(|vni| *vni != vxlan.vni) {
                return Err(QuarantineReason::WrongVni { theirs, ours: vxlan.vni });
            }
        }
        Ok(())
    }
}

/// Whether packets can be sent to the address as to one host, from another one.
pub fn is_host_address(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let reserved = ip.octets()[0] == 0 || ip.octets()[0] >= 240;
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || reserved)
        }
        IpAddr::V6(ip) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local())
        }
    }
}

fn names(families: impl Iterator<Item = Family>) -> String {
    families.map(|family| family.to_string()).collect::<Vec<_>>().join(" and ")
}
