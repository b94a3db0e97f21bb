//! The network config: what one network of hosts agrees on, valid by construction.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::admission::is_host_address;
use crate::backend_config::BackendConfig;
use crate::family::{Family, PerFamily, bits, encloses, span};
use crate::key::Subnets;

/// The network config, as it stands as JSON at `<prefix>/config` in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// Where the subnets of each family in use come from; at least one.
    pub pools: PerFamily<SubnetPool>,
    /// How packets reach a peer.
    pub backend: BackendConfig,
    /// Fields that nobody here knows, by their path. They are ignored, as flannel does; often they are misspelt.
    pub unknown_fields: Vec<String>,
}

/// The part of a network that leases are taken from, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetPool {
    network: IpNetwork,
    subnet_len: u8,
    first: u128,
    last: u128,
}

/// Why a network config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("the network config is not a JSON object: {0}")]
    Syntax(#[source] serde_json::Error),
    /// A field that must be there is not.
    #[error("{field} is missing: {hint}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What would work.
        hint: &'static str,
    },
    /// A field has a value that cannot work.
    #[error("{field} {value} {problem}")]
    Invalid {
        /// The field's path.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it, and what would work.
        problem: String,
    },
}

impl NetworkConfig {
    /// Reads and checks the JSON of a network config. Field names are matched without regard to case.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the first field that cannot work, its value and what would.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let object: Map<String, Value> = serde_json::from_slice(json).map_err(ConfigError::Syntax)?;
        let mut fields = Fields::new("", object);
        let mut pools = PerFamily::default();
        for (family, names, enabled) in [(Family::V4, &V4_FIELDS, true), (Family::V6, &V6_FIELDS, false)] {
            let enabled = fields.take(names.enable)?.unwrap_or(enabled);
            let pool = SubnetPool::parse(&mut fields, family, names, enabled)?;
            if let Some(pool) = pool {
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
        let (backend, unknown_in_backend) = BackendConfig::parse(fields.take("Backend")?, &pools)?;
        let mut unknown_fields = fields.rest();
        unknown_fields.extend(unknown_in_backend);
        Ok(Self { pools, backend, unknown_fields })
    }

    /// The whole overlay network of each family in use.
    pub fn networks(&self) -> impl Iterator<Item = (Family, IpNetwork)> + '_ {
        self.pools.iter().map(|(family, pool)| (family, pool.network))
    }

    /// Whether a lease of these subnets could have been allocated under this config: the same families, each subnet
    /// in its pool.
    pub fn admits(&self, subnets: &Subnets) -> bool {
        Family::ALL.into_iter().all(|family| match (self.pools.get(family), subnets.get(family)) {
            (Some(pool), Some(subnet)) => pool.admits(&subnet),
            (None, None) => true,
            _ => false,
        })
    }
}

impl SubnetPool {
    /// The whole overlay network.
    pub fn network(&self) -> IpNetwork {
        self.network
    }

    /// Prefix length of each subnet.
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// How many subnets there are to lease. Saturates at `u128::MAX`.
    pub fn capacity(&self) -> u128 {
        ((self.last - self.first) >> self.host_bits()).saturating_add(1)
    }

    /// The first subnet that is leased (`SubnetMin`).
    pub fn min(&self) -> IpAddr {
        self.family().address(self.first)
    }

    /// The last subnet that is leased (`SubnetMax`).
    pub fn max(&self) -> IpAddr {
        self.family().address(self.last)
    }

    /// Whether this subnet is one of the pool's.
    pub fn admits(&self, subnet: &IpNetwork) -> bool {
        let (base, _) = span(subnet);
        encloses(&self.network, subnet)
            && subnet.prefix() == self.subnet_len
            && (self.first..=self.last).contains(&base)
    }

    /// The subnet at `index`, counted from the first that is leased; below [`SubnetPool::capacity`].
    pub(crate) fn subnet(&self, index: u128) -> Option<IpNetwork> {
        let base = self.first.checked_add(index.checked_shl(self.host_bits())?)?;
        (base <= self.last).then(|| IpNetwork::new(self.family().address(base), self.subnet_len).ok())?
    }

    /// The indices of the pool's subnets that share an address with `subnet`.
    pub(crate) fn indices(&self, subnet: &IpNetwork) -> Option<(u128, u128)> {
        let (first, last) = span(subnet);
        let end = self.last | host_mask(self.host_bits());
        if subnet.is_ipv4() != self.network.is_ipv4() || last < self.first || first > end {
            return None;
        }
        let index = |address: u128| (address.clamp(self.first, end) - self.first) >> self.host_bits();
        Some((index(first), index(last)))
    }

    fn family(&self) -> Family {
        Family::of(self.network.ip())
    }

    fn host_bits(&self) -> u32 {
        u32::from(self.family().width() - self.subnet_len)
    }

    fn parse(
        fields: &mut Fields,
        family: Family,
        names: &PoolFields,
        enabled: bool,
    ) -> Result<Option<Self>, ConfigError> {
        let network = fields.take_parsed::<Cidr>(names.network, names.network_example)?;
        let length = fields.take_in::<u8>(names.subnet_len, 0..=names.longest)?;
        let min = fields.take_parsed::<IpAddr>(names.subnet_min, "an address")?;
        let max = fields.take_parsed::<IpAddr>(names.subnet_max, "an address")?;
        if !enabled {
            return Ok(None);
        }
        let Cidr(network) = network.ok_or(ConfigError::Missing { field: names.network, hint: names.hint })?;
        if Family::of(network.ip()) != family {
            let problem = format!("is not an {family} network; {} would be", names.network_example);
            return Err(ConfigError::invalid(names.network, &network.to_string(), &problem));
        }
        let network = IpNetwork::new(network.network(), network.prefix()).unwrap_or(network);
        let link_local = matches!(network.ip(), IpAddr::V4(ip) if ip.is_link_local());
        if link_local || !is_host_address(network.network()) || !is_host_address(inner_end(&network)) {
            let problem = format!("holds no addresses of hosts; {} would", names.network_example);
            return Err(ConfigError::invalid(names.network, &network.to_string(), &problem));
        }
        let subnet_len = subnet_length(&network, length, names)?;
        let host_bits = u32::from(family.width() - subnet_len);
        let (base, end) = span(&network);
        let bound = |field: &'static str, given: Option<IpAddr>, default: u128| match given {
            None => Ok(default),
            Some(address) if !network.contains(address) => {
                let problem = format!("is outside {} {network}", names.network);
                Err(ConfigError::invalid(field, &address.to_string(), &problem))
            }
            Some(address) if bits(address) & host_mask(host_bits) != 0 => {
                let boundary = family.address(bits(address) & !host_mask(host_bits));
                let problem = format!("is not on a boundary of /{subnet_len} subnets; {boundary} is");
                Err(ConfigError::invalid(field, &address.to_string(), &problem))
            }
            Some(address) => Ok(bits(address)),
        };
        // The first subnet of the network is left out by default, as flannel does.
        let first = bound(names.subnet_min, min, base + (1 << host_bits))?;
        let last = bound(names.subnet_max, max, end & !host_mask(host_bits))?;
        if first > last {
            let (first, last) = (family.address(first).to_string(), family.address(last));
            let problem = format!("is above {} {last}", names.subnet_max);
            return Err(ConfigError::invalid(names.subnet_min, &first, &problem));
        }
        Ok(Some(Self { network, subnet_len, first, last }))
    }
}

impl ConfigError {
    pub(crate) fn invalid(field: &str, value: &str, problem: &str) -> Self {
        Self::Invalid { field: field.to_owned(), value: value.to_owned(), problem: problem.to_owned() }
    }
}

/// The fields of a JSON object, taken one by one by names in any case; what is left over is unknown.
pub(crate) struct Fields {
    path: &'static str,
    left: Map<String, Value>,
}

impl Fields {
    pub(crate) fn new(path: &'static str, left: Map<String, Value>) -> Self {
        Self { path, left }
    }

    /// The field's value, if it is there and not null.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.take_value(name) else { return Ok(None) };
        serde_json::from_value(value.clone()).map(Some).map_err(|error| {
            ConfigError::invalid(
                &self.full(name),
                &value.to_string(),
                &format!("has the wrong type: {error}"),
            )
        })
    }

    /// The field's text, read as a `T`.
    pub(crate) fn take_parsed<T: std::str::FromStr>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.take::<String>(name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            ConfigError::invalid(
                &self.full(name),
                &format!("{text:?}"),
                &format!("cannot be read; expected {expected}"),
            )
        })
    }

    /// The field's number, which must lie in `range`.
    pub(crate) fn take_in<T>(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, ConfigError>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let Some(value) = self.take_value(name) else { return Ok(None) };
        let number = value.as_i64().and_then(|number| T::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let problem = format!("is not a number from {} to {}", range.start(), range.end());
                Err(ConfigError::invalid(&self.full(name), &value.to_string(), &problem))
            }
        }
    }

    /// The paths of all fields that nobody took.
    pub(crate) fn rest(self) -> Vec<String> {
        self.left.keys().map(|name| self.full(name)).collect()
    }

    fn take_value(&mut self, name: &str) -> Option<Value> {
        let found = self.left.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone();
        self.left.remove(&found).filter(|value| !value.is_null())
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }
}

/// A network in the one form that flannel reads, `10.5.0.0/16`.
struct Cidr(IpNetwork);

impl std::str::FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        let network = IpNetwork::new(address.parse().map_err(|_| ())?, length.parse().map_err(|_| ())?);
        network.map(Self).map_err(|_| ())
    }
}

/// The names that one family's fields have in the config, and its limits.
struct PoolFields {
    enable: &'static str,
    network: &'static str,
    network_example: &'static str,
    hint: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
    default_len: u8,
    longest: u8,
}

const V4_FIELDS: PoolFields = PoolFields {
    enable: "EnableIPv4",
    network: "Network",
    network_example: "10.5.0.0/16",
    hint: "give the IPv4 network to take subnets from, such as 10.5.0.0/16, or set EnableIPv4 to false",
    subnet_len: "SubnetLen",
    subnet_min: "SubnetMin",
    subnet_max: "SubnetMax",
    default_len: 24,
    longest: 30,
};

const V6_FIELDS: PoolFields = PoolFields {
    enable: "EnableIPv6",
    network: "IPv6Network",
    network_example: "fd00:5::/48",
    hint: "give the IPv6 network to take subnets from, such as fd00:5::/48, or set EnableIPv6 to false",
    subnet_len: "IPv6SubnetLen",
    subnet_min: "IPv6SubnetMin",
    subnet_max: "IPv6SubnetMax",
    default_len: 64,
    longest: 126,
};

/// The length of the subnets: as asked, or 24 (64), or two more than the network's where that network is too small.
/// There are always at least four subnets, none longer than /30 (/126).
fn subnet_length(network: &IpNetwork, asked: Option<u8>, names: &PoolFields) -> Result<u8, ConfigError> {
    let shortest = network.prefix().saturating_add(2);
    if shortest > names.longest {
        let problem = format!("is too small for four subnets; the smallest is a /{}", names.longest - 2);
        return Err(ConfigError::invalid(names.network, &network.to_string(), &problem));
    }
    let length = asked.filter(|length| *length != 0).unwrap_or(names.default_len.max(shortest));
    if !(shortest..=names.longest).contains(&length) {
        let problem = format!(
            "is not from {shortest} to {}, as {} is a /{}",
            names.longest,
            names.network,
            network.prefix()
        );
        return Err(ConfigError::invalid(names.subnet_len, &length.to_string(), &problem));
    }
    Ok(length)
}

/// The last address but one: the very last of an IPv4 network may be the broadcast address of all.
fn inner_end(network: &IpNetwork) -> IpAddr {
    Family::of(network.ip()).address(span(network).1 - 1)
}

fn host_mask(host_bits: u32) -> u128 {
    (1u128 << host_bits) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend_config::VxlanConfig;

    fn parse(json: &str) -> Result<NetworkConfig, String> {
        NetworkConfig::parse(json.as_bytes()).map_err(|error| error.to_string())
    }

    fn v4(config: &NetworkConfig) -> (String, u8, String, String) {
        let pool = config.pools.v4.unwrap();
        (pool.network().to_string(), pool.subnet_len(), pool.min().to_string(), pool.max().to_string())
    }

    #[test]
    fn a_network_alone_gets_flannels_defaults() {
        let config = parse(r#"{"Network": "10.5.0.0/16"}"#).unwrap();
        assert_eq!(v4(&config), ("10.5.0.0/16".into(), 24, "10.5.1.0".into(), "10.5.255.0".into()));
        assert_eq!(config.pools.v4.unwrap().capacity(), 255);
        assert_eq!(config.backend, BackendConfig::Vxlan(VxlanConfig::default()));
        assert_eq!(config.pools.v6, None);
    }

    #[test]
    fn names_are_matched_without_regard_to_case() {
        let config =
            parse(r#"{"network": "10.5.7.9/16", "SUBNETLEN": 28, "backend": {"type": "VXLAN", "vni": 7}}"#)
                .unwrap();
        assert_eq!(v4(&config), ("10.5.0.0/16".into(), 28, "10.5.0.16".into(), "10.5.255.240".into()));
        assert_eq!(config.backend, BackendConfig::Vxlan(VxlanConfig { vni: 7, ..VxlanConfig::default() }));
    }

    #[test]
    fn a_network_smaller_than_22_bits_is_cut_in_four() {
        let config = parse(r#"{"Network": "10.5.0.0/26"}"#).unwrap();
        assert_eq!(v4(&config), ("10.5.0.0/26".into(), 28, "10.5.0.16".into(), "10.5.0.48".into()));
        assert_eq!(v4(&parse(r#"{"Network": "10.5.0.0/28"}"#).unwrap()).1, 30);
    }

    #[test]
    fn both_families_are_read() {
        let config =
            parse(r#"{"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48"}"#).unwrap();
        let v6 = config.pools.v6.unwrap();
        assert_eq!((v6.subnet_len(), v6.min().to_string()), (64, "fd00:5:0:1::".into()));
        assert_eq!(v6.max().to_string(), "fd00:5:0:ffff::");
    }

    #[test]
    fn ipv6_alone_is_enough() {
        let config =
            parse(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "2000::/3"}"#).unwrap();
        assert_eq!(config.pools.v4, None);
        assert_eq!(config.pools.v6.unwrap().capacity(), (1 << 61) - 1);
    }

    #[test]
    fn a_misspelt_field_is_told() {
        let config =
            parse(r#"{"Network": "10.5.0.0/16", "SubnetLenn": 26, "Backend": {"Type": "vxlan", "VIN": 2}}"#);
        assert_eq!(config.unwrap().unknown_fields, ["SubnetLenn", "Backend.VIN"]);
    }

    #[test]
    fn an_error_names_the_field_the_value_and_what_would_work() {
        for (json, message) in [
            (
                r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.4.0.0"}"#,
                "SubnetMin 10.4.0.0 is outside Network 10.5.0.0/16",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.1"}"#,
                "SubnetMax 10.5.9.1 is not on a boundary of /24 subnets; 10.5.9.0 is",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"}"#,
                "SubnetMin 10.5.9.0 is above SubnetMax 10.5.8.0",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetLen": 17}"#,
                "SubnetLen 17 is not from 18 to 30, as Network is a /16",
            ),
            (r#"{"Network": "10.5.0.0/16", "SubnetLen": 300}"#, "SubnetLen 300 is not a number from 0 to 30"),
            (r#"{"Network": "10.5.0.0"}"#, "Network \"10.5.0.0\" cannot be read; expected 10.5.0.0/16"),
            (
                r#"{"Network": "127.0.0.0/16"}"#,
                "Network 127.0.0.0/16 holds no addresses of hosts; 10.5.0.0/16 would",
            ),
            (
                r#"{"Network": "10.5.0.0/29"}"#,
                "Network 10.5.0.0/29 is too small for four subnets; the smallest is a /28",
            ),
            (r#"{"Network": "10.5.0/16"}"#, "Network \"10.5.0/16\" cannot be read; expected 10.5.0.0/16"),
            (r#"{"Network": "fd00::/48"}"#, "Network fd00::/48 is not an IPv4 network; 10.5.0.0/16 would be"),
            (
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}"#,
                "Backend.VNI 16777216 is not a number from 1 to 9999999",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxln"}}"#,
                "Backend.Type \"vxln\" is not a backend; one of vxlan, udp, host-gw, alloc, wireguard is",
            ),
            (r#"{"EnableIPv4": false}"#, "EnableIPv4 false leaves no family: set EnableIPv6 to true"),
            (
                "{}",
                "Network is missing: give the IPv4 network to take subnets from, such as 10.5.0.0/16, or set EnableIPv4 to false",
            ),
        ] {
            assert_eq!(parse(json).unwrap_err(), message);
        }
        assert!(parse("[1]").unwrap_err().starts_with("the network config is not a JSON object"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(json: Vec<u8>) {
            let _ = NetworkConfig::parse(&json);
        }

        #[test]
        fn every_subnet_of_a_pool_is_its_own_and_inside(bits in 0x0100_0000u32..0x7f00_0000, length in 8u8..=28, extra in 2u8..=14, pick: u32) {
            let json = format!(r#"{{"Network": "{}/{length}", "SubnetLen": {}}}"#,
                Family::V4.address(bits.into()), (length + extra).min(30));
            let pool = parse(&json).unwrap().pools.v4.unwrap();
            let index = u128::from(pick) % pool.capacity();
            let subnet = pool.subnet(index).unwrap();
            prop_assert!(pool.admits(&subnet));
            prop_assert_eq!(pool.indices(&subnet), Some((index, index)));
            prop_assert_eq!(pool.subnet(pool.capacity()), None);
        }
    }
}
