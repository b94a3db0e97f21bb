//! What identifies a peer on the wire, besides its address.

use std::fmt;

use flan_wireguard_keys::PublicKey;
use macaddr::MacAddr6;

/// What a backend tells peers apart by. Of two hosts with the same identity, only one can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// The MAC of its VXLAN device.
    Mac(MacAddr6),
    /// Its WireGuard key.
    Key(PublicKey),
}

impl Identity {
    /// Returns whether a host can have it.
    pub(crate) fn is_usable(self) -> bool {
        match self {
            Self::Mac(mac) => !mac.is_nil() && !mac.is_multicast(),
            Self::Key(key) => key.is_usable(),
        }
    }

    /// Returns why no host can have it, if it is not [usable](Self::is_usable).
    pub(crate) fn why_unusable(self) -> &'static str {
        match self {
            Self::Mac(_) => "is not a unicast address",
            Self::Key(_) => "is all zeros, which no key is",
        }
    }

    /// Returns how to give one of two cloned machines a new identity.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Mac(_) => {
                "delete the VXLAN device of one of them (ip link del flannel.VNI), give it a --node-id of its own, and \
                 restart fland there"
            }
            Self::Key(_) => {
                "delete the WireGuard key of one of them (/var/lib/flan/wireguard.key), give it a --node-id of its own, \
                 and restart fland there"
            }
        }
    }
}

impl fmt::Display for Identity {
    /// Formats it as `VTEP MAC 02:00:00:00:00:01`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "VTEP MAC {}", mac.to_string().to_lowercase()),
            Self::Key(key) => write!(f, "WireGuard key {key}"),
        }
    }
}
