//! What the agent tells dockerd, read as dockerd's unit would: independent of the code that writes it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ipnetwork::{Ipv4Network, Ipv6Network};

/// The values of a `subnet.env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The network of all hosts.
    pub network: Ipv4Network,
    /// This host's subnet, with the address meant for its bridge: `10.5.52.1/24`.
    pub subnet: Ipv4Network,
    /// MTU for containers, in bytes.
    pub mtu: u32,
    /// The agent masquerades, so dockerd must not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads and parses the file.
    pub fn read(path: &Path) -> Result<SubnetEnv> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        SubnetEnv::parse(&text).with_context(|| format!("in {}:\n{text}", path.display()))
    }

    /// Parses `NAME=value` lines; all four IPv4 names must be there.
    pub fn parse(text: &str) -> Result<SubnetEnv> {
        let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |name: &str| values.get(name).with_context(|| format!("no {name}"));
        Ok(SubnetEnv {
            network: value("FLANNEL_NETWORK")?.parse().context("FLANNEL_NETWORK")?,
            subnet: value("FLANNEL_SUBNET")?.parse().context("FLANNEL_SUBNET")?,
            mtu: value("FLANNEL_MTU")?.parse().context("FLANNEL_MTU")?,
            ip_masq: value("FLANNEL_IPMASQ")?.parse().context("FLANNEL_IPMASQ")?,
        })
    }

    /// The subnet by its base address: `10.5.52.0/24`.
    pub fn base(&self) -> String {
        format!("{}/{}", self.subnet.network(), self.subnet.prefix())
    }

    /// The subnet's base address, which the VXLAN device carries.
    pub fn base_address(&self) -> Ipv4Addr {
        self.subnet.network()
    }

    /// The subnet's key below `<prefix>/subnets/`: `10.5.52.0-24`.
    pub fn key(&self) -> String {
        self.base().replace('/', "-")
    }

    /// The first address of the subnet's lower half and that half's length: `10.5.52.1/25`.
    pub fn lower_half(&self) -> String {
        format!("{}/{}", self.subnet.ip(), self.subnet.prefix() + 1)
    }

    /// The subnet's upper half: `10.5.52.128/25`.
    pub fn upper_half(&self) -> String {
        let prefix = self.subnet.prefix() + 1;
        let half = 1u32 << (32 - u32::from(prefix));
        format!("{}/{prefix}", Ipv4Addr::from(u32::from(self.base_address()) + half))
    }
}

/// The values of a `subnet.env`, each as far as its family is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetValues {
    /// `FLANNEL_NETWORK`.
    pub network: Option<Ipv4Network>,
    /// `FLANNEL_SUBNET`.
    pub subnet: Option<Ipv4Network>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub network6: Option<Ipv6Network>,
    /// `FLANNEL_IPV6_SUBNET`.
    pub subnet6: Option<Ipv6Network>,
    /// MTU for containers, in bytes.
    pub mtu: u32,
}

impl SubnetValues {
    /// Reads and parses the file.
    pub fn read(path: &Path) -> Result<SubnetValues> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        SubnetValues::parse(&text).with_context(|| format!("in {}:\n{text}", path.display()))
    }

    /// Parses `NAME=value` lines; a network and a subnet of one family at the least.
    pub fn parse(text: &str) -> Result<SubnetValues> {
        let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let v4 = |name| values.get(name).map(|text| text.parse().context(name)).transpose();
        let v6 = |name| values.get(name).map(|text| text.parse().context(name)).transpose();
        let (network, subnet) = (v4("FLANNEL_NETWORK")?, v4("FLANNEL_SUBNET")?);
        let (network6, subnet6) = (v6("FLANNEL_IPV6_NETWORK")?, v6("FLANNEL_IPV6_SUBNET")?);
        ensure!(
            network.is_some() == subnet.is_some() && network6.is_some() == subnet6.is_some(),
            "a network without a subnet, or a subnet without a network"
        );
        ensure!(network.is_some() || network6.is_some(), "no network");
        let mtu = values.get("FLANNEL_MTU").context("no FLANNEL_MTU")?.parse().context("FLANNEL_MTU")?;
        Ok(SubnetValues { network, subnet, network6, subnet6, mtu })
    }

    /// The IPv4 subnet's base address.
    pub fn base(&self) -> Result<Ipv4Addr> {
        Ok(self.subnet.context("no FLANNEL_SUBNET")?.network())
    }

    /// The IPv6 subnet's base address.
    pub fn base6(&self) -> Result<Ipv6Addr> {
        Ok(self.subnet6.context("no FLANNEL_IPV6_SUBNET")?.network())
    }

    /// The key below `<prefix>/subnets/`, as flannel writes it: `10.5.52.0-24&fd00:5:0:34::-64`.
    pub fn key(&self) -> String {
        let v4 = self.subnet.map(|subnet| format!("{}-{}", subnet.network(), subnet.prefix()));
        let v6 = self.subnet6.map(|subnet| format!("{}-{}", subnet.network(), subnet.prefix()));
        [v4, v6].into_iter().flatten().collect::<Vec<_>>().join("&")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn a_complete_file_is_read() {
        let env = SubnetEnv::parse(TEXT).unwrap();
        assert_eq!((env.mtu, env.ip_masq), (1450, true));
        assert_eq!(env.base(), "10.5.52.0/24");
        assert_eq!(env.key(), "10.5.52.0-24");
        assert_eq!(env.lower_half(), "10.5.52.1/25");
        assert_eq!(env.upper_half(), "10.5.52.128/25");
    }

    #[test]
    fn a_file_tells_of_one_family_or_of_both() {
        const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:34::1/64\n";
        let both = SubnetValues::parse(&format!("{TEXT}{V6}")).unwrap();
        assert_eq!(both.key(), "10.5.52.0-24&fd00:5:0:34::-64");
        assert_eq!(SubnetValues::parse(TEXT).unwrap().key(), "10.5.52.0-24");
        let only = SubnetValues::parse(&format!("{V6}FLANNEL_MTU=1430\n")).unwrap();
        assert_eq!((only.key().as_str(), only.base().is_err()), ("fd00:5:0:34::-64", true));
        assert!(SubnetValues::parse("FLANNEL_MTU=1430\n").is_err());
    }

    #[test]
    fn a_missing_line_is_named() {
        let error = SubnetEnv::parse("FLANNEL_NETWORK=10.5.0.0/16\n").unwrap_err();
        assert_eq!(error.to_string(), "no FLANNEL_SUBNET");
    }
}
