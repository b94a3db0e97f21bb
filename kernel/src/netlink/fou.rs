//! FOU ("foo over UDP", `linux/fou.h`): UDP ports on which the kernel takes packets out of datagrams.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use netlink_packet_route::link::{InfoKind, LinkFlags};
use tokio::time::Instant;

use super::entry::link_name;
use super::generic::Generic;
use super::link_message::{create_ipip, delete_link, device};
use super::message::dump_links_of_kind;
use super::questions::link_entry;
use super::raw::attribute;
use super::socket::Socket;
use super::wire::{Attributes, u16_at, u32_at};
use crate::KernelError;
use crate::kind::fou_port::FouPort;
use crate::kind::link::{Ipip, Link, LinkKind};
use crate::kind::link_name::LinkName;

const FAMILY: &str = "fou";

const ADD: u8 = 1;
const DELETE: u8 = 2;
const GET: u8 = 3;

const PORT: u16 = 1;
const ADDRESS_FAMILY: u16 = 2;
const PROTOCOL: u16 = 3;
const TYPE: u16 = 4;
const LOCAL_V4: u16 = 6;
const PEER_V4: u16 = 8;
const DEVICE: u16 = 11;

/// `FOU_ENCAP_DIRECT`: nothing between the UDP header and the packet.
const DIRECT: u8 = 1;

/// The kernel sends no notifications about FOU ports, so it is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// A FOU port of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) port: u16,
    /// As ours are: for IPv4 packets in IPv4 datagrams to one address of this host, from anybody.
    pub(crate) ours: Option<FouPort>,
    /// In the style of `ip fou show`.
    pub(crate) shown: String,
}

/// Opens a socket for FOU in the current network namespace. `None` if the kernel lacks it.
pub(crate) fn socket() -> Result<Option<Generic>, KernelError> {
    Generic::open(FAMILY)
}

pub(crate) fn ports(fou: &mut Generic) -> Result<Vec<Found>, KernelError> {
    fou.dump(GET, |attributes| found(&attributes))
}

pub(crate) fn add(fou: &mut Generic, port: &FouPort) -> Result<(), KernelError> {
    fou.change(ADD, &attributes(port))
}

pub(crate) fn delete(fou: &mut Generic, port: &FouPort) -> Result<(), KernelError> {
    fou.change(DELETE, &attributes(port))
}

fn attributes(port: &FouPort) -> Vec<u8> {
    let mut attributes = Vec::new();
    attribute(&mut attributes, PORT, &port.port.to_be_bytes());
    attribute(&mut attributes, ADDRESS_FAMILY, &[libc::AF_INET as u8]);
    attribute(&mut attributes, PROTOCOL, &[libc::IPPROTO_IPIP as u8]);
    attribute(&mut attributes, TYPE, &[DIRECT]);
    attribute(&mut attributes, LOCAL_V4, &port.address.octets());
    attributes
}

fn found(attributes: &Attributes<'_>) -> Option<Found> {
    let find = |kind| attributes.clone().find(kind);
    let byte = |kind| find(kind)?.first().copied();
    let port = u16_at(find(PORT)?, 0).map(u16::from_be)?;
    let protocol = byte(PROTOCOL)?;
    // 0.0.0.0 stands for any address.
    let address = |kind| {
        let address =
            find(kind).and_then(|value| value.first_chunk::<4>()).map(|&value| Ipv4Addr::from(value));
        address.filter(|address| !address.is_unspecified())
    };
    let local = address(LOCAL_V4);
    let is_like_ours = i32::from(byte(ADDRESS_FAMILY)?) == libc::AF_INET
        && i32::from(protocol) == libc::IPPROTO_IPIP
        && byte(TYPE) == Some(DIRECT)
        && address(PEER_V4).is_none()
        && find(DEVICE).is_none_or(|index| u32_at(index, 0) == Some(0));
    let ours = local.filter(|_| is_like_ours).map(|address| FouPort { address, port });
    let local = local.map_or_else(|| "any".to_owned(), |address| address.to_string());
    Some(Found { port, ours, shown: format!("FOU port {port} local {local} ipproto {protocol}") })
}

/// Asks regularly for the FOU ports that are ours.
#[derive(Debug)]
pub(super) struct Watch {
    numbers: BTreeSet<u16>,
    /// `None` until it is needed, and after it broke.
    socket: Option<Generic>,
    seen: BTreeSet<FouPort>,
    next: Instant,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { numbers: BTreeSet::new(), socket: None, seen: BTreeSet::new(), next: Instant::now() }
    }

    /// Sets which port numbers are ours.
    pub(super) fn set_ours(&mut self, numbers: &BTreeSet<u16>) {
        if self.numbers != *numbers {
            self.numbers.clone_from(numbers);
            self.next = Instant::now();
        }
    }

    /// Waits until it is time to ask; for ever if no port is ours. Cancel-safe.
    pub(super) async fn due(&self) {
        if self.numbers.is_empty() {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.next).await;
    }

    /// Returns the ports that exist, and those that disappeared since the last call, if it is time to ask.
    pub(super) fn look(&mut self) -> Vec<(FouPort, bool)> {
        if self.numbers.is_empty() || Instant::now() < self.next {
            return Vec::new();
        }
        self.next = Instant::now() + INTERVAL;
        match self.ask() {
            Ok(now) => {
                let gone = self.seen.difference(&now).map(|port| (*port, false));
                let all = gone.chain(now.iter().map(|port| (*port, true))).collect();
                self.seen = now;
                all
            }
            Err(reason) => {
                self.socket = None;
                tracing::debug!(%reason, "cannot ask for the FOU ports");
                Vec::new()
            }
        }
    }

    fn ask(&mut self) -> Result<BTreeSet<FouPort>, KernelError> {
        if self.socket.is_none() {
            self.socket = socket()?;
        }
        let Some(socket) = &mut self.socket else { return Ok(BTreeSet::new()) };
        let found = ports(socket)?.into_iter().filter_map(|found| found.ours);
        Ok(found.filter(|port| self.numbers.contains(&port.port)).collect())
    }
}

/// Why the kernel cannot carry the udp backend's packets here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FouLack {
    /// There is no module, or it may not be loaded.
    #[error("the kernel has no FOU, or fland may not load it: modprobe fou")]
    Fou,
    /// There are no IPIP devices that send FOU datagrams.
    #[error("the kernel has no IPIP devices with FOU (CONFIG_NET_IPIP, CONFIG_NET_FOU_IP_TUNNELS)")]
    Ipip,
    /// Nothing could keep foreign packets out.
    #[error("the kernel has no nftables (CONFIG_NF_TABLES), which keep foreign packets out")]
    Nftables,
    /// A device of another program receives IPIP packets, which ours would take from it.
    #[error("device {0} of another program receives IPIP packets here")]
    Other(LinkName),
}

/// Checks whether the kernel can carry the udp backend's packets through the IPIP device `ours`. Loads the modules if it
/// may. Blocks for some milliseconds.
///
/// # Errors
/// [`FouLack`]
pub fn check_fou(ours: LinkName) -> Result<(), FouLack> {
    if !super::has_nftables() {
        return Err(FouLack::Nftables);
    }
    // The module has no alias by which the kernel would find it.
    let has_fou = || matches!(socket(), Ok(Some(_)));
    if !has_fou() {
        load(FAMILY);
        if !has_fou() {
            return Err(FouLack::Fou);
        }
    }
    let mut socket = Socket::open().map_err(|_| FouLack::Ipip)?;
    let devices = ipip_devices(&mut socket).map_err(|_| FouLack::Ipip)?;
    if let Some(other) = devices.iter().find(|device| device.receives_ipip && device.name != ours) {
        return Err(FouLack::Other(other.name));
    }
    if devices.iter().any(|device| device.name == ours) {
        return Ok(());
    }
    try_device(&mut socket).map_err(|reason| {
        tracing::debug!(%reason, "no IPIP device with FOU can be made");
        FouLack::Ipip
    })
}

/// Returns the device of another program that receives IPIP packets, if there is one.
///
/// # Errors
/// If the kernel does not answer.
pub fn other_ipip_device(ours: LinkName) -> Result<Option<LinkName>, KernelError> {
    let devices = ipip_devices(&mut Socket::open()?)?;
    Ok(devices.iter().find(|device| device.receives_ipip && device.name != ours).map(|device| device.name))
}

struct IpipDevice {
    name: LinkName,
    /// Whether it is in use, and its packets are not encapsulated again. The device `tunl0`, which the module makes in
    /// every network namespace, is down until somebody uses it.
    receives_ipip: bool,
}

fn ipip_devices(socket: &mut Socket) -> Result<Vec<IpipDevice>, KernelError> {
    socket.dump(&dump_links_of_kind(InfoKind::IpIp), Vec::new, |found, body| {
        let Some(message) = link_entry(body) else { return };
        let Ok(name) = link_name(&message) else { return };
        if let Ok((Link { kind: LinkKind::Ipip(ipip), .. }, _)) = device(name, &message) {
            let is_up = message.header.flags.contains(LinkFlags::Up);
            found.push(IpipDevice { name, receives_ipip: is_up && ipip.port == 0 });
        }
    })
}

/// Makes a device like ours that never goes up, and deletes it.
fn try_device(socket: &mut Socket) -> Result<(), KernelError> {
    let name: LinkName = "flan-probe".parse().map_err(|error| KernelError::Message(format!("{error}")))?;
    let ipip = Ipip { local: Ipv4Addr::new(127, 0, 0, 85), port: 1, source_port: 0, is_plain: true };
    let link = Link { kind: LinkKind::Ipip(ipip), mac: None, mtu: 1472, up: false };
    match socket.change_one(create_ipip(name, &link, &ipip)) {
        // An agent that was killed here left it.
        Err(reason) if reason.errno() == Some(libc::EEXIST) => {}
        made => made?,
    }
    let Some(message) = socket.link(name)? else { return Ok(()) };
    socket.change_one(delete_link(message.header.index))
}

/// Loads a kernel module. Whether that worked shows later.
fn load(module: &str) {
    let asked = Command::new("modprobe")
        .args(["-q", module])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tracing::debug!(?asked, module, "asked modprobe for a kernel module");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_as_it_was_written() {
        let port = FouPort { address: Ipv4Addr::new(192, 168, 64, 11), port: 8285 };
        let found = found(&Attributes(&attributes(&port))).unwrap();
        assert_eq!(found.ours, Some(port));
        assert_eq!(found.shown, "FOU port 8285 local 192.168.64.11 ipproto 4");
    }

    #[test]
    fn a_port_for_every_address_is_not_ours() {
        let written = attributes(&FouPort { address: Ipv4Addr::UNSPECIFIED, port: 8285 });
        let found = found(&Attributes(&written)).unwrap();
        assert_eq!((found.port, found.ours), (8285, None));
        assert_eq!(found.shown, "FOU port 8285 local any ipproto 4");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = found(&Attributes(&bytes));
        }
    }
}
