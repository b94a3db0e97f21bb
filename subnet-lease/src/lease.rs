//! A lease: who holds a subnet and how to reach them, in the JSON that flannel reads and writes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use macaddr::MacAddr6;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::family::{Family, PerFamily};
use crate::key::{InvalidKey, Subnets};
use crate::store::Entry;

/// One lease as the store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// What is leased; the key.
    pub subnets: Subnets,
    /// Who holds it; the value.
    pub attributes: LeaseAttributes,
    /// The etcd lease that keeps the key alive; `None` for a reservation, which never expires.
    pub etcd_lease: Option<i64>,
    /// Store revision at which the key was created: the older of two leases has the lower one.
    pub create_revision: i64,
    /// Store revision of the last write.
    pub mod_revision: i64,
}

/// The value of a lease.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaseAttributes {
    /// Underlay addresses of the holder.
    pub public_ips: PerFamily<IpAddr>,
    /// `BackendType`; the udp and alloc backends and an unclaimed reservation have none.
    pub backend: Option<String>,
    /// `BackendData` and `BackendV6Data`: what the backend needs to reach the holder.
    pub data: PerFamily<Value>,
    /// Who the holder is beyond its address. flannel does not write this and ignores it.
    pub node: NodeIdentity,
    /// Fields that we do not know, kept as they are.
    pub other: Map<String, Value>,
}

/// Who a host is, whatever its address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Host name, for people.
    #[serde(rename = "HostName", default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// An id that no other machine has.
    #[serde(rename = "NodeID", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// `BackendData` and `BackendV6Data` of the vxlan backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanData {
    /// VXLAN network identifier; hosts with an old flannel leave it out.
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// MAC of the holder's VXLAN device.
    #[serde(rename = "VtepMAC", with = "mac_text")]
    pub vtep_mac: MacAddr6,
}

/// Why a key and its value are no lease.
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
    /// [`InvalidLease`] when the key or the value is not what flannel or flan write.
    pub fn from_entry(entry: &Entry) -> Result<Self, InvalidLease> {
        Ok(Self {
            subnets: Subnets::from_key(&entry.key)?,
            attributes: LeaseAttributes::from_json(&entry.value)?,
            etcd_lease: entry.etcd_lease,
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
        })
    }

    /// Whether this is a reservation: it never expires.
    pub fn is_reservation(&self) -> bool {
        self.etcd_lease.is_none()
    }
}

impl LeaseAttributes {
    /// Reads the value of a lease.
    ///
    /// # Errors
    /// [`InvalidLease::Value`] with the reader's reason.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidLease> {
        let wire: Wire =
            serde_json::from_slice(json).map_err(|error| InvalidLease::Value(error.to_string()))?;
        Ok(Self {
            public_ips: PerFamily {
                v4: wire.public_ip.filter(|ip| !ip.is_unspecified()).map(IpAddr::V4),
                v6: wire.public_ipv6.filter(|ip| !ip.is_unspecified()).map(IpAddr::V6),
            },
            backend: wire.backend_type.filter(|backend| !backend.is_empty()),
            data: PerFamily { v4: wire.backend_data, v6: wire.backend_v6_data },
            node: wire.node,
            other: wire.other,
        })
    }

    /// The value of a lease, with the fields in flannel's order.
    pub fn to_json(&self) -> Vec<u8> {
        let v4 = |ip: &IpAddr| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None };
        let v6 = |ip: &IpAddr| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None };
        let wire = Wire {
            // flannel's field is no pointer: a host without an IPv4 address is written as 0.0.0.0.
            public_ip: Some(self.public_ips.v4.as_ref().and_then(v4).unwrap_or(Ipv4Addr::UNSPECIFIED)),
            public_ipv6: self.public_ips.v6.as_ref().and_then(v6),
            backend_type: self.backend.clone(),
            backend_data: self.data.v4.clone(),
            backend_v6_data: self.data.v6.clone(),
            node: self.node.clone(),
            other: self.other.clone(),
        };
        serde_json::to_vec(&wire).expect("text, numbers and maps with text keys always have a JSON form")
    }

    /// The backend's data of one family as vxlan writes it, if it is there and readable.
    pub fn vxlan(&self, family: Family) -> Option<VxlanData> {
        VxlanData::deserialize(self.data.get(family)?).ok()
    }

    /// The holder for people: `192.168.64.12 (h2)`.
    pub fn holder(&self) -> String {
        let ips = self.public_ips.values().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match &self.node.host {
            Some(host) => format!("{ips} ({host})"),
            None => ips,
        }
    }

    /// Whether the holder is the host with these addresses and this identity: it shares an address, and where both
    /// sides know a node id, that as well.
    pub fn is_held_by(&self, public_ips: &PerFamily<IpAddr>, node: &NodeIdentity) -> bool {
        let same_address = self.public_ips.iter().any(|(family, ip)| public_ips.get(family) == Some(ip));
        let same_node = match (&self.node.id, &node.id) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        };
        same_address && same_node
    }
}

/// The JSON form. Field order is flannel's.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "PublicIP", default)]
    public_ip: Option<Ipv4Addr>,
    #[serde(rename = "PublicIPv6", default)]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", default, skip_serializing_if = "Option::is_none")]
    backend_type: Option<String>,
    #[serde(rename = "BackendData", default, skip_serializing_if = "Option::is_none")]
    backend_data: Option<Value>,
    #[serde(rename = "BackendV6Data", default, skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<Value>,
    #[serde(flatten)]
    node: NodeIdentity,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// A MAC as flannel writes it: lower case, with colons.
mod mac_text {
    use macaddr::MacAddr6;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &MacAddr6, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&mac.to_string().to_lowercase())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MacAddr6, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not a MAC address")))
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
    fn vxlan_data_is_written_as_flannel_writes_it() {
        let data = VxlanData { vni: Some(1), vtep_mac: "C6:D2:32:6F:8F:44".parse().unwrap() };
        assert_eq!(serde_json::to_string(&data).unwrap(), r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#);
    }

    #[test]
    fn an_unset_address_is_none() {
        let attributes = read(r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#);
        assert!(attributes.public_ips.is_empty());
    }

    #[test]
    fn a_holder_is_known_by_its_address_and_where_both_know_it_its_node_id() {
        let ours = PerFamily { v4: Some("1.2.3.4".parse().unwrap()), v6: None };
        let node = |id: Option<&str>| NodeIdentity { host: None, id: id.map(str::to_owned) };
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
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(json: Vec<u8>) {
            let _ = LeaseAttributes::from_json(&json);
        }
    }
}
