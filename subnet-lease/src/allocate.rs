//! Chooses a subnet. Pure: takes config, leases, the host's own networks, a preferred subnet and a random source.

use ipnetwork::IpNetwork;
use rand::{Rng, RngExt};

use crate::config::NetworkConfig;
use crate::family::{Family, PerFamily, encloses};
use crate::key::Subnets;
use crate::subnet_pool::SubnetPool;

/// What to consider besides the config.
#[derive(Debug, Clone, Copy, Default)]
pub struct Situation<'a> {
    /// The subnets of the network's leases.
    pub taken: &'a [Subnets],
    /// Networks of this host that its containers should still reach: prefers subnets that overlap none of them. Ignores
    /// a network that contains the whole overlay network, because that one cannot be avoided.
    pub avoid: &'a [IpNetwork],
    /// What to do if every free subnet overlaps.
    pub overlap: OverlapPolicy,
    /// What this host held before.
    pub wish: Option<&'a Subnets>,
}

/// What a host does if every free subnet overlaps one of its own networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OverlapPolicy {
    /// Take none, and wait for another to become free.
    #[default]
    Refuse,
    /// Take one of them.
    Warn,
}

/// Why no subnet can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSubnet {
    /// All are taken.
    #[error("network {network} is exhausted: all {capacity} subnets of length /{subnet_len} are taken")]
    Exhausted {
        /// The network that has no free subnet.
        network: IpNetwork,
        /// The number of its subnets.
        capacity: u128,
        /// Their prefix length.
        subnet_len: u8,
    },
    /// All free ones overlap the host's own networks.
    #[error("each free subnet of {network} ({free} of length /{subnet_len}) overlaps a network of this host")]
    Overlap {
        /// The network.
        network: IpNetwork,
        /// The number of free subnets.
        free: u128,
        /// Their prefix length.
        subnet_len: u8,
        /// The host's networks that they overlap.
        by: Vec<IpNetwork>,
    },
}

/// Chooses free subnets for one host: the preferred ones if all parts are free and the config admits them, else
/// uniformly random ones, so that two hosts that start at once rarely collide.
///
/// Grants a preference whatever networks the host has: its containers have those addresses already.
///
/// # Errors
/// [`NoSubnet`] for the first family without a free subnet.
pub fn allocate(
    config: &NetworkConfig,
    situation: &Situation<'_>,
    dice: &mut impl Rng,
) -> Result<Subnets, NoSubnet> {
    if let Some(wish) = situation.wish
        && config.admits(wish)
        && !situation.taken.iter().any(|taken| taken.overlaps(wish))
    {
        return Ok(*wish);
    }
    let mut subnets = PerFamily::default();
    for (family, pool) in config.pools.iter() {
        subnets.set(family, random_free(pool, family, situation, dice)?);
    }
    Ok(Subnets::new(subnets)
        .expect("a config has at least one pool, and the subnets of a pool are on their boundary"))
}

fn random_free(
    pool: &SubnetPool,
    family: Family,
    situation: &Situation<'_>,
    dice: &mut impl Rng,
) -> Result<IpNetwork, NoSubnet> {
    let taken: Vec<(u128, u128)> =
        situation.taken.iter().filter_map(|subnets| pool.indices(&subnets.get(family)?)).collect();
    let avoidable = situation.avoid.iter().filter(|network| !encloses(network, &pool.network()));
    let avoided: Vec<(IpNetwork, (u128, u128))> =
        avoidable.filter_map(|network| Some((*network, pool.indices(network)?))).collect();

    let free = gaps(taken.clone(), pool.capacity());
    let clear = gaps(taken.into_iter().chain(avoided.iter().map(|(_, range)| *range)), pool.capacity());
    let candidates = match situation.overlap {
        OverlapPolicy::Warn if clear.is_empty() => &free,
        _ => &clear,
    };
    if let Some(subnet) = pick(candidates, dice).and_then(|index| pool.subnet(index)) {
        return Ok(subnet);
    }
    let (network, subnet_len) = (pool.network(), pool.subnet_len());
    if free.is_empty() {
        return Err(NoSubnet::Exhausted { network, capacity: pool.capacity(), subnet_len });
    }
    let covers = |(first, last): (u128, u128)| {
        free.iter().any(|(start, length)| first < start + length && *start <= last)
    };
    let by = avoided.into_iter().filter(|(_, range)| covers(*range)).map(|(network, _)| network).collect();
    Err(NoSubnet::Overlap { network, free: free.iter().map(|(_, length)| length).sum(), subnet_len, by })
}

/// Returns the start and length of each gap that inclusive ranges leave in `0..capacity`.
fn gaps(ranges: impl IntoIterator<Item = (u128, u128)>, capacity: u128) -> Vec<(u128, u128)> {
    let mut ranges: Vec<(u128, u128)> = ranges.into_iter().collect();
    ranges.sort_unstable();
    let (mut gaps, mut next) = (Vec::new(), 0);
    for (first, last) in ranges {
        if first > next {
            gaps.push((next, first - next));
        }
        next = next.max(last + 1);
    }
    if next < capacity {
        gaps.push((next, capacity - next));
    }
    gaps
}

fn pick(gaps: &[(u128, u128)], dice: &mut impl Rng) -> Option<u128> {
    let count: u128 = gaps.iter().map(|(_, length)| length).sum();
    if count == 0 {
        return None;
    }
    let mut left = dice.random_range(0..count);
    gaps.iter().find_map(|(start, length)| {
        let found = (left < *length).then_some(start + left);
        left = left.saturating_sub(*length);
        found
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// Parses a config with these pools. The backend does not matter here.
    fn config(pools: &str) -> NetworkConfig {
        let json = format!(r#"{{{pools}, "Backend": {{"Type": "vxlan"}}}}"#);
        NetworkConfig::parse(json.as_bytes()).unwrap()
    }

    fn subnets(text: &str) -> Subnets {
        text.parse().unwrap()
    }

    fn choose(
        config: &NetworkConfig,
        taken: &[Subnets],
        wish: Option<&str>,
        seed: u64,
    ) -> Result<Subnets, NoSubnet> {
        let wish = wish.map(subnets);
        let situation = Situation { taken, wish: wish.as_ref(), ..Situation::default() };
        allocate(config, &situation, &mut StdRng::seed_from_u64(seed))
    }

    fn networks(text: &[&str]) -> Vec<IpNetwork> {
        text.iter().map(|network| network.parse().unwrap()).collect()
    }

    #[test]
    fn a_free_wish_is_granted_and_a_taken_one_is_not() {
        let config = config(r#""Network": "10.5.0.0/16""#);
        let wish = Some("10.5.52.0/24");
        let granted = subnets("10.5.52.0/24");
        assert_eq!(choose(&config, &[], wish, 1), Ok(granted));
        assert_ne!(choose(&config, &[granted], wish, 1), Ok(granted));
        assert_ne!(choose(&config, &[subnets("10.5.52.128/25")], wish, 1), Ok(granted));
    }

    #[test]
    fn a_wish_that_the_config_does_not_admit_is_passed_over() {
        let config = config(r#""Network": "10.5.0.0/16", "SubnetMin": "10.5.8.0""#);
        for wish in ["10.6.1.0/24", "10.5.9.0/25", "10.5.7.0/24", "10.5.9.0/24,fd00::/64"] {
            let given = choose(&config, &[], Some(wish), 1).unwrap();
            assert!(config.admits(&given), "{given} for {wish}");
        }
    }

    #[test]
    fn the_last_free_subnet_is_found_and_then_none() {
        let config = config(r#""Network": "10.5.0.0/26""#);
        let taken = [subnets("10.5.0.16/28"), subnets("10.5.0.48/28")];
        assert_eq!(choose(&config, &taken, None, 1), Ok(subnets("10.5.0.32/28")));
        let taken = [subnets("10.5.0.16/28"), subnets("10.5.0.32/27")];
        let error = choose(&config, &taken, None, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "network 10.5.0.0/26 is exhausted: all 3 subnets of length /28 are taken"
        );
    }

    #[test]
    fn each_family_gets_a_subnet() {
        let config = config(r#""EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48""#);
        let given = choose(&config, &[], None, 1).unwrap();
        assert!(config.admits(&given));
    }

    /// Allocates in 172.16.0.0/12 where only 172.26.0.0/16 is free, on a host with 172.26.0.5/16.
    fn only_the_hosts_own_is_free(overlap: OverlapPolicy) -> Result<Subnets, NoSubnet> {
        let config = config(r#""Network": "172.16.0.0/12", "SubnetLen": 16"#);
        let taken: Vec<Subnets> =
            (17..32).filter(|n| *n != 26).map(|n| subnets(&format!("172.{n}.0.0/16"))).collect();
        let avoid = networks(&["10.0.0.0/8", "172.26.0.5/16"]);
        let situation = Situation { taken: &taken, avoid: &avoid, overlap, wish: None };
        allocate(&config, &situation, &mut StdRng::seed_from_u64(1))
    }

    #[test]
    fn where_only_a_subnet_of_the_hosts_own_network_is_free_it_is_taken_as_configured() {
        let error = only_the_hosts_own_is_free(OverlapPolicy::Refuse).unwrap_err();
        assert_eq!(
            error.to_string(),
            "each free subnet of 172.16.0.0/12 (1 of length /16) overlaps a network of this host"
        );
        assert!(matches!(error, NoSubnet::Overlap { by, .. } if by == networks(&["172.26.0.5/16"])));
        assert_eq!(only_the_hosts_own_is_free(OverlapPolicy::Warn), Ok(subnets("172.26.0.0/16")));
    }

    #[test]
    fn a_host_keeps_what_it_held_although_one_of_its_networks_has_it_now() {
        let config = config(r#""Network": "10.5.0.0/16""#);
        let (wish, avoid) = (subnets("10.5.52.0/24"), networks(&["10.5.52.0/24"]));
        let situation = Situation { avoid: &avoid, wish: Some(&wish), ..Situation::default() };
        assert_eq!(allocate(&config, &situation, &mut StdRng::seed_from_u64(1)), Ok(wish));
    }

    #[test]
    fn a_network_that_encloses_the_overlay_cannot_be_avoided() {
        let config = config(r#""EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48""#);
        for avoid in [["10.0.0.0/8", "fd00::/8"], ["10.5.0.0/16", "fd00:5::/48"]] {
            let avoid = networks(&avoid);
            let situation = Situation { avoid: &avoid, ..Situation::default() };
            assert!(allocate(&config, &situation, &mut StdRng::seed_from_u64(1)).is_ok());
        }
    }

    /// Generates networks inside 10.5.0.0/24.
    fn blocks() -> impl Strategy<Value = Vec<IpNetwork>> {
        let block = (0u32..64, 26u8..=30).prop_map(|(block, length)| {
            let inside =
                IpNetwork::new(Family::V4.address(0x0a05_0000 + u128::from(block) * 4), length).unwrap();
            IpNetwork::new(inside.network(), length).unwrap()
        });
        proptest::collection::vec(block, 0..12)
    }

    proptest! {
        /// Compares with the naive way: list all subnets, and remove the taken ones.
        #[test]
        fn what_is_given_was_free_and_everything_free_can_be_given(
            taken in blocks(), seed: u64,
        ) {
            let config = config(r#""Network": "10.5.0.0/24", "SubnetLen": 28, "SubnetMax": "10.5.0.224""#);
            let taken: Vec<Subnets> =
                taken.into_iter().map(|v4| Subnets::new(PerFamily { v4: Some(v4), v6: None }).unwrap()).collect();
            let pool = config.pools.v4.unwrap();
            let free: BTreeSet<Subnets> = (0..pool.capacity())
                .map(|index| Subnets::new(PerFamily { v4: pool.subnet(index), v6: None }).unwrap())
                .filter(|subnets| !taken.iter().any(|taken| taken.overlaps(subnets)))
                .collect();
            let mut dice = StdRng::seed_from_u64(seed);
            let situation = Situation { taken: &taken, ..Situation::default() };
            let given: BTreeSet<Subnets> =
                (0..400).filter_map(|_| allocate(&config, &situation, &mut dice).ok()).collect();
            prop_assert_eq!(given, free);
        }

        /// Compares with the naive way: free subnets that overlap no network of the host, or any free one if there are
        /// none and the policy allows it.
        #[test]
        fn networks_of_the_host_are_avoided_as_long_as_another_subnet_is_free(
            taken in blocks(), avoid in blocks(), warn: bool, seed: u64,
        ) {
            let config = config(
                r#""Network": "10.5.0.0/24", "SubnetLen": 28, "SubnetMax": "10.5.0.224""#,
            );
            let pool = config.pools.v4.unwrap();
            let taken: Vec<Subnets> =
                taken.into_iter().map(|v4| Subnets::new(PerFamily { v4: Some(v4), v6: None }).unwrap()).collect();
            let all = (0..pool.capacity()).filter_map(|index| pool.subnet(index));
            let of_one = |v4| Subnets::new(PerFamily { v4: Some(v4), v6: None }).unwrap();
            let free: Vec<IpNetwork> =
                all.filter(|subnet| !taken.iter().any(|taken| taken.overlaps(&of_one(*subnet)))).collect();
            let clear: Vec<IpNetwork> = free
                .iter()
                .filter(|subnet| !avoid.iter().any(|network| crate::family::overlap(network, subnet)))
                .copied()
                .collect();
            let overlap = if warn { OverlapPolicy::Warn } else { OverlapPolicy::Refuse };
            let wanted = if clear.is_empty() && warn { &free } else { &clear };
            let wanted: BTreeSet<Subnets> = wanted.iter().map(|subnet| of_one(*subnet)).collect();

            let mut dice = StdRng::seed_from_u64(seed);
            let situation = Situation { taken: &taken, avoid: &avoid, overlap, wish: None };
            let given: BTreeSet<Subnets> =
                (0..400).filter_map(|_| allocate(&config, &situation, &mut dice).ok()).collect();
            prop_assert_eq!(&given, &wanted);
            if given.is_empty() {
                let error = allocate(&config, &situation, &mut dice).unwrap_err();
                prop_assert_eq!(matches!(error, NoSubnet::Exhausted { .. }), free.is_empty());
            }
        }
    }
}
