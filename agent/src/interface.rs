//! Finding the external interface: the one whose address peers send to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flan_backends::Underlay;
use flan_kernel::KernelError;
use flan_kernel::netlink::{self, Interface};
use flan_subnet_lease::{Family, NetworkConfig, PerFamily, is_host_address};
use ipnetwork::IpNetwork;
use regex::Regex;

use crate::args::Args;

/// The external interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The device and the addresses that outer packets are sent from.
    pub underlay: Underlay,
    /// The addresses that peers send to: the same, unless a flag says otherwise.
    pub public_ips: PerFamily<IpAddr>,
}

impl External {
    /// The addresses that no peer may claim: those that peers send to, and those that our packets come from.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.public_ips.values().chain(self.underlay.addresses.values()).copied().collect()
    }
}

/// Why no external interface was found.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The kernel did not answer.
    #[error("cannot list network interfaces: {0}")]
    Kernel(#[from] KernelError),
    /// Nothing that was asked for exists.
    #[error("no interface is {wanted}; there are: {there}")]
    NoMatch {
        /// What was asked for.
        wanted: String,
        /// What there is.
        there: String,
    },
    /// There is no default route.
    #[error(
        "there is no default route to tell the external interface by; name it with --iface. There are: {0}"
    )]
    NoDefaultRoute(String),
    /// The interface has no address of a family in use.
    #[error("interface {name} has no {family} address, and the network uses {family}")]
    NoAddress {
        /// The interface.
        name: String,
        /// The family.
        family: Family,
    },
    /// Packets to the address would not leave the host.
    #[error("--iface-can-reach {ip}: {reason}")]
    NoRoute {
        /// The address.
        ip: IpAddr,
        /// What the kernel said.
        reason: KernelError,
    },
    /// An address that no peer can send to.
    #[error(
        "peers cannot send to {ip} ({family} of {name}), as {reason}; choose with --iface or --public-ip"
    )]
    NotPublic {
        /// The address.
        ip: IpAddr,
        /// Its family.
        family: Family,
        /// The interface.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// Finds the external interface: the first that `--iface` names by name or address, else the first that
/// `--iface-regex` matches, else the one that `--iface-can-reach` is reached by, else the one with the default route.
///
/// # Errors
/// [`InterfaceError`] naming what was asked for and what there is.
pub async fn find(args: &Args, config: &NetworkConfig) -> Result<External, InterfaceError> {
    let interfaces = netlink::interfaces().await?;
    let wanted = wanted(args);
    let choice = match wanted.is_empty() {
        false => choose(&interfaces, &wanted)?,
        true => by_route(args, &interfaces, config).await?,
    };
    external(&choice, config, args)
}

/// What the flags ask for.
enum Wanted {
    Name(String),
    Address(IpAddr),
    Pattern(Regex),
}

/// An interface, and the address on it that was asked for.
struct Choice<'a> {
    interface: &'a Interface,
    address: Option<IpAddr>,
}

fn wanted(args: &Args) -> Vec<Wanted> {
    let by_name = |text: &String| match text.parse() {
        Ok(address) => Wanted::Address(address),
        Err(_) => Wanted::Name(text.clone()),
    };
    let patterns = args.iface_regex.iter().cloned().map(Wanted::Pattern);
    args.iface.iter().filter(|text| !text.is_empty()).map(by_name).chain(patterns).collect()
}

fn choose<'a>(interfaces: &'a [Interface], wanted: &[Wanted]) -> Result<Choice<'a>, InterfaceError> {
    for wanted in wanted {
        for interface in interfaces {
            let mut addresses = interface.addresses.iter().map(IpNetwork::ip);
            let found = match wanted {
                Wanted::Name(name) => (interface.name.as_str() == name).then_some(None),
                Wanted::Address(address) => addresses.find(|ip| ip == address).map(Some),
                Wanted::Pattern(regex) if regex.is_match(interface.name.as_str()) => Some(None),
                Wanted::Pattern(regex) => addresses.find(|ip| regex.is_match(&ip.to_string())).map(Some),
            };
            if let Some(address) = found {
                return Ok(Choice { interface, address });
            }
        }
    }
    let describe = |wanted: &Wanted| match wanted {
        Wanted::Name(name) => format!("called {name}"),
        Wanted::Address(address) => format!("at {address}"),
        Wanted::Pattern(regex) => format!("matched by {:?}", regex.as_str()),
    };
    let wanted = wanted.iter().map(describe).collect::<Vec<_>>().join(" or ");
    Err(InterfaceError::NoMatch { wanted, there: list(interfaces) })
}

async fn by_route<'a>(
    args: &Args,
    interfaces: &'a [Interface],
    config: &NetworkConfig,
) -> Result<Choice<'a>, InterfaceError> {
    let (index, address) = match args.iface_can_reach {
        Some(ip) => netlink::route_to(ip).await.map_err(|reason| InterfaceError::NoRoute { ip, reason })?,
        None => {
            let mut index = None;
            for (family, _) in config.networks() {
                index = index.or(netlink::default_route(family == Family::V6).await?);
            }
            (index.ok_or_else(|| InterfaceError::NoDefaultRoute(list(interfaces)))?, None)
        }
    };
    match interfaces.iter().find(|interface| interface.index == index) {
        Some(interface) => Ok(Choice { interface, address }),
        None => Err(InterfaceError::NoMatch { wanted: format!("number {index}"), there: list(interfaces) }),
    }
}

fn external(choice: &Choice<'_>, config: &NetworkConfig, args: &Args) -> Result<External, InterfaceError> {
    let interface = choice.interface;
    let on_it = interface.addresses.iter().map(IpNetwork::ip).filter(|ip| !is_link_local(*ip));
    // The address that was asked for comes first and so is the one of its family.
    let all: PerFamily<IpAddr> = choice.address.into_iter().chain(on_it).collect();
    let given = PerFamily { v4: args.public_ip.map(IpAddr::V4), v6: args.public_ipv6.map(IpAddr::V6) };
    let (mut addresses, mut public_ips) = (PerFamily::default(), PerFamily::default());
    for (family, _) in config.networks() {
        let missing = || InterfaceError::NoAddress { name: interface.name.to_string(), family };
        let address = *all.get(family).ok_or_else(missing)?;
        let public = *given.get(family).unwrap_or(&address);
        for ip in [address, public] {
            if let Some(reason) = unusable(ip, config) {
                return Err(InterfaceError::NotPublic {
                    ip,
                    family,
                    name: interface.name.to_string(),
                    reason,
                });
            }
        }
        addresses.set(family, address);
        public_ips.set(family, public);
    }
    let on_link = on_link(interface);
    let underlay = Underlay { link: interface.name, mtu: interface.mtu, addresses, on_link };
    Ok(External { underlay, public_ips })
}

/// The networks of the interface's addresses; one that is a single address says nothing of the link.
fn on_link(interface: &Interface) -> Vec<IpNetwork> {
    let network = |address: &IpNetwork| IpNetwork::new(address.network(), address.prefix()).ok();
    let more_than_itself = |address: &&IpNetwork| address.prefix() < if address.is_ipv4() { 32 } else { 128 };
    interface.addresses.iter().filter(more_than_itself).filter_map(network).collect()
}

/// Why peers would keep a lease with this address from their kernels.
fn unusable(ip: IpAddr, config: &NetworkConfig) -> Option<String> {
    if !is_host_address(ip) {
        return Some("it is not the address of one host".to_owned());
    }
    let (_, network) = config.networks().find(|(_, network)| network.contains(ip))?;
    Some(format!("it lies inside the overlay network {network}"))
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn list(interfaces: &[Interface]) -> String {
    let describe = |interface: &Interface| {
        let addresses: Vec<String> =
            interface.addresses.iter().map(|address| address.ip().to_string()).collect();
        match addresses.is_empty() {
            true => interface.name.to_string(),
            false => format!("{} ({})", interface.name, addresses.join(" ")),
        }
    };
    interfaces.iter().filter(|interface| !interface.loopback).map(describe).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn interface(name: &str, index: u32, addresses: &[&str]) -> Interface {
        Interface {
            name: name.parse().unwrap(),
            index,
            mtu: 1500,
            up: true,
            loopback: name == "lo",
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface("lo", 1, &["127.0.0.1/8"]),
            interface("eth0", 2, &["192.168.64.11/24", "192.168.64.111/24"]),
            interface("ens5", 3, &["10.0.0.11/8", "fd64::11/64", "fe80::11/64"]),
        ]
    }

    const V4: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    const V6: &str = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48",
        "Backend": {"Type": "vxlan"}}"#;
    const BOTH: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48",
        "Backend": {"Type": "vxlan"}}"#;

    fn find(arguments: &[&str], config: &str) -> Result<External, String> {
        let args = Args::parse_from(std::iter::once("fland").chain(arguments.iter().copied()));
        let (host, config) = (host(), NetworkConfig::parse(config.as_bytes()).unwrap());
        let choice = choose(&host, &wanted(&args)).map_err(|error| error.to_string())?;
        external(&choice, &config, &args).map_err(|error| error.to_string())
    }

    fn found(arguments: &[&str]) -> (String, String) {
        let external = find(arguments, V4).unwrap();
        (external.underlay.link.to_string(), external.underlay.addresses.v4.unwrap().to_string())
    }

    #[test]
    fn an_interface_is_found_by_name_address_or_pattern_and_the_first_match_wins() {
        assert_eq!(found(&["--iface", "ens5"]), ("ens5".into(), "10.0.0.11".into()));
        assert_eq!(found(&["--iface", "192.168.64.111"]), ("eth0".into(), "192.168.64.111".into()));
        assert_eq!(found(&["--iface", "nope", "--iface", "eth0"]), ("eth0".into(), "192.168.64.11".into()));
        assert_eq!(found(&["--iface-regex", "^e"]), ("eth0".into(), "192.168.64.11".into()));
        assert_eq!(found(&["--iface-regex", r"^10\.0"]), ("ens5".into(), "10.0.0.11".into()));
    }

    #[test]
    fn what_peers_send_to_may_differ_from_what_we_send_from() {
        let external = find(&["--iface", "eth0", "--public-ip", "203.0.113.5"], V4).unwrap();
        assert_eq!(external.underlay.addresses.v4, Some("192.168.64.11".parse().unwrap()));
        assert_eq!(external.public_ips.v4, Some("203.0.113.5".parse().unwrap()));
    }

    #[test]
    fn both_families_come_from_one_interface_and_link_local_addresses_do_not_count() {
        let external = find(&["--iface", "ens5"], BOTH).unwrap();
        assert_eq!(external.public_ips.v6, Some("fd64::11".parse().unwrap()));
        let error = find(&["--iface", "eth0"], V6).unwrap_err();
        assert_eq!(error, "interface eth0 has no IPv6 address, and the network uses IPv6");
    }

    #[test]
    fn an_address_that_no_peer_can_send_to_is_refused() {
        assert_eq!(
            find(&["--iface-regex", "."], V4).unwrap_err(),
            "peers cannot send to 127.0.0.1 (IPv4 of lo), as it is not the address of one host; choose with --iface or --public-ip"
        );
        assert!(
            find(&["--iface", "eth0", "--public-ip", "10.5.9.9"], V4)
                .unwrap_err()
                .contains("inside the overlay network")
        );
    }

    #[test]
    fn what_is_not_there_is_named_beside_what_is() {
        assert_eq!(
            find(&["--iface", "eth7"], V4).unwrap_err(),
            "no interface is called eth7; there are: eth0 (192.168.64.11 192.168.64.111), ens5 (10.0.0.11 fd64::11 fe80::11)"
        );
    }
}
