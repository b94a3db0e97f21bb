//! Finds overlaps between this host's own networks and the overlay subnets, ours and the peers'.

use std::fmt::Write;

use flan_agent_api::Code;
use flan_backends::{HostNetworks, enclosing};
use flan_kernel::LinkName;
use flan_subnet_lease::{HostNetwork, LeaseSet, Subnets, encloses, overlap};
use tokio::sync::watch;

use super::joined::Joined;
use crate::host::Host;

/// Networks or peers that a problem names.
const SHOWN: usize = 3;
/// The host's networks that subnets must not overlap, shared with the keeper of the lease, which may need another
/// subnet.
pub(super) struct Overlaps {
    /// Our own or previous subnets. Networks of containers in them are not foreign.
    own: Option<Subnets>,
    /// The external interface, which never belongs to a container.
    pub(super) external: LinkName,
    foreign: watch::Sender<Vec<HostNetwork>>,
}

impl Overlaps {
    pub(super) fn new(own: Option<Subnets>, external: LinkName, networks: &HostNetworks) -> Self {
        let overlaps = Self { own, external, foreign: watch::Sender::default() };
        overlaps.sort_out(Some(networks));
        overlaps
    }

    /// Subscribes to the networks that subnets must not overlap.
    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<HostNetwork>> {
        self.foreign.subscribe()
    }

    /// Separates the host's networks from those of its containers.
    pub(super) fn sort_out(&self, networks: Option<&HostNetworks>) {
        let Some(networks) = networks else { return };
        let foreign = networks.foreign(self.own.as_ref(), Some(self.external));
        self.foreign.send_if_modified(|known| std::mem::replace(known, foreign.clone()) != foreign);
    }
}

impl Joined {
    /// Reports subnets that overlap this host's networks. The cost does not depend on the number of peers.
    pub(super) fn look_at_overlaps(&mut self, host: &Host) {
        let own = self.leases.admission().own.as_ref().map(|own| own.subnets);
        let external = self.means.underlay().link;
        let overlaps = &mut self.means.overlaps;
        (overlaps.own, overlaps.external) = (own, external);
        overlaps.sort_out(host.networks());
        let foreign = overlaps.foreign.borrow();
        self.means.status.report(Code::SubnetOverlap, of_ours(&self.leases, &foreign));
        self.means.status.report(Code::PeerOverlap, of_peers(&self.leases, &foreign));
    }
}

/// Describes what is wrong with our own subnet, and host networks that enclose the overlay.
fn of_ours(leases: &LeaseSet, foreign: &[HostNetwork]) -> Option<String> {
    let admission = leases.admission();
    let own = admission.own.as_ref()?;
    let mut texts = Vec::new();
    for host in foreign {
        if texts.len() > SHOWN {
            break;
        }
        let overlay = admission.config.networks().find(|(_, net)| encloses(&host.network, net));
        if let Some((_, overlay)) = overlay {
            texts.push(enclosing(host, &overlay));
        } else if let Some((_, subnet)) =
            own.subnets.iter().find(|(_, subnet)| overlap(&host.network, subnet))
        {
            texts.push(format!(
                "this host's subnet {subnet} overlaps its network {host}: one of the two cannot be reached from here; change \
                 that network, or have another subnet leased: stop fland, run flanctl subnets release {subnet}, remove the \
                 subnet file, and start fland and then Docker again"
            ));
        }
    }
    if texts.len() > SHOWN {
        texts.truncate(SHOWN);
        texts.push("and others".to_owned());
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Describes what is wrong with peers' subnets.
fn of_peers(leases: &LeaseSet, foreign: &[HostNetwork]) -> Option<String> {
    let (mut text, mut count) = (String::new(), 0);
    let config = &leases.admission().config;
    // A network that encloses the overlay overlaps all peers, and is reported once.
    let avoidable =
        |host: &&HostNetwork| !config.networks().any(|(_, overlay)| encloses(&host.network, &overlay));
    'networks: for host in foreign.iter().filter(avoidable) {
        for peer in leases.peers_in(&host.network) {
            // Our own route will replace this one, which a flanneld on host-gw left behind.
            if host
                .gateway
                .is_some_and(|gateway| peer.attributes.public_ips.values().any(|ip| *ip == gateway))
            {
                continue;
            }
            if count == SHOWN {
                // Without the number: each peer that joins or leaves would cause a new warning.
                text.push_str(" and others");
                break 'networks;
            }
            count += 1;
            let between = if count == 1 { "" } else { ", " };
            let _ = write!(
                text,
                "{between}subnet {} of {} overlaps {host}",
                peer.subnets,
                peer.attributes.holder()
            );
        }
    }
    let advice = "containers there or that network cannot be reached from here; change that network, or give the peer \
                  another subnet with flanctl subnets reserve";
    (count > 0).then(|| format!("a peer's subnet overlaps a network of this host: {text}; {advice}"))
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{Admission, Caution, Listing, NetworkConfig, WatchEvent};

    use tokio::time::Instant;

    use super::super::samples;
    use super::*;

    fn leases(peers: std::ops::Range<u32>) -> LeaseSet {
        let config =
            NetworkConfig::parse(br#"{"Network": "10.0.0.0/8", "Backend": {"Type": "host-gw"}}"#).unwrap();
        let entry = |n: u32| {
            let (high, low) = (n >> 8, n & 255);
            let value = format!(
                r#"{{"PublicIP":"192.168.{high}.{low}","PublicIPv6":null,"BackendType":"host-gw","HostName":"h{n}"}}"#
            );
            samples::entry(&format!("10.{high}.{low}.0-24"), &value, n.into())
        };
        let own = samples::own("10.0.1.0/24");
        let mut leases = LeaseSet::new(Admission { config, own: Some(own) }, Caution::default());
        let listing = Listing::of(peers.map(entry).collect(), 1, 1);
        leases.apply(WatchEvent::Listed(listing), Instant::now());
        leases
    }

    fn host(network: &str) -> HostNetwork {
        HostNetwork { network: network.parse().unwrap(), place: "on eth1".to_owned(), gateway: None }
    }

    #[test]
    fn our_own_subnet_in_a_network_of_the_host_is_named_with_the_device() {
        let leases = leases(2..4);
        assert_eq!(of_ours(&leases, &[host("10.0.7.0/24"), host("192.168.0.0/16")]), None);
        let text = of_ours(&leases, &[host("10.0.1.128/25")]).unwrap();
        assert!(
            text.starts_with("this host's subnet 10.0.1.0/24 overlaps its network 10.0.1.128/25 on eth1: "),
            "{text}"
        );
        let many: Vec<HostNetwork> = (0..9).map(|n| host(&format!("10.0.1.{n}/32"))).collect();
        let text = of_ours(&leases, &many).unwrap();
        assert!(text.contains("10.0.1.2/32 on eth1") && !text.contains("10.0.1.3/32"), "{text}");
        assert!(text.ends_with("; and others"), "{text}");
        let text = of_ours(&leases, &[host("10.0.0.0/8")]).unwrap();
        assert!(text.contains("10.0.0.0/8 on eth1 encloses the overlay network 10.0.0.0/8"), "{text}");
        assert_eq!(of_peers(&leases, &[host("10.0.0.0/8")]), None);
    }

    #[test]
    fn of_peers_in_networks_of_the_host_the_first_are_named() {
        let leases = leases(2..300);
        assert_eq!(of_peers(&leases, &[host("10.0.1.0/24"), host("192.168.0.0/16")]), None);
        let text = of_peers(&leases, &[host("10.0.7.0/25")]).unwrap();
        assert!(
            text.contains("subnet 10.0.7.0/24 of 192.168.0.7 (h7) overlaps 10.0.7.0/25 on eth1; "),
            "{text}"
        );
        let left_by_flannel =
            |gateway: &str| HostNetwork { gateway: gateway.parse().ok(), ..host("10.0.7.0/24") };
        assert_eq!(of_peers(&leases, &[left_by_flannel("192.168.0.7")]), None);
        assert!(of_peers(&leases, &[left_by_flannel("192.168.0.8")]).is_some());
        let text = of_peers(&leases, &[host("10.0.16.0/20")]).unwrap();
        assert!(text.contains("h18) overlaps 10.0.16.0/20 on eth1 and others; "), "{text}");
    }
}
