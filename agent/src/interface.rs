//! Finding the external interface: the one whose address peers send to.
//!
//! A [`Selection`] chooses for a start, from what the [`Survey`] found. A running agent keeps what it has: see [`Held`].

mod candidate;
mod held;

use std::collections::BTreeSet;
use std::net::IpAddr;

use flan_backends::Underlay;
use flan_kernel::netlink::{self, Interface};
use flan_kernel::{KernelError, LinkName};
use flan_subnet_lease::{Family, PerFamily, is_host_address};
use ipnetwork::IpNetwork;
use regex::Regex;

use crate::args::Args;

pub use held::{AGAIN, Held, Verdict, other_choice};

/// The external interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The kernel's number for the interface, which stays when it is renamed.
    pub index: u32,
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
    /// All default routes lead out of interfaces that never are the external one.
    #[error(
        "default routes lead only by {skipped}; name the external interface with --iface. There are: {there}"
    )]
    NeverExternal {
        /// The interfaces, and why each is none.
        skipped: String,
        /// What there is.
        there: String,
    },
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

/// The overlay networks that this host takes part in, with their families.
pub type Overlays = Vec<(Family, IpNetwork)>;

/// What decides which interface is the external one: the command line, and the overlay networks with their families.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// The command line.
    pub args: &'a Args,
    /// The overlay networks.
    pub overlays: &'a [(Family, IpNetwork)],
}

/// What the kernel says of interfaces and routes at one moment, as far as a [`Selection`] needs it.
#[derive(Debug, Default)]
pub struct Survey {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// The indices of the interfaces with a default route, in the order in which they are considered.
    pub default_routes: Vec<u32>,
    /// How the address of `--iface-can-reach` is reached: the index of the interface, and the source address.
    pub way: Option<Result<(u32, Option<IpAddr>), KernelError>>,
}

impl Survey {
    fn at(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == index)
    }

    fn called(&self, name: LinkName) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}

/// What the flags ask for.
enum Wanted {
    Name(String),
    Address(IpAddr),
    Pattern(Regex),
}

/// How well peers can send to an address, the best first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Good,
    Doubtful,
    Useless,
}

impl Selection<'_> {
    /// Asks the kernel. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn survey(&self) -> Result<Survey, KernelError> {
        let mut survey = Survey { interfaces: netlink::interfaces().await?, ..Survey::default() };
        if let Some(ip) = self.args.iface_can_reach {
            survey.way = Some(netlink::route_to(ip).await);
        } else if self.wanted().is_empty() && self.holder_of_public_ip(&survey).is_none() {
            for (family, _) in self.overlays {
                survey.default_routes.extend(netlink::default_routes(*family == Family::V6).await?);
            }
        }
        Ok(survey)
    }

    /// The interface that a start would choose: the first that `--iface` names by name or address, else the first that
    /// `--iface-regex` matches; or the one that `--iface-can-reach` is reached by. Without these flags the one that holds
    /// `--public-ip` or `--public-ipv6`, else the one with the best default route that can be it.
    ///
    /// # Errors
    /// [`InterfaceError`] naming what was asked for and what there is.
    pub fn choose(&self, survey: &Survey) -> Result<External, InterfaceError> {
        let wanted = self.wanted();
        if !wanted.is_empty() {
            return self.choose_wanted(&wanted, survey);
        }
        if let (Some(ip), Some(way)) = (self.args.iface_can_reach, &survey.way) {
            let (index, source) = way.clone().map_err(|reason| InterfaceError::NoRoute { ip, reason })?;
            let interface = survey.at(index).ok_or_else(|| InterfaceError::NoMatch {
                wanted: format!("number {index}"),
                there: list(&survey.interfaces),
            })?;
            return self.on(interface, source.into_iter().collect());
        }
        if let Some((interface, held)) = self.holder_of_public_ip(survey) {
            return self.on(interface, held);
        }
        self.choose_by_default_route(survey)
    }

    /// Whether interfaces without a default route can be chosen.
    pub fn looks_at_all_interfaces(&self) -> bool {
        !self.wanted().is_empty() || !self.public_ips().is_empty()
    }

    /// What makes it doubtful that peers reach us there.
    pub fn doubt(&self, external: &External, survey: &Survey) -> Option<String> {
        let interface = survey.at(external.index)?;
        let ips = external.public_ips.values().chain(external.underlay.addresses.values());
        let (ip, why) = ips.copied().find_map(|ip| Some((ip, doubt(ip, interface)?)))?;
        Some(format!(
            "peers are told to send to {ip} of {}, and {why}; give {} another address, or choose with --iface or \
             --public-ip",
            interface.name, interface.name
        ))
    }

    fn wanted(&self) -> Vec<Wanted> {
        let by_name = |text: &String| match text.parse() {
            Ok(address) => Wanted::Address(address),
            Err(_) => Wanted::Name(text.clone()),
        };
        let patterns = self.args.iface_regex.iter().cloned().map(Wanted::Pattern);
        self.args.iface.iter().filter(|text| !text.is_empty()).map(by_name).chain(patterns).collect()
    }

    /// The addresses for peers that the flags give, of the families in use.
    fn public_ips(&self) -> PerFamily<IpAddr> {
        let given = self.args.public_ips.given();
        self.overlays.iter().filter_map(|(family, _)| given.get(*family).copied()).collect()
    }

    /// Whether the flags name this very address.
    fn is_named(&self, ip: IpAddr) -> bool {
        let wanted = self.wanted();
        match wanted.is_empty() && self.args.iface_can_reach.is_none() {
            true => self.public_ips().values().any(|given| *given == ip),
            false => wanted.iter().any(|wanted| matches!(wanted, Wanted::Address(address) if *address == ip)),
        }
    }

    fn choose_wanted(&self, wanted: &[Wanted], survey: &Survey) -> Result<External, InterfaceError> {
        for wanted in wanted {
            for interface in &survey.interfaces {
                let mut addresses = interface.addresses.iter().map(IpNetwork::ip);
                let found = match wanted {
                    Wanted::Name(name) => (interface.name.as_str() == name).then_some(None),
                    Wanted::Address(address) => addresses.find(|ip| ip == address).map(Some),
                    // A pattern that matches more than was thought of must not lead to a device of our own.
                    Wanted::Pattern(_) if candidate::never(interface, &survey.interfaces).is_some() => None,
                    Wanted::Pattern(regex) if regex.is_match(interface.name.as_str()) => Some(None),
                    Wanted::Pattern(regex) => addresses
                        .find(|ip| regex.is_match(&ip.to_string()) && self.overlay_of(*ip).is_none())
                        .map(Some),
                };
                if let Some(address) = found {
                    return self.on(interface, address.into_iter().collect());
                }
            }
        }
        let describe = |wanted: &Wanted| match wanted {
            Wanted::Name(name) => format!("called {name}"),
            Wanted::Address(address) => format!("at {address}"),
            Wanted::Pattern(regex) => format!("matched by {:?}", regex.as_str()),
        };
        let wanted = wanted.iter().map(describe).collect::<Vec<_>>().join(" or ");
        Err(InterfaceError::NoMatch { wanted, there: list(&survey.interfaces) })
    }

    /// The interface with most of the addresses for peers, and those that it has. Where none has any, they are another
    /// host's that translates (NAT). An address of the loopback interface is no address to send from.
    fn holder_of_public_ip<'s>(&self, survey: &'s Survey) -> Option<(&'s Interface, PerFamily<IpAddr>)> {
        let given = self.public_ips();
        let can_be = |interface: &&Interface| {
            !interface.loopback && candidate::never(interface, &survey.interfaces).is_none()
        };
        let held = |interface: &'s Interface| {
            let is_here = |ip: &&IpAddr| interface.addresses.iter().any(|address| address.ip() == **ip);
            (interface, given.values().filter(is_here).copied().collect::<PerFamily<IpAddr>>())
        };
        let holders = survey.interfaces.iter().filter(can_be).map(held);
        holders
            .filter(|(_, held)| !held.is_empty())
            .min_by_key(|(_, held)| std::cmp::Reverse((held.values().count(), held.v4.is_some())))
    }

    /// The first interface with a default route that can be the external one; one with a doubtful address where there is
    /// no better.
    fn choose_by_default_route(&self, survey: &Survey) -> Result<External, InterfaceError> {
        let (mut doubtful, mut first_error, mut skipped) = (None, None, Vec::new());
        for interface in survey.default_routes.iter().filter_map(|index| survey.at(*index)) {
            if let Some(why) = candidate::never(interface, &survey.interfaces) {
                skipped.push(format!("{} ({why})", interface.name));
                continue;
            }
            match self.on(interface, PerFamily::default()) {
                Ok(external) if self.doubt(&external, survey).is_none() => return Ok(external),
                Ok(external) => doubtful = doubtful.or(Some(external)),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let there = || list(&survey.interfaces);
        doubtful.ok_or_else(|| match first_error {
            Some(error) => error,
            None if skipped.is_empty() => InterfaceError::NoDefaultRoute(there()),
            None => InterfaceError::NeverExternal { skipped: skipped.join(", "), there: there() },
        })
    }

    /// The external interface, if it is this one: with these addresses, and for each family without one its best.
    fn on(&self, interface: &Interface, asked: PerFamily<IpAddr>) -> Result<External, InterfaceError> {
        let given = self.public_ips();
        let (mut addresses, mut public_ips) = (PerFamily::default(), PerFamily::default());
        for (family, _) in self.overlays.iter().copied() {
            let missing = || InterfaceError::NoAddress { name: interface.name.to_string(), family };
            let is_here = |ip: &&IpAddr| interface.addresses.iter().any(|address| address.ip() == **ip);
            // Peers take packets from the address that they are told alone.
            let told = given.get(family).filter(is_here);
            let address = asked.get(family).or(told).copied().or_else(|| self.best(interface, family));
            let address = address.ok_or_else(missing)?;
            let public = *given.get(family).unwrap_or(&address);
            for ip in [address, public] {
                if let Some(reason) = self.useless(ip) {
                    let name = interface.name.to_string();
                    return Err(InterfaceError::NotPublic { ip, family, name, reason });
                }
            }
            addresses.set(family, address);
            public_ips.set(family, public);
        }
        let underlay =
            Underlay { link: interface.name, mtu: interface.mtu, addresses, on_link: on_link(interface) };
        Ok(External { index: interface.index, underlay, public_ips })
    }

    /// The first of the interface's addresses that peers can send to as well as to any.
    fn best(&self, interface: &Interface, family: Family) -> Option<IpAddr> {
        self.addresses(interface, family).min_by_key(|ip| self.standing(*ip, interface))
    }

    fn addresses(&self, interface: &Interface, family: Family) -> impl Iterator<Item = IpAddr> {
        let of_family = move |ip: &IpAddr| Family::of(*ip) == family && !is_ipv6_link_local(*ip);
        interface.addresses.iter().map(IpNetwork::ip).filter(of_family)
    }

    fn standing(&self, ip: IpAddr, interface: &Interface) -> Standing {
        match self.useless(ip).is_some() {
            true => Standing::Useless,
            false if doubt(ip, interface).is_some() => Standing::Doubtful,
            false => Standing::Good,
        }
    }

    /// Why peers would keep a lease with this address from their kernels.
    fn useless(&self, ip: IpAddr) -> Option<String> {
        if !is_host_address(ip) {
            return Some("it is not the address of one host".to_owned());
        }
        self.overlay_of(ip).map(|network| format!("it lies inside the overlay network {network}"))
    }

    fn overlay_of(&self, ip: IpAddr) -> Option<IpNetwork> {
        self.overlays.iter().map(|(_, network)| *network).find(|network| network.contains(ip))
    }
}

/// Why packets to the address may not reach us, although it can be an address of one host.
fn doubt(ip: IpAddr, interface: &Interface) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) if ip.is_link_local() => {
            Some("only hosts on the same link reach such a link-local address, if any do")
        }
        ip if interface.confined.contains(&ip) => Some(
            "this host's kernel does not use it towards other hosts (its scope is link or host, or another host has it \
             too)",
        ),
        _ => None,
    }
}

/// The networks of the interface's addresses; one that is a single address says nothing of the link.
fn on_link(interface: &Interface) -> Vec<IpNetwork> {
    let network = |address: &IpNetwork| IpNetwork::new(address.network(), address.prefix()).ok();
    let more_than_itself = |address: &&IpNetwork| address.prefix() < if address.is_ipv4() { 32 } else { 128 };
    let mut networks: Vec<_> =
        interface.addresses.iter().filter(more_than_itself).filter_map(network).collect();
    // In whatever order the addresses came.
    networks.sort();
    networks.dedup();
    networks
}

fn is_ipv6_link_local(ip: IpAddr) -> bool {
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
mod tests;
