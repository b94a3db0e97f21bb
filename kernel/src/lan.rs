//! A link between a network namespace, such as a container's, and the host's own LAN.

mod announce;
mod inside;
mod lower;
mod netns;
mod parent;
mod request;
mod tables;

use macaddr::MacAddr6;

use crate::{KernelError, LinkName};

pub use inside::DefaultRoute;
pub use lower::remove_vlan_devices_except;
pub use netns::Netns;
pub use request::{LanLink, Mode, VlanId};

use self::inside::Inside;
use self::tables::Tables;

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
    /// The default routes that the gateways took the place of.
    pub replaced: Vec<DefaultRoute>,
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

impl LanError {
    fn kernel<E: Into<KernelError>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |reason| Self::Kernel { what, reason: reason.into() }
    }
}

/// Gives the network namespace the link, with its addresses and routes, and announces the addresses on the LAN. Undoes
/// everything after a failure, except that a VLAN device stays. Must be called in a tokio runtime with time and I/O enabled.
/// Needs `CAP_NET_ADMIN`, `CAP_NET_RAW` and `CAP_SYS_ADMIN`.
///
/// # Errors
/// [`LanError`]; nothing was changed.
pub async fn attach(netns: &Netns, wanted: &LanLink) -> Result<Attached, LanError> {
    wanted.check()?;
    let host = Tables::here()?;
    let parent = parent::find(&host, wanted).await?;
    let inside = Inside::enter(netns).await?;
    let name = inside.free_name(wanted.name)?;
    let lower = lower::lower(&host, &parent, wanted).await?;
    lower::make(&host, &lower, name, wanted, netns).await?;
    let vlan_device = (lower.index != parent.index).then_some(lower.name);
    match inside.configure(name, wanted).await {
        Ok((mac, replaced)) => Ok(Attached { name, mac, vlan_device, replaced }),
        Err(error) => {
            // With it go its addresses and routes. Who sees the first error needs no second.
            let _ = inside.remove(name).await;
            Err(error)
        }
    }
}

/// Removes the link, and restores the default routes that it replaced. A link that is gone is no error.
///
/// # Errors
/// [`LanError::Netns`] or [`LanError::Kernel`].
pub async fn detach(netns: &Netns, attached: &Attached) -> Result<(), LanError> {
    let inside = Inside::enter(netns).await?;
    inside.remove(attached.name).await?;
    inside.restore(&attached.replaced).await
}
