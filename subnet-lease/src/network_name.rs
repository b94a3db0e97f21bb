//! Names of networks beside the default one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::shown::shown;

/// The name of a network: part of its keys in the store and the name of its subnet file. Docker accepts each of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NetworkName(Box<str>);

/// A text that names no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} {why}")]
pub struct InvalidNetworkName {
    name: String,
    why: &'static str,
}

/// What stands below the prefix beside networks: the config and leases of the default network, its reservations and
/// containers, the record of when networks came and went, and the hosts that are alive. And what people call the network
/// that has no name.
const RESERVED: [&str; 8] =
    ["config", "subnets", "reservations", "endpoints", "networks", "hosts", "status", "default"];
const MOST_BYTES: usize = 63;

impl NetworkName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> Self {
        name.0.into()
    }
}

impl TryFrom<String> for NetworkName {
    type Error = InvalidNetworkName;

    fn try_from(name: String) -> Result<Self, InvalidNetworkName> {
        name.parse()
    }
}

impl FromStr for NetworkName {
    type Err = InvalidNetworkName;

    fn from_str(name: &str) -> Result<Self, InvalidNetworkName> {
        let invalid = |why| Err(InvalidNetworkName { name: shown(name).into_owned(), why });
        if RESERVED.contains(&name) {
            return invalid("is a name that the store uses otherwise");
        }
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !is_plain || !begins_well || name.len() > MOST_BYTES {
            return invalid(
                "is no name of a network: up to 63 letters, digits, dots, dashes and underscores are, beginning with a \
                 letter or a digit",
            );
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_docker_and_a_file_system_take() {
        for good in ["blue", "Blue_2", "a.b-c", "7", &"x".repeat(63)] {
            assert_eq!(good.parse::<NetworkName>().unwrap().as_str(), good);
        }
        for bad in ["", "..", "-a", "a/b", "ä", "a b", "subnets", "config", &"x".repeat(64)] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
        let error = "networks".parse::<NetworkName>().unwrap_err().to_string();
        assert_eq!(error, r#""networks" is a name that the store uses otherwise"#);
    }
}
