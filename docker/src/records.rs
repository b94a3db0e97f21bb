//! What a restarted agent must know: dockerd does not tell its networks and endpoints again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use flan_agent_api::write_whole;
use flan_subnet_lease::NetworkName;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::options::Asked;

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Records {
    /// Networks by Docker's id.
    pub(crate) networks: BTreeMap<String, NetworkRecord>,
    /// Containers' ends by Docker's id.
    pub(crate) endpoints: BTreeMap<String, EndpointRecord>,
    /// The networks of the store that this host has joined for containers.
    pub(crate) attached: BTreeSet<NetworkName>,
    /// Addresses in use, and the one given last, by the network's addresses.
    pub(crate) addresses: BTreeMap<IpNetwork, Given>,
}

/// A network of Docker with this driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    /// Its name in the store, once it is there.
    pub(crate) name: Option<NetworkName>,
    /// Its addresses, one network for each family.
    pub(crate) subnets: Vec<IpNetwork>,
    /// What was asked for when it was created.
    pub(crate) asked: Asked,
    /// Store revision at which it was created there.
    #[serde(default)]
    pub(crate) created: i64,
    /// Whether Docker has shown it. Before that, its removal may be the end of an attempt to create it.
    #[serde(default)]
    pub(crate) shown: bool,
    /// Whether Docker shows it by another name, which somebody gave it with `-o flan.network`.
    #[serde(default)]
    pub(crate) is_alias: bool,
}

/// A container's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointRecord {
    /// Docker's id of the network.
    pub(crate) network: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// The container's MAC.
    pub(crate) mac: Option<String>,
    /// The container's network namespace, if its way to the DNS server leads through this end.
    #[serde(default)]
    pub(crate) resolver_of: Option<String>,
}

/// The addresses of one network in use on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    pub(crate) taken: BTreeSet<IpAddr>,
    pub(crate) last: Option<IpAddr>,
}

/// Why the records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The file cannot be read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// Its content is not what we write.
    #[error("{0} holds no records of Docker's networks: {1}")]
    Content(PathBuf, #[source] serde_json::Error),
}

impl Records {
    /// Reads a file; `None` if it does not exist.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, RecordsError> {
        match std::fs::read(path) {
            Ok(json) => {
                serde_json::from_slice(&json).map_err(|reason| RecordsError::Content(path.to_owned(), reason))
            }
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(RecordsError::Io(path.to_owned(), reason)),
        }
    }

    /// The same, but renames a file that is not ours, so that the rest works. What it said is learnt from Docker.
    pub(crate) fn load_or_set_aside(path: &Path) -> Result<Option<Self>, RecordsError> {
        match Self::load(path) {
            Err(reason @ RecordsError::Content(..)) => {
                let aside = path.with_extension("json.unreadable");
                std::fs::rename(path, &aside).map_err(|reason| RecordsError::Io(path.to_owned(), reason))?;
                error!(%reason, aside = %aside.display(), "cannot read what was known of Docker's containers");
                Ok(None)
            }
            read => read,
        }
    }

    /// Writes the file and renames it into place.
    pub(crate) fn save(&self, path: &Path) -> Result<(), RecordsError> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|reason| RecordsError::Content(path.to_owned(), reason))?;
        write_whole(path, &json, 0o600).map_err(|reason| RecordsError::Io(path.to_owned(), reason))
    }

    /// Returns the network with these addresses.
    pub(crate) fn network_of_pool(&self, pool: &IpNetwork) -> Option<&NetworkRecord> {
        self.networks.values().find(|network| network.subnets.contains(pool))
    }

    /// Marks an address as free.
    pub(crate) fn take_back(&mut self, pool: &IpNetwork, address: IpAddr) {
        if let Some(given) = self.addresses.get_mut(pool) {
            given.taken.remove(&address);
        }
    }

    /// Returns the networks of which containers have addresses.
    pub(crate) fn needed(&self) -> BTreeSet<NetworkName> {
        let used = self.addresses.iter().filter(|(_, given)| !given.taken.is_empty());
        used.filter_map(|(pool, _)| self.network_of_pool(pool)?.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Records {
        let subnets = vec!["10.7.0.0/16".parse().unwrap(), "fd00:7::/48".parse().unwrap()];
        let network = NetworkRecord {
            name: Some("blue".parse().unwrap()),
            subnets: subnets.clone(),
            asked: Asked::default(),
            created: 7,
            shown: true,
            is_alias: false,
        };
        let address: IpAddr = "10.7.1.2".parse().unwrap();
        let endpoint = EndpointRecord {
            network: "n1".to_owned(),
            addresses: vec![address],
            mac: None,
            resolver_of: None,
        };
        Records {
            networks: [("n1".to_owned(), network)].into(),
            endpoints: [("e1".to_owned(), endpoint)].into(),
            attached: ["blue".parse().unwrap()].into(),
            addresses: [(subnets[0], Given { taken: [address].into(), last: Some(address) })].into(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/docker.json");
        assert_eq!(Records::load(&path).unwrap(), None);
        records().save(&path).unwrap();
        assert_eq!(Records::load(&path).unwrap(), Some(records()));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no other file is left");
        std::fs::write(&path, "{").unwrap();
        let error = Records::load(&path).unwrap_err().to_string();
        assert!(error.contains("docker.json holds no records"), "{error}");
        assert_eq!(Records::load_or_set_aside(&path).unwrap(), None);
        assert_eq!(std::fs::read_to_string(path.with_extension("json.unreadable")).unwrap(), "{");
    }

    #[test]
    fn a_network_is_needed_while_a_container_has_an_address() {
        let mut records = records();
        assert_eq!(records.needed(), ["blue".parse().unwrap()].into());
        records.addresses.values_mut().for_each(|given| given.taken.clear());
        assert!(records.needed().is_empty());
    }
}
