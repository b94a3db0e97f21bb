//! The ways to peers, as this host's routes have them.

use std::net::IpAddr;

use flan_agent_api::Code;
use flan_host::interface::External;
use flan_host::settings::Settings;
use flan_kernel::netlink;
use flan_subnet_lease::{BackendConfig, Family, Lease};
use ipnetwork::IpNetwork;

use super::report::Report;
use super::this_host::Examination;

const ROUTES: &str = "routes";
/// Peers whose routes are looked at.
pub(super) const LOOKED_AT: usize = 64;

/// Asks the kernel which way packets to peers take.
pub(super) async fn look(seen: &Examination<'_>, report: &mut Report) {
    let Some(external) = seen.external else { return };
    let peers = peers(seen);
    let ips = peers.iter().flat_map(|peer| peer.attributes.public_ips.values());
    if let Some(text) = refused(ips, external).await {
        report.judge(ROUTES, Code::ReversePath, Some(text), "");
    }
    // Until it has joined, this host has no routes to peers' containers.
    if !seen.host.has_joined || matches!(seen.config.backend, BackendConfig::Alloc) {
        return;
    }
    let expected = seen.devices();
    let mut wrong = Vec::new();
    for (peer, subnet) in
        peers.iter().flat_map(|peer| peer.subnets.iter().map(move |(_, subnet)| (peer, subnet)))
    {
        let Some(inside) = an_address_in(&subnet) else { continue };
        let elsewhere = match netlink::route_to(inside).await {
            Ok((index, _)) => match netlink::name_of(index) {
                Some(by) if expected.contains(&by) => continue,
                Some(by) => format!("leave by {by}"),
                None => continue,
            },
            Err(reason) => format!("have no way ({reason})"),
        };
        wrong.push(format!(
            "packets to {inside} in the subnet of {} {elsewhere}, and not by flan's device; see ip route get {inside} and ip rule",
            peer.attributes.holder()
        ));
    }
    let count = wrong.len();
    wrong.truncate(3);
    if count > wrong.len() {
        wrong.push(format!("and {} more", count - wrong.len()));
    }
    let wrong = (count > 0).then(|| wrong.join("; "));
    report.judge(
        ROUTES,
        Code::RouteElsewhere,
        wrong,
        format!("those to {} lead to flan's device", of(peers.len())),
    );
}

/// Describes the first peer whose packets the kernel drops where they arrive.
async fn refused(ips: impl Iterator<Item = &IpAddr>, external: &External) -> Option<String> {
    let link = external.underlay.link;
    if !Settings::default().is_reverse_path_strict(link) {
        return None;
    }
    for ip in ips.filter(|ip| ip.is_ipv4()) {
        let Some(own) = external.underlay.addresses.get(Family::of(*ip)) else { continue };
        if !netlink::is_refused_from(*ip, *own, external.index).await.unwrap_or_default() {
            continue;
        }
        let by = netlink::route_to(*ip).await.ok().and_then(|(index, _)| netlink::name_of(index));
        let leave = by
            .filter(|by| *by != link)
            .map(|by| format!(", as packets to it leave by {by}"))
            .unwrap_or_default();
        return Some(format!(
            "rp_filter is strict on {link}, and the kernel drops what {ip} sends to {own} there{leave}; run sysctl -w \
             net.ipv4.conf.{link}.rp_filter=2, or mend the routes"
        ));
    }
    None
}

fn of(peers: usize) -> String {
    crate::output::count(peers, "peer")
}

/// The first peers with a good lease.
pub(super) fn peers<'a>(seen: &Examination<'a>) -> Vec<&'a Lease> {
    let ours = seen.external.map(|external| &external.public_ips);
    let is_peer = |lease: &&Lease| {
        let mut ips = lease.attributes.public_ips.values();
        let has_our_address = ours.is_some_and(|ours| ips.any(|ip| ours.values().any(|own| own == ip)));
        !seen.host.holds(lease) && (!has_our_address || seen.config.backend.shares_addresses())
    };
    seen.leases.peers().filter(is_peer).take(LOOKED_AT).collect()
}

/// An address that a container there could have.
fn an_address_in(subnet: &IpNetwork) -> Option<IpAddr> {
    subnet.iter().nth(2)
}
