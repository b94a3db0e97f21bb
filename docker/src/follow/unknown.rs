//! Clears what Docker no longer has: it does not tell of each end of a container that died with it. Takes over what the
//! records lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use flan_kernel::netlink::{is_plugged, unplug};
use ipnetwork::IpNetwork;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::driver::{Driver, ends};
use crate::engine::{Member, ShownNetwork};
use crate::records::{EndpointRecord, Records};

/// How long something may be unknown to Docker, which tells of a container only when it has started.
const LIMIT: Duration = Duration::from_secs(45);
/// How long a running container may be missing in the records.
const MISSING_LIMIT: Duration = Duration::from_secs(10);
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
    /// Running containers that the records do not have, and since when.
    missing: BTreeMap<String, Instant>,
}

impl Unknown {
    /// Compares the records with what Docker shows.
    pub(super) fn clear(&mut self, driver: &Driver, shown: &[ShownNetwork], members: &[Member]) {
        let now = Instant::now();
        // Docker shows a container that has just ended for a moment; but at the first look none has.
        let patience = if self.looked.is_none() { Duration::ZERO } else { MISSING_LIMIT };
        let missing = missing(&driver.records(), members);
        self.missing.retain(|endpoint, _| missing.contains_key(endpoint));
        for (endpoint, member) in missing {
            if now - *self.missing.entry(endpoint).or_insert(now) >= patience {
                adopt(driver, member);
            }
        }
        let records = driver.records();
        let unknown = unknown(&records, shown, members);
        let over = self.look(unknown, now);
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
        What::Network(id) => {
            // Its ends go first.
            match driver.records().endpoints.values().any(|endpoint| endpoint.network == *id) {
                true => Ok(()),
                false => driver.forget(id).map(|_| ()),
            }
        }
        What::Endpoint(id) => {
            let (host_end, _) = ends(id)?;
            // A Docker that we do not ask may have it.
            if is_plugged(host_end).map_err(|reason| reason.to_string())? {
                return Err(format!("{host_end} leads into a container"));
            }
            unplug(host_end).map_err(|reason| reason.to_string())?;
            driver.change(|records| {
                let Some(endpoint) = records.endpoints.remove(id) else { return Ok(()) };
                let is_held = |address: &IpAddr| {
                    records.endpoints.values().any(|other| other.addresses.contains(address))
                };
                for address in endpoint.addresses.iter().filter(|address| !is_held(address)) {
                    for given in records.addresses.values_mut() {
                        given.taken.remove(address);
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

/// Returns running containers that the records do not have, by their endpoints.
fn missing<'a>(records: &Records, members: &'a [Member]) -> BTreeMap<String, &'a Member> {
    let is_ours = |member: &&Member| records.networks.contains_key(&member.network);
    let ours = members.iter().filter(is_ours);
    let running = ours.filter_map(|member| Some((member.endpoint.clone()?, member)));
    running.filter(|(endpoint, _)| !records.endpoints.contains_key(endpoint)).collect()
}

/// Records a running container: the file was lost, or the container is older than it.
fn adopt(driver: &Driver, member: &Member) {
    let adopted = driver.change(|records| {
        let (Some(endpoint), Some(network)) = (&member.endpoint, records.networks.get(&member.network))
        else {
            return Ok(());
        };
        let (subnets, name) = (network.subnets.clone(), network.name.clone());
        for pool in subnets {
            let ours = member.addresses.iter().filter(|address| pool.contains(**address));
            records.addresses.entry(pool).or_default().taken.extend(ours);
        }
        records.attached.extend(name);
        let (network, addresses) = (member.network.clone(), member.addresses.clone());
        records
            .endpoints
            .insert(endpoint.clone(), EndpointRecord { network, addresses, mac: None, resolver_of: None });
        Ok(())
    });
    match adopted {
        Ok(()) => info!(container = %member.name, "recorded a running container"),
        Err(reason) => warn!(container = %member.name, %reason, "cannot record a running container"),
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
        let endpoint = EndpointRecord {
            network: "n1".to_owned(),
            addresses: vec![address("10.7.1.2")],
            mac: None,
            resolver_of: None,
        };
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
