//! Finds packet filter rules of other programs that stop what we send and forward. Read-only.
//!
//! A packet must pass every base chain on its way, so one chain that drops undoes what ours accept. This looks at the
//! `prerouting`, `forward` and `input` hooks, in nftables and in the legacy tables of `iptables`, which are a separate
//! packet filter.

mod chains;
mod iptables_listing;
mod nft_listing;
mod obstacle;
mod reading;

use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub use obstacle::Obstacle;
pub use reading::Glance;

use self::chains::{Base, Device, Fate, Hook, Packet, Sender, Table, addresses};
use super::FirewallError;
use crate::kind::link_name::LinkName;

/// What the rules of other programs must let pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// One entry for each address family in use.
    pub families: Vec<FamilyTraffic>,
    /// The bridges that containers are attached to, with their own addresses in our subnets. Empty if unknown.
    pub bridges: Vec<(LinkName, IpNetwork)>,
    /// The outer packets that arrive here; `None` if there are none.
    pub outer: Option<Outer>,
}

/// Packets of one address family between containers of this host and of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyTraffic {
    /// The whole overlay network.
    pub network: IpNetwork,
    /// This host's subnet in it.
    pub subnet: IpNetwork,
    /// The devices through which they may enter and leave this host.
    pub devices: Vec<Way>,
}

/// A device through which packets of the overlay network enter and leave a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Its name.
    pub link: LinkName,
    /// Whether the device carries only these packets, so that a rule that names it is about them.
    pub ours: bool,
}

/// UDP datagrams that carry packets of the overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outer {
    /// Their destination port.
    pub port: u16,
    /// The device that they arrive on.
    pub link: LinkName,
    /// This host's addresses that they are sent to.
    pub addresses: Vec<IpAddr>,
}

/// The rules of all other programs at the time of reading.
#[derive(Debug, Clone, Default)]
pub struct OtherRules(Vec<Table>);

impl OtherRules {
    /// Reads them with `nft` and, where they have rules, the programs of the `iptables` family.
    ///
    /// # Errors
    /// If one of the programs fails. A program that is not installed is skipped.
    pub async fn read() -> Result<Self, FirewallError> {
        reading::tables().await.map(Self)
    }

    /// Returns the chains that stop some of `traffic`.
    pub fn obstacles(&self, traffic: &Traffic) -> Vec<Obstacle> {
        let forwarded = traffic.forwarded();
        let arriving = traffic.arriving();
        let mut obstacles = Vec::new();
        for (table, chain, base) in self.base_chains() {
            let kinds: &[&[Packet]] = match base.hook {
                Hook::Prerouting => &[&forwarded, &arriving],
                Hook::Forward => &[&forwarded],
                Hook::Input => &[&arriving],
                Hook::Postrouting => continue,
            };
            let mut found: Vec<Obstacle> = kinds
                .iter()
                .filter_map(|packets| {
                    let stopped: Vec<_> = packets
                        .iter()
                        .filter_map(|packet| Some((packet, rejects(table, chain, packet)?)))
                        .collect();
                    Obstacle::new(table, chain, base, &stopped, traffic)
                })
                .collect();
            if base.hook == Hook::Prerouting && found.is_empty() {
                found.extend(closed_bridges(table, chain, base, &forwarded));
            }
            obstacles.append(&mut found);
        }
        obstacles
    }

    /// Returns the bridges whose containers' packets to other hosts would be masqueraded.
    pub fn masquerading(&self, traffic: &Traffic) -> Vec<LinkName> {
        let leaving = traffic.forwarded();
        let mut bridges = Vec::new();
        for (table, chain, base) in self.base_chains() {
            for packet in leaving.iter().filter(|packet| table.owner.sees(packet.ipv6)) {
                if base.hook == Hook::Postrouting
                    && let Device::Named(name) = packet.enters
                    && traffic.is_bridge(name)
                    && !bridges.contains(&name)
                    && table.fate(chain, packet) == Fate::Masqueraded
                {
                    bridges.push(name);
                }
            }
        }
        bridges
    }

    fn base_chains(&self) -> impl Iterator<Item = (&Table, &str, Base)> {
        self.0.iter().flat_map(|table| {
            table.chains.iter().filter_map(move |(name, chain)| Some((table, name.as_str(), chain.base?)))
        })
    }
}

/// Whether a packet that is stopped there is rejected; `None` if it passes, or never comes there.
fn rejects(table: &Table, chain: &str, packet: &Packet) -> Option<bool> {
    match table.fate(chain, packet) {
        _ if !table.owner.sees(packet.ipv6) => None,
        Fate::Dropped => Some(false),
        Fate::Rejected => Some(true),
        Fate::Passes | Fate::Masqueraded => None,
    }
}

/// The bridges that Docker 28 has closed to other hosts, by a rule for each container.
fn closed_bridges(table: &Table, chain: &str, base: Base, forwarded: &[Packet]) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    for packet in forwarded {
        let Device::Named(bridge) = packet.leaves else { continue };
        let all = &packet.destination;
        let of_bridge = table
            .closed_but_from(bridge)
            .filter(|closed| all.contains(closed.start()) && all.contains(closed.end()));
        // One that passes all the same, as a rule before lets it, stands for the rest.
        let first = of_bridge.take(CONTAINERS).find_map(|closed| {
            rejects(table, chain, &Packet { destination: closed.clone(), ..packet.clone() })
        });
        obstacles.extend(first.map(|rejects| Obstacle::of_docker(table, chain, base, bridge, rejects)));
    }
    obstacles
}

/// Containers whose rules are looked at for each bridge.
const CONTAINERS: usize = 16;

impl Traffic {
    /// Returns packets in both directions between this host's bridges and the devices to other hosts.
    fn forwarded(&self) -> Vec<Packet> {
        let mut packets = Vec::new();
        for family in &self.families {
            let ipv6 = family.network.is_ipv6();
            let of_family = self.bridges.iter().filter(|(_, address)| address.is_ipv6() == ipv6);
            let mut ends: Vec<(Device, IpNetwork)> =
                of_family.map(|&(name, address)| (Device::Named(name), address)).collect();
            if ends.is_empty() {
                ends.push((Device::SomeBridge, family.subnet));
            }
            for (bridge, own) in ends {
                for &device in &family.devices {
                    let (overlay, own) = (addresses(family.network), addresses(own));
                    let packet = |enters, leaves, source, destination| Packet {
                        ipv6,
                        enters,
                        leaves,
                        source: Sender::Within(source),
                        destination,
                        udp_port: None,
                        for_this_host: false,
                    };
                    let Way { link, ours } = device;
                    let device = if ours { Device::Ours(link) } else { Device::Named(link) };
                    packets.push(packet(device, bridge, overlay.clone(), own.clone()));
                    packets.push(packet(bridge, device, own, overlay));
                }
            }
        }
        packets
    }

    /// Returns the outer packets from other hosts.
    fn arriving(&self) -> Vec<Packet> {
        let Some(outer) = &self.outer else { return Vec::new() };
        // A rule that names the overlay network is about what the outer packets carry.
        let overlay: Vec<_> = self.families.iter().map(|family| addresses(family.network)).collect();
        let packet = |&ip: &IpAddr| Packet {
            ipv6: ip.is_ipv6(),
            enters: Device::Named(outer.link),
            leaves: Device::None,
            source: Sender::Like { own: ip, overlay: overlay.clone() },
            destination: ip..=ip,
            udp_port: Some(outer.port),
            for_this_host: true,
        };
        outer.addresses.iter().map(packet).collect()
    }

    fn is_bridge(&self, name: LinkName) -> bool {
        self.bridges.iter().any(|(bridge, _)| *bridge == name)
    }
}

#[cfg(test)]
mod tests;
