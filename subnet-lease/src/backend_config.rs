//! The registry of backends: their names, the families that fland carries with them, what their hosts write into a
//! lease, and their part of the network config.

use std::ops::RangeInclusive;

use flan_wireguard_keys::PresharedKey;

use crate::backend_data::BackendData;
use crate::config_error::{ConfigError, ConfigWarning};
use crate::family::{Family, PerFamily};
use crate::fields::Fields;
use crate::identity::Identity;
use crate::subnet_pool::SubnetPool;

/// How packets reach a peer, with the settings that all hosts share.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendConfig {
    /// The kernel's VXLAN.
    Vxlan(VxlanConfig),
    /// One inner packet per UDP datagram.
    Udp(UdpConfig),
    /// Routes through the peer's own address.
    HostGw(HostGwConfig),
    /// Only leases; something else forwards packets.
    Alloc,
    /// flannel's WireGuard.
    Wireguard(WireguardConfig),
}

/// Settings of the vxlan backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier; 1 by default. It is part of the device names, `flannel.<VNI>` and `flannel-v6.<VNI>`.
    /// Device names have at most 15 bytes, so it is at most 9999999, with IPv6 at most 9999.
    pub vni: u32,
    /// UDP port of the outer packets; 8472 by default.
    pub port: u16,
    /// Carry group policy ids; off by default.
    pub gbp: bool,
    /// Route peers on the same link without encapsulation; off by default.
    pub direct_routing: bool,
    /// Learn MACs from received packets; off by default.
    pub learning: bool,
    /// Size of the outer packets in bytes; the external interface's MTU by default.
    pub mtu: Option<u32>,
    /// Accept an inner packet only from the peer whose subnet contains its source, and only for this host's subnet; off
    /// by default, because flannel accepts it from anybody. flannel ignores this.
    pub strict_source: bool,
}

/// Settings of the host-gw backend. flannel has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostGwConfig {
    /// Accept a packet of the overlay network only if a peer's subnet contains its source, and only for this host's
    /// subnet; off by default.
    pub strict_source: bool,
}

/// Settings of the udp backend. flannel knows only the port and ignores the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpConfig {
    /// UDP port that every host listens on; 8285 by default.
    pub port: u16,
    /// Who moves the packets; the kernel where it can, by default.
    pub path: PathChoice,
    /// Whether the kernel sends all datagrams from [`port`](Self::port); by default the source port depends on the flow
    /// inside, so that receivers can spread the load. On the user path, all datagrams come from it anyway.
    pub fixed_source_port: bool,
    /// Accept an inner packet only from the peer whose subnet contains its source, and only for this host's subnet; off
    /// by default, because flannel accepts it from anybody.
    pub strict_source: bool,
    /// Exchange packets beyond the MTU with the device (virtio-net headers); on by default if the kernel supports it.
    pub tun_offload: bool,
    /// Send many datagrams at once (`UDP_SEGMENT`); on by default if the kernel supports it.
    pub gso: bool,
    /// Receive many datagrams at once (`UDP_GRO`); on by default if the kernel supports it.
    pub gro: bool,
}

/// Who moves the packets of the udp and the wireguard backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PathChoice {
    /// The kernel where it can, else the agent.
    #[default]
    Auto,
    /// The kernel: with udp by FOU and IPIP. A host that cannot refuses to start.
    Kernel,
    /// The agent, through a TUN device.
    User,
}

/// Settings of the wireguard backend, as flannel's. flannel does not know `Path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardConfig {
    /// UDP port of the device `flannel-wg`; 51820 by default.
    pub listen_port: u16,
    /// UDP port of the device `flannel-wg-v6`, which exists in mode `separate` alone; 51821 by default.
    pub listen_port_v6: u16,
    /// A key that all hosts mix into their handshakes (`PSK`); none by default.
    pub preshared_key: Option<PresharedKey>,
    /// Size of the outer packets in bytes; the external interface's MTU by default.
    pub mtu: Option<u32>,
    /// Over which family of the underlay packets go.
    pub mode: WireguardMode,
    /// Seconds of silence after which each peer is sent something; 0, for never, by default.
    pub keepalive: u16,
    /// Who encrypts; the kernel where it can, by default.
    pub path: PathChoice,
}

/// Over which family of the underlay WireGuard's packets go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WireguardMode {
    /// Each family over itself, by its own device.
    #[default]
    Separate,
    /// Both families by one device, over whichever family of the underlay promises to work.
    Auto,
    /// Both families by one device, over IPv4.
    Ipv4,
    /// Both families by one device, over IPv6.
    Ipv6,
}

/// The properties of a backend besides its settings.
struct Kind {
    name: &'static str,
    /// The families that this version of fland carries; empty if fland lacks the backend.
    carries: &'static [Family],
    /// Whether its hosts write its name into their leases. If not, every host with an address is a peer.
    writes_name: bool,
    /// What else they write.
    data: Option<Data>,
    /// Whether a host may have several networks with it: its devices are named after the network.
    is_repeatable: bool,
    parse: fn(&mut Fields, &PerFamily<SubnetPool>) -> Result<BackendConfig, ConfigError>,
}

/// The contents of `BackendData` and `BackendV6Data`.
struct Data {
    /// Its name for people.
    called: &'static str,
    /// Returns what identifies a peer; `None` if the data is unreadable.
    identity: fn(&BackendData) -> Option<Identity>,
    /// Whether this alone tells peers apart, so that several may be behind one address (NAT).
    suffices: bool,
}

const VXLAN: Kind = Kind {
    name: VxlanConfig::NAME,
    carries: &Family::ALL,
    writes_name: true,
    data: Some(Data {
        called: "VTEP data",
        identity: |data| data.vxlan().map(|data| Identity::Mac(data.vtep_mac)),
        suffices: false,
    }),
    is_repeatable: true,
    parse: |fields, pools| VxlanConfig::parse(fields, pools).map(BackendConfig::Vxlan),
};
const UDP: Kind = Kind {
    name: UdpConfig::NAME,
    carries: &[Family::V4],
    writes_name: false,
    data: None,
    is_repeatable: false,
    parse: |fields, _| UdpConfig::parse(fields).map(BackendConfig::Udp),
};
const HOST_GW: Kind = Kind {
    name: HostGwConfig::NAME,
    carries: &Family::ALL,
    writes_name: true,
    data: None,
    is_repeatable: true,
    parse: |fields, _| HostGwConfig::parse(fields).map(BackendConfig::HostGw),
};
const ALLOC: Kind = Kind {
    name: "alloc",
    carries: &Family::ALL,
    writes_name: false,
    data: None,
    is_repeatable: true,
    parse: |_, _| Ok(BackendConfig::Alloc),
};
const WIREGUARD: Kind = Kind {
    name: WireguardConfig::NAME,
    carries: &Family::ALL,
    writes_name: true,
    data: Some(Data {
        called: "WireGuard key",
        identity: |data| data.wireguard().map(|data| Identity::Key(data.public_key)),
        suffices: true,
    }),
    is_repeatable: false,
    parse: |fields, pools| WireguardConfig::parse(fields, pools).map(BackendConfig::Wireguard),
};
/// All backends whose settings can be read. Nothing else depends on their names.
static KINDS: [&Kind; 5] = [&VXLAN, &UDP, &HOST_GW, &ALLOC, &WIREGUARD];

/// A lease of another VXLAN network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("VNI is {theirs}, this network's is {ours}")]
pub struct WrongVni {
    /// The VNI in the lease.
    pub theirs: u32,
    /// The VNI in the config.
    pub ours: u32,
}

impl BackendConfig {
    /// Returns the name of this backend in configs and leases.
    pub fn name(&self) -> &'static str {
        self.kind().name
    }

    /// Returns the names of the backends that this version of fland runs.
    pub fn supported_names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().filter(|kind| !kind.carries.is_empty()).map(|kind| kind.name)
    }

    /// Returns the name, if it is a backend whose settings can be read.
    pub(crate) fn known_name(name: &str) -> Option<&'static str> {
        KINDS.iter().map(|kind| kind.name).find(|known| *known == name)
    }

    pub(crate) fn names_that_carry(family: Family) -> impl Iterator<Item = &'static str> {
        KINDS.iter().filter(move |kind| kind.carries.contains(&family)).map(|kind| kind.name)
    }

    /// Returns the families that this version of fland carries with the backend; empty if fland lacks it.
    pub(crate) fn carries(&self) -> &'static [Family] {
        self.kind().carries
    }

    /// Returns whether a host may have several networks with this backend.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.kind().is_repeatable
    }

    /// Returns the names of the backends that a network beside the default one may have.
    pub fn repeatable_names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().filter(|kind| kind.is_repeatable).map(|kind| kind.name)
    }

    /// Returns `BackendType` in the leases of its hosts; `None` if they write none.
    pub fn lease_type(&self) -> Option<&'static str> {
        self.kind().writes_name.then_some(self.name())
    }

    /// Returns the name for people of the data in its leases; `None` if they have none.
    pub(crate) fn data_is_called(&self) -> Option<&'static str> {
        self.kind().data.as_ref().map(|data| data.called)
    }

    /// Returns the family of the underlay over which packets of this family go.
    pub(crate) fn underlay_of(&self, family: Family) -> Family {
        match self {
            Self::Wireguard(WireguardConfig { mode: WireguardMode::Ipv4, .. }) => Family::V4,
            Self::Wireguard(WireguardConfig { mode: WireguardMode::Ipv6, .. }) => Family::V6,
            _ => family,
        }
    }

    /// Returns whether several hosts may have one address, because something else tells them apart.
    pub fn shares_addresses(&self) -> bool {
        self.kind().data.as_ref().is_some_and(|data| data.suffices)
    }

    /// Returns the identity of a host whose lease holds this data; `None` if the data is unreadable, or if only
    /// addresses identify the hosts of this backend.
    pub(crate) fn identity(&self, data: Option<&BackendData>) -> Option<Identity> {
        (self.kind().data.as_ref()?.identity)(data?)
    }

    /// Returns the identity in each family.
    pub fn identities(&self, data: &PerFamily<BackendData>) -> PerFamily<Identity> {
        PerFamily { v4: self.identity(data.v4.as_ref()), v6: self.identity(data.v6.as_ref()) }
    }

    /// Checks that the data in a lease is from a host with the same settings.
    ///
    /// # Errors
    /// The difference.
    pub(crate) fn check(&self, data: &BackendData) -> Result<(), WrongVni> {
        let Self::Vxlan(VxlanConfig { vni: ours, .. }) = *self else { return Ok(()) };
        match data.vxlan().and_then(|data| data.vni).filter(|vni| *vni != ours) {
            Some(theirs) => Err(WrongVni { theirs, ours }),
            None => Ok(()),
        }
    }

    /// Returns the backend that flannel assumes in a config without a `Backend`.
    pub(crate) fn of_flannel() -> Self {
        Self::Udp(UdpConfig::default())
    }

    pub(crate) fn parse(
        mut fields: Fields,
        pools: &PerFamily<SubnetPool>,
    ) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let name: String = fields.take("Type")?.ok_or_else(|| ConfigError::Missing {
            field: "Backend.Type",
            hint: format!("fland has {}", listed(Self::supported_names())),
        })?;
        let kind = KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(&name));
        let kind = kind.ok_or_else(|| Self::unknown(&name))?;
        let backend = (kind.parse)(&mut fields, pools)?;
        Ok((backend, fields.finish()))
    }

    /// Returns why a backend of this name is refused, if fland lacks it.
    pub(crate) fn unknown(name: &str) -> ConfigError {
        let problem = format!("is not a backend of this fland; {} are", listed(Self::supported_names()));
        ConfigError::invalid("Backend.Type", &format!("{name:?}"), &problem)
    }

    fn kind(&self) -> &'static Kind {
        match self {
            Self::Vxlan(_) => &VXLAN,
            Self::Udp(_) => &UDP,
            Self::HostGw(_) => &HOST_GW,
            Self::Alloc => &ALLOC,
            Self::Wireguard(_) => &WIREGUARD,
        }
    }
}

impl VxlanConfig {
    /// The backend's name.
    pub const NAME: &str = "vxlan";

    fn parse(fields: &mut Fields, pools: &PerFamily<SubnetPool>) -> Result<Self, ConfigError> {
        let default = Self::default();
        Ok(Self {
            vni: fields.take_in("VNI", 1..=longest_vni(pools))?.unwrap_or(default.vni),
            port: port(fields, "Port", default.port)?,
            gbp: fields.take("GBP")?.unwrap_or(default.gbp),
            direct_routing: fields.take("DirectRouting")?.unwrap_or(default.direct_routing),
            learning: fields.take("Learning")?.unwrap_or(default.learning),
            mtu: fields.take_in("MTU", outer_mtu(pools, 70))?,
            strict_source: fields.take("StrictSource")?.unwrap_or(default.strict_source),
        })
    }
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self {
            vni: 1,
            port: 8472,
            gbp: false,
            direct_routing: false,
            learning: false,
            mtu: None,
            strict_source: false,
        }
    }
}

impl HostGwConfig {
    /// The backend's name.
    pub const NAME: &str = "host-gw";

    fn parse(fields: &mut Fields) -> Result<Self, ConfigError> {
        Ok(Self { strict_source: fields.take("StrictSource")?.unwrap_or_default() })
    }
}

impl UdpConfig {
    /// The backend's name.
    pub const NAME: &str = "udp";

    fn parse(fields: &mut Fields) -> Result<Self, ConfigError> {
        let default = Self::default();
        Ok(Self {
            port: port(fields, "Port", default.port)?,
            path: PathChoice::parse(fields)?,
            fixed_source_port: fields.take("FixedSourcePort")?.unwrap_or(default.fixed_source_port),
            strict_source: fields.take("StrictSource")?.unwrap_or(default.strict_source),
            tun_offload: fields.take("TunOffload")?.unwrap_or(default.tun_offload),
            gso: fields.take("GSO")?.unwrap_or(default.gso),
            gro: fields.take("GRO")?.unwrap_or(default.gro),
        })
    }
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self {
            port: 8285,
            path: PathChoice::Auto,
            fixed_source_port: false,
            strict_source: false,
            tun_offload: true,
            gso: true,
            gro: true,
        }
    }
}

impl PathChoice {
    /// All of them, each with its name in the config.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Auto, "auto"), (Self::Kernel, "kernel"), (Self::User, "user")];

    fn parse(fields: &mut Fields) -> Result<Self, ConfigError> {
        one_of(fields, "Path", &Self::ALL)
    }
}

impl WireguardConfig {
    /// The backend's name.
    pub const NAME: &str = "wireguard";

    fn parse(fields: &mut Fields, pools: &PerFamily<SubnetPool>) -> Result<Self, ConfigError> {
        let default = Self::default();
        let config = Self {
            listen_port: port(fields, "ListenPort", default.listen_port)?,
            listen_port_v6: port(fields, "ListenPortV6", default.listen_port_v6)?,
            preshared_key: fields.take_secret("PSK")?,
            mtu: fields.take_in("MTU", outer_mtu(pools, Self::OVERHEAD))?,
            mode: one_of(fields, "Mode", &WireguardMode::ALL)?,
            keepalive: fields.take_in("PersistentKeepaliveInterval", 0..=u16::MAX)?.unwrap_or_default(),
            path: PathChoice::parse(fields)?,
        };
        let both = config.mode == WireguardMode::Separate && pools.v4.is_some() && pools.v6.is_some();
        if both && config.listen_port == config.listen_port_v6 {
            let problem = "is ListenPort, too; in mode separate each family has its own";
            let value = config.listen_port_v6.to_string();
            return Err(ConfigError::invalid("Backend.ListenPortV6", &value, problem));
        }
        Ok(config)
    }

    /// Bytes that the encapsulation adds, over IPv6: 40 for its header, 8 for UDP's, 16 for WireGuard's, and 16 that prove
    /// that nobody changed the packet.
    pub const OVERHEAD: u32 = 80;
}

impl Default for WireguardConfig {
    fn default() -> Self {
        Self {
            listen_port: 51820,
            listen_port_v6: 51821,
            preshared_key: None,
            mtu: None,
            mode: WireguardMode::Separate,
            keepalive: 0,
            path: PathChoice::Auto,
        }
    }
}

impl WireguardMode {
    /// All of them, each with its name in the config.
    const ALL: [(Self, &'static str); 4] =
        [(Self::Separate, "separate"), (Self::Auto, "auto"), (Self::Ipv4, "ipv4"), (Self::Ipv6, "ipv6")];
}

/// Reads one of several names, without regard to case.
fn one_of<T: Copy + Default>(
    fields: &mut Fields,
    field: &str,
    all: &[(T, &'static str)],
) -> Result<T, ConfigError> {
    let Some(name) = fields.take::<String>(field)? else { return Ok(T::default()) };
    let known = all.iter().find(|(_, known)| known.eq_ignore_ascii_case(&name));
    known.map(|(value, _)| *value).ok_or_else(|| {
        let names = listed(all.iter().map(|(_, name)| *name));
        ConfigError::invalid(
            &format!("Backend.{field}"),
            &format!("{name:?}"),
            &format!("is none of {names}"),
        )
    })
}

/// Reads a UDP port; 0 means the default, as in flannel.
fn port(fields: &mut Fields, name: &str, default: u16) -> Result<u16, ConfigError> {
    Ok(fields.take_in(name, 0..=u16::MAX)?.filter(|port| *port != 0).unwrap_or(default))
}

/// Returns the highest VNI whose device names fit.
fn longest_vni(pools: &PerFamily<SubnetPool>) -> u32 {
    if pools.v6.is_some() { 9_999 } else { 9_999_999 }
}

/// Returns the allowed size of outer packets: an inner packet must fit the smallest MTU of its family, 576 bytes (RFC
/// 791) or 1280 (RFC 8200), after at most so many bytes of headers.
fn outer_mtu(pools: &PerFamily<SubnetPool>, headers: u32) -> RangeInclusive<u32> {
    let inner = if pools.v6.is_some() { 1280 } else { 576 };
    inner + headers..=65535
}

/// Formats `vxlan, udp and alloc`.
pub(crate) fn listed(names: impl Iterator<Item = &'static str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
