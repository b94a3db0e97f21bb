//! Finding the external interface: the one whose address peers send to.

use std::net::IpAddr;

use flan_backends::Underlay;
use flan_kernel::KernelError;
use flan_kernel::netlink::{self, Interface};
use flan_subnet_lease::{Family, PerFamily};
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

/// Why no external interface was found.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The kernel did not answer.
    #[error("cannot list network interfaces: {0}")]
    Kernel(#[from] KernelError),
    /// A regular expression cannot be read.
    #[error("--iface-regex {pattern:?} is not a regular expression: {problem}")]
    Regex {
        /// The pattern.
        pattern: String,
        /// Why.
        problem: String,
    },
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
}

/// Finds the external interface: the first that `--iface` names by name or address, else the first that
/// `--iface-regex` matches, else the one that `--iface-can-reach` is reached by, else the one with the default route.
///
/// # Errors
/// [`InterfaceError`] naming what was asked for and what there is.
pub async fn find(args: &Args, families: &[Family]) -> Result<External, InterfaceError> {
    let interfaces = netlink::interfaces().await?;
    let choice = match wanted(args)? {
        Some(wanted) => choose(&interfaces, &wanted)?,
        None => by_route(args, &interfaces, families).await?,
    };
    external(&choice, families, args)
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

fn wanted(args: &Args) -> Result<Option<Vec<Wanted>>, InterfaceError> {
    let by_name = |text: &String| match text.parse() {
        Ok(address) => Wanted::Address(address),
        Err(_) => Wanted::Name(text.clone()),
    };
    let mut wanted: Vec<Wanted> = args.iface.iter().filter(|text| !text.is_empty()).map(by_name).collect();
    for pattern in args.iface_regex.iter().filter(|text| !text.is_empty()) {
        let regex = Regex::new(pattern).map_err(|error| {
            // The library draws the place in three lines; the last one says what is wrong.
            let text = error.to_string();
            let problem = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            InterfaceError::Regex { pattern: pattern.clone(), problem }
        })?;
        wanted.push(Wanted::Pattern(regex));
    }
    Ok(Some(wanted).filter(|wanted| !wanted.is_empty()))
}

fn choose<'a>(interfaces: &'a [Interface], wanted: &[Wanted]) -> Result<Choice<'a>, InterfaceError> {
    for wanted in wanted {
        for interface in interfaces {
            let mut addresses = interface.addresses.iter().map(ipnetwork::IpNetwork::ip);
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
    families: &[Family],
) -> Result<Choice<'a>, InterfaceError> {
    let (index, address) = match args.iface_can_reach {
        Some(ip) => netlink::route_to(ip).await?,
        None => {
            let mut index = None;
            for family in families {
                index = index.or(netlink::default_route(*family == Family::V6).await?);
            }
            (index.ok_or_else(|| InterfaceError::NoDefaultRoute(list(interfaces)))?, None)
        }
    };
    match interfaces.iter().find(|interface| interface.index == index) {
        Some(interface) => Ok(Choice { interface, address }),
        None => Err(InterfaceError::NoMatch { wanted: format!("number {index}"), there: list(interfaces) }),
    }
}

fn external(choice: &Choice<'_>, families: &[Family], args: &Args) -> Result<External, InterfaceError> {
    let interface = choice.interface;
    let on_it = interface.addresses.iter().map(ipnetwork::IpNetwork::ip).filter(|ip| !is_link_local(*ip));
    // The address that was asked for comes first and so is the one of its family.
    let all: PerFamily<IpAddr> = choice.address.into_iter().chain(on_it).collect();
    let given = PerFamily { v4: args.public_ip.map(IpAddr::V4), v6: args.public_ipv6.map(IpAddr::V6) };
    let (mut addresses, mut public_ips) = (PerFamily::default(), PerFamily::default());
    for family in families.iter().copied() {
        let missing = || InterfaceError::NoAddress { name: interface.name.to_string(), family };
        let address = *all.get(family).ok_or_else(missing)?;
        addresses.set(family, address);
        public_ips.set(family, *given.get(family).unwrap_or(&address));
    }
    Ok(External { underlay: Underlay { link: interface.name, mtu: interface.mtu, addresses }, public_ips })
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80)
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

    fn find(arguments: &[&str], families: &[Family]) -> Result<External, String> {
        let args = Args::parse_from(std::iter::once("fland").chain(arguments.iter().copied()));
        let host = host();
        let wanted = wanted(&args).map_err(|error| error.to_string())?.unwrap_or_default();
        let choice = choose(&host, &wanted).map_err(|error| error.to_string())?;
        external(&choice, families, &args).map_err(|error| error.to_string())
    }

    fn found(arguments: &[&str]) -> (String, String) {
        let external = find(arguments, &[Family::V4]).unwrap();
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
        let external = find(&["--iface", "eth0", "--public-ip", "203.0.113.5"], &[Family::V4]).unwrap();
        assert_eq!(external.underlay.addresses.v4, Some("192.168.64.11".parse().unwrap()));
        assert_eq!(external.public_ips.v4, Some("203.0.113.5".parse().unwrap()));
    }

    #[test]
    fn both_families_come_from_one_interface_and_link_local_addresses_do_not_count() {
        let external = find(&["--iface", "ens5"], &[Family::V4, Family::V6]).unwrap();
        assert_eq!(external.public_ips.v6, Some("fd64::11".parse().unwrap()));
        let error = find(&["--iface", "eth0"], &[Family::V6]).unwrap_err();
        assert_eq!(error, "interface eth0 has no IPv6 address, and the network uses IPv6");
    }

    #[test]
    fn what_is_not_there_is_named_beside_what_is() {
        assert_eq!(
            find(&["--iface", "eth7"], &[Family::V4]).unwrap_err(),
            "no interface is called eth7; there are: eth0 (192.168.64.11 192.168.64.111), ens5 (10.0.0.11 fd64::11 fe80::11)"
        );
        assert!(
            find(&["--iface-regex", "("], &[Family::V4])
                .unwrap_err()
                .starts_with("--iface-regex \"(\" is not")
        );
    }
}
