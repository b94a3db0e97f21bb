//! The links, addresses and default routes of one network namespace.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::time::timeout;

use super::LanError;
use crate::{KernelError, LinkName};

/// How long the kernel may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A socket in a network namespace.
pub(super) struct Tables(Handle);

/// A link, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: LinkName,
    pub(super) mac: MacAddr6,
    pub(super) is_up: bool,
    pub(super) is_loopback: bool,
    pub(super) is_ethernet: bool,
    pub(super) kind: Option<InfoKind>,
    /// The bridge or bond that it is a port of.
    pub(super) controller: Option<u32>,
    /// What it stands on.
    pub(super) lower: Option<u32>,
    pub(super) vlan: Option<u16>,
    /// Of a bridge: whether it keeps VLANs apart.
    pub(super) filters_vlans: bool,
    /// Of a bridge: the VLAN that it puts new ports into.
    pub(super) default_vlan: Option<u16>,
    pub(super) has_carrier: bool,
    pub(super) alias: Option<String>,
}

/// Where packets of a route go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// `None` if everybody is on the link.
    pub(super) gateway: Option<IpAddr>,
    pub(super) interface: u32,
}

impl From<rtnetlink::Error> for KernelError {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(refused) => Self::Errno(refused.raw_code().saturating_neg()),
            other => Self::Message(other.to_string()),
        }
    }
}

impl Tables {
    /// Those of this process's own namespace.
    pub(super) fn here() -> Result<Self, LanError> {
        Self::open()
            .map_err(|error| LanError::kernel("netlink socket")(KernelError::Socket(error.to_string())))
    }

    /// Those of the namespace that this thread is in. Must be called in the context of a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.0
    }

    pub(super) async fn links(&self) -> Result<Vec<Link>, LanError> {
        let messages: Vec<LinkMessage> = within(self.0.link().get().execute().try_collect())
            .await
            .map_err(LanError::kernel("reading the links"))?;
        Ok(messages.iter().filter_map(Link::of).collect())
    }

    pub(super) async fn link(&self, name: LinkName) -> Result<Option<Link>, LanError> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// All addresses, each with what the kernel thinks of it.
    pub(super) async fn addresses(&self) -> Result<Vec<(u32, IpNetwork, AddressFlags)>, LanError> {
        let messages: Vec<AddressMessage> = within(self.0.address().get().execute().try_collect())
            .await
            .map_err(LanError::kernel("reading the addresses"))?;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// The default route of a family that packets take.
    pub(super) async fn default_route(&self, v4: bool) -> Result<Option<Way>, LanError> {
        let routes: Vec<RouteMessage> = within(self.0.route().get(family(v4)).execute().try_collect())
            .await
            .map_err(LanError::kernel("reading the routes"))?;
        Ok(routes.iter().filter_map(default_way).min_by_key(|(metric, _)| *metric).map(|(_, way)| way))
    }
}

/// Waits for the kernel's answer, for a limited time.
pub(super) async fn within<T>(
    answer: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, KernelError> {
    timeout(LIMIT, answer).await.map_err(|_| KernelError::TimedOut(LIMIT))?.map_err(KernelError::from)
}

/// A route to `destination` by this way.
pub(super) fn route(destination: IpNetwork, way: Way) -> Result<RouteMessage, LanError> {
    let built = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix())
        .and_then(|builder| match way.gateway {
            Some(gateway) => builder.gateway(gateway),
            None => Ok(builder.scope(RouteScope::Link)),
        });
    match built {
        Ok(builder) => Ok(builder.output_interface(way.interface).build()),
        Err(error) => Err(LanError::Invalid(format!("a route to {destination}: {error}"))),
    }
}

fn family(v4: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message
}

fn default_way(route: &RouteMessage) -> Option<(u32, Way)> {
    let header = &route.header;
    if header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let (mut priority, mut gateway, mut interface) = (0, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(number) => priority = *number,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    Some((priority, Way { gateway, interface: interface? }))
}

fn address(message: &AddressMessage) -> Option<(u32, IpNetwork, AddressFlags)> {
    let (mut ip, mut flags) = (None, AddressFlags::from_bits_retain(message.header.flags.bits().into()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some((message.header.index, IpNetwork::new(ip?, message.header.prefix_len).ok()?, flags))
}

impl Link {
    /// An Ethernet interface that is up, of no particular kind.
    pub(super) fn ethernet(index: u32, name: LinkName) -> Self {
        Self {
            index,
            name,
            mac: MacAddr6::nil(),
            is_up: true,
            is_loopback: false,
            is_ethernet: true,
            kind: None,
            controller: None,
            lower: None,
            vlan: None,
            filters_vlans: false,
            default_vlan: None,
            has_carrier: true,
            alias: None,
        }
    }

    fn of(message: &LinkMessage) -> Option<Self> {
        let header = &message.header;
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => name.parse().ok(),
            _ => None,
        })?;
        let mut link = Self {
            is_up: header.flags.contains(LinkFlags::Up),
            is_loopback: header.flags.contains(LinkFlags::Loopback),
            is_ethernet: header.link_layer_type == LinkLayerType::Ether,
            has_carrier: header.flags.contains(LinkFlags::LowerUp),
            ..Self::ethernet(header.index, name)
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Link(index) => link.lower = Some(*index),
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(&bytes[..]).map(MacAddr6::from).unwrap_or_default();
                }
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.note(info)),
                _ => {}
            }
        }
        Some(link)
    }

    /// Whether it is of a kind that this module makes.
    pub(super) fn is_for_lans(&self) -> bool {
        matches!(self.kind, Some(InfoKind::MacVlan | InfoKind::Veth))
    }

    fn note(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.clone()),
            LinkInfo::Data(InfoData::Vlan(data)) => {
                self.vlan = data.iter().find_map(|info| match info {
                    InfoVlan::Id(id) => Some(*id),
                    _ => None,
                });
            }
            LinkInfo::Data(InfoData::Bridge(data)) => {
                for info in data {
                    match info {
                        InfoBridge::VlanFiltering(filters) => self.filters_vlans = *filters,
                        InfoBridge::VlanDefaultPvid(vlan) => self.default_vlan = Some(*vlan),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}
