//! What the store says of networks.

use flan_subnet_lease::{ConfigError, NetworkName, Store, StoredConfig};

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

/// Warns of a network with a config that cannot be read: a new network is not compared with it.
pub(crate) fn warn_of(name: Option<&NetworkName>, error: &ConfigError) {
    let name = name.map_or(DEFAULT, NetworkName::as_str);
    eprintln!("flanctl: warning: network {name} has a config that cannot be used: {error}");
}
