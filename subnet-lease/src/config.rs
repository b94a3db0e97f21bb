//! The network config: what the hosts of one network agree on, valid by construction.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::backend_config::{BackendConfig, listed};
use crate::config_error::{ConfigError, ConfigWarning};
use crate::family::{Family, PerFamily};
use crate::fields::Fields;
use crate::key::Subnets;
use crate::subnet_pool::{SubnetPool, enabling_field};

/// The network config, stored as JSON at `<prefix>/config`.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The source of subnets in each family in use; at least one.
    pub pools: PerFamily<SubnetPool>,
    /// How packets reach a peer.
    pub backend: BackendConfig,
    /// What people and programs note about the network; flan does nothing with it.
    pub labels: BTreeMap<String, String>,
    /// What works, but perhaps not as the author expects.
    pub warnings: Vec<ConfigWarning>,
}

impl NetworkConfig {
    /// Most bytes of a network config; the longest sensible one has some 500.
    pub const MOST_BYTES: usize = 65_536;

    /// Reads and checks the JSON of a network config, as flannel does: field names are case-insensitive, and the last
    /// of repeated fields counts. Also reads backends that fland lacks; see [`NetworkConfig::supported`].
    ///
    /// # Errors
    /// A [`ConfigError`] with the first field that cannot work, its value, and what would work.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > Self::MOST_BYTES {
            return Err(ConfigError::TooLarge { bytes: json.len(), most: Self::MOST_BYTES });
        }
        if json.starts_with(&[0xff, 0xfe]) || json.starts_with(&[0xfe, 0xff]) {
            return Err(ConfigError::Utf16);
        }
        let text = without_byte_order_mark(json);
        let mut warnings = Vec::new();
        if text.len() < json.len() {
            warnings.push(ConfigWarning::ByteOrderMark);
        }
        let mut fields = Fields::read("", text).map_err(ConfigError::Syntax)?;
        let mut pools = PerFamily::default();
        for (family, enabled) in [(Family::V4, true), (Family::V6, false)] {
            if let Some(pool) = SubnetPool::parse(&mut fields, family, enabled)? {
                pools.set(family, pool);
            }
        }
        if pools.is_empty() {
            return Err(ConfigError::invalid(
                "EnableIPv4",
                "false",
                "leaves no family: set EnableIPv6 to true",
            ));
        }
        let _: Option<bool> = fields.take("EnableNFTables")?; // flan's rules are always nftables
        let labels = fields.take("Labels")?.unwrap_or_default();
        let backend = fields.take_object("Backend", "Backend.", r#"{"Type": "vxlan"}"#)?;
        let (backend, about_backend) = match backend {
            Some(fields) => BackendConfig::parse(fields, &pools)?,
            None => (BackendConfig::of_flannel(), vec![ConfigWarning::NoBackend]),
        };
        warnings.extend(about_backend);
        warnings.extend(fields.finish());
        Ok(Self { pools, backend, labels, warnings })
    }

    /// Checks whether this version of fland runs such a network. Nothing else decides that.
    ///
    /// # Errors
    /// A [`ConfigError`] with the unsupported field, and what would work.
    pub fn supported(&self) -> Result<(), ConfigError> {
        let carried = self.backend.carries();
        if carried.is_empty() {
            return Err(BackendConfig::unknown(self.backend.name()));
        }
        let Some((family, _)) = self.pools.iter().find(|(family, _)| !carried.contains(family)) else {
            return Ok(());
        };
        let implied = match self.warnings.contains(&ConfigWarning::NoBackend) {
            true => "; without Backend in the network config the backend is udp",
            false => "",
        };
        let problem = format!(
            "does not work with backend {}, which does not carry {family}; {} carry it{implied}",
            self.backend.name(),
            listed(BackendConfig::names_that_carry(family)),
        );
        Err(ConfigError::invalid(enabling_field(family), "true", &problem))
    }

    /// Checks whether hosts can have such a network beside their default one.
    ///
    /// # Errors
    /// A [`ConfigError`] with the field that cannot work, and what would work.
    pub fn supported_beside(&self) -> Result<(), ConfigError> {
        self.supported()?;
        if self.backend.is_repeatable() {
            return Ok(());
        }
        let problem = format!(
            "works in the default network only, because its device has one name on every host; {} work in others",
            listed(BackendConfig::repeatable_names()),
        );
        Err(ConfigError::invalid("Backend.Type", &format!("{:?}", self.backend.name()), &problem))
    }

    /// Returns whether a host under `other` does the same as under this config, whatever their spelling.
    pub fn agrees_with(&self, other: &Self) -> bool {
        (&self.pools, &self.backend) == (&other.pools, &other.backend)
    }

    /// Returns each overlay network with the family of the underlay over which its packets go.
    pub fn over_underlay(&self) -> impl Iterator<Item = (Family, IpNetwork)> + '_ {
        self.networks().map(|(family, network)| (self.backend.underlay_of(family), network))
    }

    /// Returns the whole overlay network of each family in use.
    pub fn networks(&self) -> impl Iterator<Item = (Family, IpNetwork)> + '_ {
        self.pools.iter().map(|(family, pool)| (family, pool.network()))
    }

    /// Returns whether this config could have led to a lease of these subnets: same families, each subnet in its pool.
    pub fn admits(&self, subnets: &Subnets) -> bool {
        Family::ALL.into_iter().all(|family| match (self.pools.get(family), subnets.get(family)) {
            (Some(pool), Some(subnet)) => pool.admits(&subnet),
            (None, None) => true,
            _ => false,
        })
    }
}

/// Returns the JSON without a UTF-8 byte order mark, which some editors write.
pub fn without_byte_order_mark(json: &[u8]) -> &[u8] {
    json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json)
}

#[cfg(test)]
mod tests;
