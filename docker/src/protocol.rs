//! What dockerd sends and expects, as JSON (`libnetwork/drivers/remote/api` and `libnetwork/ipams/remote/api` in moby).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `IpamDriver.RequestPool`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RequestPool {
    pub(crate) pool: String,
    pub(crate) sub_pool: String,
    pub(crate) options: Option<BTreeMap<String, String>>,
    pub(crate) v6: bool,
}

/// The pool that was chosen.
#[derive(Debug, Serialize)]
pub(crate) struct Pool {
    #[serde(rename = "PoolID")]
    pub(crate) id: String,
    #[serde(rename = "Pool")]
    pub(crate) pool: String,
    #[serde(rename = "Data")]
    pub(crate) data: BTreeMap<&'static str, String>,
}

/// `IpamDriver.RequestAddress` and `IpamDriver.ReleaseAddress`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct OfAddress {
    #[serde(rename = "PoolID")]
    pub(crate) pool_id: String,
    pub(crate) address: String,
    pub(crate) options: Option<BTreeMap<String, String>>,
}

/// An address with its prefix length.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Address {
    pub(crate) address: String,
}

/// The addresses of a network, as the IPAM driver gave them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct IpamData {
    pub(crate) address_space: String,
    pub(crate) pool: String,
}

/// `NetworkDriver.CreateNetwork`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub(crate) network_id: String,
    pub(crate) options: Option<BTreeMap<String, Value>>,
    #[serde(rename = "IPv4Data")]
    pub(crate) ipv4: Option<Vec<IpamData>>,
    #[serde(rename = "IPv6Data")]
    pub(crate) ipv6: Option<Vec<IpamData>>,
}

/// Any call about one network or one endpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ById {
    #[serde(rename = "NetworkID")]
    pub(crate) network_id: String,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint_id: String,
    pub(crate) interface: Option<Interface>,
    /// Path of the container's network namespace.
    pub(crate) sandbox_key: String,
}

/// The container's end.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Interface {
    pub(crate) address: String,
    #[serde(rename = "AddressIPv6")]
    pub(crate) address_ipv6: String,
    pub(crate) mac_address: String,
}

/// What was added to an [`Interface`].
#[derive(Debug, Serialize)]
pub(crate) struct Created {
    #[serde(rename = "Interface")]
    pub(crate) interface: BTreeMap<&'static str, String>,
}

/// Where the container's end is, and its routes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Joined {
    pub(crate) interface_name: InterfaceName,
    pub(crate) static_routes: Vec<StaticRoute>,
    pub(crate) disable_gateway_service: bool,
}

/// dockerd moves the device into the container and calls it there by the prefix and a number.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct InterfaceName {
    pub(crate) src_name: String,
    pub(crate) dst_prefix: &'static str,
}

/// A route in the container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct StaticRoute {
    pub(crate) destination: String,
    /// 0: by the next hop.
    pub(crate) route_type: u8,
    pub(crate) next_hop: String,
}
