//! The wireguard backend: WireGuard devices that know every peer by its key, with flannel's leases.
//!
//! On the kernel path, the devices and their peers are the kernel's. On the user path, the same peers are those of a
//! program behind TUN devices.

use std::net::{IpAddr, SocketAddr};

use flan_kernel::{
    Address, Addresses, Link, LinkKind, LinkName, Links, Ownership, Plan, ROUTE_PROTOCOL, Route, RouteKey,
    RouteTarget, Routes, WireguardDevice, WireguardDevices, WireguardPeer, WireguardPeerKey, WireguardPeers,
};
use flan_subnet_lease::{
    BackendData, Family, Lease, PerFamily, SubnetPool, Subnets, WireguardConfig, WireguardData, WireguardMode,
};
use flan_wireguard_keys::PrivateKey;
use ipnetwork::IpNetwork;

use crate::route::default_metric;
use crate::{Backend, BackendError, Underlay, Unreachable};

/// flannel's names for the devices; the second exists in mode `separate` alone.
const DEVICE: &str = "flannel-wg";
const DEVICE_V6: &str = "flannel-wg-v6";
/// Seconds between packets that keep a NAT from forgetting us: what WireGuard's manual recommends.
const KEEPALIVE_BEHIND_NAT: u16 = 25;

/// Plans a device for each family in use, or one for both, with a route for the whole network, and each peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Wireguard {
    config: WireguardConfig,
    host: WireguardHost,
    /// Our own underlay addresses.
    addresses: PerFamily<IpAddr>,
    devices: Vec<Device>,
    mtu: u32,
}

/// What this host contributes.
#[derive(Debug, Clone, PartialEq)]
pub struct WireguardHost {
    /// Its key.
    pub private_key: PrivateKey,
    /// The UDP port that peers send to, if it is not the one that we listen on.
    pub public_port: Option<u16>,
    /// The addresses of the NAT that it is behind: public addresses that are not its own.
    pub behind_nat: PerFamily<IpAddr>,
    /// Whether the kernel encrypts.
    pub by_kernel: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Device {
    link: LinkName,
    port: u16,
    /// The networks that it carries.
    networks: PerFamily<IpNetwork>,
}

impl Wireguard {
    /// Decides on the devices for the families of `pools`.
    ///
    /// # Errors
    /// [`BackendError`] if the external interface is unsuitable.
    pub fn new(
        config: WireguardConfig,
        pools: &PerFamily<SubnetPool>,
        underlay: &Underlay,
        host: WireguardHost,
    ) -> Result<Self, BackendError> {
        let mut devices: Vec<Device> = Vec::new();
        for (family, pool) in pools.iter() {
            let (name, port) = match (config.mode, family) {
                (WireguardMode::Separate, Family::V6) => (DEVICE_V6, config.listen_port_v6),
                _ => (DEVICE, config.listen_port),
            };
            let link = name_of(name);
            let place = devices.iter().position(|device| device.link == link).unwrap_or_else(|| {
                devices.push(Device { link, port, networks: PerFamily::default() });
                devices.len() - 1
            });
            devices[place].networks.set(family, pool.network());
        }
        let outer = config.mtu.unwrap_or(underlay.mtu);
        let least = WireguardConfig::OVERHEAD + if pools.v6.is_some() { 1280 } else { 576 };
        if outer < least {
            return Err(BackendError::MtuTooSmall { link: underlay.link, mtu: outer, least });
        }
        let mtu = outer - WireguardConfig::OVERHEAD;
        Ok(Self { config, host, addresses: underlay.addresses, devices, mtu })
    }

    /// Returns what belongs to a wireguard backend in the kernel, on either path, even after a restart.
    pub fn ownership_of() -> Ownership {
        Ownership { links: [DEVICE, DEVICE_V6].map(name_of).into(), wireguard: true, ..Ownership::default() }
    }

    /// Returns the devices with the ports on which they listen.
    pub fn devices(&self) -> impl Iterator<Item = (LinkName, u16)> {
        self.devices.iter().map(|device| (device.link, device.port))
    }

    /// Returns this host's key.
    pub fn private_key(&self) -> &PrivateKey {
        &self.host.private_key
    }

    /// Returns a peer as each device knows it.
    ///
    /// # Errors
    /// [`Unreachable`] if its lease lacks what a device needs.
    pub fn peers(&self, lease: &Lease) -> Result<Vec<(WireguardPeerKey, WireguardPeer)>, Unreachable> {
        self.devices.iter().map(|device| self.peer_of(device, lease)).collect()
    }

    fn peer_of(
        &self,
        device: &Device,
        lease: &Lease,
    ) -> Result<(WireguardPeerKey, WireguardPeer), Unreachable> {
        let mut allowed = std::collections::BTreeSet::new();
        let mut data = None;
        for (family, _) in device.networks.iter() {
            let incomplete = Unreachable::Incomplete { family };
            allowed.insert(lease.subnets.get(family).ok_or(incomplete.clone())?);
            let read = lease.attributes.data.get(family).and_then(BackendData::wireguard);
            // As flannel does, the later family wins where one device carries both.
            data = Some((family, read.ok_or(incomplete)?));
        }
        let (family, WireguardData { public_key, port }) =
            data.ok_or(Unreachable::Incomplete { family: Family::V4 })?;
        let address = self.address_of(family, lease).ok_or(Unreachable::Incomplete { family })?;
        let keepalive = match self.config.keepalive {
            0 if self.is_behind_nat(family) => KEEPALIVE_BEHIND_NAT,
            seconds => seconds,
        };
        let peer = WireguardPeer {
            endpoint: Some(SocketAddr::new(address, port.filter(|port| *port != 0).unwrap_or(device.port))),
            preshared_key: self.config.preshared_key.clone(),
            keepalive,
            allowed,
            is_alive: false,
        };
        Ok((WireguardPeerKey { link: device.link, public_key }, peer))
    }

    /// Returns whether peers send packets of this family to a NAT.
    fn is_behind_nat(&self, family: Family) -> bool {
        let over = match self.config.mode {
            WireguardMode::Separate => family,
            WireguardMode::Ipv4 => Family::V4,
            WireguardMode::Ipv6 => Family::V6,
            WireguardMode::Auto => return !self.host.behind_nat.is_empty(),
        };
        self.host.behind_nat.get(over).is_some()
    }

    /// Returns the address to which a peer's packets go.
    fn address_of(&self, family: Family, lease: &Lease) -> Option<IpAddr> {
        let public = lease.attributes.public_ips;
        match self.config.mode {
            WireguardMode::Separate => public.get(family).copied(),
            WireguardMode::Ipv4 => public.v4,
            WireguardMode::Ipv6 => public.v6,
            WireguardMode::Auto => match (public.v4, public.v6) {
                (Some(_), Some(v6)) if self.prefers_ipv6(public.v4, v6) => Some(v6),
                (v4, v6) => v4.or(v6),
            },
        }
    }

    /// Returns whether a peer with both addresses is better reached by IPv6, as flannel judges: by IPv4 if that address
    /// is public, because whoever has any IPv4 address gets there; else by IPv6 if both ends have public ones.
    fn prefers_ipv6(&self, v4: Option<IpAddr>, v6: IpAddr) -> bool {
        let by_ipv4 = v4.is_some_and(is_public) && self.addresses.v4.is_some();
        !by_ipv4 && is_public(v6) && self.addresses.v6.is_some_and(is_public)
    }
}

impl Backend for Wireguard {
    fn lease_data(&self) -> PerFamily<BackendData> {
        let public_key = self.host.private_key.public();
        let mut all = PerFamily::default();
        for device in &self.devices {
            for (family, _) in device.networks.iter() {
                let translated = self.host.public_port.filter(|_| self.is_behind_nat(family));
                let port = Some(translated.unwrap_or(device.port));
                all.set(family, WireguardData { public_key, port }.into());
            }
        }
        all
    }

    fn plan_host(&self, own: &Subnets, plan: &mut dyn Plan) {
        for Device { link, port, networks } in &self.devices {
            let (link, port) = (*link, *port);
            let kind = match self.host.by_kernel {
                true => LinkKind::Wireguard,
                false => LinkKind::Tun { vnet_header: true },
            };
            plan.add::<Links>(link, Link { kind, mac: None, mtu: self.mtu, up: true }.into());
            if self.host.by_kernel {
                let private_key = self.host.private_key.clone();
                plan.add::<WireguardDevices>(link, WireguardDevice { private_key, port });
            }
            for (family, network) in networks.iter() {
                if let Some(subnet) = own.get(family) {
                    plan.add::<Addresses>(Address { link, address: IpNetwork::from(subnet.ip()) }, ());
                }
                plan.add::<Routes>(
                    RouteKey { destination: *network, metric: default_metric(*network) },
                    Route { target: RouteTarget::Link(link), protocol: ROUTE_PROTOCOL },
                );
            }
        }
    }

    fn plan_peer(&self, peer: &Lease, plan: &mut dyn Plan) -> Result<(), Unreachable> {
        let peers = self.peers(peer)?;
        if self.host.by_kernel {
            peers.into_iter().for_each(|(key, peer)| plan.add::<WireguardPeers>(key, peer));
        }
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }
}

/// Returns whether a device of ours may have this name.
pub(crate) fn is_name(name: LinkName) -> bool {
    [DEVICE, DEVICE_V6].map(name_of).contains(&name)
}

fn name_of(text: &str) -> LinkName {
    text.parse().expect("a valid name, tested below")
}

/// Returns whether packets to the address can cross the internet, as Go's `IsPrivate` has it (RFC 1918, RFC 4193).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_private(),
        IpAddr::V6(address) => !address.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use flan_kernel::{State, diff};

    use super::*;
    use crate::samples;

    const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    const THEIRS: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

    fn backend(config: WireguardConfig, families: &[Family]) -> Wireguard {
        let host = WireguardHost {
            private_key: PRIVATE.parse().unwrap(),
            public_port: None,
            behind_nat: PerFamily::default(),
            by_kernel: true,
        };
        Wireguard::new(config, &samples::pools(families), &samples::underlay(), host).unwrap()
    }

    fn mode(mode: WireguardMode) -> WireguardConfig {
        WireguardConfig { mode, ..WireguardConfig::default() }
    }

    fn lines(plan: &State) -> Vec<String> {
        diff(plan, &State::default()).iter().map(ToString::to_string).collect()
    }

    fn lease(v4: &str, v6: &str, port: &str) -> Lease {
        let data = format!(r#"{{"PublicKey":"{THEIRS}"{port}}}"#);
        let value = format!(
            r#"{{"PublicIP":"{v4}","PublicIPv6":{v6},"BackendType":"wireguard","BackendData":{data},"BackendV6Data":{data}}}"#
        );
        samples::lease("10.5.2.0/24,fd00:5:0:2::/64", &value)
    }

    fn endpoints(backend: &Wireguard, lease: &Lease) -> Vec<String> {
        backend.peers(lease).unwrap().iter().map(|(_, peer)| peer.endpoint.unwrap().to_string()).collect()
    }

    #[test]
    fn each_family_has_a_device_of_its_own() {
        let backend = backend(WireguardConfig::default(), &Family::ALL);
        assert_eq!(
            lines(&samples::host(&backend, "10.5.1.0/24,fd00:5:0:1::/64")),
            [
                "create link flannel-wg type wireguard mtu 1420 up".to_owned(),
                "create link flannel-wg-v6 type wireguard mtu 1420 up".to_owned(),
                format!("add wireguard flannel-wg listen-port 51820 public-key {PUBLIC}"),
                format!("add wireguard flannel-wg-v6 listen-port 51821 public-key {PUBLIC}"),
                "add address 10.5.1.0/32 dev flannel-wg".to_owned(),
                "add address fd00:5:0:1::/128 dev flannel-wg-v6".to_owned(),
                "add route 10.5.0.0/16 dev flannel-wg".to_owned(),
                "add route fd00:5::/48 dev flannel-wg-v6".to_owned(),
            ]
        );
        let peer = lease("192.168.64.12", r#""fd64::12""#, "");
        assert_eq!(
            lines(&samples::peer(&backend, &peer).unwrap()),
            [
                format!(
                    "add peer {THEIRS} dev flannel-wg endpoint 192.168.64.12:51820 allowed-ips 10.5.2.0/24"
                ),
                format!(
                    "add peer {THEIRS} dev flannel-wg-v6 endpoint [fd64::12]:51821 allowed-ips fd00:5:0:2::/64"
                ),
            ]
        );
    }

    #[test]
    fn in_the_other_modes_one_device_carries_both_families() {
        let backend = backend(mode(WireguardMode::Auto), &Family::ALL);
        let peer = lease("192.168.64.12", r#""fd64::12""#, r#","Port":7000"#);
        assert_eq!(
            lines(&samples::peer(&backend, &peer).unwrap()),
            [format!(
                "add peer {THEIRS} dev flannel-wg endpoint 192.168.64.12:7000 allowed-ips 10.5.2.0/24,fd00:5:0:2::/64"
            )]
        );
        assert_eq!(samples::host(&backend, "10.5.1.0/24,fd00:5:0:1::/64").links.len(), 1);
    }

    #[test]
    fn a_lease_with_port_0_means_ours_as_one_without() {
        let peer = lease("192.168.64.12", r#""fd64::12""#, r#","Port":0"#);
        let backend = backend(WireguardConfig::default(), &Family::ALL);
        assert_eq!(endpoints(&backend, &peer), ["192.168.64.12:51820", "[fd64::12]:51821"]);
    }

    #[test]
    fn packets_go_over_the_family_that_the_mode_names_or_that_promises_to_work() {
        let peer = lease("192.168.64.12", r#""2001:db8::12""#, "");
        let over = |choice| endpoints(&backend(mode(choice), &Family::ALL), &peer);
        assert_eq!(over(WireguardMode::Ipv4), ["192.168.64.12:51820"]);
        assert_eq!(over(WireguardMode::Ipv6), ["[2001:db8::12]:51820"]);
        // Ours is not public.
        assert_eq!(over(WireguardMode::Auto), ["192.168.64.12:51820"]);
        let mut public = backend(mode(WireguardMode::Auto), &Family::ALL);
        public.addresses.v6 = Some("2001:db8::11".parse().unwrap());
        assert_eq!(endpoints(&public, &peer), ["[2001:db8::12]:51820"]);
        assert_eq!(
            endpoints(&public, &lease("203.0.113.12", r#""2001:db8::12""#, "")),
            ["203.0.113.12:51820"]
        );
    }

    #[test]
    fn a_lease_says_what_flannels_says() {
        let backend = backend(WireguardConfig::default(), &Family::ALL);
        let data = backend.lease_data().map(|data| serde_json::to_string(&data).unwrap());
        assert_eq!(data.v4.unwrap(), format!(r#"{{"PublicKey":"{PUBLIC}","Port":51820}}"#));
        assert_eq!(data.v6.unwrap(), format!(r#"{{"PublicKey":"{PUBLIC}","Port":51821}}"#));
    }

    #[test]
    fn a_host_behind_a_nat_publishes_its_port_and_keeps_the_way_open() {
        let mut backend = backend(WireguardConfig::default(), &[Family::V4]);
        let mut peer = lease("192.168.64.12", "null", "");
        peer.subnets = "10.5.2.0/24".parse().unwrap();
        let keepalive = |backend: &Wireguard| backend.peers(&peer).unwrap()[0].1.keepalive;
        assert_eq!(keepalive(&backend), 0);
        backend.host.behind_nat.v4 = Some("203.0.113.1".parse().unwrap());
        backend.host.public_port = Some(40_000);
        assert_eq!(keepalive(&backend), 25);
        assert_eq!(backend.lease_data().v4.unwrap().wireguard().unwrap().port, Some(40_000));
        backend.config.keepalive = 7;
        assert_eq!(keepalive(&backend), 7);
    }

    #[test]
    fn on_the_user_path_the_kernel_has_no_peers() {
        let mut backend = backend(WireguardConfig::default(), &[Family::V4]);
        backend.host.by_kernel = false;
        let plan = samples::host(&backend, "10.5.1.0/24");
        assert_eq!(lines(&plan)[0], "create link flannel-wg type tun vnet_hdr on mtu 1420 up");
        assert!(plan.wireguards.is_empty());
        let mut peer = lease("192.168.64.12", "null", "");
        peer.subnets = "10.5.2.0/24".parse().unwrap();
        assert!(samples::peer(&backend, &peer).unwrap().wireguard_peers.is_empty());
    }

    #[test]
    fn a_lease_without_a_key_or_an_address_is_unreachable() {
        let backend = backend(WireguardConfig::default(), &Family::ALL);
        let mut peer = lease("192.168.64.12", r#""fd64::12""#, "");
        peer.attributes.data.v6 = None;
        assert_eq!(backend.peers(&peer), Err(Unreachable::Incomplete { family: Family::V6 }));
        let peer = lease("0.0.0.0", r#""fd64::12""#, "");
        assert_eq!(backend.peers(&peer), Err(Unreachable::Incomplete { family: Family::V4 }));
    }
}
