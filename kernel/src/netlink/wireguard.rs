//! WireGuard devices and their peers (`linux/wireguard.h`, `wg(8)`).

mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flan_wireguard_keys::{PrivateKey, PublicKey};
use ipnetwork::IpNetwork;
use netlink_packet_core::{Emitable, NlasIterator, Parseable};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardPeer as PeerMessage, WireguardPeerAttribute, WireguardPeerFlags, WireguardTimeSpec,
};

pub(super) use self::watch::Watch;
use super::generic::Generic;
use super::socket::{Batch, breaks_socket};
use crate::KernelError;
use crate::kind::link_name::LinkName;
use crate::kind::wireguard_device::WireguardDevice;
use crate::kind::wireguard_peer::{WireguardPeer, WireguardPeerKey};

const FAMILY: &str = "wireguard";

/// A peer without a handshake for so long is silent: a session ends after three minutes (`REJECT_AFTER_TIME`).
pub const SILENT_AFTER: Duration = Duration::from_secs(180);

/// A WireGuard device as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// `None` while it has no key.
    pub(crate) device: Option<WireguardDevice>,
    /// In the order in which the kernel has them.
    pub(crate) peers: Vec<(PublicKey, WireguardPeer)>,
    /// What peers did, in the same order.
    pub(crate) traffic: Vec<WireguardTraffic>,
}

/// What a peer of a WireGuard device did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WireguardTraffic {
    /// The time of the last handshake; `None` if there was none.
    pub latest_handshake: Option<SystemTime>,
    /// Bytes of datagrams from it.
    pub received_bytes: u64,
    /// Bytes of datagrams to it.
    pub sent_bytes: u64,
}

/// Opens a socket for WireGuard in the current network namespace, which loads the module if there is one. `None` if the
/// kernel lacks it.
pub(crate) fn socket() -> Result<Option<Generic>, KernelError> {
    Generic::open(FAMILY)
}

/// Returns whether the kernel has WireGuard.
///
/// # Errors
/// If it does not answer.
pub fn has_wireguard() -> Result<bool, KernelError> {
    Ok(socket()?.is_some())
}

/// Returns the peers of a WireGuard device of the current network namespace, with what they did. Empty if there is no
/// such device.
///
/// # Errors
/// If the kernel does not answer.
pub fn wireguard_peers(
    link: LinkName,
) -> Result<Vec<(PublicKey, WireguardPeer, WireguardTraffic)>, KernelError> {
    let Some(mut socket) = socket()? else { return Ok(Vec::new()) };
    let Some(found) = read(&mut socket, link)? else { return Ok(Vec::new()) };
    Ok(found
        .peers
        .into_iter()
        .zip(found.traffic)
        .map(|((key, peer), traffic)| (key, peer, traffic))
        .collect())
}

/// Reads a device. `None` if it does not exist, or is no WireGuard device.
pub(crate) fn read(socket: &mut Generic, link: LinkName) -> Result<Option<Found>, KernelError> {
    let name = emitted(&[WireguardAttribute::IfName(link.to_string())]);
    let now = SystemTime::now();
    let parts = socket.dump_about(WireguardCmd::GetDevice.into(), &name, |body| parse(body).ok());
    let parts = match parts {
        Ok(parts) => parts,
        Err(reason) if matches!(reason.errno(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => return Ok(None),
        Err(reason) => return Err(reason),
    };
    let mut found = Found::default();
    parts.into_iter().for_each(|part| found.add(part, now));
    Ok(Some(found))
}

fn parse(body: &[u8]) -> Result<Vec<WireguardAttribute>, netlink_packet_core::DecodeError> {
    NlasIterator::new(body).map(|attribute| WireguardAttribute::parse(&attribute?)).collect()
}

impl Found {
    /// Adds one message. A peer with many allowed addresses continues in the next.
    fn add(&mut self, attributes: Vec<WireguardAttribute>, now: SystemTime) {
        let (mut private_key, mut port) = (None, 0);
        for attribute in attributes {
            match attribute {
                WireguardAttribute::PrivateKey(key) => private_key = Some(PrivateKey::from(key)),
                WireguardAttribute::ListenPort(number) => port = number,
                WireguardAttribute::Peers(peers) => {
                    peers.into_iter().for_each(|peer| self.add_peer(peer, now));
                }
                _ => {}
            }
        }
        self.device =
            private_key.map(|private_key| WireguardDevice { private_key, port }).or(self.device.take());
    }

    fn add_peer(&mut self, message: PeerMessage, now: SystemTime) {
        let mut peer = WireguardPeer::default();
        let (mut key, mut traffic) = (None, WireguardTraffic::default());
        for attribute in message.0 {
            match attribute {
                WireguardPeerAttribute::PublicKey(bytes) => key = Some(PublicKey::from(bytes)),
                // A peer without one has all zeros.
                WireguardPeerAttribute::PresharedKey(bytes) if bytes != [0; 32] => {
                    peer.preshared_key = Some(bytes.into());
                }
                WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
                WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
                WireguardPeerAttribute::LastHandshake(time) => traffic.latest_handshake = time_of(time),
                WireguardPeerAttribute::RxBytes(bytes) => traffic.received_bytes = bytes,
                WireguardPeerAttribute::TxBytes(bytes) => traffic.sent_bytes = bytes,
                WireguardPeerAttribute::AllowedIps(allowed) => {
                    peer.allowed = allowed.iter().filter_map(subnet).collect();
                }
                _ => {}
            }
        }
        let Some(key) = key else { return };
        if let Some((_, before)) = self.peers.last_mut().filter(|(before, _)| *before == key) {
            before.allowed.extend(peer.allowed);
            return;
        }
        let since = traffic.latest_handshake.map(|time| now.duration_since(time).unwrap_or_default());
        peer.is_alive = since.is_some_and(|since| since < SILENT_AFTER);
        self.peers.push((key, peer));
        self.traffic.push(traffic);
    }
}

/// Returns the time; `None` for the beginning of 1970, which stands for never.
fn time_of(time: WireguardTimeSpec) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds).ok().filter(|seconds| *seconds > 0)?;
    UNIX_EPOCH.checked_add(Duration::new(seconds, u32::try_from(time.nano_seconds).ok()?))
}

fn subnet(message: &WireguardAllowedIp) -> Option<IpNetwork> {
    let (mut address, mut length) = (None, None);
    for attribute in &message.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
            WireguardAllowedIpAttr::Cidr(found) => length = Some(*found),
            _ => {}
        }
    }
    IpNetwork::new(address?, length?).ok()
}

/// Sets a device's key and port.
///
/// # Errors
/// If the kernel lacks WireGuard, or refuses: `EADDRINUSE` if the port is taken.
pub(crate) fn set_device(link: LinkName, device: &WireguardDevice) -> Result<(), KernelError> {
    let mut socket = None;
    let attributes = emitted(&[
        WireguardAttribute::IfName(link.to_string()),
        WireguardAttribute::PrivateKey(*device.private_key.as_bytes()),
        WireguardAttribute::ListenPort(device.port),
    ]);
    opened(&mut socket)?.change(WireguardCmd::SetDevice.into(), &attributes)
}

/// Returns the attributes of a request that adds a peer, or changes the one that is `held`.
pub(crate) fn peer_change(
    key: &WireguardPeerKey,
    wanted: &WireguardPeer,
    held: Option<&WireguardPeer>,
) -> Vec<u8> {
    let allowed = wanted.allowed.iter().map(|subnet| {
        let family = match subnet {
            IpNetwork::V4(_) => WireguardAddressFamily::Ipv4,
            IpNetwork::V6(_) => WireguardAddressFamily::Ipv6,
        };
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(family),
            WireguardAllowedIpAttr::IpAddr(subnet.network()),
            WireguardAllowedIpAttr::Cidr(subnet.prefix()),
        ])
    });
    let mut attributes = vec![
        WireguardPeerAttribute::PublicKey(*key.public_key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        // All zeros remove one.
        WireguardPeerAttribute::PresharedKey(
            wanted.preshared_key.as_ref().map_or([0; 32], |key| *key.as_bytes()),
        ),
        WireguardPeerAttribute::PersistentKeepalive(wanted.keepalive),
        WireguardPeerAttribute::AllowedIps(allowed.collect()),
    ];
    attributes.extend(wanted.endpoint_to_set(held).map(WireguardPeerAttribute::Endpoint));
    of_peer(key, attributes)
}

/// Returns the attributes of a request that removes a peer.
pub(crate) fn peer_removal(key: &WireguardPeerKey) -> Vec<u8> {
    let attributes = vec![
        WireguardPeerAttribute::PublicKey(*key.public_key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ];
    of_peer(key, attributes)
}

fn of_peer(key: &WireguardPeerKey, attributes: Vec<WireguardPeerAttribute>) -> Vec<u8> {
    emitted(&[
        WireguardAttribute::IfName(key.link.to_string()),
        WireguardAttribute::Peers(vec![PeerMessage(attributes)]),
    ])
}

fn emitted(attributes: &[WireguardAttribute]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// Carries out changes of peers, as many at once as fit, and returns failures by number. The socket stays open.
pub(super) fn apply(
    kept: &mut Option<Generic>,
    changes: impl Iterator<Item = Vec<u8>>,
) -> Vec<(usize, KernelError)> {
    let mut failed = Vec::new();
    let mut batch = Batch::default();
    for (number, attributes) in changes.enumerate() {
        let socket = match opened(kept) {
            Ok(socket) => socket,
            Err(reason) => {
                failed.push((number, reason));
                continue;
            }
        };
        let request = socket.request(WireguardCmd::SetDevice.into(), 0, &attributes);
        if batch.is_full_for(&request, socket.socket()) {
            send(kept, &mut batch, &mut failed);
        }
        batch.push(number, request);
    }
    if !batch.owners().is_empty() {
        send(kept, &mut batch, &mut failed);
    }
    failed
}

fn opened(kept: &mut Option<Generic>) -> Result<&mut Generic, KernelError> {
    let socket = match kept.take() {
        Some(socket) => socket,
        None => socket()?.ok_or_else(|| {
            KernelError::Message("the kernel has no WireGuard: modprobe wireguard".to_owned())
        })?,
    };
    Ok(kept.insert(socket))
}

fn send(kept: &mut Option<Generic>, batch: &mut Batch, failed: &mut Vec<(usize, KernelError)>) {
    let owners = batch.owners().to_vec();
    let socket = match opened(kept) {
        Ok(socket) => socket,
        Err(reason) => return failed.extend(owners.into_iter().map(|number| (number, reason.clone()))),
    };
    match socket.socket_mut().change(batch) {
        Ok(refusals) => failed.extend(refusals),
        Err(broken) => {
            if breaks_socket(&broken.reason) {
                *kept = None;
            }
            let told: Vec<usize> = broken.refusals.iter().map(|(number, _)| *number).collect();
            failed.extend(broken.refusals);
            let unknown = owners.into_iter().filter(|number| !told.contains(number));
            failed.extend(unknown.map(|number| (number, broken.reason.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> WireguardPeerKey {
        WireguardPeerKey { link: "flannel-wg".parse().unwrap(), public_key: [7; 32].into() }
    }

    fn peer() -> WireguardPeer {
        WireguardPeer {
            endpoint: Some("[fd00::2]:51821".parse().unwrap()),
            preshared_key: Some([9; 32].into()),
            keepalive: 25,
            allowed: ["10.5.2.0/24", "fd00:5:0:2::/64"].map(|subnet| subnet.parse().unwrap()).into(),
            is_alive: false,
        }
    }

    #[test]
    fn a_peer_is_read_as_it_was_written() {
        let mut found = Found::default();
        found.add(parse(&peer_change(&key(), &peer(), None)).unwrap(), SystemTime::now());
        assert_eq!(found.peers, [(key().public_key, peer())]);
        assert_eq!(found.device, None);
    }

    #[test]
    fn a_peer_whose_addresses_do_not_fit_goes_on_in_the_next_message() {
        let (mut found, now) = (Found::default(), SystemTime::now());
        let parts = [&["10.5.2.0/24"], &["10.5.3.0/24"]];
        for allowed in parts {
            let allowed = allowed.iter().map(|subnet| subnet.parse().unwrap()).collect();
            let part = WireguardPeer { allowed, ..peer() };
            found.add(parse(&peer_change(&key(), &part, None)).unwrap(), now);
        }
        let allowed = ["10.5.2.0/24", "10.5.3.0/24"].map(|subnet| subnet.parse().unwrap()).into();
        assert_eq!(found.peers, [(key().public_key, WireguardPeer { allowed, ..peer() })]);
        assert_eq!(found.traffic.len(), 1);
    }

    #[test]
    fn a_handshake_of_the_last_three_minutes_means_that_it_is_alive() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let alive = |seconds| {
            let mut found = Found::default();
            let time = WireguardTimeSpec { seconds, nano_seconds: 5 };
            let attributes =
                vec![WireguardPeerAttribute::PublicKey([7; 32]), WireguardPeerAttribute::LastHandshake(time)];
            found.add(vec![WireguardAttribute::Peers(vec![PeerMessage(attributes)])], now);
            found.peers[0].1.is_alive
        };
        assert_eq!([0, 999_000, 999_830, 1_000_100].map(alive), [false, false, true, true]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..96)) {
            let mut found = Found::default();
            found.add(parse(&bytes).unwrap_or_default(), SystemTime::now());
        }
    }
}
