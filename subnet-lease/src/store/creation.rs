//! Creates a network beside those that are there.

use super::client::Store;
use super::error::StoreError;
use super::networks::Networks;
use crate::config::NetworkConfig;
use crate::config_error::ConfigError;
use crate::network_name::NetworkName;
use crate::new_network::{CannotCreate, Known, NewNetwork};

/// Why a network was not created.
#[derive(Debug, thiserror::Error)]
pub enum NotCreated {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are too many keys to look at all networks.
    #[error("there are too many keys below {0} to look at all networks")]
    TooMany(String),
    /// The name is taken.
    #[error("there is a network {0} already")]
    Exists(NetworkName),
    /// It cannot work, or not beside the others.
    #[error(transparent)]
    Refused(#[from] CannotCreate),
    /// Others were faster each time.
    #[error("others created and removed networks all the time; nothing was written, try again")]
    Contended,
}

/// The networks that a new one is compared with.
#[derive(Debug, Default)]
pub struct KnownNetworks {
    /// Those with a config that can be read.
    pub all: Vec<Known>,
    /// Others, with the reason; the default network has no name.
    pub unusable: Vec<(Option<NetworkName>, ConfigError)>,
}

/// How often to try while others create and remove networks.
const TRIES: usize = 5;

impl Store {
    /// Creates a network, in a transaction that fails if any network came or went since the others were read. Hands the
    /// networks that it is not compared with to `warn`.
    ///
    /// # Errors
    /// [`NotCreated`].
    pub async fn create(
        &self,
        name: &NetworkName,
        asked: &NewNetwork,
        mut warn: impl FnMut(Option<&NetworkName>, &ConfigError),
    ) -> Result<NetworkConfig, NotCreated> {
        for _ in 0..TRIES {
            let (seen, known) = self.known().await?;
            if seen.all.iter().any(|network| network.name == *name) {
                return Err(NotCreated::Exists(name.clone()));
            }
            known.unusable.iter().for_each(|(name, error)| warn(name.as_ref(), error));
            let (json, meant) = asked.config(&known.all)?;
            if self.create_network(name, json.as_bytes(), &seen).await? {
                return Ok(meant);
            }
        }
        Err(NotCreated::Contended)
    }

    /// Returns all networks that a new one is compared with, and the default network among them.
    ///
    /// # Errors
    /// [`NotCreated::Store`] and [`NotCreated::TooMany`].
    pub async fn known(&self) -> Result<(Networks, KnownNetworks), NotCreated> {
        let seen = self.networks().await?;
        if seen.is_cut {
            return Err(NotCreated::TooMany(self.prefix().to_owned()));
        }
        let default = self.config().await?.map(|stored| (None, stored.json));
        let named = seen.all.iter().map(|network| (Some(network.name.clone()), network.config.json.clone()));
        let mut known = KnownNetworks::default();
        for (name, json) in default.into_iter().chain(named) {
            match NetworkConfig::parse(&json) {
                Ok(config) => known.all.push((name, config)),
                Err(error) => known.unusable.push((name, error)),
            }
        }
        Ok((seen, known))
    }
}
