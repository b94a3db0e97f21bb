//! Compares Docker's networks with those in the store, and decides what to do. Pure.

use std::collections::{BTreeMap, BTreeSet};

use flan_subnet_lease::{NetworkConfig, NetworkName};

use crate::driver::is_same;
use crate::engine::{DRIVER, SHOWN_LABEL, ShownNetwork};
use crate::records::{NetworkRecord, Records};

/// The networks in the store.
#[derive(Debug, Default)]
pub(crate) struct InStore {
    /// Those that can be used.
    pub(crate) usable: BTreeMap<NetworkName, Usable>,
    /// Others.
    pub(crate) unusable: BTreeSet<NetworkName>,
    /// Those that somebody removed, with the revision at which each had been created.
    pub(crate) removed: BTreeMap<NetworkName, i64>,
}

/// A network in the store.
#[derive(Debug, Clone)]
pub(crate) struct Usable {
    pub(crate) config: NetworkConfig,
    /// Store revision at which it was created.
    pub(crate) created: i64,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Create it in Docker: it is in the store.
    Create(NetworkName),
    /// Create it in the store: it is in Docker, where somebody created it.
    Publish(ShownNetwork, NetworkName),
    /// Record that Docker's network is this one of the store, created there at this revision.
    Bind(ShownNetwork, NetworkName, i64),
    /// Remove it from Docker, for this reason.
    Remove(ShownNetwork, &'static str),
    /// Tell that it cannot be shown, for this reason.
    Tell(String, &'static str),
}

const GONE: &str = "somebody removed it";
const ANOTHER: &str = "another host created a network of this name with other addresses";
const FOREIGN: &str =
    "Docker has a network of this name with another driver; remove or rename one of the two";
const NO_NAME: &str = "its name cannot be a network's in the store";
const LOST: &str = "the store no longer has it, though nobody removed it there; restore the store, or remove the network from \
                    each Docker";
const CHANGED: &str = "it has other addresses in the store, and Docker cannot follow; remove it from Docker";
const UNUSABLE: &str = "its config in the store cannot be used; flanctl network ls says why";

/// Returns what to do so that Docker shows what is in the store. Only what somebody removed is removed from Docker.
pub(crate) fn steps(store: &InStore, docker: &[ShownNetwork], records: &Records) -> Vec<Step> {
    let (mut steps, mut shown) = (Vec::new(), BTreeSet::new());
    for network in docker.iter().filter(|network| network.driver == DRIVER) {
        let record = records.networks.get(&network.id);
        let named = network.tied.clone().or_else(|| network.name.parse().ok());
        let Some(name) = record.and_then(|record| record.name.clone()).or(named) else {
            steps.push(Step::Remove(network.clone(), NO_NAME));
            continue;
        };
        steps.extend(step(store, network, &name, record));
        // An alias stands beside the network itself.
        if network.name == name.as_str() {
            shown.insert(name);
        }
    }
    for (name, usable) in &store.usable {
        if shown.contains(name) || usable.config.labels.get(SHOWN_LABEL).is_some_and(|value| value == "false")
        {
            continue;
        }
        // Docker would make a second one of the name.
        match docker.iter().find(|other| other.name == name.as_str()) {
            None => steps.push(Step::Create(name.clone())),
            Some(other) if other.driver != DRIVER => steps.push(Step::Tell(name.to_string(), FOREIGN)),
            // It is to be removed first.
            Some(_) => {}
        }
    }
    // A container may wait for a network that is not in the store yet.
    steps.sort_by_key(|step| !matches!(step, Step::Publish(..)));
    steps
}

/// Returns what to do about one network of Docker with this driver.
fn step(
    store: &InStore,
    network: &ShownNetwork,
    name: &NetworkName,
    record: Option<&NetworkRecord>,
) -> Option<Step> {
    let known = record.filter(|record| record.name.is_some());
    let removed = store.removed.get(name);
    let Some(usable) = store.usable.get(name) else {
        return Some(match known {
            _ if store.unusable.contains(name) => Step::Tell(network.name.clone(), UNUSABLE),
            // The records of it are lost: whoever creates a network is recorded first.
            None if record.is_none() && removed.is_some() => Step::Remove(network.clone(), GONE),
            None if network.tied.is_none() => Step::Publish(network.clone(), name.clone()),
            None if removed.is_some() => Step::Remove(network.clone(), GONE),
            Some(known) if removed == Some(&known.created) => Step::Remove(network.clone(), GONE),
            _ => Step::Tell(network.name.clone(), LOST),
        });
    };
    if is_same(&usable.config, record.map_or(&network.subnets, |record| &record.subnets)) {
        let is_bound = known.is_some_and(|known| known.created == usable.created && known.shown);
        return (!is_bound).then(|| Step::Bind(network.clone(), name.clone(), usable.created));
    }
    Some(match known {
        Some(known) if removed == Some(&known.created) => Step::Remove(network.clone(), GONE),
        Some(_) => Step::Tell(network.name.clone(), CHANGED),
        None => Step::Remove(network.clone(), ANOTHER),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Asked;

    fn name(text: &str) -> NetworkName {
        text.parse().unwrap()
    }

    fn usable(created: i64, subnet: &str) -> Usable {
        let json = format!(r#"{{"Network":"{subnet}","Backend":{{"Type":"vxlan","VNI":7}}}}"#);
        Usable { config: NetworkConfig::parse(json.as_bytes()).unwrap(), created }
    }

    fn store(networks: &[(&str, i64, &str)]) -> InStore {
        let usable = networks.iter().map(|(of, created, subnet)| (name(of), usable(*created, subnet)));
        InStore { usable: usable.collect(), ..InStore::default() }
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
        let record = |(id, of, subnet, created): &(&str, Option<&str>, &str, i64)| {
            let network = NetworkRecord {
                name: of.map(name),
                subnets: vec![subnet.parse().unwrap()],
                asked: Asked::default(),
                created: *created,
                shown: true,
                is_alias: false,
            };
            ((*id).to_owned(), network)
        };
        Records { networks: networks.iter().map(record).collect(), ..Records::default() }
    }

    const BLUE: &str = "10.7.0.0/16";
    const OTHER: &str = "10.8.0.0/16";

    #[test]
    fn what_is_in_the_store_is_created_unless_the_name_is_taken_or_it_is_not_to_be_shown() {
        let mut stored = store(&[("blue", 3, BLUE)]);
        assert_eq!(steps(&stored, &[], &Records::default()), [Step::Create(name("blue"))]);
        let bridge = ShownNetwork { driver: "bridge".to_owned(), ..shown("n0", "blue", OTHER) };
        assert_eq!(steps(&stored, &[bridge], &Records::default()), [Step::Tell("blue".to_owned(), FOREIGN)]);
        let label = (SHOWN_LABEL.to_owned(), "false".to_owned());
        stored.usable.get_mut(&name("blue")).unwrap().config.labels = [label].into();
        assert_eq!(steps(&stored, &[], &Records::default()), []);
    }

    #[test]
    fn what_somebody_created_in_docker_is_created_in_the_store_first_and_bound() {
        let blue = shown("n1", "blue", BLUE);
        let pending = records(&[("n1", None, BLUE, 0)]);
        let other = store(&[("azure", 2, OTHER)]);
        let docker = [blue.clone()];
        assert_eq!(
            steps(&other, &docker, &pending),
            [Step::Publish(blue.clone(), name("blue")), Step::Create(name("azure"))]
        );
        let stored = store(&[("blue", 4, BLUE)]);
        assert_eq!(steps(&stored, &docker, &pending), [Step::Bind(blue, name("blue"), 4)]);
        assert_eq!(steps(&stored, &docker, &records(&[("n1", Some("blue"), BLUE, 4)])), []);
    }

    #[test]
    fn of_two_that_were_created_at_once_the_one_in_the_store_stays() {
        let ours = shown("n1", "blue", BLUE);
        let pending = records(&[("n1", None, BLUE, 0)]);
        assert_eq!(
            steps(&store(&[("blue", 4, OTHER)]), std::slice::from_ref(&ours), &pending),
            [Step::Remove(ours, ANOTHER)],
            "once that is done, the other is created"
        );
    }

    #[test]
    fn only_what_somebody_removed_goes() {
        let blue = shown("n1", "blue", BLUE);
        let docker = [blue.clone()];
        let known = records(&[("n1", Some("blue"), BLUE, 4)]);
        let lost = [Step::Tell("blue".to_owned(), LOST)];
        assert_eq!(steps(&store(&[]), &docker, &known), lost, "the store was emptied");
        let removed = |created| InStore { removed: [(name("blue"), created)].into(), ..store(&[]) };
        assert_eq!(steps(&removed(4), &docker, &known), [Step::Remove(blue, GONE)]);
        assert_eq!(steps(&removed(3), &docker, &known), lost, "an earlier one of its name was removed");
    }

    #[test]
    fn one_that_was_removed_and_created_again_is_the_new_one() {
        let blue = shown("n1", "blue", BLUE);
        let docker = [blue.clone()];
        let known = records(&[("n1", Some("blue"), BLUE, 4)]);
        let again = store(&[("blue", 9, BLUE)]);
        assert_eq!(steps(&again, &docker, &known), [Step::Bind(blue.clone(), name("blue"), 9)]);
        let mut elsewhere = store(&[("blue", 9, OTHER)]);
        let told = [Step::Tell("blue".to_owned(), CHANGED)];
        assert_eq!(steps(&elsewhere, &docker, &known), told, "nobody removed the old one");
        elsewhere.removed.insert(name("blue"), 4);
        assert_eq!(steps(&elsewhere, &docker, &known), [Step::Remove(blue, GONE)]);
    }

    #[test]
    fn one_whose_config_was_changed_or_cannot_be_read_stays_as_it_is() {
        let known = records(&[("n1", Some("blue"), BLUE, 4)]);
        let docker = [shown("n1", "blue", BLUE)];
        let unusable = InStore { unusable: [name("blue")].into(), ..store(&[]) };
        let told = [Step::Tell("blue".to_owned(), UNUSABLE)];
        assert_eq!(steps(&unusable, &docker, &known), told);
        let changed = steps(&store(&[("blue", 4, OTHER)]), &docker, &known);
        assert_eq!(changed, [Step::Tell("blue".to_owned(), CHANGED)]);
    }

    #[test]
    fn one_that_the_records_lost_goes_if_somebody_removed_it_and_is_published_otherwise() {
        let blue = shown("n1", "blue", BLUE);
        let removed = InStore { removed: [(name("blue"), 4)].into(), ..store(&[]) };
        let (docker, none) = ([blue.clone()], Records::default());
        assert_eq!(steps(&removed, &docker, &none), [Step::Remove(blue.clone(), GONE)]);
        assert_eq!(steps(&store(&[]), &docker, &none), [Step::Publish(blue.clone(), name("blue"))]);
        // Created anew after somebody removed another of its name.
        let pending = records(&[("n1", None, BLUE, 0)]);
        assert_eq!(steps(&removed, &docker, &pending), [Step::Publish(blue, name("blue"))]);
    }

    #[test]
    fn one_that_the_records_lost_is_known_by_what_it_was_tied_to() {
        let tied = ShownNetwork { tied: Some(name("blue")), ..shown("n1", "azure", BLUE) };
        let docker = [tied.clone()];
        let none = Records::default();
        let stored = store(&[("blue", 4, BLUE)]);
        assert_eq!(
            steps(&stored, &docker, &none),
            [Step::Bind(tied.clone(), name("blue"), 4), Step::Create(name("blue"))],
            "it is an alias"
        );
        let removed = InStore { removed: [(name("blue"), 4)].into(), ..store(&[]) };
        assert_eq!(steps(&removed, &docker, &none), [Step::Remove(tied, GONE)]);
        assert_eq!(steps(&store(&[]), &docker, &none), [Step::Tell("azure".to_owned(), LOST)]);
    }
}
