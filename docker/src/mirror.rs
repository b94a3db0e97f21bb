//! Compares Docker's networks with those in the store, and decides what to do. Pure.

use std::collections::{BTreeMap, BTreeSet};

use flan_subnet_lease::{NetworkConfig, NetworkName};
use ipnetwork::IpNetwork;

use crate::driver::is_same;
use crate::engine::{DRIVER, SHOWN_LABEL, ShownNetwork};
use crate::records::Records;

/// The networks in the store.
#[derive(Debug, Default)]
pub(crate) struct InStore {
    /// Those that can be used.
    pub(crate) usable: BTreeMap<NetworkName, NetworkConfig>,
    /// Others.
    pub(crate) unusable: BTreeSet<NetworkName>,
    /// Store revision at which networks last came or went.
    pub(crate) changed: i64,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Create it in Docker: it is in the store.
    Create(NetworkName),
    /// Create it in the store: it is in Docker, where somebody created it.
    Publish(ShownNetwork, NetworkName),
    /// Record that Docker's network is this one of the store.
    Bind(ShownNetwork, NetworkName),
    /// Remove it from Docker, for this reason.
    Remove(ShownNetwork, &'static str),
    /// Tell that it cannot be shown, for this reason.
    Tell(String, &'static str),
}

const GONE: &str = "it is no longer in the store";
const ANOTHER: &str = "another host created a network of this name with other addresses";
const FOREIGN: &str = "Docker has a network of this name with another driver";
const NO_NAME: &str = "its name cannot be a network's in the store";
const DISTRUSTED: &str =
    "it is no longer in the store, though nobody removed it there; it stays until somebody does";

/// Returns what to do so that Docker shows what is in the store.
pub(crate) fn steps(store: &InStore, docker: &[ShownNetwork], records: &Records) -> Vec<Step> {
    let (ours, others): (Vec<_>, Vec<_>) = docker.iter().partition(|network| network.driver == DRIVER);
    let mut steps = Vec::new();
    let mut shown = BTreeSet::new();
    for network in ours {
        let record = records.networks.get(&network.id);
        let subnets = record.map_or(&network.subnets, |record| &record.subnets);
        let named = network.tied.clone().or_else(|| network.name.parse().ok());
        let Some(name) = record.and_then(|record| record.name.clone()).or(named) else {
            steps.push(Step::Remove(network.clone(), NO_NAME));
            continue;
        };
        let is_known = record.is_some_and(|record| record.name.is_some());
        match judge(store, &name, subnets) {
            Standing::Same => {
                if !is_known || record.is_some_and(|record| record.seen < store.changed) {
                    steps.push(Step::Bind(network.clone(), name.clone()));
                }
                shown.insert(name);
            }
            Standing::Other => {
                steps.push(Step::Remove(network.clone(), if is_known { GONE } else { ANOTHER }));
            }
            Standing::Unusable => {
                shown.insert(name);
            }
            Standing::None if !is_known && network.tied.is_none() => {
                shown.insert(name.clone());
                steps.push(Step::Publish(network.clone(), name));
            }
            // A store that was emptied or restored did not see somebody remove a network.
            Standing::None if record.map_or(0, |record| record.seen) >= store.changed => {
                steps.push(Step::Tell(network.name.clone(), DISTRUSTED));
            }
            Standing::None => steps.push(Step::Remove(network.clone(), GONE)),
        }
    }
    for (name, config) in &store.usable {
        if shown.contains(name) || config.labels.get(SHOWN_LABEL).is_some_and(|value| value == "false") {
            continue;
        }
        match others.iter().any(|other| other.name == name.as_str()) {
            true => steps.push(Step::Tell(name.to_string(), FOREIGN)),
            false => steps.push(Step::Create(name.clone())),
        }
    }
    steps
}

enum Standing {
    Same,
    /// With other addresses.
    Other,
    Unusable,
    None,
}

fn judge(store: &InStore, name: &NetworkName, subnets: &[IpNetwork]) -> Standing {
    match store.usable.get(name) {
        Some(config) if is_same(config, subnets) => Standing::Same,
        Some(_) => Standing::Other,
        None if store.unusable.contains(name) => Standing::Unusable,
        None => Standing::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Asked;
    use crate::records::NetworkRecord;

    fn name(text: &str) -> NetworkName {
        text.parse().unwrap()
    }

    fn store(changed: i64, networks: &[(&str, &str)]) -> InStore {
        let config = |subnet: &str| {
            let json = format!(r#"{{"Network":"{subnet}","Backend":{{"Type":"vxlan","VNI":7}}}}"#);
            NetworkConfig::parse(json.as_bytes()).unwrap()
        };
        let usable = networks.iter().map(|(of, subnet)| (name(of), config(subnet))).collect();
        InStore { usable, unusable: BTreeSet::new(), changed }
    }

    fn shown(id: &str, of: &str, subnet: &str) -> ShownNetwork {
        ShownNetwork {
            id: id.to_owned(),
            name: of.to_owned(),
            driver: DRIVER.to_owned(),
            subnets: vec![subnet.parse().unwrap()],
            ..ShownNetwork::default()
        }
    }

    fn records(networks: &[(&str, Option<&str>, &str, i64)]) -> Records {
        let record = |(id, of, subnet, seen): &(&str, Option<&str>, &str, i64)| {
            let (name, subnets) = (of.map(name), vec![subnet.parse().unwrap()]);
            ((*id).to_owned(), NetworkRecord { name, subnets, asked: Asked::default(), seen: *seen })
        };
        Records { networks: networks.iter().map(record).collect(), ..Records::default() }
    }

    const BLUE: &str = "10.7.0.0/16";
    const OTHER: &str = "10.8.0.0/16";

    #[test]
    fn what_is_in_the_store_is_created_unless_the_name_is_taken_or_it_is_not_to_be_shown() {
        let mut stored = store(3, &[("blue", BLUE)]);
        assert_eq!(steps(&stored, &[], &Records::default()), [Step::Create(name("blue"))]);
        let bridge = ShownNetwork { driver: "bridge".to_owned(), ..shown("n0", "blue", OTHER) };
        assert_eq!(steps(&stored, &[bridge], &Records::default()), [Step::Tell("blue".to_owned(), FOREIGN)]);
        let label = (SHOWN_LABEL.to_owned(), "false".to_owned());
        stored.usable.get_mut(&name("blue")).unwrap().labels = [label].into();
        assert_eq!(steps(&stored, &[], &Records::default()), []);
    }

    #[test]
    fn what_somebody_created_in_docker_is_created_in_the_store_and_bound() {
        let blue = shown("n1", "blue", BLUE);
        let pending = records(&[("n1", None, BLUE, 0)]);
        assert_eq!(
            steps(&store(3, &[]), std::slice::from_ref(&blue), &pending),
            [Step::Publish(blue.clone(), name("blue"))]
        );
        let stored = store(4, &[("blue", BLUE)]);
        let docker = [blue.clone()];
        assert_eq!(steps(&stored, &docker, &pending), [Step::Bind(blue, name("blue"))]);
        assert_eq!(steps(&stored, &docker, &records(&[("n1", Some("blue"), BLUE, 4)])), []);
    }

    #[test]
    fn of_two_that_were_created_at_once_the_one_in_the_store_stays() {
        let ours = shown("n1", "blue", BLUE);
        let stored = store(4, &[("blue", OTHER)]);
        let pending = records(&[("n1", None, BLUE, 0)]);
        assert_eq!(
            steps(&stored, std::slice::from_ref(&ours), &pending),
            [Step::Remove(ours, ANOTHER), Step::Create(name("blue"))]
        );
    }

    #[test]
    fn what_somebody_removed_goes_and_what_a_lost_store_lost_stays() {
        let blue = shown("n1", "blue", BLUE);
        let docker = [blue.clone()];
        let known = records(&[("n1", Some("blue"), BLUE, 4)]);
        assert_eq!(steps(&store(5, &[]), &docker, &known), [Step::Remove(blue, GONE)]);
        let tell = Step::Tell("blue".to_owned(), DISTRUSTED);
        for changed in [0, 4] {
            assert_eq!(steps(&store(changed, &[]), &docker, &known), [tell.clone()], "{changed}");
        }
    }

    #[test]
    fn one_whose_config_cannot_be_read_stays_as_it_is() {
        let stored = InStore { unusable: [name("blue")].into(), ..store(9, &[]) };
        let known = records(&[("n1", Some("blue"), BLUE, 4)]);
        assert_eq!(steps(&stored, &[shown("n1", "blue", BLUE)], &known), []);
    }

    #[test]
    fn one_that_the_records_lost_is_known_by_what_it_was_tied_to() {
        let tied = ShownNetwork { tied: Some(name("blue")), ..shown("n1", "azure", BLUE) };
        let stored = store(4, &[("blue", BLUE)]);
        let docker = [tied.clone()];
        assert_eq!(steps(&stored, &docker, &Records::default()), [Step::Bind(tied.clone(), name("blue"))]);
        assert_eq!(steps(&store(5, &[]), &docker, &Records::default()), [Step::Remove(tied, GONE)]);
    }
}
