//! Packets as anybody on the underlay can send them, and somebody who hears those that get through.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etherparse::{
    IpFragOffset, IpNumber, Ipv6FragmentHeader, Ipv6Header, PacketBuilder, PacketBuilderStep, UdpHeader,
};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use tokio::net::UdpSocket;

use crate::inside::Inside;
use crate::netns::Netns;
use crate::wait;

/// The UDP port that is listened on behind the overlay.
const PORT: u16 = 7777;
const LIMIT: Duration = Duration::from_secs(10);
/// An Ethernet source address that nobody has.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0x0b, 0xad];

/// An IP packet with a UDP datagram that says `text`.
pub fn packet(source: IpAddr, destination: IpAddr, text: &str) -> Result<Vec<u8>> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            said(PacketBuilder::ipv4(source.octets(), destination.octets(), 64).udp(PORT, PORT), text)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            said(PacketBuilder::ipv6(source.octets(), destination.octets(), 64).udp(PORT, PORT), text)
        }
        _ => anyhow::bail!("{source} and {destination} are of different families"),
    }
}

/// The payload of a VXLAN datagram (RFC 7348) that carries such a packet to a device with this MAC.
pub fn vxlan(vni: u32, mac: [u8; 6], source: IpAddr, destination: IpAddr, text: &str) -> Result<Vec<u8>> {
    let frame = PacketBuilder::ethernet2(NOBODY, mac);
    let frame = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            said(frame.ipv4(source.octets(), destination.octets(), 64).udp(PORT, PORT), text)?
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            said(frame.ipv6(source.octets(), destination.octets(), 64).udp(PORT, PORT), text)?
        }
        _ => anyhow::bail!("{source} and {destination} are of different families"),
    };
    Ok([&[8, 0, 0, 0], &(vni << 8).to_be_bytes(), frame.as_slice()].concat())
}

/// Sends a VXLAN datagram over IPv6 in pieces, of which the first has UDP's header and no more.
pub fn send_in_pieces(netns: &Netns, from: Ipv6Addr, to: SocketAddrV6, payload: &[u8]) -> Result<()> {
    let udp = UdpHeader::with_ipv6_checksum(to.port(), to.port(), &v6(from, *to.ip(), 0), payload)?;
    let whole = [&udp.to_bytes()[..], payload].concat();
    let mut pieces = Vec::new();
    for (number, piece) in [&whole[..8], &whole[8..]].into_iter().enumerate() {
        let offset = IpFragOffset::try_new(number as u16)?;
        let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, number == 0, std::process::id());
        let header = v6(from, *to.ip(), (fragment.header_len() + piece.len()) as u16);
        pieces.push([&header.to_bytes()[..], &fragment.to_bytes(), piece].concat());
    }
    let to = SocketAddrV6::new(*to.ip(), 0, 0, 0);
    Inside::of(netns)?.run(LIMIT, async move {
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::RAW))?;
        for piece in pieces {
            rustix::net::sendto(&socket, &piece, SendFlags::empty(), &to)?;
        }
        Ok(())
    })
}

/// An IPv6 header before a fragment header.
fn v6(from: Ipv6Addr, to: Ipv6Addr, payload: u16) -> Ipv6Header {
    Ipv6Header {
        payload_length: payload,
        next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
        hop_limit: 64,
        source: from.octets(),
        destination: to.octets(),
        ..Ipv6Header::default()
    }
}

fn said(builder: PacketBuilderStep<UdpHeader>, text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, text.as_bytes())?;
    Ok(bytes)
}

/// Sends one datagram from a namespace, from an address of it or whichever the kernel takes.
pub fn send(netns: &Netns, from: Option<IpAddr>, to: SocketAddr, datagram: Vec<u8>) -> Result<()> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let from = SocketAddr::new(from.unwrap_or(any), 0);
    Inside::of(netns)?.run(LIMIT, async move {
        let socket = UdpSocket::bind(from).await.with_context(|| format!("cannot bind to {from}"))?;
        socket.send_to(&datagram, to).await.with_context(|| format!("cannot send to {to}"))?;
        Ok(())
    })
}

/// Sends what [`packet`] makes as it is, by the routes of the namespace, from an address of it.
pub fn send_plain(netns: &Netns, from: IpAddr, to: IpAddr, text: &str) -> Result<()> {
    send(netns, Some(from), SocketAddr::new(to, PORT), text.as_bytes().to_vec())
}

/// Sends an IP packet in an IP packet (RFC 2003), without UDP.
pub fn send_ipip(netns: &Netns, to: Ipv4Addr, packet: &[u8]) -> Result<()> {
    let packet = packet.to_vec();
    Inside::of(netns)?.run(LIMIT, async move {
        let protocol = ipproto::IPIP;
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(protocol))?;
        let to = SocketAddr::new(to.into(), 0);
        rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to)
            .with_context(|| format!("cannot send to {to}"))?;
        Ok(())
    })
}

/// The datagrams that arrive on a port of a namespace, as a program reads them.
#[derive(Debug)]
pub struct Datagrams {
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    // It receives as long as this lives.
    _inside: Inside,
}

impl Datagrams {
    /// Begins to receive.
    pub fn at(netns: &Netns, port: u16) -> Result<Datagrams> {
        let inside = Inside::of(netns)?;
        let received = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let socket = inside.run(LIMIT, async move {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await.context("cannot listen")
        })?;
        let datagrams = received.clone();
        inside.spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, _)) = socket.recv_from(&mut buffer).await {
                datagrams.lock().unwrap_or_else(PoisonError::into_inner).push(buffer[..length].to_vec());
            }
        });
        Ok(Datagrams { received, _inside: inside })
    }

    /// Waits until there are so many, and returns all.
    pub fn wait_for(&self, count: usize) -> Result<Vec<Vec<u8>>> {
        wait::until(&format!("{count} datagrams"), LIMIT, || {
            let received = self.received.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ensure!(received.len() >= count, "there are {}", received.len());
            Ok(received)
        })
    }
}

/// Hears what arrives in a namespace.
#[derive(Debug)]
pub struct Listener {
    heard: Arc<Mutex<BTreeSet<String>>>,
    // It listens as long as this lives.
    _inside: Inside,
}

impl Listener {
    /// Begins to listen.
    pub fn at(netns: &Netns) -> Result<Listener> {
        let inside = Inside::of(netns)?;
        let heard = Arc::<Mutex<BTreeSet<String>>>::default();
        let socket = inside.run(LIMIT, async {
            UdpSocket::bind((IpAddr::from([0; 16]), PORT)).await.context("cannot listen")
        })?;
        let texts = heard.clone();
        inside.spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, _)) = socket.recv_from(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                texts.lock().unwrap_or_else(PoisonError::into_inner).insert(text);
            }
        });
        Ok(Listener { heard, _inside: inside })
    }

    fn has_heard(&self, text: &str) -> bool {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).contains(text)
    }

    /// Sends this text until it is heard.
    pub fn hears(&self, text: &str, send: impl Fn(&str) -> Result<()>) -> Result<()> {
        wait::until(&format!("{text:?} to be heard"), LIMIT, || {
            send(text)?;
            std::thread::sleep(Duration::from_millis(20));
            ensure!(self.has_heard(text), "it was not heard");
            Ok(())
        })
    }

    /// Sends this text a few times, and then one that must be heard, as a measure of when the first would have been.
    pub fn does_not_hear(
        &self,
        text: &str,
        send: impl Fn(&str) -> Result<()>,
        send_good: impl Fn(&str) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..3 {
            send(text)?;
        }
        self.hears(&format!("after {text}"), send_good)?;
        ensure!(!self.has_heard(text), "{text:?} was let in");
        Ok(())
    }
}
