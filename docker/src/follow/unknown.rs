//! Clears what Docker no longer has: it does not tell of each end of a container that died with it. Takes over what the
//! records lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use flan_kernel::netlink::is_plugged;
use ipnetwork::IpNetwork;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::driver::{Driver, ends};
use crate::engine::{Member, ShownNetwork};
use crate::records::{EndpointRecord, Records};

/// How long something may be unknown to Docker, which tells of a container only when it has started.
const LIMIT: Duration = Duration::from_secs(45);
/// Longest time between two looks that count as one.
const GAP: Duration = Duration::from_secs(60);

/// What the records have and Docker does not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Network(String),
    Endpoint(String),
    /// Of a network with these addresses.
    Address(IpNetwork, IpAddr),
}

/// What is unknown to Docker, and since when.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    since: BTreeMap<What, Instant>,
    looked: Option<Instant>,
}

impl Unknown {
    /// Compares the records with what Docker shows.
    pub(super) fn clear(&mut self, driver: &Driver, shown: &[ShownNetwork], members: &[Member]) {
        adopt(driver, members);
        let records = driver.records();
        let unknown = unknown(&records, shown, members);
        let over = self.look(unknown, Instant::now());
        for what in over {
            info!(?what, "Docker no longer has this; clearing it");
            if let Err(reason) = clear_one(driver, &what) {
                warn!(?what, %reason, "cannot clear what Docker no longer has");
            }
        }
    }

    /// Returns what has been unknown for long.
    fn look(&mut self, unknown: BTreeSet<What>, now: Instant) -> Vec<What> {
        if self.looked.replace(now).is_some_and(|looked| now - looked > GAP) {
            self.since.clear();
        }
        self.since.retain(|what, _| unknown.contains(what));
        for what in unknown {
            self.since.entry(what).or_insert(now);
        }
        let over = self.since.iter().filter(|(_, since)| now - **since >= LIMIT);
        over.map(|(what, _)| what.clone()).collect()
    }
}

fn unknown(records: &Records, shown: &[ShownNetwork], members: &[Member]) -> BTreeSet<What> {
    let known: BTreeSet<&str> = shown.iter().map(|network| network.id.as_str()).collect();
    let running: BTreeSet<&str> = members.iter().filter_map(|member| member.endpoint.as_deref()).collect();
    let held: BTreeSet<IpAddr> =
        records.endpoints.values().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
    let networks = records.networks.keys().filter(|id| !known.contains(id.as_str()));
    let endpoints = records.endpoints.keys().filter(|id| !running.contains(id.as_str()));
    let addresses = records.addresses.iter().flat_map(|(pool, given)| {
        let lost = given.taken.iter().filter(|address| !held.contains(address));
        lost.map(|address| What::Address(*pool, *address))
    });
    let networks = networks.map(|id| What::Network(id.clone()));
    networks.chain(endpoints.map(|id| What::Endpoint(id.clone()))).chain(addresses).collect()
}

fn clear_one(driver: &Driver, what: &What) -> Result<(), String> {
    match what {
        What::Network(id) => driver.forget(id),
        What::Endpoint(id) => {
            let (host_end, _) = ends(id)?;
            // A Docker that we do not ask may have it.
            if is_plugged(host_end).map_err(|reason| reason.to_string())? {
                return Err(format!("{host_end} leads into a container"));
            }
            driver.change(|records| {
                if let Some(endpoint) = records.endpoints.remove(id) {
                    let pools: Vec<IpNetwork> = records.addresses.keys().copied().collect();
                    for (pool, address) in pools.iter().zip(std::iter::repeat(&endpoint.addresses)) {
                        address.iter().for_each(|address| records.take_back(pool, *address));
                    }
                }
                Ok(())
            })
        }
        What::Address(pool, address) => driver.change(|records| {
            if !records.endpoints.values().any(|endpoint| endpoint.addresses.contains(address)) {
                records.take_back(pool, *address);
            }
            Ok(())
        }),
    }
}

/// Records running containers that the records do not have: the file was lost, or they are older than it.
fn adopt(driver: &Driver, members: &[Member]) {
    let records = driver.records();
    let missing = members.iter().filter(|member| {
        member.endpoint.as_ref().is_some_and(|endpoint| !records.endpoints.contains_key(endpoint))
            && records.networks.contains_key(&member.network)
    });
    for member in missing {
        let adopted = driver.change(|records| {
            let (Some(endpoint), Some(network)) = (&member.endpoint, records.networks.get(&member.network))
            else {
                return Ok(());
            };
            for pool in network.subnets.clone() {
                let ours = member.addresses.iter().filter(|address| pool.contains(**address));
                records.addresses.entry(pool).or_default().taken.extend(ours);
            }
            if let Some(name) = records.networks.get(&member.network).and_then(|network| network.name.clone())
            {
                records.attached.insert(name);
            }
            let (network, addresses) = (member.network.clone(), member.addresses.clone());
            records.endpoints.insert(endpoint.clone(), EndpointRecord { network, addresses, mac: None });
            Ok(())
        });
        match adopted {
            Ok(()) => info!(container = %member.name, "recorded a running container"),
            Err(reason) => warn!(container = %member.name, %reason, "cannot record a running container"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Given;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_docker_does_not_show_is_unknown() {
        let pool: IpNetwork = "10.7.0.0/16".parse().unwrap();
        let endpoint =
            EndpointRecord { network: "n1".to_owned(), addresses: vec![address("10.7.1.2")], mac: None };
        let taken = [address("10.7.1.2"), address("10.7.1.3")].into();
        let records = Records {
            endpoints: [("e1".to_owned(), endpoint)].into(),
            addresses: [(pool, Given { taken, last: None })].into(),
            ..Records::default()
        };
        let lost = What::Address(pool, address("10.7.1.3"));
        let gone = unknown(&records, &[], &[]);
        assert_eq!(gone, [What::Endpoint("e1".to_owned()), lost.clone()].into());
        let member = Member {
            id: "c1".to_owned(),
            name: "web".to_owned(),
            network: "n1".to_owned(),
            endpoint: Some("e1".to_owned()),
            addresses: Vec::new(),
        };
        assert_eq!(unknown(&records, &[], &[member]), [lost].into());
    }

    #[test]
    fn what_is_unknown_for_long_and_was_looked_at_often_is_over() {
        let (mut looks, start) = (Unknown::default(), Instant::now());
        let what = || BTreeSet::from([What::Network("n1".to_owned())]);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(looks.look(what(), at(0)), []);
        assert_eq!(looks.look(what(), at(40)), []);
        assert_eq!(looks.look(what(), at(50)), [What::Network("n1".to_owned())]);
        assert_eq!(looks.look(BTreeSet::new(), at(51)), [], "it is back");
        assert_eq!(looks.look(what(), at(60)), []);
        assert_eq!(looks.look(what(), at(600)), [], "nobody looked meanwhile");
    }
}
