//! Containers in the store: which host has which container in a network.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::lease::NodeIdentity;
use crate::stored::Stored;

/// A container attached to a network, stored as JSON at `<prefix>/<network>/endpoints/<endpoint id>`; the default network
/// has no `<network>/`. It uses its network as long as its host has a lease in the default network, and has its names as
/// long as its host is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Docker's id of its endpoint, which is the last part of the key.
    #[serde(skip)]
    pub endpoint: String,
    /// Its name.
    pub name: String,
    /// Its other names in the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The name of its host.
    pub host: Option<String>,
    /// The node id of its host.
    #[serde(rename = "NodeID")]
    pub node_id: Option<String>,
    /// Its addresses in the network.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Most addresses of one container.
const MOST_ADDRESSES: usize = 16;
/// Most bytes of a name: a domain name with some room for that of its network.
const MOST_IN_NAME: usize = 190;

impl Container {
    /// Most aliases of one container.
    pub const MOST_ALIASES: usize = 64;

    /// Returns the key of its host among the hosts that are alive.
    pub fn host_key(&self) -> Option<&str> {
        self.node_id.as_deref().or(self.host.as_deref())
    }

    /// Returns all of its names that can be looked up. Docker has others.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str).filter(|name| is_name(name))
    }

    /// Returns whether this host has it.
    pub fn is_of(&self, node: &NodeIdentity) -> bool {
        match (&self.node_id, &node.id) {
            (Some(theirs), Some(id)) => theirs.as_str() == &**id,
            _ => self.host.is_some() && self.host.as_deref() == node.host.as_deref(),
        }
    }
}

impl Stored for Container {
    const PLURAL: &'static str = "containers";
    type Invalid = String;

    fn read(entry: &Entry) -> Result<Self, String> {
        if entry.value.len() > Entry::MOST_BYTES {
            return Err("it is larger than what describes a container".to_owned());
        }
        let read: Self = serde_json::from_slice(&entry.value).map_err(|reason| reason.to_string())?;
        if read.aliases.len() > Self::MOST_ALIASES || read.addresses.len() > MOST_ADDRESSES {
            return Err(format!(
                "it has {} aliases and {} addresses, and at most {} and {MOST_ADDRESSES} are read",
                read.aliases.len(),
                read.addresses.len(),
                Self::MOST_ALIASES
            ));
        }
        Ok(Self { endpoint: entry.key.clone(), ..read })
    }
}

/// Returns whether a text can be looked up as a name: labels of letters, digits, `-` and `_`, with dots between them.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= MOST_IN_NAME && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Result<Container, String> {
        let (key, value) = ("e1".to_owned(), value.as_bytes().to_vec());
        Container::read(&Entry { key, value, create_revision: 1, mod_revision: 1, etcd_lease: None })
    }

    #[test]
    fn a_container_is_of_the_host_with_its_node_id_or_else_of_its_name() {
        let node =
            |host: &str, id: Option<&str>| NodeIdentity { host: Some(host.into()), id: id.map(Into::into) };
        let of_id = read(r#"{"Name":"web","Host":"h1","NodeID":"one","Addresses":["10.7.1.2"]}"#).unwrap();
        assert!(of_id.is_of(&node("renamed", Some("one"))) && !of_id.is_of(&node("h1", Some("two"))));
        let of_name = read(r#"{"Name":"web","Host":"h1","NodeID":null}"#).unwrap();
        assert!(of_name.is_of(&node("h1", Some("one"))) && !of_name.is_of(&node("h2", None)));
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_refused(value in "\\PC{0,60}|\\{\"Name\":\"a\",\"Host\":(null|1|\"h\"),\"Addresses\":(null|\\[3\\])\\}") {
            let is_object = value.starts_with('{');
            prop_assert!(read(&value).is_err() || is_object);
        }
    }

    #[test]
    fn what_is_no_container_is_told() {
        assert!(read("{").is_err() && read(r#"{"Host":"h1"}"#).is_err());
        let large = format!(r#"{{"Name":"{}","Host":null,"NodeID":null}}"#, "a".repeat(Entry::MOST_BYTES));
        assert!(read(&large).unwrap_err().contains("larger"));
        let bad = ["", "a b", "a..b", ".a", "a.", "web\\n", "a*", "\u{e4}"]
            .map(|name| format!("{name:?}"))
            .join(",");
        let names = format!(r#"{{"Name":"a_b.C-1","Host":null,"NodeID":null,"Aliases":[{bad}]}}"#);
        assert_eq!(read(&names).unwrap().names().collect::<Vec<_>>(), ["a_b.C-1"]);
        assert!(!is_name(&"a".repeat(64)) && !is_name(&["a"; 100].join(".")) && is_name(&"a".repeat(63)));
        let aliases = vec![r#""a""#; 65].join(",");
        let many = format!(r#"{{"Name":"web","Host":null,"NodeID":null,"Aliases":[{aliases}]}}"#);
        assert!(read(&many).unwrap_err().starts_with("it has 65 aliases"));
    }
}
