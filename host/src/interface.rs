//! Finds the external interface, whose address peers send to.
//!
//! A [`Selection`] chooses it at the start, from a [`Survey`]. A running agent keeps it: see [`Held`].

mod candidate;
mod held;

use std::collections::BTreeSet;
use std::net::IpAddr;

use flan_agent_api::InterfaceArgs;
use flan_backends::Underlay;
use flan_kernel::netlink::{self, Interface};
use flan_kernel::{KernelError, LinkName};
use flan_subnet_lease::{Family, PerFamily, is_host_address};
use ipnetwork::IpNetwork;
use regex::Regex;

pub use held::{AGAIN, Held, Verdict, other_choice};

/// The external interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Interface index, which a rename does not change.
    pub index: u32,
    /// The device, and the source addresses of outer packets.
    pub underlay: Underlay,
    /// The addresses that peers send to: those of the underlay unless a flag overrides them.
    pub public_ips: PerFamily<IpAddr>,
}

impl External {
    /// Returns the addresses that no peer may claim: those that peers send to, and our source addresses.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.public_ips.values().chain(self.underlay.addresses.values()).copied().collect()
    }
}

/// Why no external interface was found.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No interface matches the flags.
    #[error("no interface is {wanted}; there are: {there}")]
    NoMatch {
        /// What the flags ask for.
        wanted: String,
        /// The existing interfaces.
        there: String,
    },
    /// There is no default route.
    #[error(
        "there is no default route to tell the external interface by; name it with --iface. There are: {0}"
    )]
    NoDefaultRoute(String),
    /// All default routes lead out of interfaces that are never chosen.
    #[error(
        "default routes lead only by {skipped}; name the external interface with --iface. There are: {there}"
    )]
    NeverExternal {
        /// The interfaces, each with the reason why it is not chosen.
        skipped: String,
        /// The existing interfaces.
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
        /// The kernel's answer.
        reason: KernelError,
    },
    /// Peers cannot send to the address.
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

/// The overlay networks of this host, each with the family of the underlay over which its packets go.
pub type Overlays = Vec<(Family, IpNetwork)>;

/// Chooses the external interface by the command line and the overlay networks.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// The command line.
    pub args: &'a InterfaceArgs,
    /// The overlay networks, each with the family of the underlay.
    pub overlays: &'a [(Family, IpNetwork)],
}

/// Interfaces and routes at one moment, as far as a [`Selection`] needs them.
#[derive(Debug, Default)]
pub struct Survey {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// Indices of the interfaces with a default route, by preference.
    pub default_routes: Vec<u32>,
    /// The interface index and source address by which `--iface-can-reach` is reached.
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

enum Wanted {
    Name(String),
    Address(IpAddr),
    Pattern(Regex),
}

/// How well peers can send to an address, best first.
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
    /// If the kernel does not answer.
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

    /// Returns the interface to use at a start: the first that `--iface` names by name or address, else the first that
    /// `--iface-regex` matches, or the one that reaches `--iface-can-reach`. Without these flags, the one that holds
    /// `--public-ip` or `--public-ipv6`, else the suitable one with the best default route.
    ///
    /// # Errors
    /// [`InterfaceError`], which names what was requested and what exists.
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

    /// Returns whether interfaces without a default route can be chosen.
    pub fn looks_at_all_interfaces(&self) -> bool {
        !self.wanted().is_empty() || !self.public_ips().is_empty()
    }

    /// Returns why peers may fail to reach us there.
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

    /// Returns the public addresses from the flags, of the families in use.
    fn public_ips(&self) -> PerFamily<IpAddr> {
        let given = self.args.public_ips.given();
        self.overlays.iter().filter_map(|(family, _)| given.get(*family).copied()).collect()
    }

    /// Returns whether the flags name this address.
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
                    // A pattern may match more than intended. It must not select a device of our own.
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

    /// Returns the interface that holds most of the public addresses, and which ones. If none does, they belong to a
    /// NAT elsewhere. Addresses of the loopback interface do not count: packets cannot be sent from them.
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

    /// Returns the first suitable interface with a default route; one with a doubtful address only if there is no
    /// better.
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

    /// Builds the external interface from this one, with the `asked` addresses and otherwise the best of each family.
    fn on(&self, interface: &Interface, asked: PerFamily<IpAddr>) -> Result<External, InterfaceError> {
        let given = self.public_ips();
        let (mut addresses, mut public_ips) = (PerFamily::default(), PerFamily::default());
        for (family, _) in self.overlays.iter().copied() {
            let missing = || InterfaceError::NoAddress { name: interface.name.to_string(), family };
            let is_here = |ip: &&IpAddr| interface.addresses.iter().any(|address| address.ip() == **ip);
            // Peers accept packets only from our published address.
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

    /// Returns the first of the interface's addresses that is best for peers.
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

    /// Returns why peers would quarantine a lease with this address.
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

/// Returns why packets may not reach an address although it can belong to one host.
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

/// Returns the networks of the interface's addresses. A host prefix says nothing about the link.
fn on_link(interface: &Interface) -> Vec<IpNetwork> {
    let network = |address: &IpNetwork| IpNetwork::new(address.network(), address.prefix()).ok();
    let more_than_itself = |address: &&IpNetwork| address.prefix() < if address.is_ipv4() { 32 } else { 128 };
    let mut networks: Vec<_> =
        interface.addresses.iter().filter(more_than_itself).filter_map(network).collect();
    // The order of the addresses does not matter.
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
