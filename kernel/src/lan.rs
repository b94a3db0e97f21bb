//! A link between a network namespace, such as a container's, and the host's own LAN.

mod announce;
mod inside;
mod lower;
mod netns;
mod parent;
mod request;
mod tables;

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use macaddr::MacAddr6;

use crate::mac::Mac;
use crate::{KernelError, LinkName};

pub use lower::remove_vlan_devices_except;
pub use netns::Netns;
pub use request::{LanLink, Mode, VlanId};

use self::announce::Arp;
use self::inside::Inside;
use self::tables::{Link, Tables};

/// A link that can be made, as far as is known before.
pub struct Planned<'a> {
    host: Tables,
    parent: Link,
    inside: Inside<'a>,
    name: LinkName,
    wanted: &'a LanLink,
}

/// A link that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name in the network namespace.
    pub name: LinkName,
    /// Its MAC.
    pub mac: MacAddr6,
    /// The VLAN device on the host that it stands on. One that was made for this purpose stays until
    /// [`remove_vlan_devices_except`].
    pub vlan_device: Option<LinkName>,
}

/// Why a link was not made.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// The request contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// The parent cannot carry the link, or somebody has the address.
    #[error("{0}")]
    Unsuitable(String),
    /// Somebody on the LAN has the address, or wants it at the same time.
    #[error("somebody on the LAN has the address {address} already{}", with(.holder.as_ref()))]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Whose it is. The kernel, which asks for IPv6, does not say.
        holder: Option<MacAddr6>,
    },
    /// The network namespace cannot be entered.
    #[error("cannot enter the network namespace of the container: {0}")]
    Netns(std::io::Error),
    /// The kernel refused a step.
    #[error("{what}: {reason}")]
    Kernel {
        /// The step.
        what: String,
        /// The answer.
        reason: KernelError,
    },
}

fn with(holder: Option<&MacAddr6>) -> String {
    holder.map(|mac| format!(", with the MAC {}", Mac(mac))).unwrap_or_default()
}

impl LanError {
    fn kernel<E: Into<KernelError>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |reason| Self::Kernel { what, reason: reason.into() }
    }
}

/// Looks whether the network namespace can have the link. Must be called in a tokio runtime with time and I/O enabled. Needs
/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.
///
/// # Errors
/// [`LanError`]; nothing was changed.
pub async fn plan<'a>(netns: &'a Netns, wanted: &'a LanLink) -> Result<Planned<'a>, LanError> {
    wanted.check()?;
    let host = Tables::here()?;
    let parent = parent::find(&host, wanted).await?;
    let inside = Inside::enter(netns)?;
    let name = inside.free_name(wanted.name).await?;
    Ok(Planned { host, parent, inside, name, wanted })
}

impl Planned<'_> {
    /// The name that the link will have.
    pub fn name(&self) -> LinkName {
        self.name
    }

    /// Makes the link with its addresses and routes, and announces the addresses on the LAN. Needs `CAP_NET_RAW` as well.
    ///
    /// # Errors
    /// [`LanError`]; the link is gone again. A VLAN device may be left, as may routes that say what the default route says.
    pub async fn make(self) -> Result<Attached, LanError> {
        let Self { host, parent, inside, name, wanted } = self;
        let lower = lower::lower(&host, &parent, wanted).await?;
        lower::make(&host, &lower, name, wanted, inside.netns()).await?;
        let vlan_device = (lower.index != parent.index).then_some(lower.name);
        match inside.configure(name, wanted).await {
            Ok(mac) => Ok(Attached { name, mac, vlan_device }),
            Err(error) => {
                // With it go its addresses and routes. Who sees the first error needs no second.
                let _ = inside.remove(name, None).await;
                Err(error)
            }
        }
    }
}

/// Asks the LAN at an interface of this host who else has this address (RFC 5227). `None` if nobody answers, or if the
/// interface is not Ethernet. Must be called in a tokio runtime. Needs `CAP_NET_RAW`.
///
/// # Errors
/// [`LanError::Kernel`].
pub async fn other_holder(link: LinkName, address: Ipv4Addr) -> Result<Option<MacAddr6>, LanError> {
    let links = Tables::here()?.links().await?;
    let is_it = |one: &&Link| one.name == link && one.is_ethernet && one.is_up;
    let Some(Link { index, mac, .. }) = links.iter().find(is_it).cloned() else { return Ok(None) };
    let ask = move || Arp::open(index, mac)?.present_holder_of(address);
    let asked = tokio::task::spawn_blocking(ask).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let asked = asked.map_err(|error| {
        LanError::kernel(format!("asking who has {address}"))(KernelError::Socket(error.to_string()))
    })?;
    // Another interface of this host on the same LAN answers for all of its addresses.
    Ok(asked.filter(|holder| links.iter().all(|link| link.mac != *holder)))
}

/// Removes the link from the network namespace: the one with this MAC, whatever its name is by now, or with this name, if
/// the MAC is not known. One that is gone is no error.
///
/// # Errors
/// [`LanError::Netns`] or [`LanError::Kernel`].
pub async fn detach(netns: &Netns, name: LinkName, mac: Option<MacAddr6>) -> Result<(), LanError> {
    Inside::enter(netns)?.remove(name, mac).await
}
