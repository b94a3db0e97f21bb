//! Addresses, as dockerd asks for them: a pool is a whole network, and containers get addresses of this host's part.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use flan_agent_api::SubnetEnv;
use flan_kernel::netlink::host_networks;
use flan_subnet_lease::{Family, NetworkName, overlap};
use ipnetwork::{IpNetwork, Ipv4Network};
use rand::seq::IteratorRandom;
use tokio::time::{Instant, sleep};

use crate::addresses::Part;
use crate::driver::{Driver, STORE_LIMIT, within};
use crate::protocol::{Address, OfAddress, Pool, RequestPool};

const GATEWAY: &str = "com.docker.network.gateway";
const KIND: &str = "RequestAddressType";
/// Prefix length of an IPv4 network that is chosen for somebody.
const CHOSEN_LENGTH: u8 = 16;
/// How long a new network may take until it is in the store.
const NAMING: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(50);

impl Driver {
    /// Returns the addresses of a new network: those asked for, or free ones.
    pub(crate) async fn request_pool(&self, call: RequestPool) -> Result<Pool, String> {
        if !call.sub_pool.is_empty() {
            return Err(format!(
                "--ip-range {} has no effect in a flan network: each host gives the addresses of its own part",
                call.sub_pool
            ));
        }
        if let Some((name, _)) = call.options.iter().flatten().next() {
            return Err(format!("the IPAM driver flan has no option {name}, and no other"));
        }
        let pool = match call.pool.as_str() {
            "" if call.v6 => unique_local()?,
            "" => self.free_network().await?,
            given => given.parse().map_err(|why| format!("--subnet {given}: {why}"))?,
        };
        let first = IpNetwork::new(following(pool.network()), pool.prefix()).unwrap_or(pool);
        let data = BTreeMap::from([(GATEWAY, first.to_string())]);
        Ok(Pool { id: pool.to_string(), pool: pool.to_string(), data })
    }

    /// Chooses a network that overlaps none in the store and none of this host.
    async fn free_network(&self) -> Result<IpNetwork, String> {
        let known = within(STORE_LIMIT, self.store.known()).await?.1;
        let source = self.settings.address_pool;
        let whole = IpNetwork::from(source);
        let ours = host_networks(move |network| overlap(network, &whole)).await;
        let ours = ours.map_err(|reason| reason.to_string())?;
        let records = self.records();
        let taken: Vec<IpNetwork> = known
            .all
            .iter()
            .flat_map(|(_, config)| config.networks().map(|(_, network)| network))
            .chain(ours.into_iter().map(|network| network.network))
            .chain(records.networks.values().flat_map(|network| network.subnets.iter().copied()))
            .collect();
        // At random, because others may choose at the same moment.
        parts(source)
            .filter(|network| !taken.iter().any(|taken| overlap(taken, network)))
            .choose(&mut rand::rng())
            .ok_or_else(|| format!("no network of {source} is free; give one with --subnet"))
    }

    /// Gives a container an address of this host's part of the network, which this host joins if needed.
    pub(crate) async fn request_address(&self, call: OfAddress) -> Result<Address, String> {
        let pool: IpNetwork = call.pool_id.parse().map_err(|why| format!("pool {}: {why}", call.pool_id))?;
        let first = following(pool.network());
        let wanted: Option<IpAddr> = match call.address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|why| format!("address {text}: {why}"))?),
        };
        if call.options.iter().flatten().any(|(key, value)| key == KIND && value == GATEWAY) {
            return match wanted.filter(|wanted| *wanted != first) {
                None => Ok(Address { address: format!("{first}/{}", pool.prefix()) }),
                Some(wanted) => Err(format!(
                    "--gateway {wanted} has no effect in a flan network: each host has a gateway of its own"
                )),
            };
        }
        let network = self.named(&pool).await?;
        let give = |env: &SubnetEnv| match env.bridges.get(Family::of(pool.ip())) {
            Some(bridge) => self.give(pool, Part::new(*bridge), wanted),
            None => Err(format!("this host has no part of {pool} of network {network}")),
        };
        self.attach_for(&network, give).await
    }

    fn give(&self, pool: IpNetwork, part: Part, wanted: Option<IpAddr>) -> Result<Address, String> {
        self.change(|records| {
            let given = records.addresses.entry(pool).or_default();
            let address =
                part.choose(wanted, &given.taken, given.last).map_err(|reason| reason.to_string())?;
            given.taken.insert(address);
            if wanted.is_none() {
                given.last = Some(address);
            }
            Ok(Address { address: part.with_length(address) })
        })
    }

    /// Takes an address back.
    pub(crate) fn release_address(&self, call: &OfAddress) -> Result<(), String> {
        let (Ok(pool), Ok(address)) = (call.pool_id.parse(), call.address.parse()) else { return Ok(()) };
        self.change(|records| {
            records.take_back(&pool, address);
            Ok(())
        })?;
        self.released.notify_one();
        Ok(())
    }

    /// Returns the network with these addresses, once it is in the store.
    async fn named(&self, pool: &IpNetwork) -> Result<NetworkName, String> {
        let until = Instant::now() + NAMING;
        loop {
            let records = self.records();
            let network = records.network_of_pool(pool);
            match network {
                None => {
                    return Err(format!(
                        "fland knows no network with the addresses {pool}; in a new one, --aux-address has no effect"
                    ));
                }
                Some(network) => match &network.name {
                    Some(name) => return Ok(name.clone()),
                    None if Instant::now() >= until => {
                        return Err(format!(
                            "the network with the addresses {pool} is not in the store yet; the log of fland says why"
                        ));
                    }
                    None => sleep(LOOK).await,
                },
            }
        }
    }
}

/// Returns the networks of [`CHOSEN_LENGTH`] in this one, or this one if it is smaller.
fn parts(whole: Ipv4Network) -> impl Iterator<Item = IpNetwork> {
    let length = CHOSEN_LENGTH.max(whole.prefix());
    let (base, count) = (whole.network().to_bits(), 1u32 << (length - whole.prefix()));
    let part = move |number: u32| {
        let offset = number << (32 - length);
        IpNetwork::new(std::net::Ipv4Addr::from_bits(base + offset).into(), length).ok()
    };
    (0..count).filter_map(part)
}

/// Returns a random network of unique local addresses (RFC 4193): nobody needs to compare it with others.
fn unique_local() -> Result<IpNetwork, String> {
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&rand::random::<[u8; 5]>());
    IpNetwork::new(std::net::Ipv6Addr::from(octets).into(), 48).map_err(|why| why.to_string())
}

fn following(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => std::net::Ipv4Addr::from_bits(address.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(address) => std::net::Ipv6Addr::from_bits(address.to_bits().wrapping_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_chosen_from_the_pool() {
        let of =
            |pool: &str| parts(pool.parse().unwrap()).map(|network| network.to_string()).collect::<Vec<_>>();
        assert_eq!(of("10.128.0.0/14"), ["10.128.0.0/16", "10.129.0.0/16", "10.130.0.0/16", "10.131.0.0/16"]);
        assert_eq!(of("10.128.0.0/9").len(), 128);
        assert_eq!(of("10.128.0.0/20"), ["10.128.0.0/20"]);
    }

    #[test]
    fn an_ipv6_network_is_unique_and_local() {
        let (one, other) = (unique_local().unwrap(), unique_local().unwrap());
        assert!(one.to_string().starts_with("fd") && one.prefix() == 48 && one != other);
        assert_eq!(one.network(), one.ip());
    }
}
