//! The external interface, other machines with its address, and this host's other networks.

use std::net::IpAddr;

use flan_agent_api::{Code, InterfaceArgs};
use flan_backends::{HostNetworks, collisions};
use flan_host::interface::{External, Selection};
use flan_kernel::{lan, netlink};
use flan_subnet_lease::NetworkConfig;
use ipnetwork::IpNetwork;

use super::report::Report;
use super::store::Stored;
use super::this_host::ThisHost;
use crate::args::CheckedHost;

const INTERFACE: &str = "interface";
const ADDRESS: &str = "address";
const NETWORKS: &str = "networks";
/// Leases that are named.
const SHOWN: usize = 3;

/// Chooses it as fland does at a start.
pub(super) async fn look(
    args: &CheckedHost,
    config: &NetworkConfig,
    host: &ThisHost,
    report: &mut Report,
) -> Option<External> {
    let overlays: Vec<_> = config.over_underlay().collect();
    let args = as_running(&args.interface, host).await;
    let selection = Selection { args: &args, overlays: &overlays };
    let survey = match selection.survey().await {
        Ok(survey) => survey,
        Err(reason) => {
            report.fine(INTERFACE, format!("cannot be read: {reason}"));
            return None;
        }
    };
    let external = match selection.choose(&survey) {
        Ok(external) => external,
        Err(reason) => {
            report.found(INTERFACE, Code::NoInterface, reason.to_string());
            return None;
        }
    };
    let link = external.underlay.link;
    let ips: Vec<String> = external.underlay.addresses.values().map(ToString::to_string).collect();
    let state = survey.interfaces.iter().find(|one| one.index == external.index);
    let down = state.filter(|one| !one.up || !one.carrier).map(|one| match one.up {
        false => format!("the external interface {link} is down; set it up: ip link set {link} up"),
        true => {
            format!(
                "the external interface {link} has no carrier: plug in its cable, or set its other end up"
            )
        }
    });
    let fine = format!("{link} ({}), MTU {}", ips.join(" "), external.underlay.mtu);
    report.judge(INTERFACE, Code::NoInterface, down, fine);
    if let Some(doubt) = selection.doubt(&external, &survey) {
        report.judge(INTERFACE, Code::DoubtfulAddress, Some(doubt), "");
    }
    Some(external)
}

/// Returns the flags by which the interface is found that the running agent has, wherever that differs from what is known
/// here: it keeps the one that it has, and may have other flags.
async fn as_running(args: &InterfaceArgs, host: &ThisHost) -> InterfaceArgs {
    let mut told = host.running.iter().flat_map(|status| &status.default.public_ips);
    let interfaces = netlink::interfaces().await.unwrap_or_default();
    let is_here = |ip: &&String| {
        let has = |address: &IpNetwork| address.ip().to_string() == **ip;
        interfaces.iter().any(|interface| interface.addresses.iter().any(has))
    };
    match told.find(is_here) {
        Some(ip) => InterfaceArgs {
            iface: vec![ip.clone()],
            iface_regex: Vec::new(),
            iface_can_reach: None,
            public_ips: args.public_ips,
        },
        None => args.clone(),
    }
}

/// Looks for other machines with the address: on the link, and in the store.
pub(super) async fn look_for_others(
    external: &External,
    stored: &Stored,
    host: &ThisHost,
    report: &mut Report,
) {
    let link = external.underlay.link;
    for ip in external.underlay.addresses.values() {
        let IpAddr::V4(address) = ip else { continue }; // the kernel asks for IPv6 itself
        if let Ok(Some(mac)) = lan::other_holder(link, *address).await {
            let text = format!(
                "another machine at {link}, with the MAC {mac}, has this host's address {address}, so packets go now to one and \
                 now to the other; give one of the two another address"
            );
            report.found(ADDRESS, Code::AddressTaken, text);
        }
    }
    // Behind one NAT, several hosts of wireguard have one address.
    if !stored.config.backend.shares_addresses() {
        let same_address = |ip: &IpAddr| external.public_ips.values().any(|own| own == ip);
        let of_others = stored.leases.readable().filter(|lease| {
            let attributes = &lease.attributes;
            attributes.node.id.is_some()
                && !host.holds(lease)
                && attributes.public_ips.values().any(same_address)
        });
        for lease in of_others.take(SHOWN) {
            let text = format!(
                "the lease of {} is that of {}: a machine with this host's address and another node id; give one of the two \
                 another address, or release the lease if that machine is gone: flanctl subnets release {}",
                lease.subnets,
                lease.attributes.holder_and_node(),
                lease.subnets
            );
            report.found(ADDRESS, Code::AddressTaken, text);
        }
    }
    if !report.has(Code::AddressTaken) {
        report.fine(ADDRESS, "nobody else has it");
    }
}

/// Compares the networks of this host with flan's, before it joins. Afterwards the agent does, which knows its subnet.
pub(super) async fn look_at_networks(config: &NetworkConfig, host: &ThisHost, report: &mut Report) {
    if host.has_joined {
        return;
    }
    let overlays = config.networks().map(|(_, network)| network).collect();
    match HostNetworks::read_overlapping(overlays).await {
        Ok(networks) => {
            let texts = collisions(config, &networks);
            let wrong = (!texts.is_empty()).then(|| texts.join("; "));
            report.judge(NETWORKS, Code::SubnetOverlap, wrong, "none of this host's overlaps flan's");
        }
        Err(reason) => report.fine(NETWORKS, format!("cannot be read: {reason}")),
    }
}
