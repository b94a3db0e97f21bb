//! Where subnets come from: one family's part of the network config.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::config_error::ConfigError;
use crate::family::{Family, bits, encloses, is_host_address, span};
use crate::fields::Fields;

/// The part of a network that leases are taken from, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetPool {
    network: IpNetwork,
    subnet_len: u8,
    first: u128,
    last: u128,
}

impl SubnetPool {
    /// Returns the whole overlay network.
    pub fn network(&self) -> IpNetwork {
        self.network
    }

    /// Returns the prefix length of each subnet.
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// Returns the number of subnets to lease. Saturates at `u128::MAX`.
    pub fn capacity(&self) -> u128 {
        ((self.last - self.first) >> self.host_bits()).saturating_add(1)
    }

    /// Returns the first subnet that is leased (`SubnetMin`).
    pub fn min(&self) -> IpAddr {
        self.family().address(self.first)
    }

    /// Returns the last subnet that is leased (`SubnetMax`).
    pub fn max(&self) -> IpAddr {
        self.family().address(self.last)
    }

    /// Returns whether this subnet is in the pool.
    pub fn admits(&self, subnet: &IpNetwork) -> bool {
        let (base, _) = span(subnet);
        encloses(&self.network, subnet)
            && subnet.prefix() == self.subnet_len
            && (self.first..=self.last).contains(&base)
    }

    /// Returns the subnet at `index`, counted from the first leased one; below [`SubnetPool::capacity`].
    pub(crate) fn subnet(&self, index: u128) -> Option<IpNetwork> {
        let base = self.first.checked_add(index.checked_shl(self.host_bits())?)?;
        (base <= self.last).then(|| IpNetwork::new(self.family().address(base), self.subnet_len).ok())?
    }

    /// Returns the indices of the pool's subnets that overlap `subnet`.
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

    /// Reads the fields of one family, which may be in use by default; `None` if it is not in use.
    pub(crate) fn parse(
        fields: &mut Fields,
        family: Family,
        by_default: bool,
    ) -> Result<Option<Self>, ConfigError> {
        let names = PoolFields::of(family);
        let enabled = fields.take(names.enable)?.unwrap_or(by_default);
        let network = fields.take_parsed::<Cidr>(names.network, names.network_example)?;
        let length = fields.take_in::<u8>(names.subnet_len, 0..=names.longest)?;
        let min = fields.take_parsed::<IpAddr>(names.subnet_min, "an address")?;
        let max = fields.take_parsed::<IpAddr>(names.subnet_max, "an address")?;
        if !enabled {
            return Ok(None);
        }
        let Cidr(network) =
            network.ok_or(ConfigError::Missing { field: names.network, hint: names.hint.to_owned() })?;
        if Family::of(network.ip()) != family {
            let problem = format!("is not an {family} network; {} would be", names.network_example);
            return Err(ConfigError::invalid(names.network, &network.to_string(), &problem));
        }
        let network = IpNetwork::new(network.network(), network.prefix()).unwrap_or(network);
        let link_local = matches!(network.ip(), IpAddr::V4(ip) if ip.is_link_local());
        if link_local || !is_host_address(network.network()) || !is_host_address(inner_end(&network)) {
            let problem = format!("contains no host addresses; {} would", names.network_example);
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
        // Like flannel, omit the first subnet of the network by default.
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

/// Returns the field that enables a family.
pub(crate) fn enabling_field(family: Family) -> &'static str {
    PoolFields::of(family).enable
}

/// A network in the only form that flannel reads, `10.5.0.0/16`.
struct Cidr(IpNetwork);

impl std::str::FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        let network = IpNetwork::new(address.parse().map_err(|_| ())?, length.parse().map_err(|_| ())?);
        network.map(Self).map_err(|_| ())
    }
}

/// The names of one family's fields in the config, and its limits.
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

impl PoolFields {
    fn of(family: Family) -> &'static Self {
        match family {
            Family::V4 => &V4_FIELDS,
            Family::V6 => &V6_FIELDS,
        }
    }
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

/// Returns the prefix length of subnets: as requested, or 24 (64), or the network's plus two if the network is too
/// small. There are always at least four subnets, none longer than /30 (/126).
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

/// Returns the last address but one: the very last of an IPv4 network may be the broadcast address of all subnets.
fn inner_end(network: &IpNetwork) -> IpAddr {
    Family::of(network.ip()).address(span(network).1 - 1)
}

fn host_mask(host_bits: u32) -> u128 {
    (1u128 << host_bits) - 1
}
