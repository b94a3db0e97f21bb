//! Where packets of the overlay may come from, and the checks against that.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::ParseIntError;
use std::str::FromStr;

use ipnetwork::IpNetwork;

use crate::kind::link_name::LinkName;

/// An allowed sender, for the [`Check`]s of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Datagrams from this address.
    Peer(IpAddr),
    /// Packets from one subnet, in datagrams from one address.
    Inner {
        /// The source address of the datagrams.
        peer: IpAddr,
        /// The first address of the subnet.
        subnet: IpAddr,
    },
    /// Packets from this subnet without encapsulation, by its first address.
    Plain(IpAddr),
}

impl Source {
    /// Returns whether its addresses are IPv6.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Peer(address) | Self::Inner { peer: address, .. } | Self::Plain(address) => {
                address.is_ipv6()
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => write!(f, "peer {peer}"),
            Self::Inner { peer, subnet } => write!(f, "peer {peer} subnet {subnet}"),
            Self::Plain(subnet) => write!(f, "subnet {subnet}"),
        }
    }
}

/// A rule that drops packets from other sources, or lets packets of peers skip the other rules.
///
/// As text it is the comment by which the rule is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Accepts packets from a [`Source::Peer`] before any other rule: three steps per overlay packet instead of ten.
    /// May be combined only with [`Check::Peers`] and [`Check::PeersPieces`].
    Shortcut {
        /// IPv6 instead of IPv4.
        ipv6: bool,
    },
    /// Datagrams must come from a [`Source::Peer`].
    Peers(Wire),
    /// Fragmented IPv6 datagrams must come from a [`Source::Peer`]. The kernel reassembles them only after the rules,
    /// which find no VNI in a short first fragment.
    PeersPieces(Wire),
    /// IPv6 datagrams must not be fragmented, because no rule sees inside the fragments.
    Whole(Wire),
    /// VXLAN datagrams must carry packets of the family of their outer header.
    Carries(Wire),
    /// Datagrams must carry packets from a [`Source::Inner`], whose subnets have this prefix length.
    InnerSource(Wire, u8),
    /// Datagrams must carry packets for this subnet.
    InnerDestination(Wire, IpNetwork),
    /// IPIP packets to this address must come in datagrams: an IPIP device also takes them without, from anybody.
    RawIpip(Ipv4Addr),
    /// Unencapsulated overlay packets must come from a [`Source::Plain`], whose subnets have this prefix length.
    PlainSource(Plain, u8),
    /// Unencapsulated overlay packets must be for this subnet.
    PlainDestination(Plain, IpNetwork),
    /// An unknown rule among ours, by its handle.
    Unknown(u64),
}

/// Datagrams that carry packets of the overlay network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wire {
    /// Whether the outer header is IPv6.
    pub ipv6: bool,
    /// Their destination UDP port.
    pub port: u16,
    /// For VXLAN, the network identifier: other networks are ignored. `None` for datagrams that carry an IP packet
    /// immediately.
    pub vni: Option<u32>,
}

/// Packets of the overlay network that arrive on a device without encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plain {
    /// The device.
    pub link: LinkName,
    /// The overlay network.
    pub network: IpNetwork,
}

impl Check {
    /// Returns whether it is about IPv6 packets. An unknown rule is looked for in both families.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Shortcut { ipv6 } => *ipv6,
            Self::Peers(wire)
            | Self::PeersPieces(wire)
            | Self::Whole(wire)
            | Self::Carries(wire)
            | Self::InnerSource(wire, _)
            | Self::InnerDestination(wire, _) => wire.ipv6,
            Self::PlainSource(plain, _) | Self::PlainDestination(plain, _) => plain.network.is_ipv6(),
            Self::RawIpip(_) | Self::Unknown(_) => false,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shortcut { ipv6 } => write!(f, "shortcut {}", family(*ipv6)),
            Self::Peers(wire) => write!(f, "peers {wire}"),
            Self::PeersPieces(wire) => write!(f, "peers-pieces {wire}"),
            Self::Whole(wire) => write!(f, "whole {wire}"),
            Self::Carries(wire) => write!(f, "carries {wire}"),
            Self::InnerSource(wire, prefix) => write!(f, "inner-source {wire} /{prefix}"),
            Self::InnerDestination(wire, subnet) => write!(f, "inner-destination {wire} {subnet}"),
            Self::PlainSource(plain, prefix) => write!(f, "plain-source {plain} /{prefix}"),
            Self::PlainDestination(plain, subnet) => write!(f, "plain-destination {plain} {subnet}"),
            Self::RawIpip(local) => write!(f, "raw-ipip {local}"),
            Self::Unknown(handle) => write!(f, "handle {handle}"),
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ipv6, port, vni } = self;
        write!(f, "{} udp {port}", family(*ipv6))?;
        vni.map_or(Ok(()), |vni| write!(f, " vni {vni}"))
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.link, self.network)
    }
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "ip6" } else { "ip" }
}

fn parse_family(word: &str) -> Option<bool> {
    [false, true].into_iter().find(|ipv6| family(*ipv6) == word)
}

/// A text that is not the comment of a check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the comment of one of our rules")]
pub struct NoCheck(String);

impl FromStr for Check {
    type Err = NoCheck;

    fn from_str(text: &str) -> Result<Self, NoCheck> {
        let words: Vec<&str> = text.split(' ').collect();
        parse(&words).ok_or_else(|| NoCheck(text.to_owned()))
    }
}

fn parse(words: &[&str]) -> Option<Check> {
    let prefix = |word: &&str| word.strip_prefix('/')?.parse().ok();
    match words {
        ["shortcut", family] => Some(Check::Shortcut { ipv6: parse_family(family)? }),
        ["peers", wire @ ..] => Some(Check::Peers(parse_wire(wire)?)),
        ["peers-pieces", wire @ ..] => Some(Check::PeersPieces(parse_wire(wire)?)),
        ["whole", wire @ ..] => Some(Check::Whole(parse_wire(wire)?)),
        ["carries", wire @ ..] => Some(Check::Carries(parse_wire(wire)?)),
        ["inner-source", wire @ .., length] => Some(Check::InnerSource(parse_wire(wire)?, prefix(length)?)),
        ["inner-destination", wire @ .., subnet] => {
            Some(Check::InnerDestination(parse_wire(wire)?, subnet.parse().ok()?))
        }
        ["plain-source", link, network, length] => {
            Some(Check::PlainSource(parse_plain(link, network)?, prefix(length)?))
        }
        ["plain-destination", link, network, subnet] => {
            Some(Check::PlainDestination(parse_plain(link, network)?, subnet.parse().ok()?))
        }
        ["raw-ipip", local] => Some(Check::RawIpip(local.parse().ok()?)),
        _ => None,
    }
}

fn parse_wire(words: &[&str]) -> Option<Wire> {
    let (family, port, vni) = match words {
        [family, "udp", port] => (family, port, None),
        [family, "udp", port, "vni", vni] => (family, port, Some(*vni)),
        _ => return None,
    };
    let ipv6 = parse_family(family)?;
    let vni: Result<Option<u32>, ParseIntError> = vni.map(str::parse).transpose();
    Some(Wire { ipv6, port: port.parse().ok()?, vni: vni.ok()? })
}

fn parse_plain(link: &str, network: &str) -> Option<Plain> {
    Some(Plain { link: link.parse().ok()?, network: network.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_recognised_by_its_text() {
        let wire = Wire { ipv6: false, port: 8472, vni: Some(1) };
        let plain = Plain { link: "eth0".parse().unwrap(), network: "10.5.0.0/16".parse().unwrap() };
        let subnet = "10.5.1.0/24".parse().unwrap();
        for (check, text) in [
            (Check::Shortcut { ipv6: true }, "shortcut ip6"),
            (Check::Peers(wire), "peers ip udp 8472 vni 1"),
            (Check::Peers(Wire { vni: None, port: 8285, ..wire }), "peers ip udp 8285"),
            (Check::PeersPieces(Wire { ipv6: true, vni: None, ..wire }), "peers-pieces ip6 udp 8472"),
            (Check::Whole(Wire { ipv6: true, vni: None, ..wire }), "whole ip6 udp 8472"),
            (Check::Carries(Wire { ipv6: true, ..wire }), "carries ip6 udp 8472 vni 1"),
            (Check::InnerSource(wire, 24), "inner-source ip udp 8472 vni 1 /24"),
            (Check::InnerDestination(wire, subnet), "inner-destination ip udp 8472 vni 1 10.5.1.0/24"),
            (Check::RawIpip("192.168.64.11".parse().unwrap()), "raw-ipip 192.168.64.11"),
            (Check::PlainSource(plain, 24), "plain-source eth0 10.5.0.0/16 /24"),
            (Check::PlainDestination(plain, subnet), "plain-destination eth0 10.5.0.0/16 10.5.1.0/24"),
        ] {
            assert_eq!(check.to_string(), text);
            assert_eq!(text.parse(), Ok(check));
        }
    }

    #[test]
    fn other_texts_are_no_check() {
        for text in ["", "peers", "peers ip udp x", "peers ip8 udp 1", "handle 7", "inner-source ip udp 1 24"]
        {
            assert_eq!(text.parse::<Check>(), Err(NoCheck(text.to_owned())), "{text}");
        }
    }
}
