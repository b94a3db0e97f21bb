//! The user path of the wireguard backend.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use flan_backends::Wireguard;
use flan_backends::udp::Gauge;
use flan_backends::wireguard::{self, PeerSettings, Peers, Settings};
use flan_kernel::tun::TunMode;
use flan_kernel::{Kind, LinkName, WireguardPeer, WireguardPeerKey, WireguardPeers, sysctl};
use flan_subnet_lease::{Lease, PeerChange, PerFamily, Subnets};
use tracing::warn;

use super::datapath::Datapath;
use crate::ports;

/// Keeps a data path for each device running, and its peers up to date.
pub struct WireguardRunner {
    backend: Wireguard,
    devices: Vec<Device>,
    /// The wishes for each peer, by lease: a host may have several leases.
    wishes: BTreeMap<WireguardPeerKey, BTreeMap<Subnets, WireguardPeer>>,
    /// The subnets for which the data paths were started.
    own: Option<Subnets>,
    /// Who holds the port or device that it needs.
    taken: Option<String>,
}

struct Device {
    link: LinkName,
    port: u16,
    peers: Peers,
    running: Option<wireguard::Datapath>,
}

impl WireguardRunner {
    /// Creates a data path that does not run yet.
    pub fn boxed(backend: Wireguard) -> Box<dyn Datapath> {
        let device = |(link, port)| {
            let peers = Peers::new(backend.private_key());
            Device { link, port, peers, running: None }
        };
        let devices = backend.devices().map(device).collect();
        Box::new(Self { backend, devices, wishes: BTreeMap::new(), own: None, taken: None })
    }

    /// Notes or forgets what a lease says. Returns the peers that may have changed.
    fn note(&mut self, lease: &Lease, is_wanted: bool) -> Vec<WireguardPeerKey> {
        // The planner has reported a lease that lacks something.
        let Ok(peers) = self.backend.peers(lease) else { return Vec::new() };
        peers
            .into_iter()
            .map(|(key, peer)| {
                let wishes = self.wishes.entry(key).or_default();
                match is_wanted {
                    true => drop(wishes.insert(lease.subnets, peer)),
                    false => drop(wishes.remove(&lease.subnets)),
                }
                if wishes.is_empty() {
                    self.wishes.remove(&key);
                }
                key
            })
            .collect()
    }

    /// Returns what all leases of a peer together want; `None` if it is gone.
    fn settings(&self, key: &WireguardPeerKey) -> Option<PeerSettings> {
        let wishes: Vec<WireguardPeer> = self.wishes.get(key)?.values().cloned().collect();
        let WireguardPeer { endpoint, preshared_key, keepalive, allowed, .. } =
            WireguardPeers::merge(&wishes);
        Some(PeerSettings { endpoint, preshared_key, keepalive: Some(keepalive), allowed })
    }

    fn start(&self, device: &Device, own: &Subnets) -> Result<wireguard::Datapath, wireguard::DatapathError> {
        let mut addresses: PerFamily<IpAddr> = PerFamily::default();
        own.iter().for_each(|(family, subnet)| addresses.set(family, subnet.ip()));
        let settings = Settings {
            device: device.link,
            tun: TunMode { vnet_header: true, tso: true, uso: true },
            gso: true,
            gro: true,
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), device.port),
            addresses,
            mtu: flan_backends::Backend::mtu(&self.backend),
        };
        wireguard::Datapath::start(settings, &device.peers)
    }
}

impl Datapath for WireguardRunner {
    fn change(&mut self, changes: &[PeerChange]) {
        let mut changed = Vec::new();
        for change in changes {
            if let Some(before) = &change.before {
                changed.extend(self.note(before, false));
            }
            if let Some(after) = &change.after {
                changed.extend(self.note(after, true));
            }
        }
        changed.sort_unstable();
        changed.dedup();
        for device in &self.devices {
            let of_device = changed.iter().filter(|key| key.link == device.link);
            device.peers.change(of_device.map(|key| (key.public_key, self.settings(key))));
        }
    }

    fn replace(&mut self, peers: &mut dyn Iterator<Item = &Lease>) {
        self.wishes.clear();
        peers.for_each(|lease| drop(self.note(lease, true)));
        for device in &self.devices {
            let of_device = self.wishes.keys().filter(|key| key.link == device.link);
            let all = of_device.filter_map(|key| Some((key.public_key, self.settings(key)?)));
            device.peers.replace_all(all);
        }
    }

    fn keep_running(&mut self, own: &Subnets, device_is_new: bool) -> Result<(), String> {
        let stays = self.own == Some(*own) && !device_is_new;
        for device in &mut self.devices {
            // One that is over or must change ends its threads, and frees its port.
            device.running = device.running.take().filter(|running| stays && !running.is_over());
        }
        self.own = Some(*own);
        for number in 0..self.devices.len() {
            let device = &self.devices[number];
            if device.running.is_some() {
                continue;
            }
            // ICMP errors for senders on this host come from the device's own address.
            if let Err(reason) = sysctl::accept_local(device.link) {
                warn!(%reason, "senders will get no ICMP error if no peer has the destination");
            }
            let started = self.start(device, own);
            let started = started.map_err(|reason| ports::cannot_start(&reason, &mut self.taken))?;
            self.devices[number].running = Some(started);
        }
        self.taken = None;
        Ok(())
    }

    fn does_the_same_as(&self, other: &dyn Datapath) -> bool {
        (other as &dyn Any).downcast_ref::<Self>().is_some_and(|other| self.backend == other.backend)
    }

    fn taken(&self) -> Option<String> {
        self.taken.clone()
    }

    fn is_running(&self) -> bool {
        self.devices.iter().all(|device| device.running.is_some())
    }

    /// The first device's, which is IPv4's where there are two.
    fn gauge(&self) -> Option<Arc<Gauge>> {
        Some(self.devices.first()?.running.as_ref()?.gauge())
    }

    fn wireguard_peers(&self) -> Vec<Peers> {
        self.devices.iter().map(|device| device.peers.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use flan_backends::{Underlay, WireguardHost};
    use flan_subnet_lease::{LeaseAttributes, NetworkConfig, WireguardConfig};

    use super::*;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn runner() -> WireguardRunner {
        let config = br#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#;
        let pools = NetworkConfig::parse(config).unwrap().pools;
        let addresses = PerFamily { v4: Some("192.168.64.11".parse().unwrap()), v6: None };
        let underlay = Underlay { link: "eth0".parse().unwrap(), mtu: 1500, addresses, on_link: Vec::new() };
        let host = WireguardHost {
            private_key: [64; 32].into(),
            public_port: None,
            behind_nat: PerFamily::default(),
            by_kernel: false,
        };
        let backend = Wireguard::new(WireguardConfig::default(), &pools, &underlay, host).unwrap();
        let peers = Peers::new(backend.private_key());
        let device = Device { link: "flannel-wg".parse().unwrap(), port: 51820, peers, running: None };
        let devices = vec![device];
        WireguardRunner { backend, devices, wishes: BTreeMap::new(), own: None, taken: None }
    }

    fn lease(subnet: &str) -> Arc<Lease> {
        let value = format!(
            r#"{{"PublicIP":"192.168.64.12","BackendType":"wireguard","BackendData":{{"PublicKey":"{KEY}","Port":7000}}}}"#
        );
        Arc::new(Lease {
            subnets: subnet.parse().unwrap(),
            attributes: LeaseAttributes::from_json(value.as_bytes()).unwrap(),
            etcd_lease: Some(7),
            create_revision: 1,
            mod_revision: 1,
        })
    }

    fn known(runner: &WireguardRunner) -> Vec<String> {
        let reports = runner.devices[0].peers.reports();
        reports
            .iter()
            .map(|report| {
                let allowed: Vec<String> = report.allowed.iter().map(ToString::to_string).collect();
                format!("{} at {}: {}", report.key, report.endpoint.unwrap(), allowed.join(" "))
            })
            .collect()
    }

    #[test]
    fn two_leases_of_one_host_are_one_peer_until_the_last_is_gone() {
        let mut runner = runner();
        let (one, other) = (lease("10.5.2.0/24"), lease("10.5.9.0/24"));
        let joined = |lease: &Arc<Lease>| PeerChange { before: None, after: Some(lease.clone()) };
        let left = |lease: &Arc<Lease>| PeerChange { before: Some(lease.clone()), after: None };
        runner.change(&[joined(&one), joined(&other)]);
        assert_eq!(known(&runner), [format!("{KEY} at 192.168.64.12:7000: 10.5.2.0/24 10.5.9.0/24")]);
        runner.change(&[left(&one)]);
        assert_eq!(known(&runner), [format!("{KEY} at 192.168.64.12:7000: 10.5.9.0/24")]);
        runner.replace(&mut [&*one].into_iter());
        assert_eq!(known(&runner), [format!("{KEY} at 192.168.64.12:7000: 10.5.2.0/24")]);
        runner.change(&[left(&one)]);
        assert!(known(&runner).is_empty());
    }
}
