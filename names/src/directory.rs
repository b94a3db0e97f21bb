//! The names of containers, and who may look up which. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use flan_subnet_lease::{Container, NetworkName};
use ipnetwork::IpNetwork;

/// Names below this are ours, and nobody else's: `<container>.<network>.flan.internal`, and in the default network
/// `<container>.flan.internal`.
pub const DOMAIN: &str = "flan.internal";

/// Most addresses in one answer.
const MOST_ADDRESSES: usize = 256;

/// A network; `None` for the default one.
pub type Network = Option<NetworkName>;

/// The names of all networks that this host is in.
#[derive(Debug, Default)]
pub struct Directory {
    /// The key of this host among the living ones.
    host: String,
    /// `None` until the store has told of them.
    living: Option<HashSet<String>>,
    networks: BTreeMap<Network, Names>,
    /// Where other containers of this host are, whose questions are not about our names.
    others: Vec<IpNetwork>,
}

/// The names of one network.
#[derive(Debug, Default)]
pub struct Names {
    place: Place,
    /// Whether the store has told of all.
    is_complete: bool,
    by_endpoint: HashMap<String, Arc<Container>>,
    /// In small letters.
    by_name: HashMap<Box<str>, Vec<Arc<Container>>>,
    /// Several, if some are left of a host that had the address before.
    by_address: HashMap<IpAddr, Vec<Arc<Container>>>,
}

/// Where the addresses of a network are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Those of the whole network.
    pub whole: Vec<IpNetwork>,
    /// Those of this host's containers.
    pub own: Vec<IpNetwork>,
}

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The IPv4 addresses of a name.
    V4,
    /// The IPv6 addresses of a name.
    V6,
    /// The name of an address.
    NameOf(IpAddr),
    /// Anything else.
    Other,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// This name, without the last dot.
    Name(String),
    /// The name exists, but has nothing of what was asked for.
    Nothing,
    /// There is no such name.
    NoSuchName,
    /// The store has not told yet.
    NotKnownYet,
    /// Somebody else has to answer.
    NotOurs,
    /// Who asks is none of this host's containers.
    Refused,
}

impl Directory {
    /// Creates an empty directory on the host with this key among the living ones.
    pub fn new(host: String) -> Self {
        Self { host, ..Self::default() }
    }

    /// Adds a network, or moves it to other addresses.
    pub fn network_is(&mut self, network: Network, place: Place) {
        let names = self.networks.entry(network).or_default();
        // What was outside was not kept.
        names.is_complete &= names.place.whole == place.whole;
        names.place = place;
    }

    /// Removes a network with all of its names.
    pub fn network_is_left(&mut self, network: &Network) {
        self.networks.remove(network);
    }

    /// Replaces the hosts that are alive.
    pub fn living_are(&mut self, living: HashSet<String>) {
        self.living = Some(living);
    }

    /// Replaces the addresses of this host's other containers.
    pub fn others_are(&mut self, others: Vec<IpNetwork>) {
        self.others = others;
    }

    /// Replaces all containers of a network. Returns what was there before, which may take long to drop.
    pub fn names_are(&mut self, network: &Network, names: Names) -> Option<Names> {
        Some(std::mem::replace(self.networks.get_mut(network)?, names))
    }

    /// Adds or replaces a container of a network.
    pub fn container_is(&mut self, network: &Network, container: Arc<Container>) {
        if let Some(names) = self.networks.get_mut(network) {
            names.put(container);
        }
    }

    /// Removes a container of a network.
    pub fn container_is_gone(&mut self, network: &Network, endpoint: &str) {
        if let Some(names) = self.networks.get_mut(network) {
            names.remove(endpoint);
        }
    }

    /// Returns how many containers have names, on hosts that are alive or not.
    pub fn len(&self) -> usize {
        self.networks.values().map(|names| names.by_endpoint.len()).sum()
    }

    /// Returns whether no container has a name.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether this client is one of this host's containers.
    pub fn serves(&self, client: IpAddr) -> bool {
        let own = self.networks.values().flat_map(|names| &names.place.own);
        own.chain(&self.others).any(|network| network.contains(client))
    }

    /// Answers a question about a name, which is in small letters and without a last dot.
    pub fn answer(&self, client: IpAddr, name: &str, question: Question) -> Answer {
        if !self.serves(client) {
            return Answer::Refused;
        }
        let networks = self.networks_of(client);
        let is_known = self.living.is_some() && networks.iter().all(|(_, names)| names.is_complete);
        let answer = match question {
            Question::NameOf(address) => self.name_of(&networks, address),
            question => self.addresses_of(&networks, name, question),
        };
        match answer {
            Answer::NoSuchName if !is_known => Answer::NotKnownYet,
            // It may be a container's.
            Answer::NotOurs if !is_known && may_be_ours(&networks, name) => Answer::NotKnownYet,
            answer => answer,
        }
    }

    fn addresses_of(&self, networks: &[(&Network, &Names)], name: &str, question: Question) -> Answer {
        let below = below_domain(name);
        let mut exists = below == Some("");
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (network, names) in networks {
            for key in keys(network, below, name).into_iter().flatten() {
                let of_name = names.by_name.get(key).map_or(&[][..], Vec::as_slice);
                // Of very many, others each time.
                let start =
                    if of_name.len() > MOST_ADDRESSES { rand::random_range(0..of_name.len()) } else { 0 };
                let (before, from) = of_name.split_at(start);
                for container in from.iter().chain(before).filter(|container| self.is_alive(container)) {
                    exists = true;
                    addresses.extend(container.addresses.iter().filter(|address| match question {
                        Question::V4 => address.is_ipv4(),
                        Question::V6 => address.is_ipv6(),
                        Question::NameOf(_) | Question::Other => false,
                    }));
                    if addresses.len() >= MOST_ADDRESSES || question == Question::Other {
                        break;
                    }
                }
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        match (addresses.is_empty(), exists, below) {
            (false, ..) => Answer::Addresses(addresses),
            (true, true, _) => Answer::Nothing,
            (true, false, Some(_)) => Answer::NoSuchName,
            (true, false, None) => Answer::NotOurs,
        }
    }

    fn name_of(&self, networks: &[(&Network, &Names)], address: IpAddr) -> Answer {
        let of_address = networks.iter().find(|(_, names)| names.place.contains(address));
        let Some((network, names)) = of_address else { return Answer::NotOurs };
        let mut holders = names.by_address.get(&address).into_iter().flatten();
        let container = holders.find(|container| self.is_alive(container));
        match (container.and_then(|container| container.names().next()), network) {
            (Some(name), None) => Answer::Name(format!("{name}.{DOMAIN}")),
            (Some(name), Some(network)) => Answer::Name(format!("{name}.{network}.{DOMAIN}")),
            (None, _) => Answer::NoSuchName,
        }
    }

    /// Returns the networks of the container with this address: the one that has the address, and others in which this
    /// host has a container of the same name.
    fn networks_of(&self, client: IpAddr) -> Vec<(&Network, &Names)> {
        let is_from =
            |(_, names): &(&Network, &Names)| names.place.own.iter().any(|own| own.contains(client));
        let Some(first) = self.networks.iter().find(is_from) else { return Vec::new() };
        let mut found = vec![first];
        let mut holders = first.1.by_address.get(&client).into_iter().flatten();
        if let Some(container) = holders.find(|container| self.is_own(container)) {
            let name = container.name.to_ascii_lowercase();
            let others = self.networks.iter().filter(|(network, _)| *network != first.0);
            found.extend(others.filter(|(_, names)| {
                let of_name = names.by_name.get(name.as_str()).into_iter().flatten();
                of_name.into_iter().any(|other| other.name == container.name && self.is_own(other))
            }));
        }
        found
    }

    fn is_own(&self, container: &Container) -> bool {
        container.host_key() == Some(&self.host)
    }

    fn is_alive(&self, container: &Container) -> bool {
        let is_living = |host| self.living.as_ref().is_some_and(|living| living.contains(host));
        self.is_own(container) || container.host_key().is_some_and(is_living)
    }
}

/// Returns what of a name stands before our domain; `None` outside of it.
fn below_domain(name: &str) -> Option<&str> {
    let rest = name.strip_suffix(DOMAIN)?;
    rest.strip_suffix('.').or(rest.is_empty().then_some(""))
}

/// Returns the containers' names in a network that a name may mean. `below` is what of it stands before our domain.
fn keys<'a>(network: &Network, below: Option<&'a str>, name: &'a str) -> [Option<&'a str>; 2] {
    let rest = below.unwrap_or(name);
    // In our domain, a name without a network is one of the default network.
    let whole = (below.is_none() || network.is_none()).then_some(rest);
    [whole, network.as_ref().and_then(|network| before_network(rest, network))]
}

/// Returns what of a name stands before that of the network.
fn before_network<'a>(name: &'a str, network: &NetworkName) -> Option<&'a str> {
    let at = name.len().checked_sub(network.as_str().len())?;
    let (before, last) = (name.get(..at)?, name.get(at..)?);
    last.eq_ignore_ascii_case(network.as_str()).then(|| before.strip_suffix('.')).flatten()
}

/// Returns whether a name may be that of a container of these networks, as people shorten it.
fn may_be_ours(networks: &[(&Network, &Names)], name: &str) -> bool {
    let of_network = |network: &NetworkName| before_network(name, network).is_some();
    !networks.is_empty()
        && (!name.contains('.')
            || networks.iter().any(|(network, _)| network.as_ref().is_some_and(of_network)))
}

impl Place {
    fn contains(&self, address: IpAddr) -> bool {
        self.whole.iter().any(|network| network.contains(address))
    }
}

impl Names {
    /// Creates the names of these containers, which are all.
    pub fn of(place: Place, containers: impl IntoIterator<Item = Arc<Container>>) -> Self {
        let mut names = Self { place, is_complete: true, ..Self::default() };
        containers.into_iter().for_each(|container| names.put(container));
        names
    }

    fn put(&mut self, container: Arc<Container>) {
        self.remove(&container.endpoint);
        let mut container = container;
        if !container.addresses.iter().all(|address| self.place.contains(*address)) {
            let place = &self.place;
            Arc::make_mut(&mut container).addresses.retain(|address| place.contains(*address));
        }
        // One that does not run has no address.
        if container.addresses.is_empty() {
            return;
        }
        for name in container.names() {
            let known = self.by_name.entry(name.to_ascii_lowercase().into()).or_default();
            // It may have a name twice.
            if known.last().is_none_or(|last| last.endpoint != container.endpoint) {
                known.push(container.clone());
            }
        }
        for address in &container.addresses {
            self.by_address.entry(*address).or_default().push(container.clone());
        }
        self.by_endpoint.insert(container.endpoint.clone(), container);
    }

    fn remove(&mut self, endpoint: &str) {
        let Some(container) = self.by_endpoint.remove(endpoint) else { return };
        for name in container.names() {
            let name = name.to_ascii_lowercase();
            if let Some(known) = self.by_name.get_mut(name.as_str()) {
                known.retain(|other| other.endpoint != endpoint);
                if known.is_empty() {
                    self.by_name.remove(name.as_str());
                }
            }
        }
        for address in &container.addresses {
            if let Some(holders) = self.by_address.get_mut(address) {
                holders.retain(|other| other.endpoint != endpoint);
                if holders.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = "10.7.1.2";
    const OTHER: &str = "10.7.2.2";

    fn container(endpoint: &str, name: &str, host: &str, addresses: &[&str]) -> Arc<Container> {
        Arc::new(Container {
            endpoint: endpoint.to_owned(),
            name: name.to_owned(),
            aliases: vec!["Db".to_owned()],
            host: None,
            node_id: Some(host.to_owned()),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        })
    }

    fn place(whole: &[&str], own: &[&str]) -> Place {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Place { whole: all(whole), own: all(own) }
    }

    /// Host h1 with the default network, blue and green; h2 is alive, h3 is not.
    fn directory() -> Directory {
        let mut directory = Directory::new("h1".to_owned());
        let (blue, green) = (Some("blue".parse().unwrap()), Some("green".parse().unwrap()));
        directory.network_is(None, place(&["10.5.0.0/16"], &["10.5.1.0/24"]));
        directory.network_is(
            blue.clone(),
            place(&["10.7.0.0/16", "fd07::/48"], &["10.7.1.0/24", "fd07:0:0:1::/64"]),
        );
        directory.network_is(green.clone(), place(&["10.8.0.0/16"], &["10.8.1.0/24"]));
        directory.living_are(["h2".to_owned()].into());
        directory.others_are(vec!["172.17.0.0/16".parse().unwrap()]);
        let names = |directory: &Directory, network: &Network, containers: Vec<Arc<Container>>| {
            Names::of(directory.networks[network].place.clone(), containers)
        };
        let of_blue = names(
            &directory,
            &blue,
            vec![
                container("e1", "web", "h1", &[ONE, "fd07:0:0:1::2"]),
                container("e2", "store.1", "h2", &[OTHER]),
                container("e3", "gone", "h3", &["10.7.3.2"]),
                container("e4", "liar", "h2", &["192.168.64.1", "10.5.1.9"]),
            ],
        );
        let of_green = names(&directory, &green, vec![container("e5", "web", "h1", &["10.8.1.2"])]);
        let of_default = names(&directory, &None, vec![container("e6", "old", "h2", &["10.5.2.2"])]);
        for (network, names) in [(blue, of_blue), (green, of_green), (None, of_default)] {
            directory.names_are(&network, names);
        }
        directory
    }

    fn ask(directory: &Directory, client: &str, name: &str) -> Answer {
        directory.answer(client.parse().unwrap(), name, Question::V4)
    }

    fn addresses(texts: &[&str]) -> Answer {
        Answer::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_container_finds_those_of_its_networks_by_each_of_their_names() {
        let directory = directory();
        for name in ["store.1", "store.1.blue", "store.1.blue.flan.internal"] {
            assert_eq!(ask(&directory, ONE, name), addresses(&[OTHER]), "{name}");
        }
        // It is in two networks, and an alias means all that have it there.
        assert_eq!(ask(&directory, ONE, "db"), addresses(&[ONE, OTHER, "10.8.1.2"]));
        assert_eq!(ask(&directory, ONE, "db.green"), addresses(&["10.8.1.2"]));
        assert_eq!(ask(&directory, "10.5.1.7", "old"), addresses(&["10.5.2.2"]));
        assert_eq!(ask(&directory, "10.5.1.7", "old.flan.internal"), addresses(&["10.5.2.2"]));
    }

    #[test]
    fn a_container_finds_nobody_of_other_networks_and_none_of_a_dead_host() {
        let directory = directory();
        for (name, answer) in [
            ("old", Answer::NotOurs),
            ("old.flan.internal", Answer::NoSuchName),
            ("web.red.flan.internal", Answer::NoSuchName),
            ("gone", Answer::NotOurs),
            ("gone.blue.flan.internal", Answer::NoSuchName),
            ("liar", Answer::NotOurs),
            ("debian.org", Answer::NotOurs),
            ("flan.internal", Answer::Nothing),
            ("notflan.internal", Answer::NotOurs),
            ("", Answer::NotOurs),
        ] {
            assert_eq!(ask(&directory, ONE, name), answer, "{name}");
        }
        // One of another bridge of Docker asks others, a peer's container asks its own host.
        assert_eq!(ask(&directory, "172.17.0.2", "web"), Answer::NotOurs);
        assert_eq!(ask(&directory, "172.17.0.2", "web.blue.flan.internal"), Answer::NoSuchName);
        assert_eq!(ask(&directory, OTHER, "web"), Answer::Refused);
    }

    #[test]
    fn a_name_without_the_family_has_nothing_and_addresses_have_names() {
        let directory = directory();
        let ask = |name: &str, question| directory.answer(ONE.parse().unwrap(), name, question);
        assert_eq!(ask("web.blue", Question::V6), addresses(&["fd07:0:0:1::2"]));
        assert_eq!(ask("store.1", Question::V6), Answer::Nothing);
        assert_eq!(ask("store.1", Question::Other), Answer::Nothing);
        let name_of = |address: &str| ask("", Question::NameOf(address.parse().unwrap()));
        assert_eq!(name_of(OTHER), Answer::Name("store.1.blue.flan.internal".to_owned()));
        assert_eq!(name_of("10.7.3.2"), Answer::NoSuchName);
        assert_eq!(name_of("10.7.9.9"), Answer::NoSuchName);
        assert_eq!(name_of("10.5.2.2"), Answer::NotOurs, "another network's");
        assert_eq!(name_of("192.0.2.1"), Answer::NotOurs);
    }

    #[test]
    fn what_is_gone_or_left_has_no_name() {
        let (mut directory, blue) = (directory(), Some("blue".parse().unwrap()));
        directory.container_is(&blue, container("e2", "renamed", "h2", &[OTHER]));
        assert_eq!(ask(&directory, ONE, "store.1"), Answer::NotOurs);
        assert_eq!(ask(&directory, ONE, "renamed"), addresses(&[OTHER]));
        // One that has stopped has no address any more.
        directory.container_is(&blue, container("e2", "renamed", "h2", &[]));
        assert_eq!(ask(&directory, ONE, "renamed"), Answer::NotOurs);
        directory.container_is_gone(&blue, "e1");
        assert_eq!(ask(&directory, "10.7.1.3", "web"), Answer::NotOurs);
        directory.network_is_left(&blue);
        assert_eq!(ask(&directory, ONE, "web"), Answer::Refused);
        assert_eq!(directory.len(), 2);
    }

    #[test]
    fn before_the_store_has_told_nothing_is_denied() {
        let mut directory = Directory::new("h1".to_owned());
        let blue = Some("blue".parse().unwrap());
        let of_blue = place(&["10.7.0.0/16"], &["10.7.1.0/24"]);
        directory.network_is(blue.clone(), of_blue.clone());
        directory.living_are(HashSet::new());
        for name in ["web", "web.Blue", "web.blue.flan.internal", "web.flan.internal"] {
            assert_eq!(ask(&directory, ONE, name), Answer::NotKnownYet, "{name}");
        }
        assert_eq!(ask(&directory, ONE, "debian.org"), Answer::NotOurs);
        directory.names_are(&blue, Names::of(of_blue, []));
        assert_eq!(ask(&directory, ONE, "web"), Answer::NotOurs);
        assert_eq!(ask(&directory, ONE, "web.blue.flan.internal"), Answer::NoSuchName);
        // What is outside of a network is not kept, so a larger one is not known.
        directory.network_is(blue, place(&["10.6.0.0/15"], &["10.7.1.0/24"]));
        assert_eq!(ask(&directory, ONE, "web.blue.flan.internal"), Answer::NotKnownYet);
    }

    #[test]
    fn of_very_many_with_one_name_some_are_told() {
        let mut directory = Directory::new("h1".to_owned());
        let all = place(&["10.0.0.0/8"], &["10.0.0.0/24"]);
        directory.network_is(None, all.clone());
        directory.living_are(HashSet::new());
        let one = |number: u32| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
            container(&number.to_string(), "same", "h1", &[&address])
        };
        directory.names_are(&None, Names::of(all, (1..5000).map(one)));
        let Answer::Addresses(told) = ask(&directory, "10.0.0.9", "same") else { panic!("they are known") };
        assert_eq!(told.len(), MOST_ADDRESSES);
    }

    proptest! {
        #[test]
        fn after_any_changes_there_is_what_was_put_last(
            changes in proptest::collection::vec((0..6usize, "[a-cA-C]", proptest::option::of(1..5u8)), 0..40),
        ) {
            let blue = Some("blue".parse().unwrap());
            let mut directory = Directory::new("h1".to_owned());
            let of_blue = place(&["10.7.0.0/16"], &["10.7.1.0/24"]);
            directory.network_is(blue.clone(), of_blue.clone());
            directory.names_are(&blue, Names::of(of_blue, []));
            directory.living_are(HashSet::new());
            let mut whole: BTreeMap<usize, (String, u8)> = BTreeMap::new();
            for (endpoint, name, last) in changes {
                match last {
                    Some(last) => {
                        let address = format!("10.7.1.{last}");
                        directory.container_is(&blue, container(&endpoint.to_string(), &name, "h1", &[&address]));
                        whole.insert(endpoint, (name.to_ascii_lowercase(), last));
                    }
                    None => {
                        directory.container_is_gone(&blue, &endpoint.to_string());
                        whole.remove(&endpoint);
                    }
                }
                for name in ["a", "b", "c"] {
                    let mut expected: Vec<u8> =
                        whole.values().filter(|(other, _)| other == name).map(|(_, last)| *last).collect();
                    expected.sort_unstable();
                    expected.dedup();
                    let texts: Vec<String> = expected.iter().map(|last| format!("10.7.1.{last}")).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let answer = if texts.is_empty() { Answer::NotOurs } else { addresses(&texts) };
                    prop_assert_eq!(ask(&directory, "10.7.1.200", name), answer);
                }
            }
        }
    }
}
