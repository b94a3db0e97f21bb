//! Distinguishes the host's own networks from those of its containers on the overlay.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use flan_kernel::netlink::{self, DeviceKind, HostNetwork as Known, Origin};
use flan_kernel::{KernelError, LinkName};
use flan_subnet_lease::{Family, HostNetwork, NetworkConfig, Subnets, encloses, overlap};
use ipnetwork::IpNetwork;

/// Addresses and networks of this host outside of the overlay.
#[derive(Debug, Clone, Default)]
pub struct HostNetworks {
    addresses: BTreeSet<IpAddr>,
    /// Its networks, as far as requested.
    known: Vec<Known>,
}

impl HostNetworks {
    /// Reads all of them. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn read() -> Result<Self, KernelError> {
        Ok(Self::of(netlink::host_networks(|_| true).await?, |_| true))
    }

    /// Reads all addresses, but only networks that overlap one of these: a router has many others.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn read_overlapping(overlays: Vec<IpNetwork>) -> Result<Self, KernelError> {
        let meets = move |network: &IpNetwork| overlays.iter().any(|overlay| overlap(overlay, network));
        Ok(Self::of(netlink::host_networks(meets.clone()).await?, meets))
    }

    fn of(mut known: Vec<Known>, keeps: impl Fn(&IpNetwork) -> bool) -> Self {
        let is_address = |known: &&Known| known.origin == Origin::Address;
        let addresses = known.iter().filter(is_address).map(|known| known.network.ip()).collect();
        known.retain(|known| keeps(&known.network));
        Self { addresses, known }
    }

    /// Returns all addresses of this host.
    pub fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    /// Returns the networks outside of the overlay, each once. Omits flannel's and our devices, docker0 and cni0, the
    /// bridge with `own`, networks inside `own` on a bridge or container device that is not the external interface, and
    /// routes that act as default routes.
    pub fn foreign(&self, own: Option<&Subnets>, external: Option<LinkName>) -> Vec<HostNetwork> {
        let (mut foreign, mut told) = (Vec::new(), HashSet::new());
        for known in &self.known {
            let of_containers = known.link.is_some_and(is_of_overlay)
                || own.is_some_and(|own| is_in(own, external, known))
                || is_default(&known.network);
            let network = base(&known.network);
            // A network manager adds a route to the network of each address; report it once.
            if of_containers || !told.insert(network) {
                continue;
            }
            let gateway = match known.origin {
                Origin::Route { gateway } => gateway,
                Origin::Address => None,
            };
            foreign.push(HostNetwork { network, place: place(known), gateway });
        }
        foreign
    }
}

/// Describes the problems of a network config on a host with these networks, for its author.
pub fn collisions(config: &NetworkConfig, networks: &HostNetworks) -> Vec<String> {
    let mut texts = Vec::new();
    for (_, overlay) in config.networks() {
        for host in networks.foreign(None, None) {
            if encloses(&host.network, &overlay) {
                texts.push(enclosing(&host, &overlay));
            } else if encloses(&overlay, &host.network) {
                texts.push(format!(
                    "this host's network {host} is inside the overlay network {overlay}: this host takes no subnet there, \
                     but if another host does, one of the two is unreachable from here"
                ));
            }
        }
    }
    texts
}

/// Describes the effect of a network that contains the whole overlay.
pub fn enclosing(host: &HostNetwork, overlay: &IpNetwork) -> String {
    format!(
        "this host's network {host} encloses the overlay network {overlay}: addresses in {overlay} on that \
         network are unreachable from here"
    )
}

/// Returns whether a device carries the overlay on this host or, made by another program, holds its subnet:
/// `flannel.1`, `flannel0`, `flannel-v6.1`, `docker0`, `cni0`.
fn is_of_overlay(link: LinkName) -> bool {
    let name = link.as_str();
    let of_flannel = name.strip_prefix("flannel").is_some_and(|rest| {
        rest.starts_with(['.', '-']) || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    });
    of_flannel || name == "docker0" || name == "cni0"
}

/// Returns whether it exists for containers in our own subnet.
fn is_in(own: &Subnets, external: Option<LinkName>, known: &Known) -> bool {
    let network = &known.network;
    // If the host itself is a container, its external interface looks like a container device.
    let is_external = external.is_some() && known.link == external;
    let gateway = matches!(known.origin, Origin::Route { gateway: Some(_) });
    own.iter().any(|(_, subnet)| {
        let at_first = Some(network.ip()) == subnet.iter().nth(1);
        match known.device {
            DeviceKind::Bridge if at_first => encloses(&subnet, network),
            DeviceKind::Bridge => encloses(&subnet, network) && network.prefix() > subnet.prefix(),
            DeviceKind::Guest if !is_external && !gateway => {
                encloses(&subnet, network) && network.prefix() > subnet.prefix()
            }
            DeviceKind::Guest | DeviceKind::Other => false,
        }
    })
}

/// Returns whether it is a default route, or one of the two halves with which a VPN client overrides it.
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
        let external = "eth0".parse().ok();
        let networks = HostNetworks::of(known, |_| true);
        networks.foreign(own.as_ref(), external).iter().map(ToString::to_string).collect()
    }

    const ADDRESS: Origin = Origin::Address;
    const ROUTE: Origin = Origin::Route { gateway: None };

    #[test]
    fn networks_of_containers_and_of_the_overlay_are_not_the_hosts() {
        let gateway = Some("192.168.64.9".parse().unwrap());
        let all = vec![
            known("192.168.64.11/24", "eth0", DeviceKind::Guest, ADDRESS),
            known("192.168.64.0/24", "eth0", DeviceKind::Guest, ROUTE),
            known("10.5.3.0/32", "flannel.1", DeviceKind::Other, ADDRESS),
            known("10.5.0.0/16", "flannel0", DeviceKind::Other, ROUTE),
            known("172.17.0.1/16", "docker0", DeviceKind::Bridge, ADDRESS),
            known("172.18.0.1/16", "br-7c3f", DeviceKind::Bridge, ADDRESS),
            known("10.5.3.1/24", "kube-bridge", DeviceKind::Bridge, ADDRESS),
            known("10.5.3.7/32", "veth1", DeviceKind::Guest, ROUTE),
            known("10.5.7.0/24", "eth0", DeviceKind::Guest, Origin::Route { gateway }),
            known("10.5.8.0/24", "", DeviceKind::Other, ROUTE),
            known("10.5.3.8/32", "tap1", DeviceKind::Guest, ROUTE),
            known("10.5.3.64/26", "macvlan1", DeviceKind::Guest, ADDRESS),
            known("10.5.3.128/26", "eth0", DeviceKind::Guest, ROUTE),
            known("10.5.3.192/26", "veth2", DeviceKind::Guest, Origin::Route { gateway }),
            known("128.0.0.0/1", "tun0", DeviceKind::Other, ROUTE),
        ];
        let kept = [
            "192.168.64.0/24 on eth0",
            "172.18.0.0/16 on br-7c3f",
            "10.5.7.0/24 by the route via 192.168.64.9 dev eth0",
            "10.5.8.0/24 by a route",
            "10.5.3.128/26 by the route dev eth0",
            "10.5.3.192/26 by the route via 192.168.64.9 dev veth2",
        ];
        assert_eq!(foreign(all, "10.5.3.0/24"), kept);
    }

    #[test]
    fn of_networks_that_nobody_asked_for_the_addresses_are_known() {
        let all = vec![
            known("192.168.64.11/24", "eth0", DeviceKind::Other, ADDRESS),
            known("10.5.7.3/24", "eth1", DeviceKind::Other, ADDRESS),
            known("10.0.0.0/8", "eth2", DeviceKind::Other, ROUTE),
        ];
        let overlay = "10.5.0.0/16".parse().unwrap();
        let networks = HostNetworks::of(all, |network| overlap(&overlay, network));
        assert!(networks.addresses().contains(&"192.168.64.11".parse().unwrap()));
        let foreign: Vec<String> = networks.foreign(None, None).iter().map(ToString::to_string).collect();
        assert_eq!(foreign, ["10.5.7.0/24 on eth1", "10.0.0.0/8 by the route dev eth2"]);
    }

    #[tokio::test]
    async fn all_addresses_are_read_also_where_no_network_is_asked_for() {
        let (all, none) =
            (HostNetworks::read().await.unwrap(), HostNetworks::read_overlapping(Vec::new()).await);
        let none = none.unwrap();
        assert_eq!(none.addresses(), all.addresses());
        assert_eq!(none.foreign(None, None), []);
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
            collisions(&config, &HostNetworks::of(known.collect(), |_| true))
        };
        assert_eq!(on(&["192.168.64.11/24", "10.6.0.1/16"]), Vec::<String>::new());
        let texts = on(&["10.5.7.3/24", "10.0.0.3/8"]);
        assert!(texts[0].starts_with("this host's network 10.5.7.0/24 on eth1 is inside"), "{texts:?}");
        assert!(texts[1].starts_with("this host's network 10.0.0.0/8 on eth1 encloses"), "{texts:?}");
    }
}
