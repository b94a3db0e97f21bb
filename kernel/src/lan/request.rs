//! What a link is asked to be.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;

use super::LanError;
use crate::LinkName;
use crate::mac::Mac;

/// A link that a network namespace is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanLink {
    /// The interface of the host that is on the LAN; with [`Mode::Bridge`], a bridge.
    pub parent: LinkName,
    /// The VLAN.
    pub vlan: Option<VlanId>,
    /// How it hangs on its parent.
    pub mode: Mode,
    /// Its name inside. The first free one of `lan0`, `lan1` and so on by default.
    pub name: Option<LinkName>,
    /// Its MAC. The kernel's choice by default.
    pub mac: Option<MacAddr6>,
    /// Its addresses, each with the prefix length of its network.
    pub addresses: Vec<IpNetwork>,
    /// Where packets to everywhere else go, for each family.
    pub gateways: Vec<IpAddr>,
    /// Destinations that must remain where the container's default route leads.
    pub kept: Vec<IpNetwork>,
    /// Who counts the links on a VLAN device that is made for this one, to remove it after the last.
    pub counted_in: String,
}

/// How a link hangs on its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A macvlan device in bridge mode: links on one parent reach each other, but not their host.
    Macvlan,
    /// A port of the host's bridge: it reaches the host as well.
    Bridge,
}

/// The number of a VLAN: 1 to 4094 (IEEE 802.1Q).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanId(u16);

impl VlanId {
    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for VlanId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| (1..=4094).contains(number));
        number.map(Self).ok_or_else(|| format!("a VLAN is a number from 1 to 4094, not {text:?}"))
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "macvlan" => Ok(Self::Macvlan),
            "bridge" => Ok(Self::Bridge),
            other => Err(format!("a mode is macvlan or bridge, not {other:?}")),
        }
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Macvlan => "macvlan",
            Self::Bridge => "bridge",
        })
    }
}

impl LanLink {
    /// # Errors
    /// [`LanError::Invalid`] with a value that contradicts another, or that no link can have.
    pub fn check(&self) -> Result<(), LanError> {
        let wrong = self
            .wrong_name()
            .or_else(|| self.wrong_address())
            .or_else(|| self.wrong_gateway())
            .or_else(|| self.wrong_mac());
        wrong.map_or(Ok(()), |text| Err(LanError::Invalid(text)))
    }

    /// Those to be kept that the link would lead to the LAN.
    pub(super) fn hidden(&self) -> impl Iterator<Item = IpNetwork> {
        let is_hidden = |kept: &&IpNetwork| {
            self.gateways.iter().any(|gateway| gateway.is_ipv4() == kept.is_ipv4())
                || self.addresses.iter().any(|lan| lan.contains(kept.ip()) && lan.prefix() < kept.prefix())
        };
        self.kept.iter().filter(is_hidden).copied()
    }

    /// The kernel puts a number for `%d`.
    fn wrong_name(&self) -> Option<String> {
        let name = self.name.filter(|name| name.as_str().contains('%'))?;
        Some(format!("{name} is no name of an interface: it has a %"))
    }

    fn wrong_address(&self) -> Option<String> {
        if self.addresses.is_empty() {
            return Some("an address is needed, such as 192.168.1.77/24".to_owned());
        }
        let why = |address: &IpNetwork| {
            let is_alone = match address {
                IpNetwork::V4(v4) => v4.prefix() >= 31,
                IpNetwork::V6(v6) => v6.prefix() >= 127,
            };
            let ip = address.ip();
            let why = match ip {
                _ if address.prefix() == 0 => "is in a network of all addresses".to_owned(),
                _ if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() => {
                    "is no address of a host".to_owned()
                }
                IpAddr::V4(v4) if v4.is_broadcast() => "is no address of a host".to_owned(),
                _ if is_alone => return None,
                _ if ip == address.network() => {
                    format!("is the name of the network {}/{}", address.network(), address.prefix())
                }
                IpAddr::V4(_) if ip == address.broadcast() => {
                    "is the broadcast address of its network".to_owned()
                }
                _ => return None,
            };
            Some(format!("{address} {why}"))
        };
        self.addresses.iter().find_map(why)
    }

    fn wrong_gateway(&self) -> Option<String> {
        let mut families = Vec::new();
        for gateway in &self.gateways {
            let is_on_link = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
            let near = match is_on_link {
                true => self.addresses.iter().any(IpNetwork::is_ipv6),
                false => self.addresses.iter().any(|address| address.contains(*gateway)),
            };
            if !near {
                let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
                return Some(format!(
                    "the gateway {gateway} is not in the network of {}",
                    addresses.join(" or ")
                ));
            }
            if self.addresses.iter().any(|address| address.ip() == *gateway) {
                return Some(format!("{gateway} cannot be both the address and the gateway"));
            }
            if families.contains(&gateway.is_ipv4()) {
                return Some(format!("{gateway} is a second gateway of its family"));
            }
            families.push(gateway.is_ipv4());
        }
        None
    }

    fn wrong_mac(&self) -> Option<String> {
        let mac = self.mac?;
        let wrong = !mac.is_unicast() || mac.is_nil();
        wrong.then(|| format!("{} is no MAC of an interface: the second digit must be even", Mac(&mac)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> LanLink {
        LanLink {
            parent: "eth0".parse().unwrap(),
            vlan: None,
            mode: Mode::Macvlan,
            name: None,
            mac: None,
            addresses: vec!["192.168.1.77/24".parse().unwrap(), "fd00:1::77/64".parse().unwrap()],
            gateways: vec!["192.168.1.1".parse().unwrap(), "fd00:1::1".parse().unwrap()],
            kept: Vec::new(),
            counted_in: String::new(),
        }
    }

    fn wrong(change: impl FnOnce(&mut LanLink)) -> String {
        let mut link = link();
        change(&mut link);
        link.check().unwrap_err().to_string()
    }

    #[test]
    fn a_link_of_both_families_is_right() {
        link().check().unwrap();
    }

    #[test]
    fn an_address_that_no_host_can_have_is_refused() {
        let with = |text: &str| wrong(|link| link.addresses[0] = text.parse().unwrap());
        assert!(with("192.168.1.0/24").contains("the name of the network"));
        assert!(with("192.168.1.255/24").contains("broadcast"));
        assert!(with("224.0.0.5/24").contains("no address of a host"));
        assert!(wrong(|link| link.addresses.clear()).contains("an address is needed"));
        let mut alone = link();
        alone.addresses = vec!["192.168.1.0/31".parse().unwrap()];
        alone.gateways = vec!["192.168.1.1".parse().unwrap()];
        alone.check().unwrap();
    }

    #[test]
    fn a_gateway_is_a_neighbour_and_alone_in_its_family() {
        let with = |gateways: &[&str]| {
            wrong(|link| link.gateways = gateways.iter().map(|text| text.parse().unwrap()).collect())
        };
        assert!(with(&["192.168.2.1"]).contains("not in the network of 192.168.1.77/24"));
        assert!(with(&["192.168.1.77"]).contains("both"));
        assert!(with(&["192.168.1.1", "192.168.1.2"]).contains("second"));
    }

    #[test]
    fn the_usual_gateway_of_ipv6_is_near_wherever_there_is_ipv6() {
        let mut link = link();
        link.gateways = vec!["fe80::1".parse().unwrap()];
        link.check().unwrap();
        link.addresses.pop();
        link.check().unwrap_err();
    }

    #[test]
    fn what_flan_reaches_is_kept_where_the_lan_would_hide_it() {
        let networks = ["10.5.0.0/16", "fd00:5::/48", "169.254.53.53/32"];
        let hidden = |addresses: &[&str], gateways: &[&str]| {
            let mut link = link();
            link.addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            link.gateways = gateways.iter().map(|text| text.parse().unwrap()).collect();
            link.kept = networks.iter().map(|text| text.parse().unwrap()).collect();
            link.hidden().map(|network| network.to_string()).collect::<Vec<_>>()
        };
        assert!(hidden(&["192.168.1.77/24"], &[]).is_empty());
        assert_eq!(hidden(&["192.168.1.77/24"], &["192.168.1.1"]), ["10.5.0.0/16", "169.254.53.53/32"]);
        assert_eq!(hidden(&["10.0.0.77/8"], &[]), ["10.5.0.0/16"]);
        assert_eq!(hidden(&["fd00:1::7/64"], &["fe80::1"]), ["fd00:5::/48"]);
    }

    #[test]
    fn a_name_that_the_kernel_completes_is_refused() {
        assert!(wrong(|link| link.name = Some("lan%d".parse().unwrap())).contains("has a %"));
    }

    #[test]
    fn a_mac_of_a_group_is_refused() {
        assert!(wrong(|link| link.mac = Some(MacAddr6::broadcast())).contains("ff:ff:ff:ff:ff:ff"));
        assert!(wrong(|link| link.mac = Some(MacAddr6::nil())).contains("no MAC"));
    }

    #[test]
    fn a_vlan_has_one_of_4094_numbers() {
        assert_eq!("4094".parse::<VlanId>().unwrap().get(), 4094);
        for text in ["0", "4095", "-1", "x"] {
            text.parse::<VlanId>().unwrap_err();
        }
    }
}
