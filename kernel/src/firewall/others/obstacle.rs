//! A chain that stops packets of ours, and its cure.

use std::fmt;

use super::Traffic;
use super::chains::{Base, Owner, Packet, Table};
use crate::firewall::prefix;
use crate::kind::link_name::LinkName;

/// A chain of another program that drops or rejects our packets.
///
/// `{}` prints the chain, what it does, and the commands that cure it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    chain: String,
    rejects: bool,
    what: String,
    /// Shell commands.
    pub(super) cure: String,
}

/// What manages the rules, and can change them permanently.
enum Manager<'a> {
    Firewalld,
    Ufw,
    /// Docker's own nftables backend, which rewrites its tables at each start.
    Docker,
    Nft {
        family: &'a str,
        table: &'a str,
    },
    Iptables {
        program: &'static str,
        table: &'static str,
    },
}

impl Obstacle {
    /// Returns `None` if nothing is stopped. Each packet comes with whether it is rejected.
    pub(super) fn new(
        table: &Table,
        chain: &str,
        base: Base,
        stopped: &[(&Packet, bool)],
        traffic: &Traffic,
    ) -> Option<Self> {
        let (_, rejects) = *stopped.first()?;
        let manager = manager(table);
        let families = traffic
            .families
            .iter()
            .filter(|family| stopped.iter().any(|(packet, _)| packet.ipv6 == family.network.is_ipv6()));
        let (what, cure) = if stopped.iter().all(|(packet, _)| !packet.for_this_host) {
            let networks: Vec<String> = families.clone().map(|family| prefix(family.network)).collect();
            let mut cures: Vec<String> = networks
                .iter()
                .zip(families)
                .flat_map(|(network, family)| {
                    let devices = family.devices.iter().map(|way| way.link.to_string());
                    manager.let_forward(chain, network, family.network.is_ipv6(), devices)
                })
                .collect();
            cures.extend(manager.at_last());
            (format!("what this host forwards between containers in {}", networks.join(" and ")), cures)
        } else {
            let port = traffic.outer.as_ref()?.port;
            let mut cures = vec![manager.let_in(chain, port)];
            cures.extend(manager.at_last());
            (format!("what other hosts send to UDP port {port}"), cures)
        };
        Some(Self { chain: named(table, chain, base), rejects, what, cure: cure.join(" && ") })
    }

    /// What other hosts send to the containers at this bridge is stopped by Docker's rules for each container.
    pub(super) fn of_docker(table: &Table, chain: &str, base: Base, bridge: LinkName, rejects: bool) -> Self {
        Self {
            chain: named(table, chain, base),
            rejects,
            what: format!("what other hosts send to containers at {bridge}"),
            cure: "start dockerd with --allow-direct-routing (Docker 28.2 or newer)".to_owned(),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = if self.rejects { "rejects" } else { "drops" };
        write!(f, "{} {does} {}; to let it pass: {}", self.chain, self.what, self.cure)
    }
}

/// How people find the chain.
fn named(table: &Table, chain: &str, base: Base) -> String {
    match &table.owner {
        Owner::Nft { family, table } => {
            format!("nftables chain {family} {table} {chain} (priority {})", base.priority)
        }
        Owner::Iptables { program, table, .. } => format!("chain {chain} of {program}{}", option(table)),
    }
}

/// What `iptables` is told of a table beside its usual one.
fn option(table: &str) -> String {
    if table == "filter" { String::new() } else { format!(" -t {table}") }
}

fn manager(table: &Table) -> Manager<'_> {
    match &table.owner {
        Owner::Nft { table, .. } if table == "firewalld" => Manager::Firewalld,
        Owner::Nft { table, .. } if table == "docker-bridges" => Manager::Docker,
        Owner::Nft { family, table } => Manager::Nft { family, table },
        Owner::Iptables { ipv6, .. } if table.chains.contains_key(ufws(*ipv6)) => Manager::Ufw,
        Owner::Iptables { program, table, .. } => Manager::Iptables { program, table },
    }
}

/// Returns a chain that only ufw has.
fn ufws(ipv6: bool) -> &'static str {
    if ipv6 { "ufw6-before-input" } else { "ufw-before-input" }
}

impl Manager<'_> {
    /// Admits packets forwarded within `network`.
    fn let_forward(
        &self,
        chain: &str,
        network: &str,
        ipv6: bool,
        devices: impl Iterator<Item = String>,
    ) -> Vec<String> {
        let ip = if ipv6 { "ip6" } else { "ip" };
        match self {
            Self::Firewalld => {
                vec![format!("firewall-cmd --permanent --zone=trusted --add-source={network}")]
            }
            Self::Ufw => devices
                .flat_map(|device| ["in", "out"].map(|way| format!("ufw route allow {way} on {device}")))
                .collect(),
            Self::Docker => {
                vec![format!(
                    "nft insert rule {ip} docker-bridges {chain} {ip} saddr {network} {ip} daddr {network} accept \
                     (until Docker starts again; for good, start dockerd with --firewall-backend=iptables)"
                )]
            }
            Self::Nft { family, table } => {
                vec![format!(
                    "nft insert rule {family} {table} {chain} {ip} saddr {network} {ip} daddr {network} accept"
                )]
            }
            Self::Iptables { program, table } => {
                let table = option(table);
                vec![format!("{program}{table} -I {chain} -s {network} -d {network} -j ACCEPT")]
            }
        }
    }

    /// Admits packets for this UDP port.
    fn let_in(&self, chain: &str, port: u16) -> String {
        match self {
            Self::Firewalld => format!("firewall-cmd --permanent --add-port={port}/udp"),
            Self::Ufw => format!("ufw allow {port}/udp"),
            Self::Docker => format!("nft insert rule ip docker-bridges {chain} udp dport {port} accept"),
            Self::Nft { family, table } => {
                format!("nft insert rule {family} {table} {chain} udp dport {port} accept")
            }
            Self::Iptables { program, table } => {
                format!("{program}{} -I {chain} -p udp --dport {port} -j ACCEPT", option(table))
            }
        }
    }

    /// Returns the command that activates the others.
    fn at_last(&self) -> Option<String> {
        matches!(self, Self::Firewalld).then(|| "firewall-cmd --reload".to_owned())
    }
}
