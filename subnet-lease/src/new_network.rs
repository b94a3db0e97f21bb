//! A network before it is written to the store: its config, checked against the networks that are there.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::backend_config::{BackendConfig, VxlanConfig};
use crate::config::NetworkConfig;
use crate::config_error::ConfigError;
use crate::family::{Family, overlap};
use crate::network_name::NetworkName;

/// What somebody asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewNetwork {
    /// Its addresses, one network for each family.
    pub subnets: Vec<IpNetwork>,
    /// The backend's name.
    pub backend: String,
    /// Prefix length of each host's IPv4 part.
    pub subnet_len: Option<u8>,
    /// Prefix length of each host's IPv6 part.
    pub ipv6_subnet_len: Option<u8>,
    /// The VXLAN network identifier; one that is free if there is none.
    pub vni: Option<u32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A network that is there: the default one has no name.
pub type Known = (Option<NetworkName>, NetworkConfig);

/// Why a network cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CannotCreate {
    /// There are two subnets of one family.
    #[error("{0} and {1} are both {2}: a network has one of each family")]
    TwoOfOneFamily(IpNetwork, IpNetwork, Family),
    /// The subnet is not on a boundary.
    #[error("{0} has bits beyond its length; {1} would do")]
    NotOnBoundary(IpNetwork, IpNetwork),
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The addresses are taken.
    #[error("{subnet} overlaps {other} of {holder}")]
    Overlaps {
        /// The new network's.
        subnet: IpNetwork,
        /// The other's.
        other: IpNetwork,
        /// Its network.
        holder: String,
    },
    /// The VNI is taken.
    #[error("{holder} has the VNI {vni}; {free} is free")]
    VniTaken {
        /// The VNI.
        vni: u32,
        /// Its network.
        holder: String,
        /// One that would do.
        free: u32,
    },
    /// A VNI makes no sense with this backend.
    #[error("only vxlan has a VNI, and this network's backend is {0}")]
    NoVni(&'static str),
}

impl NewNetwork {
    /// Returns the config as JSON, and what it means.
    ///
    /// # Errors
    /// [`CannotCreate`], if a setting is wrong or another network has the addresses or the VNI.
    pub fn config(&self, known: &[Known]) -> Result<(String, NetworkConfig), CannotCreate> {
        let mut fields = self.addresses()?;
        let mut backend = json!({ "Type": self.backend });
        if self.backend == VxlanConfig::NAME {
            backend["VNI"] = self.vni.unwrap_or_else(|| free_vni(known)).into();
        }
        fields.insert("Backend".to_owned(), backend);
        if !self.labels.is_empty() {
            fields.insert("Labels".to_owned(), json!(self.labels));
        }
        let text = Value::Object(fields).to_string();
        let config = NetworkConfig::parse(text.as_bytes())?;
        config.supported_beside()?;
        match (self.vni, &config.backend) {
            (Some(_), BackendConfig::Vxlan(_)) | (None, _) => {}
            (Some(_), other) => return Err(CannotCreate::NoVni(other.name())),
        }
        check_beside(&config, known)?;
        Ok((text, config))
    }

    fn addresses(&self) -> Result<Map<String, Value>, CannotCreate> {
        let mut fields = Map::new();
        for (number, &subnet) in self.subnets.iter().enumerate() {
            let family = Family::of(subnet.ip());
            if let Some(&other) = self.subnets[..number].iter().find(|one| Family::of(one.ip()) == family) {
                return Err(CannotCreate::TwoOfOneFamily(other, subnet, family));
            }
            let boundary = IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(subnet);
            if boundary != subnet {
                return Err(CannotCreate::NotOnBoundary(subnet, boundary));
            }
            let (network, length, value) = match family {
                Family::V4 => ("Network", "SubnetLen", self.subnet_len),
                Family::V6 => ("IPv6Network", "IPv6SubnetLen", self.ipv6_subnet_len),
            };
            fields.insert(network.to_owned(), json!(subnet.to_string()));
            if let Some(value) = value {
                fields.insert(length.to_owned(), json!(value));
            }
        }
        if fields.contains_key("IPv6Network") {
            fields.insert("EnableIPv6".to_owned(), json!(true));
            if !fields.contains_key("Network") {
                fields.insert("EnableIPv4".to_owned(), json!(false));
            }
        }
        Ok(fields)
    }
}

/// Checks a config against the networks that are there.
///
/// # Errors
/// [`CannotCreate::Overlaps`] or [`CannotCreate::VniTaken`].
pub fn check_beside(config: &NetworkConfig, known: &[Known]) -> Result<(), CannotCreate> {
    for (holder, other) in known {
        let holder = || called(holder.as_ref());
        if let Some(vni) = vni_of(config).filter(|vni| vni_of(other) == Some(*vni)) {
            return Err(CannotCreate::VniTaken { vni, holder: holder(), free: free_vni(known) });
        }
        for (_, subnet) in config.networks() {
            if let Some((_, other)) = other.networks().find(|(_, other)| overlap(other, &subnet)) {
                return Err(CannotCreate::Overlaps { subnet, other, holder: holder() });
            }
        }
    }
    Ok(())
}

/// Returns a VNI that no network has. 1 is that of the default network, as flannel has it.
fn free_vni(known: &[Known]) -> u32 {
    (2..).find(|vni| known.iter().all(|(_, other)| vni_of(other) != Some(*vni))).unwrap_or_default()
}

/// Returns the VNI of a network on vxlan.
pub fn vni_of(config: &NetworkConfig) -> Option<u32> {
    match &config.backend {
        BackendConfig::Vxlan(vxlan) => Some(vxlan.vni),
        _ => None,
    }
}

fn called(name: Option<&NetworkName>) -> String {
    name.map_or_else(|| "the default network".to_owned(), |name| format!("network {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, json: &str) -> Known {
        (name.parse().ok(), NetworkConfig::parse(json.as_bytes()).unwrap())
    }

    fn there() -> Vec<Known> {
        vec![
            known("", r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#),
            known("blue", r#"{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#),
        ]
    }

    fn asked(subnets: &[&str]) -> NewNetwork {
        NewNetwork {
            subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            backend: "vxlan".to_owned(),
            ..NewNetwork::default()
        }
    }

    fn refused(asked: &NewNetwork) -> String {
        asked.config(&there()).unwrap_err().to_string()
    }

    #[test]
    fn a_network_gets_a_vni_that_is_free_and_keeps_its_labels() {
        let labels = [("team".to_owned(), "web".to_owned())].into();
        let (text, config) = NewNetwork { labels, ..asked(&["10.8.0.0/16"]) }.config(&there()).unwrap();
        assert_eq!(
            text,
            r#"{"Backend":{"Type":"vxlan","VNI":3},"Labels":{"team":"web"},"Network":"10.8.0.0/16"}"#
        );
        assert_eq!((vni_of(&config), config.warnings.len()), (Some(3), 0));
        assert_eq!(config.labels["team"], "web");
    }

    #[test]
    fn a_network_may_have_either_family_or_both() {
        let both = asked(&["10.8.0.0/16", "fd00:8::/48"]).config(&there()).unwrap().1;
        assert_eq!(both.networks().count(), 2);
        let six = NewNetwork { ipv6_subnet_len: Some(64), ..asked(&["fd00:8::/48"]) };
        let families: Vec<Family> = six.config(&there()).unwrap().1.networks().map(|(one, _)| one).collect();
        assert_eq!(families, [Family::V6]);
    }

    #[test]
    fn what_another_network_has_is_refused_with_its_name() {
        assert_eq!(refused(&asked(&["10.7.128.0/17"])), "10.7.128.0/17 overlaps 10.7.0.0/16 of network blue");
        assert_eq!(
            refused(&asked(&["10.0.0.0/8"])),
            "10.0.0.0/8 overlaps 10.5.0.0/16 of the default network"
        );
        let taken = NewNetwork { vni: Some(2), ..asked(&["10.8.0.0/16"]) };
        assert_eq!(refused(&taken), "network blue has the VNI 2; 3 is free");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert_eq!(
            refused(&asked(&["10.8.0.1/16"])),
            "10.8.0.1/16 has bits beyond its length; 10.8.0.0/16 would do"
        );
        assert_eq!(
            refused(&asked(&["10.8.0.0/16", "10.9.0.0/16"])),
            "10.8.0.0/16 and 10.9.0.0/16 are both IPv4: a network has one of each family"
        );
        let host_gw = NewNetwork { vni: Some(7), backend: "host-gw".to_owned(), ..asked(&["10.8.0.0/16"]) };
        assert_eq!(refused(&host_gw), "only vxlan has a VNI, and this network's backend is host-gw");
        let wireguard = NewNetwork { backend: "wireguard".to_owned(), ..asked(&["10.8.0.0/16"]) };
        assert!(
            refused(&wireguard).starts_with(r#"Backend.Type "wireguard" works in the default network only"#)
        );
    }
}
