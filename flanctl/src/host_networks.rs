//! What a network config means to the host on which it is written.

use flan_backends::{HostNetworks, collisions};
use flan_subnet_lease::NetworkConfig;

/// Warns of networks of this host that the config's network meets. A host that does not tell of its networks is not one
/// to warn of: the config may be written anywhere.
pub(crate) async fn warn_of_collisions(config: &NetworkConfig) {
    let Ok(networks) = HostNetworks::read().await else { return };
    for text in collisions(config, &networks) {
        eprintln!("flanctl: warning: {text}");
    }
}
