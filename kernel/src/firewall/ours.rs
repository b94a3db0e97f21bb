//! Our rules on a host, one set at a time, for callers that remove them without knowing what an agent would want.

use std::fmt;

use super::flannel;
use super::iptables::Forwarding;
use super::nft::Table;
use super::{FamilyRules, FirewallError, Ruleset};
use crate::netlink;

/// A set of rules that the agent makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnRules {
    /// The nftables table `inet flan`.
    Masquerade,
    /// The nftables table `inet flan-networks`.
    Networks,
    /// The nftables tables `ip flan-peers` and `ip6 flan-peers`.
    Senders,
    /// The chain `FLAN-FORWARD` of one address family, with every jump to it.
    Forward {
        /// `ip6tables` instead of `iptables`.
        ipv6: bool,
    },
}

impl OwnRules {
    /// All sets.
    pub const ALL: [Self; 5] = [
        Self::Senders,
        Self::Masquerade,
        Self::Networks,
        Self::Forward { ipv6: false },
        Self::Forward { ipv6: true },
    ];

    /// Returns whether any rule of the set exists. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the packet filter cannot be read.
    pub async fn stand(self) -> Result<bool, FirewallError> {
        match self {
            Self::Masquerade => Table::masquerade().stands().await,
            Self::Networks => Table::networks().stands().await,
            Self::Senders => {
                Ok(netlink::has_nftables() && netlink::has_senders().map_err(FirewallError::Kernel)?)
            }
            Self::Forward { ipv6 } => Forwarding::new(ipv6).stands().await,
        }
    }

    /// Removes the set. Does nothing if it does not exist. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the packet filter refuses.
    pub async fn remove(self) -> Result<(), FirewallError> {
        let nothing = Ruleset::default();
        match self {
            Self::Masquerade => Table::masquerade().apply(&nothing).await,
            Self::Networks => Table::networks().apply(&nothing).await,
            Self::Senders => netlink::delete_senders().map_err(FirewallError::Kernel),
            Self::Forward { ipv6 } => Forwarding::new(ipv6).apply(&nothing).await,
        }
        .map(drop)
    }

    /// Adds equivalent rules, worded as flanneld's, which bridge the time until flanneld adds its own. Must be called
    /// in a tokio runtime.
    ///
    /// # Errors
    /// If the packet filter refuses.
    pub async fn put_flannels(self, families: &[FamilyRules]) -> Result<(), FirewallError> {
        for family in families {
            match self {
                Self::Masquerade => flannel::masquerade(family).await?,
                Self::Forward { ipv6 } if ipv6 == family.network.is_ipv6() => {
                    flannel::forward(family).await?;
                }
                Self::Forward { .. } | Self::Senders | Self::Networks => {}
            }
        }
        Ok(())
    }

    /// Returns what [`put_flannels`](Self::put_flannels) adds.
    pub fn flannels(self) -> Option<&'static str> {
        match self {
            Self::Masquerade => Some("the iptables chain FLANNEL-POSTRTG"),
            // flannel accepts packets from anybody, and knows one network.
            Self::Senders | Self::Networks => None,
            Self::Forward { ipv6: false } => Some("flannel's rules at the end of iptables' FORWARD"),
            Self::Forward { ipv6: true } => Some("flannel's rules at the end of ip6tables' FORWARD"),
        }
    }
}

impl fmt::Display for OwnRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "the nftables table inet flan",
            Self::Networks => "the nftables table inet flan-networks",
            Self::Senders => "the nftables tables flan-peers",
            Self::Forward { ipv6: false } => "the iptables chain FLAN-FORWARD",
            Self::Forward { ipv6: true } => "the ip6tables chain FLAN-FORWARD",
        })
    }
}
