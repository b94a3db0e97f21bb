//! What the store says of networks.

use flan_subnet_lease::{Known, NetworkConfig, NetworkName, Networks, Store, StoredConfig};

use crate::failure::{Failure, Kind};

/// What the default network is called where names are listed.
pub(crate) const DEFAULT: &str = "(default)";

/// Returns the config of a network, whose store this is.
pub(crate) async fn find(store: &Store, name: &NetworkName) -> Result<StoredConfig, Failure> {
    store.config().await?.ok_or_else(|| {
        let message =
            format!("there is no network {name} at {}; flanctl network ls lists all", store.prefix());
        Failure::new(Kind::NotFound, message)
    })
}

/// Returns all networks with configs that can be read. Warns of others: a new network is not compared with them.
pub(crate) async fn known(store: &Store, seen: &Networks) -> Result<Vec<Known>, Failure> {
    let default = store.config().await?.map(|stored| (None, stored.json));
    let named = seen.all.iter().map(|network| (Some(network.name.clone()), network.config.json.clone()));
    let mut known = Vec::new();
    for (name, json) in default.into_iter().chain(named) {
        match NetworkConfig::parse(&json) {
            Ok(config) => known.push((name, config)),
            Err(error) => {
                let name = name.as_ref().map_or(DEFAULT, NetworkName::as_str);
                eprintln!("flanctl: warning: network {name} has a config that cannot be used: {error}");
            }
        }
    }
    Ok(known)
}
