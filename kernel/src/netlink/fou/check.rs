//! Whether the kernel can carry the udp backend's packets.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use netlink_packet_route::link::{InfoKind, LinkFlags};

use super::{FAMILY, socket};
use crate::KernelError;
use crate::kind::link::{Ipip, Link, LinkKind};
use crate::kind::link_name::LinkName;
use crate::netlink::entry::link_name;
use crate::netlink::link_message::{create_ipip, delete_link, device};
use crate::netlink::message::dump_links_of_kind;
use crate::netlink::questions::link_entry;
use crate::netlink::socket::Socket;

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
    if !crate::netlink::has_nftables() {
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
