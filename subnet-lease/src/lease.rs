//! A lease: who holds a subnet and how to reach them, in the JSON that flannel reads and writes.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::backend_config::BackendConfig;
use crate::backend_data::{BackendData, VxlanData};
use crate::config::without_byte_order_mark;
use crate::entry::Entry;
use crate::family::{Family, PerFamily};
use crate::key::{InvalidKey, Subnets};
use crate::shown::shown;
use crate::stored::{Listing, Stored};

/// One lease as the store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// The leased subnets: the key.
    pub subnets: Subnets,
    /// The holder: the value.
    pub attributes: LeaseAttributes,
    /// The etcd lease of the key; `None` for a reservation, which never expires.
    pub etcd_lease: Option<i64>,
    /// Store revision at which the key was created: lower for older leases.
    pub create_revision: i64,
    /// Store revision of the last write.
    pub mod_revision: i64,
}

/// The value of a lease.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaseAttributes {
    /// Underlay addresses of the holder.
    pub public_ips: PerFamily<IpAddr>,
    /// `BackendType`; absent with udp and alloc, and in an unclaimed reservation. Known names are not copied.
    pub backend: Option<Cow<'static, str>>,
    /// `BackendData` and `BackendV6Data`: what the backend needs to reach the holder.
    pub data: PerFamily<BackendData>,
    /// Who the holder is besides its address. flannel does not write this, and ignores it.
    pub node: NodeIdentity,
    /// Unknown fields, kept as they are; `None` if there are none.
    pub other: Option<Box<Map<String, Value>>>,
}

/// Who a host is, whatever its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeIdentity {
    /// `HostName`, for people.
    pub host: Option<Box<str>>,
    /// `NodeID`, an id that no other machine has.
    pub id: Option<Box<str>>,
}

impl NodeIdentity {
    /// Returns what tells this host from others: its node id or, without one, its name.
    pub fn key(&self) -> &str {
        self.id.as_deref().or(self.host.as_deref()).unwrap_or_default()
    }
}

/// Why a key and its value are not a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLease {
    /// The key names no subnets.
    #[error("unreadable key: {0}")]
    Key(#[from] InvalidKey),
    /// The value is not the JSON of a lease.
    #[error("unreadable value: {0}")]
    Value(String),
}

impl Lease {
    /// Reads one entry of the store.
    ///
    /// # Errors
    /// [`InvalidLease`] if the key or the value is not in the form of flannel or flan.
    pub fn from_entry(entry: &Entry) -> Result<Self, InvalidLease> {
        Ok(Self::of(Subnets::from_key(&entry.key)?, LeaseAttributes::from_json(&entry.value)?, entry))
    }

    /// Combines subnets with the value of their entry.
    pub(crate) fn of(subnets: Subnets, attributes: LeaseAttributes, entry: &Entry) -> Self {
        let Entry { etcd_lease, create_revision, mod_revision, .. } = *entry;
        Self { subnets, attributes, etcd_lease, create_revision, mod_revision }
    }

    /// Returns whether this is a reservation, which never expires.
    pub fn is_reservation(&self) -> bool {
        self.etcd_lease.is_none()
    }
}

impl Stored for Lease {
    const PLURAL: &'static str = "leases";
    type Invalid = InvalidLease;

    fn read(entry: &Entry) -> Result<Self, InvalidLease> {
        Self::from_entry(entry)
    }
}

impl Listing<Lease> {
    /// Returns all taken subnets, with the revision of their creation. An unreadable value still counts by its key.
    pub fn taken(&self) -> impl Iterator<Item = (Subnets, i64)> {
        self.items.iter().filter_map(|item| match item {
            Ok(lease) => Some((lease.subnets, lease.create_revision)),
            Err(bad) => Some((Subnets::from_key(&bad.entry.key).ok()?, bad.entry.create_revision)),
        })
    }
}

impl LeaseAttributes {
    /// Most bytes of a lease's value. flannel and flan write some 200; a larger value is not a lease.
    pub const MOST_BYTES: usize = Entry::MOST_BYTES;

    /// Reads the value of a lease, with or without a byte order mark.
    ///
    /// # Errors
    /// [`InvalidLease::Value`] with the parser's reason.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidLease> {
        if json.len() > Self::MOST_BYTES {
            let reason = format!("it is larger than a lease, which has at most {} bytes", Self::MOST_BYTES);
            return Err(InvalidLease::Value(reason));
        }
        // The parser's error may quote the value.
        serde_json::from_slice(without_byte_order_mark(json))
            .map_err(|error| InvalidLease::Value(shown(&error.to_string()).into_owned()))
    }

    /// Returns the value of a lease, with the fields in flannel's order.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text, numbers and maps with text keys always have a JSON form")
    }

    /// Returns one family's data in vxlan's form, if it exists and is readable.
    pub fn vxlan(&self, family: Family) -> Option<VxlanData> {
        self.data.get(family)?.vxlan()
    }

    /// Returns the holder for display, printable and cut: `192.168.64.12 (h2)`.
    pub fn holder(&self) -> String {
        let ips = self.public_ips.values().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match &self.node.host {
            Some(host) => format!("{ips} ({})", shown(host)),
            None => ips,
        }
    }

    /// Returns whether both describe the holder alike, regardless of unknown fields.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self { public_ips, backend, data, node, other: _ } = self;
        (public_ips, backend, data, node) == (&other.public_ips, &other.backend, &other.data, &other.node)
    }

    /// Returns the holder for display, with its node id: `192.168.64.12 (h2), node id 7f3a`.
    pub fn holder_and_node(&self) -> String {
        match &self.node.id {
            Some(id) => format!("{}, node id {}", self.holder(), shown(id)),
            None => self.holder(),
        }
    }

    /// Returns whether the holder is the host with these addresses and this identity: they share an address and, if
    /// both node ids are known, the node id.
    pub fn is_held_by(&self, public_ips: &PerFamily<IpAddr>, node: &NodeIdentity) -> bool {
        let same_address = self.public_ips.iter().any(|(family, ip)| public_ips.get(family) == Some(ip));
        let same_node = match (&self.node.id, &node.id) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        };
        same_address && same_node
    }
}

/// Writes the fields in flannel's order.
impl Serialize for LeaseAttributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let v4 = |ip: &IpAddr| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None };
        let v6 = |ip: &IpAddr| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None };
        let mut map = serializer.serialize_map(None)?;
        // flannel's field is not a pointer: it writes 0.0.0.0 for a host without an IPv4 address.
        let public_ip = self.public_ips.v4.as_ref().and_then(v4).unwrap_or(Ipv4Addr::UNSPECIFIED);
        map.serialize_entry("PublicIP", &public_ip)?;
        map.serialize_entry("PublicIPv6", &self.public_ips.v6.as_ref().and_then(v6))?;
        entry(&mut map, "BackendType", self.backend.as_ref())?;
        entry(&mut map, "BackendData", self.data.v4.as_ref())?;
        entry(&mut map, "BackendV6Data", self.data.v6.as_ref())?;
        entry(&mut map, "HostName", self.node.host.as_ref())?;
        entry(&mut map, "NodeID", self.node.id.as_ref())?;
        for (name, value) in self.other.iter().flat_map(|other| other.iter()) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn entry<M: SerializeMap>(
    map: &mut M,
    name: &'static str,
    value: Option<&impl Serialize>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, value))
}

// Written by hand: serde's derived code for structs that keep unknown fields copies every value first, and tens of
// thousands of leases are read at once.
impl<'de> Deserialize<'de> for LeaseAttributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Field {
    #[serde(rename = "PublicIP")]
    PublicIp,
    #[serde(rename = "PublicIPv6")]
    PublicIpv6,
    BackendType,
    BackendData,
    BackendV6Data,
    HostName,
    #[serde(rename = "NodeID")]
    NodeId,
    Other(String),
}

impl<'de> Visitor<'de> for Reader {
    type Value = LeaseAttributes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the object of a lease")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LeaseAttributes, A::Error> {
        let (mut v4, mut v6): (Once<Ipv4Addr>, Once<Ipv6Addr>) = (None, None);
        let mut backend: Once<Name> = None;
        let (mut data_v4, mut data_v6): (Once<BackendData>, Once<BackendData>) = (None, None);
        let (mut host, mut id): (Once<Box<str>>, Once<Box<str>>) = (None, None);
        let mut other = Map::new();
        while let Some(field) = map.next_key()? {
            match field {
                Field::PublicIp => fill(&mut v4, "PublicIP", &mut map)?,
                Field::PublicIpv6 => fill(&mut v6, "PublicIPv6", &mut map)?,
                Field::BackendType => fill(&mut backend, "BackendType", &mut map)?,
                Field::BackendData => fill(&mut data_v4, "BackendData", &mut map)?,
                Field::BackendV6Data => fill(&mut data_v6, "BackendV6Data", &mut map)?,
                Field::HostName => fill(&mut host, "HostName", &mut map)?,
                Field::NodeId => fill(&mut id, "NodeID", &mut map)?,
                Field::Other(name) => {
                    other.insert(name, map.next_value()?);
                }
            }
        }
        Ok(LeaseAttributes {
            public_ips: PerFamily {
                v4: v4.flatten().filter(|ip| !ip.is_unspecified()).map(IpAddr::V4),
                v6: v6.flatten().filter(|ip| !ip.is_unspecified()).map(IpAddr::V6),
            },
            backend: backend.flatten().map(|name| name.0).filter(|name| !name.is_empty()),
            data: PerFamily { v4: data_v4.flatten(), v6: data_v6.flatten() },
            node: NodeIdentity { host: host.flatten(), id: id.flatten() },
            other: (!other.is_empty()).then(|| Box::new(other)),
        })
    }
}

/// A field that may occur once, and may be null.
type Once<T> = Option<Option<T>>;

fn fill<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    field: &mut Once<T>,
    name: &'static str,
    map: &mut A,
) -> Result<(), A::Error> {
    if field.is_some() {
        return Err(A::Error::duplicate_field(name));
    }
    *field = Some(map.next_value()?);
    Ok(())
}

/// A backend's name; the usual ones are not copied.
struct Name(Cow<'static, str>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl Visitor<'_> for Names {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                let known = BackendConfig::known_name(name);
                Ok(Name(known.map_or_else(|| Cow::Owned(name.to_owned()), Cow::Borrowed)))
            }
        }
        deserializer.deserialize_str(Names)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> LeaseAttributes {
        LeaseAttributes::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn flannels_values_are_read_and_written_back_byte_for_byte() {
        for json in [
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::4","BackendType":"wireguard","BackendV6Data":{"Port":51821,"PublicKey":"cGs="}}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"HostName":"h1","NodeID":"7f","Later":true}"#,
        ] {
            assert_eq!(String::from_utf8(read(json).to_json()).unwrap(), json);
        }
    }

    #[test]
    fn a_byte_order_mark_before_a_lease_is_passed_over() {
        let json = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw"}"#;
        assert_eq!(read(&format!("\u{feff}{json}")), read(json));
        assert!(LeaseAttributes::from_json("\u{feff}".as_bytes()).is_err());
    }

    #[test]
    fn an_unset_address_is_none() {
        let attributes = read(r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#);
        assert!(attributes.public_ips.is_empty());
    }

    #[test]
    fn a_holder_is_known_by_its_address_and_where_both_know_it_its_node_id() {
        let ours = PerFamily { v4: Some("1.2.3.4".parse().unwrap()), v6: None };
        let node = |id: Option<&str>| NodeIdentity { host: None, id: id.map(Into::into) };
        let lease = read(r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"NodeID":"a"}"#);
        assert!(lease.is_held_by(&ours, &node(Some("a"))));
        assert!(lease.is_held_by(&ours, &node(None)));
        assert!(!lease.is_held_by(&ours, &node(Some("b"))));
        assert!(!lease.is_held_by(&PerFamily::default(), &node(Some("a"))));
        assert!(read(r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#).is_held_by(&ours, &node(Some("b"))));
    }

    #[test]
    fn what_is_no_lease_says_why() {
        let error = LeaseAttributes::from_json(b"{\"PublicIP\":\"1.2.3\"}").unwrap_err().to_string();
        assert!(error.starts_with("unreadable value: invalid IPv4 address syntax"), "{error}");
        assert!(LeaseAttributes::from_json(b"null").is_err());
        assert!(LeaseAttributes::from_json(br#"{"NodeID":"a","NodeID":"b"}"#).is_err());
        assert!(LeaseAttributes::from_json(br#"{"BackendData":{"VNI":1e999}}"#).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(json: Vec<u8>) {
            let _ = LeaseAttributes::from_json(&json);
        }
    }
}
