//! Encodes and decodes devices in netlink messages.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoIpTunnel, InfoKind, InfoTun, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, TunnelEncapFlags, TunnelEncapType,
};

use super::entry;
use super::message::{Request, link_message, with_flags};
use crate::KernelError;
use crate::kind::link::{Ipip, Link, LinkChange, LinkKind, Vxlan};
use crate::kind::link_name::LinkName;

/// Creates a VXLAN device, down: its link-local address must be decided before it goes up.
pub(super) fn create_vxlan(name: LinkName, link: &Link, vxlan: &Vxlan, underlay: Option<u32>) -> Request {
    let mut data: Vec<InfoVxlan> = underlay.map(InfoVxlan::Link).into_iter().collect();
    data.push(InfoVxlan::Id(vxlan.vni));
    data.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }));
    data.extend([InfoVxlan::Learning(vxlan.learning), InfoVxlan::Port(vxlan.port)]);
    if vxlan.gbp {
        data.push(InfoVxlan::Gbp);
    }
    create(name, link, InfoKind::Vxlan, InfoData::Vxlan(data))
}

/// Creates an IPIP device, down.
pub(super) fn create_ipip(name: LinkName, link: &Link, ipip: &Ipip) -> Request {
    let data = vec![
        InfoIpTunnel::Local(ipip.local.into()),
        // A fixed TTL would set the outer "don't fragment" bit on every packet.
        InfoIpTunnel::Ttl(0),
        InfoIpTunnel::PMtuDisc(false),
        InfoIpTunnel::EncapType(TunnelEncapType::Fou),
        InfoIpTunnel::EncapFlags(TunnelEncapFlags::empty()),
        InfoIpTunnel::EncapSPort(ipip.source_port),
        InfoIpTunnel::EncapDPort(ipip.port),
    ];
    create(name, link, InfoKind::IpIp, InfoData::IpTunnel(data))
}

/// Creates a WireGuard device, down.
pub(super) fn create_wireguard(name: LinkName, link: &Link) -> Request {
    create(name, link, InfoKind::Wireguard, None)
}

/// Creates a bridge, down.
pub(super) fn create_bridge(name: LinkName, link: &Link) -> Request {
    create(name, link, InfoKind::Bridge, None)
}

fn create(name: LinkName, link: &Link, kind: InfoKind, data: impl Into<Option<InfoData>>) -> Request {
    let mut message = LinkMessage::default();
    message.attributes =
        link.mac.map(|mac| LinkAttribute::Address(mac.as_bytes().to_vec())).into_iter().collect();
    message.attributes.extend([
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::LinkInfo(
            std::iter::once(LinkInfo::Kind(kind)).chain(data.into().map(LinkInfo::Data)).collect(),
        ),
    ]);
    with_flags(RouteNetlinkMessage::NewLink(message), NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL)
}

/// Prevents the kernel from making a link-local IPv6 address, which a device for IPv4 has no use for.
pub(super) fn without_link_local(index: u32) -> Request {
    let mut message = link_message(index);
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    with_flags(RouteNetlinkMessage::SetLink(message), NLM_F_REQUEST)
}

pub(super) fn update_link(index: u32, change: &LinkChange) -> Request {
    let mut message = link_message(index);
    if let Some(up) = change.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.as_bytes().to_vec())));
    message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    with_flags(RouteNetlinkMessage::SetLink(message), NLM_F_REQUEST)
}

pub(super) fn delete_link(index: u32) -> Request {
    with_flags(RouteNetlinkMessage::DelLink(link_message(index)), NLM_F_REQUEST)
}

/// Reads the device in `message`, and the index of its underlay.
pub(super) fn device(name: LinkName, message: &LinkMessage) -> Result<(Link, Option<u32>), KernelError> {
    let (mut address, mut mtu, mut kind, mut data) = (None, 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => address = entry::mac(bytes),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found),
                        LinkInfo::Data(found) => data = Some(found),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let is_bridge = name.as_str().starts_with(LinkKind::BRIDGE_PREFIX);
    let (kind, underlay) = match (kind, data) {
        (Some(InfoKind::Bridge), _) if is_bridge => (LinkKind::Bridge, None),
        _ if is_bridge => {
            return Err(KernelError::Message(format!(
                "device {name} exists and is no bridge; rename or delete it"
            )));
        }
        (Some(InfoKind::Vxlan), Some(InfoData::Vxlan(data))) => {
            let (vxlan, underlay) = vxlan(data);
            (LinkKind::Vxlan(vxlan), underlay)
        }
        (Some(InfoKind::Tun), Some(InfoData::Tun(data))) => {
            (LinkKind::Tun { vnet_header: data.iter().any(is_vnet_header_on) }, None)
        }
        (Some(InfoKind::IpIp), Some(InfoData::IpTunnel(data))) => (LinkKind::Ipip(ipip(data)), None),
        (Some(InfoKind::Wireguard), _) => (LinkKind::Wireguard, None),
        _ => {
            return Err(KernelError::Message(format!(
                "device {name} exists and is neither a VXLAN nor a TUN nor an IPIP nor a WireGuard device; rename or delete it, or choose \
                 another VNI"
            )));
        }
    };
    let up = message.header.flags.contains(LinkFlags::Up);
    Ok((Link { kind, mac: address, mtu, up }, underlay))
}

/// Returns the VXLAN settings, and the index of the underlay.
fn vxlan(data: &[InfoVxlan]) -> (Vxlan, Option<u32>) {
    let mut vxlan = Vxlan { vni: 0, port: 0, underlay: None, local: None, learning: false, gbp: false };
    let mut underlay = None;
    for info in data {
        match *info {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Link(index) if index != 0 => underlay = Some(index),
            InfoVxlan::Local(ip) if !ip.is_unspecified() => vxlan.local = Some(ip.into()),
            InfoVxlan::Local6(ip) if !ip.is_unspecified() => vxlan.local = Some(ip.into()),
            InfoVxlan::Learning(learning) => vxlan.learning = learning,
            InfoVxlan::Gbp => vxlan.gbp = true,
            _ => {}
        }
    }
    (vxlan, underlay)
}

fn ipip(data: &[InfoIpTunnel]) -> Ipip {
    let mut ipip = Ipip { local: Ipv4Addr::UNSPECIFIED, port: 0, source_port: 0, is_plain: true };
    let mut is_fou = false;
    for info in data {
        match info {
            InfoIpTunnel::Local(IpAddr::V4(local)) => ipip.local = *local,
            InfoIpTunnel::EncapDPort(port) => ipip.port = *port,
            InfoIpTunnel::EncapSPort(port) => ipip.source_port = *port,
            InfoIpTunnel::EncapType(kind) => is_fou = *kind == TunnelEncapType::Fou,
            InfoIpTunnel::EncapFlags(flags) => ipip.is_plain &= flags.is_empty(),
            InfoIpTunnel::Remote(remote) => ipip.is_plain &= remote.is_unspecified(),
            InfoIpTunnel::Ttl(value) | InfoIpTunnel::Tos(value) => ipip.is_plain &= *value == 0,
            InfoIpTunnel::Link(index) => ipip.is_plain &= *index == 0,
            InfoIpTunnel::FwMark(mark) => ipip.is_plain &= *mark == 0,
            InfoIpTunnel::PMtuDisc(on) => ipip.is_plain &= !on,
            InfoIpTunnel::CollectMetadata => ipip.is_plain = false,
            _ => {}
        }
    }
    if !is_fou {
        ipip.port = 0;
    }
    ipip
}

/// Returns whether the device exists without a program: a TUN device may disappear with its program.
pub(super) fn is_persistent(message: &LinkMessage) -> bool {
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let tun = infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(data)) => Some(data),
        _ => None,
    });
    tun.is_none_or(|data| data.iter().any(|info| is_on(info, IFLA_TUN_PERSIST)))
}

fn is_vnet_header_on(info: &InfoTun) -> bool {
    is_on(info, IFLA_TUN_VNET_HDR)
}

/// Attributes of a TUN device (`linux/if_link.h`).
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_TUN_PERSIST: u16 = 6;

/// Returns whether this is the attribute, and its byte is 1.
fn is_on(info: &InfoTun, wanted: u16) -> bool {
    let InfoTun::Other(attribute) = info else { return false };
    let mut value = [0];
    if attribute.kind() != wanted || attribute.value_len() != value.len() {
        return false;
    }
    attribute.emit_value(&mut value);
    value == [1]
}

#[cfg(test)]
mod tests;
