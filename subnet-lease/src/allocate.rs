//! Choosing a subnet. Pure: the config, the leases, a wish and the dice go in, subnets come out.

use ipnetwork::IpNetwork;
use rand::{Rng, RngExt};

use crate::config::NetworkConfig;
use crate::family::{Family, PerFamily};
use crate::key::Subnets;
use crate::subnet_pool::SubnetPool;

/// No subnet is left in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("network {network} is exhausted: all {capacity} subnets of length /{subnet_len} are taken")]
pub struct Exhausted {
    /// The network that has no free subnet.
    pub network: IpNetwork,
    /// How many subnets it has.
    pub capacity: u128,
    /// Their prefix length.
    pub subnet_len: u8,
}

/// Chooses free subnets for one host: `wish` if every part of it is free and the config admits it, else random ones,
/// each free subnet being as likely as any other. Subnets of two hosts started at once rarely collide that way.
///
/// # Errors
/// [`Exhausted`] for the first family without a free subnet.
pub fn allocate(
    config: &NetworkConfig,
    taken: &[Subnets],
    wish: Option<&Subnets>,
    dice: &mut impl Rng,
) -> Result<Subnets, Exhausted> {
    if let Some(wish) = wish
        && config.admits(wish)
        && !taken.iter().any(|taken| taken.overlaps(wish))
    {
        return Ok(*wish);
    }
    let mut subnets = PerFamily::default();
    for (family, pool) in config.pools.iter() {
        subnets.set(family, random_free(pool, family, taken, dice)?);
    }
    Ok(Subnets::new(subnets)
        .expect("a config has at least one pool, and the subnets of a pool are on their boundary"))
}

fn random_free(
    pool: &SubnetPool,
    family: Family,
    taken: &[Subnets],
    dice: &mut impl Rng,
) -> Result<IpNetwork, Exhausted> {
    let mut ranges: Vec<(u128, u128)> =
        taken.iter().filter_map(|subnets| pool.indices(&subnets.get(family)?)).collect();
    ranges.sort_unstable();

    let mut free = Vec::new();
    let mut next = 0;
    for (first, last) in ranges {
        if first > next {
            free.push((next, first - next));
        }
        next = next.max(last + 1);
    }
    if next < pool.capacity() {
        free.push((next, pool.capacity() - next));
    }

    let count: u128 = free.iter().map(|(_, length)| length).sum();
    if count == 0 {
        return Err(exhausted(pool));
    }
    let mut pick = dice.random_range(0..count);
    let index = free.iter().find_map(|(start, length)| {
        let found = (pick < *length).then_some(start + pick);
        pick = pick.saturating_sub(*length);
        found
    });
    index.and_then(|index| pool.subnet(index)).ok_or_else(|| exhausted(pool))
}

fn exhausted(pool: &SubnetPool) -> Exhausted {
    Exhausted { network: pool.network(), capacity: pool.capacity(), subnet_len: pool.subnet_len() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// A config with these pools. The backend does not matter here.
    fn config(pools: &str) -> NetworkConfig {
        let json = format!(r#"{{{pools}, "Backend": {{"Type": "vxlan"}}}}"#);
        NetworkConfig::parse(json.as_bytes()).unwrap()
    }

    fn subnets(text: &str) -> Subnets {
        text.parse().unwrap()
    }

    #[test]
    fn a_free_wish_is_granted_and_a_taken_one_is_not() {
        let config = config(r#""Network": "10.5.0.0/16""#);
        let (wish, mut dice) = (subnets("10.5.52.0/24"), StdRng::seed_from_u64(1));
        assert_eq!(allocate(&config, &[], Some(&wish), &mut dice), Ok(wish));
        assert_ne!(allocate(&config, &[wish], Some(&wish), &mut dice), Ok(wish));
        assert_ne!(allocate(&config, &[subnets("10.5.52.128/25")], Some(&wish), &mut dice), Ok(wish));
    }

    #[test]
    fn a_wish_that_the_config_does_not_admit_is_passed_over() {
        let config = config(r#""Network": "10.5.0.0/16", "SubnetMin": "10.5.8.0""#);
        for wish in ["10.6.1.0/24", "10.5.9.0/25", "10.5.7.0/24", "10.5.9.0/24,fd00::/64"] {
            let given = allocate(&config, &[], Some(&subnets(wish)), &mut StdRng::seed_from_u64(1)).unwrap();
            assert!(config.admits(&given), "{given} for {wish}");
        }
    }

    #[test]
    fn the_last_free_subnet_is_found_and_then_none() {
        let config = config(r#""Network": "10.5.0.0/26""#);
        let taken = [subnets("10.5.0.16/28"), subnets("10.5.0.48/28")];
        let mut dice = StdRng::seed_from_u64(1);
        assert_eq!(allocate(&config, &taken, None, &mut dice), Ok(subnets("10.5.0.32/28")));
        let taken = [subnets("10.5.0.16/28"), subnets("10.5.0.32/27")];
        let error = allocate(&config, &taken, None, &mut dice).unwrap_err();
        assert_eq!(
            error.to_string(),
            "network 10.5.0.0/26 is exhausted: all 3 subnets of length /28 are taken"
        );
    }

    #[test]
    fn each_family_gets_a_subnet() {
        let config = config(r#""EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48""#);
        let given = allocate(&config, &[], None, &mut StdRng::seed_from_u64(1)).unwrap();
        assert!(config.admits(&given));
    }

    proptest! {
        /// Against the plain way: list all subnets, strike out the taken ones.
        #[test]
        fn what_is_given_was_free_and_everything_free_can_be_given(
            taken in proptest::collection::vec((0u32..64, 26u8..=30), 0..12), seed: u64,
        ) {
            let config = config(r#""Network": "10.5.0.0/24", "SubnetLen": 28, "SubnetMax": "10.5.0.224""#);
            let taken: Vec<Subnets> = taken.into_iter().map(|(block, length)| {
                let network = IpNetwork::new(Family::V4.address(0x0a05_0000 + u128::from(block) * 4), length).unwrap();
                let base = IpNetwork::new(network.network(), length).unwrap();
                Subnets::new(PerFamily { v4: Some(base), v6: None }).unwrap()
            }).collect();
            let pool = config.pools.v4.unwrap();
            let free: BTreeSet<Subnets> = (0..pool.capacity())
                .map(|index| Subnets::new(PerFamily { v4: pool.subnet(index), v6: None }).unwrap())
                .filter(|subnets| !taken.iter().any(|taken| taken.overlaps(subnets)))
                .collect();
            let mut dice = StdRng::seed_from_u64(seed);
            let given: BTreeSet<Subnets> =
                (0..400).filter_map(|_| allocate(&config, &taken, None, &mut dice).ok()).collect();
            prop_assert_eq!(given, free);
        }
    }
}
