//! Peers of WireGuard devices (`wg show DEVICE`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use flan_wireguard_keys::{PresharedKey, PublicKey};
use ipnetwork::IpNetwork;

use super::link_name::LinkName;
use super::{Changed, Edit, Kind, Name};
use crate::KernelError;
use crate::netlink::lookup::Lookup;
use crate::netlink::message::Request;
use crate::netlink::object::{NetlinkObject, Told};
use crate::netlink::reading::Reading;
use crate::netlink::wire::Frame;
use crate::netlink::wireguard;

/// Most allowed addresses to print.
const SHOWN: usize = 8;

/// Peers of WireGuard devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireguardPeers {}

/// The name of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardPeerKey {
    /// The WireGuard device.
    pub link: LinkName,
    /// The peer's identity.
    pub public_key: PublicKey,
}

/// What a WireGuard device knows of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Where its datagrams go; `None` if only the peer can begin.
    pub endpoint: Option<SocketAddr>,
    /// A key that both know, mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Seconds of silence after which something is sent, so that a NAT in between remembers us; 0 for never.
    pub keepalive: u16,
    /// The subnets behind it: packets to these go to it, and only packets from these are accepted from it. At most 1,500,
    /// because an attribute of a request has at most 64 KiB, of which each takes up to 40 bytes.
    pub allowed: BTreeSet<IpNetwork>,
    /// Whether there was a handshake lately, so that [`endpoint`](Self::endpoint) is where it really is. Always false in
    /// what is wanted.
    pub is_alive: bool,
}

impl WireguardPeer {
    /// Returns the endpoint to set: not the one that is set already, and not in place of one that the kernel learned
    /// from the peer's packets.
    pub(crate) fn endpoint_to_set(&self, held: Option<&Self>) -> Option<SocketAddr> {
        let stays = held.is_some_and(|held| held.is_alive || held.endpoint == self.endpoint);
        self.endpoint.filter(|_| !stays)
    }
}

impl Kind for WireguardPeers {
    type Key = WireguardPeerKey;
    type Value = WireguardPeer;

    const NAME: Name = Name { short: "peer", one: "WireGuard peer", many: "WireGuard peers" };
    const CHANGED: Changed = Changed::ByWireguard;

    fn show(key: &WireguardPeerKey, peer: &WireguardPeer, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{key}")?;
        if let Some(endpoint) = peer.endpoint {
            write!(f, " endpoint {endpoint}")?;
        }
        f.write_str(" allowed-ips ")?;
        for (number, allowed) in peer.allowed.iter().take(SHOWN).enumerate() {
            write!(f, "{}{allowed}", if number > 0 { "," } else { "" })?;
        }
        if peer.allowed.len() > SHOWN {
            write!(f, " and {} more", peer.allowed.len() - SHOWN)?;
        }
        if peer.preshared_key.is_some() {
            f.write_str(" with a preshared key")?;
        }
        if peer.keepalive != 0 {
            write!(f, " persistent-keepalive {}", peer.keepalive)?;
        }
        Ok(())
    }

    fn device(key: &WireguardPeerKey, _: &WireguardPeer) -> Option<LinkName> {
        Some(key.link)
    }

    /// A peer that roams is not moved back. One that is silent is looked for where its lease says.
    fn is_as_wanted(held: &WireguardPeer, wanted: &WireguardPeer) -> bool {
        (&held.preshared_key, held.keepalive, &held.allowed)
            == (&wanted.preshared_key, wanted.keepalive, &wanted.allowed)
            && wanted.endpoint_to_set(Some(held)).is_none()
    }

    /// A peer that has roamed and fallen silent has an endpoint of its own doing.
    fn changes_by_itself(held: &WireguardPeer, wanted: &WireguardPeer) -> bool {
        Self::is_as_wanted(&WireguardPeer { endpoint: wanted.endpoint, ..held.clone() }, wanted)
    }

    /// A host with two leases is one peer with both subnets.
    fn merge(wishes: &[WireguardPeer]) -> WireguardPeer {
        let mut merged = wishes[wishes.len() - 1].clone();
        merged.allowed = wishes.iter().flat_map(|wish| &wish.allowed).copied().collect();
        merged
    }
}

impl fmt::Display for WireguardPeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.public_key, self.link)
    }
}

impl NetlinkObject for WireguardPeers {
    const MESSAGES: &[u16] = &[];

    fn request(_: &Edit<Self>, _: &dyn Fn(LinkName) -> Option<u32>) -> Option<Request> {
        None
    }

    fn wireguard_change(edit: &Edit<Self>) -> Vec<u8> {
        let key = edit.key();
        match edit {
            Edit::Add { value, .. } => wireguard::peer_change(key, value, None),
            Edit::Replace { held, value, .. } => wireguard::peer_change(key, value, Some(held)),
            Edit::Delete { .. } => wireguard::peer_removal(key),
        }
    }

    fn read(reading: &mut Reading<'_>) -> Result<Vec<(WireguardPeerKey, WireguardPeer)>, KernelError> {
        let mut all = Vec::new();
        for (&link, found) in reading.wireguards()? {
            let key = |public_key| WireguardPeerKey { link, public_key };
            all.extend(found.peers.iter().map(|(public_key, peer)| (key(*public_key), peer.clone())));
        }
        Ok(all)
    }

    fn heard(_: &Frame<'_>, _: &mut Lookup<'_>, _: &mut Told<'_, Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(endpoint: &str, allowed: &[&str]) -> WireguardPeer {
        WireguardPeer {
            endpoint: Some(endpoint.parse().unwrap()),
            allowed: allowed.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            ..WireguardPeer::default()
        }
    }

    fn alive(peer: WireguardPeer) -> WireguardPeer {
        WireguardPeer { is_alive: true, ..peer }
    }

    #[test]
    fn a_peer_that_roams_is_not_moved_back_until_it_falls_silent() {
        let wanted = peer("192.168.64.12:51820", &["10.5.2.0/24"]);
        let roamed = peer("203.0.113.7:1024", &["10.5.2.0/24"]);
        assert!(WireguardPeers::is_as_wanted(&alive(roamed.clone()), &wanted));
        assert!(!WireguardPeers::is_as_wanted(&roamed, &wanted));
        assert!(WireguardPeers::changes_by_itself(&roamed, &wanted), "nobody else did that");
        let robbed = peer("203.0.113.7:1024", &[]);
        assert!(!WireguardPeers::changes_by_itself(&robbed, &wanted));
    }

    #[test]
    fn a_change_that_does_not_concern_the_address_leaves_the_endpoint_that_was_learned() {
        let before = peer("192.168.64.12:51820", &["10.5.2.0/24"]);
        let after = peer("192.168.64.12:51820", &["10.5.2.0/24", "10.5.3.0/24"]);
        assert!(!WireguardPeers::is_as_wanted(&before, &after));
        assert_eq!(after.endpoint_to_set(Some(&before)), None, "what is held may have roamed since");
        let moved = peer("192.168.64.13:51820", &["10.5.2.0/24"]);
        assert_eq!(moved.endpoint_to_set(Some(&before)), moved.endpoint);
    }

    #[test]
    fn two_leases_of_one_host_are_one_peer_with_both_subnets() {
        let wishes =
            [peer("192.168.64.12:51820", &["10.5.2.0/24"]), peer("192.168.64.12:51820", &["10.5.9.0/24"])];
        let both = peer("192.168.64.12:51820", &["10.5.2.0/24", "10.5.9.0/24"]);
        assert_eq!(WireguardPeers::merge(&wishes), both);
    }

    #[test]
    fn a_peer_with_many_subnets_fits_into_a_request_and_is_printed_in_short() {
        let subnet =
            |number: u32| IpNetwork::new(std::net::Ipv4Addr::from(0x0a05_0000 + number).into(), 32).unwrap();
        let peer =
            WireguardPeer { allowed: (0..1500).map(subnet).collect(), ..peer("192.168.64.12:51820", &[]) };
        let key = WireguardPeerKey { link: "flannel-wg".parse().unwrap(), public_key: [7; 32].into() };
        assert!(wireguard::peer_change(&key, &peer, None).len() < 65_536);
        let edit = Edit::<WireguardPeers>::Add { key, value: peer };
        assert!(edit.to_string().ends_with("10.5.0.7/32 and 1492 more"), "{edit}");
    }

    #[test]
    fn what_is_printed_holds_no_secret() {
        let text = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let peer = WireguardPeer {
            preshared_key: Some(text.parse().unwrap()),
            ..peer("[fd00::2]:51821", &["10.5.2.0/24"])
        };
        let key = WireguardPeerKey { link: "flannel-wg".parse().unwrap(), public_key: [7; 32].into() };
        let edit = Edit::<WireguardPeers>::Add { key, value: peer };
        let shown = format!("{edit}");
        assert_eq!(
            shown,
            "add peer BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc= dev flannel-wg endpoint [fd00::2]:51821 \
             allowed-ips 10.5.2.0/24 with a preshared key"
        );
        assert!(!format!("{edit:?} {:?}", edit.value()).contains("dwdt"));
    }
}
