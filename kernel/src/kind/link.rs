//! Devices that we make.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use macaddr::MacAddr6;

use super::link_name::LinkName;
use super::{Changed, Edit, Kind, Name, Upheaval};
use crate::mac::Mac;

/// Devices that we make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {}

/// A device that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kind of device, with the settings that cannot be changed in place.
    pub kind: LinkKind,
    /// The device's own MAC; a TUN device has none.
    pub mac: Option<MacAddr6>,
    /// Largest IP packet that enters the device, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// The kinds of device that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// The kernel encapsulates packets (`ip -d link show type vxlan`).
    Vxlan(Vxlan),
    /// Our program encapsulates packets (`ip -d link show type tun`). The device persists without the program.
    Tun {
        /// A virtio-net header precedes each packet, and packets may be larger than the MTU (`IFF_VNET_HDR`).
        vnet_header: bool,
    },
    /// The kernel puts each packet into one UDP datagram (`ip -d link show type ipip`, with `encap fou`).
    Ipip(Ipip),
    /// The kernel encrypts packets (`ip -d link show type wireguard`). Its settings are of another kind
    /// ([`WireguardDevices`](crate::WireguardDevices)).
    Wireguard,
    /// Containers of this host are attached to it (`ip -d link show type bridge`).
    Bridge,
}

/// The settings of an IPIP device that sends FOU datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipip {
    /// Source address of the datagrams.
    pub local: Ipv4Addr,
    /// UDP port that the datagrams go to; 0 for a device without FOU.
    pub port: u16,
    /// UDP port that they come from; 0 for one that depends on the flow inside, so that receivers can spread the load.
    pub source_port: u16,
    /// Whether everything else is as we make it: any remote address (routes name the gateway), TTL and the "don't
    /// fragment" bit of the inner packet, no other encapsulation.
    pub is_plain: bool,
}

/// The settings of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port of the outer packets, both to send to and to listen on.
    pub port: u16,
    /// The device that carries the outer packets; `None` if the kernel chooses by route or the device is gone.
    pub underlay: Option<LinkName>,
    /// Source address of the outer packets.
    pub local: Option<IpAddr>,
    /// Whether the device learns MACs from received packets.
    pub learning: bool,
    /// Whether group policy ids are carried (VXLAN-GBP).
    pub gbp: bool,
}

/// Changes to a device; `None` leaves a field as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// The device's MAC. The kernel changes it even while the device is up, and drops all neighbours of the device,
    /// including permanent ones (`neigh_changeaddr` in `net/core/neighbour.c`).
    pub mac: Option<MacAddr6>,
    /// Largest inner IP packet in bytes.
    pub mtu: Option<u32>,
    /// Administratively up. Going down drops the device's routes, neighbours and IPv6 addresses.
    pub up: Option<bool>,
}

impl LinkChange {
    /// Returns the changes to make in place.
    pub fn between(held: &Link, wanted: &Link) -> Self {
        Self {
            mac: wanted.mac.filter(|_| wanted.mac != held.mac),
            mtu: (wanted.mtu != held.mtu).then_some(wanted.mtu),
            up: (wanted.up != held.up).then_some(wanted.up),
        }
    }
}

impl Kind for Links {
    type Key = LinkName;
    type Value = Box<Link>;

    const NAME: Name = Name { short: "link", one: "link", many: "links" };
    const CHANGED: Changed = Changed::ByDevice;
    const ADD_OVERWRITES: bool = false;

    fn show(name: &LinkName, link: &Box<Link>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{name} {link}")
    }

    fn show_edit(edit: &Edit<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match edit {
            Edit::Add { key, value } => write!(f, "create link {key} {value}"),
            Edit::Replace { key, held, value } => match value.differs_for_good(held) {
                Some(because) => write!(f, "replace link {key} {value} ({because})"),
                None => write!(f, "change link {key}{}", LinkChange::between(held, value)),
            },
            Edit::Delete { key, .. } => write!(f, "delete link {key}"),
        }
    }

    /// Compares the MAC only if one is wanted.
    fn is_as_wanted(held: &Box<Link>, wanted: &Box<Link>) -> bool {
        wanted.differs_for_good(held).is_none() && LinkChange::between(held, wanted) == LinkChange::default()
    }

    fn as_device(name: &LinkName) -> Option<LinkName> {
        Some(*name)
    }

    fn upheaval(edit: &Edit<Self>) -> Option<(LinkName, Upheaval)> {
        let (name, upheaval) = match edit {
            Edit::Add { .. } => return None,
            Edit::Replace { key, held, value } => (*key, Self::upheaval_between(held, value)),
            Edit::Delete { key, .. } => (*key, Upheaval { anew: true, ..Upheaval::default() }),
        };
        Some((name, upheaval))
    }
}

impl LinkKind {
    /// What the names of our bridges begin with, and of no other device of ours.
    pub const BRIDGE_PREFIX: &'static str = "flan-";
}

impl Links {
    /// Returns what a change of a device does to the objects on it.
    fn upheaval_between(held: &Link, wanted: &Link) -> Upheaval {
        Upheaval {
            anew: wanted.differs_for_good(held).is_some(),
            new_mac: wanted.mac.is_some() && wanted.mac != held.mac,
            goes_down: held.up && !wanted.up,
            is_down: !held.up || !wanted.up,
            loses_ipv4: false,
        }
    }
}

impl Link {
    /// Returns the UDP port that its FOU datagrams go to, if it sends such.
    pub fn fou_port(&self) -> Option<u16> {
        match self.kind {
            LinkKind::Ipip(Ipip { port, .. }) if port != 0 => Some(port),
            _ => None,
        }
    }

    /// Returns each difference that cannot be changed in place, with both values: `port is 4789, want 8472`. Such a
    /// device is deleted and created again.
    pub fn differs_for_good(&self, held: &Self) -> Option<String> {
        let differences = fixed_differences(self, held);
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

/// Returns the fields that the kernel cannot change in place, or that we do not, because the device's sockets and
/// multicast memberships would have to follow (`vxlan_changelink` in `drivers/net/vxlan/vxlan_core.c`).
fn fixed_differences(want: &Link, have: &Link) -> Vec<String> {
    match (&want.kind, &have.kind) {
        (LinkKind::Vxlan(want), LinkKind::Vxlan(have)) => vxlan_differences(want, have),
        (LinkKind::Tun { vnet_header: want }, LinkKind::Tun { vnet_header: have }) if want == have => {
            Vec::new()
        }
        (LinkKind::Ipip(want), LinkKind::Ipip(have)) if want == have => Vec::new(),
        (LinkKind::Wireguard, LinkKind::Wireguard) | (LinkKind::Bridge, LinkKind::Bridge) => Vec::new(),
        (want, have) => vec![format!("it is {have}, want {want}")],
    }
}

fn vxlan_differences(want: &Vxlan, have: &Vxlan) -> Vec<String> {
    fn text<T: ToString>(value: Option<&T>) -> String {
        value.map_or_else(|| "none".to_owned(), ToString::to_string)
    }
    let mut differences = Vec::new();
    let mut compare = |field: &str, have: String, want: String| {
        if have != want {
            differences.push(format!("{field} is {have}, want {want}"));
        }
    };
    compare("vni", have.vni.to_string(), want.vni.to_string());
    compare("port", have.port.to_string(), want.port.to_string());
    compare("underlay", text(have.underlay.as_ref()), text(want.underlay.as_ref()));
    compare("local", text(have.local.as_ref()), text(want.local.as_ref()));
    compare("learning", on(have.learning).to_owned(), on(want.learning).to_owned());
    compare("gbp", on(have.gbp).to_owned(), on(want.gbp).to_owned());
    differences
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(mac) = &self.mac {
            write!(f, " address {}", Mac(mac))?;
        }
        write!(f, " mtu {} {}", self.mtu, up_or_down(self.up))
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vxlan = match self {
            Self::Vxlan(vxlan) => vxlan,
            Self::Tun { vnet_header } => {
                return write!(f, "type tun vnet_hdr {}", on(*vnet_header));
            }
            Self::Ipip(ipip) => return ipip.fmt(f),
            Self::Wireguard => return f.write_str("type wireguard"),
            Self::Bridge => return f.write_str("type bridge"),
        };
        write!(f, "type vxlan id {} port {}", vxlan.vni, vxlan.port)?;
        if let Some(local) = vxlan.local {
            write!(f, " local {local}")?;
        }
        if let Some(underlay) = vxlan.underlay {
            write!(f, " dev {underlay}")?;
        }
        write!(f, " {}learning", if vxlan.learning { "" } else { "no" })?;
        if vxlan.gbp { f.write_str(" gbp") } else { Ok(()) }
    }
}

impl fmt::Display for Ipip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type ipip local {}", self.local)?;
        if self.port != 0 {
            write!(f, " encap fou encap-dport {}", self.port)?;
        }
        if self.source_port != 0 {
            write!(f, " encap-sport {}", self.source_port)?;
        }
        if self.is_plain { Ok(()) } else { f.write_str(" with other settings") }
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mac) = &self.mac {
            write!(f, " address {}", Mac(mac))?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(up) = self.up {
            write!(f, " {}", up_or_down(up))?;
        }
        Ok(())
    }
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn up_or_down(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}
