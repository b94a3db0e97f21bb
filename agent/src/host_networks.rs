//! The host's own networks, told from those that exist for its containers on the overlay.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flan_kernel::netlink::{self, DeviceKind, HostNetwork as Known, Origin};
use flan_kernel::{KernelError, LinkName};
use flan_subnet_lease::{Family, HostNetwork, NetworkConfig, Subnets};
use ipnetwork::IpNetwork;

/// What this host has to do with other networks than the overlay.
#[derive(Debug, Clone, Default)]
pub struct HostNetworks {
    /// Everything that was read.
    known: Vec<Known>,
}

impl HostNetworks {
    /// Reads them. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn read() -> Result<Self, KernelError> {
        Ok(Self { known: netlink::host_networks().await? })
    }

    /// All addresses of this host.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let is_address = |known: &&Known| known.origin == Origin::Address;
        self.known.iter().filter(is_address).map(|known| known.network.ip()).collect()
    }

    /// The networks that have nothing to do with the overlay, each once. Left out are flannel's and our devices, docker0 and
    /// cni0, the bridge that holds `own`, whatever a bridge or a pair of virtual devices has inside `own`, and routes
    /// that stand for default ones.
    pub fn foreign(&self, own: Option<&Subnets>) -> Vec<HostNetwork> {
        let mut foreign: Vec<HostNetwork> = Vec::new();
        for known in &self.known {
            let of_containers = known.link.is_some_and(is_of_overlay)
                || own.is_some_and(|own| is_in(own, known))
                || is_default(&known.network);
            let gateway = match known.origin {
                Origin::Route { gateway } => gateway,
                Origin::Address => None,
            };
            let network = HostNetwork { network: base(&known.network), place: place(known), gateway };
            // An address tells of its network first, and a route to it, which a network manager makes, the same again.
            let told = |before: &HostNetwork| before.network == network.network;
            if !of_containers && !foreign.iter().any(told) {
                foreign.push(network);
            }
        }
        foreign
    }
}

/// What is wrong with a network config on a host with these networks, for whoever writes it there.
pub fn collisions(config: &NetworkConfig, networks: &HostNetworks) -> Vec<String> {
    let mut texts = Vec::new();
    for (_, overlay) in config.networks() {
        for host in networks.foreign(None) {
            if encloses(&host.network, &overlay) {
                texts.push(enclosing(&host, &overlay));
            } else if encloses(&overlay, &host.network) {
                texts.push(format!(
                    "this host's network {host} lies in the overlay network {overlay}: this host takes no subnet there, \
                     but where another host does, one of the two cannot be reached from here"
                ));
            }
        }
    }
    texts
}

/// What a network that encloses the whole overlay means.
pub fn enclosing(host: &HostNetwork, overlay: &IpNetwork) -> String {
    format!(
        "this host's network {host} encloses the overlay network {overlay}: what has an address in {overlay} there cannot be \
         reached from here"
    )
}

/// Whether `outer` holds every address of `inner`.
pub fn encloses(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Whether two networks share an address: then one of them lies in the other.
pub fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    encloses(a, b) || encloses(b, a)
}

/// Devices that carry the overlay on this host or, made by other programs, hold its subnet: `flannel.1`, `flannel0`,
/// `flannel-v6.1`, `docker0`, `cni0`.
fn is_of_overlay(link: LinkName) -> bool {
    let name = link.as_str();
    let of_flannel = name.strip_prefix("flannel").is_some_and(|rest| {
        rest.starts_with(['.', '-']) || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    });
    of_flannel || name == "docker0" || name == "cni0"
}

/// Whether it exists for containers in our own subnet.
fn is_in(own: &Subnets, known: &Known) -> bool {
    let network = &known.network;
    own.iter().any(|(_, subnet)| {
        let at_first = Some(network.ip()) == subnet.iter().nth(1);
        match known.device {
            DeviceKind::Bridge if at_first => encloses(&subnet, network),
            DeviceKind::Bridge | DeviceKind::Veth => {
                encloses(&subnet, network) && network.prefix() > subnet.prefix()
            }
            DeviceKind::Other => false,
        }
    })
}

/// A default route, or the half of one that a VPN client puts before it.
fn is_default(network: &IpNetwork) -> bool {
    let shortest = match Family::of(network.ip()) {
        Family::V4 => 2,
        Family::V6 => 4,
    };
    network.prefix() < shortest
}

fn base(network: &IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network)
}

fn place(known: &Known) -> String {
    match (known.origin, known.link) {
        (Origin::Address, Some(link)) => format!("on {link}"),
        (Origin::Route { gateway: Some(gateway) }, Some(link)) => {
            format!("by the route via {gateway} dev {link}")
        }
        (Origin::Route { gateway: None }, Some(link)) => format!("by the route dev {link}"),
        (Origin::Address | Origin::Route { .. }, None) => "by a route".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(network: &str, link: &str, device: DeviceKind, origin: Origin) -> Known {
        let link = (!link.is_empty()).then(|| link.parse().unwrap());
        Known { network: network.parse().unwrap(), link, device, origin }
    }

    fn foreign(known: Vec<Known>, own: &str) -> Vec<String> {
        let own = own.parse::<Subnets>().ok();
        HostNetworks { known }.foreign(own.as_ref()).iter().map(ToString::to_string).collect()
    }

    const ADDRESS: Origin = Origin::Address;
    const ROUTE: Origin = Origin::Route { gateway: None };

    #[test]
    fn networks_of_containers_and_of_the_overlay_are_not_the_hosts() {
        let gateway = Some("192.168.64.9".parse().unwrap());
        let all = vec![
            known("192.168.64.11/24", "eth0", DeviceKind::Veth, ADDRESS),
            known("192.168.64.0/24", "eth0", DeviceKind::Veth, ROUTE),
            known("10.5.3.0/32", "flannel.1", DeviceKind::Other, ADDRESS),
            known("10.5.0.0/16", "flannel0", DeviceKind::Other, ROUTE),
            known("172.17.0.1/16", "docker0", DeviceKind::Bridge, ADDRESS),
            known("172.18.0.1/16", "br-7c3f", DeviceKind::Bridge, ADDRESS),
            known("10.5.3.1/24", "kube-bridge", DeviceKind::Bridge, ADDRESS),
            known("10.5.3.7/32", "veth1", DeviceKind::Veth, ROUTE),
            known("10.5.7.0/24", "eth0", DeviceKind::Veth, Origin::Route { gateway }),
            known("10.5.8.0/24", "", DeviceKind::Other, ROUTE),
            known("128.0.0.0/1", "tun0", DeviceKind::Other, ROUTE),
        ];
        let kept = [
            "192.168.64.0/24 on eth0",
            "172.18.0.0/16 on br-7c3f",
            "10.5.7.0/24 by the route via 192.168.64.9 dev eth0",
            "10.5.8.0/24 by a route",
        ];
        assert_eq!(foreign(all, "10.5.3.0/24"), kept);
    }

    #[test]
    fn a_lan_that_is_our_subnet_is_the_hosts_also_behind_a_bridge() {
        for (network, link, device) in [
            ("172.26.0.5/16", "eth1", DeviceKind::Other),
            ("172.26.0.5/16", "br0", DeviceKind::Bridge),
            ("172.16.0.1/12", "br0", DeviceKind::Bridge),
            ("172.26.3.1/24", "eth1", DeviceKind::Other),
        ] {
            assert_eq!(
                foreign(vec![known(network, link, device, ADDRESS)], "172.26.0.0/16").len(),
                1,
                "{network}"
            );
        }
    }

    #[test]
    fn whoever_writes_a_config_hears_of_the_networks_that_it_meets() {
        let config =
            NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
        let on = |networks: &[&str]| {
            let known = networks.iter().map(|network| known(network, "eth1", DeviceKind::Other, ADDRESS));
            collisions(&config, &HostNetworks { known: known.collect() })
        };
        assert_eq!(on(&["192.168.64.11/24", "10.6.0.1/16"]), Vec::<String>::new());
        let texts = on(&["10.5.7.3/24", "10.0.0.3/8"]);
        assert!(texts[0].starts_with("this host's network 10.5.7.0/24 on eth1 lies in"), "{texts:?}");
        assert!(texts[1].starts_with("this host's network 10.0.0.0/8 on eth1 encloses"), "{texts:?}");
    }
}
