//! The options of a network, as `docker network create -o` gives them.

use std::collections::BTreeMap;

use flan_subnet_lease::{NetworkName, NewNetwork};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The option that ties a network of Docker to one in the store.
pub(crate) const NETWORK: &str = "flan.network";
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";
const KNOWN: &str = "flan.network, flan.backend, flan.vni, flan.subnet-len and flan.ipv6-subnet-len";
const BACKEND: &str = "vxlan";

/// What somebody asks of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// The network in the store that this one is; a new one if there is none.
    pub(crate) network: Option<NetworkName>,
    pub(crate) backend: Option<String>,
    pub(crate) vni: Option<u32>,
    pub(crate) subnet_len: Option<u8>,
    pub(crate) ipv6_subnet_len: Option<u8>,
    /// Whether its containers have no way out.
    pub(crate) internal: bool,
}

impl Asked {
    /// Reads the options of `NetworkDriver.CreateNetwork`.
    pub(crate) fn read(options: &BTreeMap<String, Value>) -> Result<Self, String> {
        let mut asked = Self { internal: is_true(options.get(INTERNAL)), ..Self::default() };
        let Some(Value::Object(generic)) = options.get(GENERIC) else { return Ok(asked) };
        for (name, value) in generic {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let wrong = |why: String| format!("option {name}={value}: {why}");
            let number =
                || value.parse().map_err(|error| wrong(format!("it is no number that works: {error}")));
            match name.as_str() {
                NETWORK => asked.network = Some(value.parse().map_err(|why| wrong(format!("{why}")))?),
                "flan.backend" => asked.backend = Some(value),
                "flan.vni" => asked.vni = Some(value.parse().map_err(|why| wrong(format!("{why}")))?),
                "flan.subnet-len" => asked.subnet_len = Some(number()?),
                "flan.ipv6-subnet-len" => asked.ipv6_subnet_len = Some(number()?),
                _ => return Err(wrong(format!("there is no such option; there are {KNOWN}"))),
            }
        }
        Ok(asked)
    }

    /// What Docker is told of a network that is in the store.
    pub(crate) fn of_stored(name: NetworkName, options: &BTreeMap<String, Value>) -> Self {
        Self { network: Some(name), internal: is_true(options.get(INTERNAL)), ..Self::default() }
    }

    /// Reads the options of a network that Docker has, as far as they can be read.
    pub(crate) fn of_options(options: &BTreeMap<String, String>, internal: bool) -> Self {
        let generic = options.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let read = Self::read(&[(GENERIC.to_owned(), Value::Object(generic))].into());
        Self { internal, ..read.unwrap_or_default() }
    }

    /// Returns the network to create in the store.
    pub(crate) fn new_network(&self, subnets: &[IpNetwork], labels: BTreeMap<String, String>) -> NewNetwork {
        NewNetwork {
            subnets: subnets.to_vec(),
            backend: self.backend.clone().unwrap_or_else(|| BACKEND.to_owned()),
            subnet_len: self.subnet_len,
            ipv6_subnet_len: self.ipv6_subnet_len,
            vni: self.vni,
            labels,
        }
    }
}

fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value.as_bool().unwrap_or(value == "true"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(generic: &Value) -> Result<Asked, String> {
        Asked::read(&[(GENERIC.to_owned(), generic.clone()), (INTERNAL.to_owned(), json!(true))].into())
    }

    #[test]
    fn options_are_read() {
        let asked = read(&json!({"flan.vni": "7", "flan.subnet-len": "26", "flan.network": "blue"})).unwrap();
        assert_eq!((asked.vni, asked.subnet_len, asked.internal), (Some(7), Some(26), true));
        assert_eq!(asked.network, Some("blue".parse().unwrap()));
        assert_eq!(asked.new_network(&[], BTreeMap::new()).backend, "vxlan");
    }

    #[test]
    fn the_options_of_a_network_that_is_there_are_read_again() {
        let options = |value: &str| [("flan.subnet-len".to_owned(), value.to_owned())].into();
        assert_eq!(Asked::of_options(&options("26"), true).subnet_len, Some(26));
        assert_eq!(Asked::of_options(&options("x"), true), Asked { internal: true, ..Asked::default() });
    }

    #[test]
    fn an_option_that_cannot_work_is_named_with_what_would() {
        let unknown = read(&json!({"flan.vnid": "7"})).unwrap_err();
        assert!(unknown.contains("flan.vnid=7") && unknown.contains("flan.vni,"), "{unknown}");
        let large = read(&json!({"flan.subnet-len": "300"})).unwrap_err();
        assert!(large.contains("flan.subnet-len=300: it is no number that works"), "{large}");
        assert!(read(&json!({"flan.network": "a/b"})).unwrap_err().contains("letters, digits"));
    }
}
