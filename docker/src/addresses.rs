//! Chooses addresses for containers from this host's part of a network.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Most addresses of a part that are considered; of a /64 one would never see the end.
const MOST: u128 = 1 << 16;

/// This host's part of a network, whose first address the bridge has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    bridge: IpNetwork,
}

/// Why there is no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAddress {
    #[error(
        "{0} is not among the addresses of this host in the network, {1} to {2}; every host of the network has others"
    )]
    Elsewhere(IpAddr, IpAddr, IpAddr),
    #[error("a container of this host has {0} already")]
    Taken(IpAddr),
    #[error(
        "all addresses of this host in the network, {0} to {1}, are taken; stop a container, or give hosts larger parts \
             (-o flan.subnet-len) in a new network"
    )]
    Exhausted(IpAddr, IpAddr),
}

impl Part {
    /// Creates it from the bridge's address with its prefix length.
    pub(crate) fn new(bridge: IpNetwork) -> Self {
        Self { bridge }
    }

    /// Returns the first and the last address that a container can have.
    fn range(self) -> (u128, u128) {
        let (base, bits) = (bits(self.bridge.network()), if self.bridge.is_ipv4() { 32 } else { 128 });
        let size = 1u128.checked_shl(bits - u32::from(self.bridge.prefix())).unwrap_or(u128::MAX);
        // The last IPv4 address is for broadcasts.
        let last = if self.bridge.is_ipv4() { size.saturating_sub(2) } else { size - 1 };
        (base + 2, base + last.min(MOST))
    }

    fn address(self, bits: u128) -> IpAddr {
        match u32::try_from(bits) {
            Ok(bits) if self.bridge.is_ipv4() => std::net::Ipv4Addr::from_bits(bits).into(),
            _ => std::net::Ipv6Addr::from_bits(bits).into(),
        }
    }

    /// Returns the wanted address, or the first free one after `last`, so that one that was released rests for a while.
    pub(crate) fn choose(
        self,
        wanted: Option<IpAddr>,
        taken: &BTreeSet<IpAddr>,
        last: Option<IpAddr>,
    ) -> Result<IpAddr, NoAddress> {
        let (from, to) = self.range();
        let (first, end) = (self.address(from), self.address(to));
        if let Some(wanted) = wanted {
            let is_usable = self.bridge.contains(wanted) && (bits(wanted) >= from);
            let is_broadcast = self.bridge.is_ipv4() && wanted == self.bridge.broadcast();
            if !is_usable || is_broadcast {
                return Err(NoAddress::Elsewhere(wanted, first, end));
            }
            return if taken.contains(&wanted) { Err(NoAddress::Taken(wanted)) } else { Ok(wanted) };
        }
        let after = last.map(bits).filter(|last| (from..to).contains(last)).map_or(from, |last| last + 1);
        (after..=to)
            .chain(from..after)
            .map(|bits| self.address(bits))
            .find(|address| !taken.contains(address))
            .ok_or(NoAddress::Exhausted(first, end))
    }

    /// Returns an address as a container gets it.
    pub(crate) fn with_length(self, address: IpAddr) -> String {
        format!("{address}/{}", self.bridge.prefix())
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn choose(
        bridge: &str,
        wanted: Option<&str>,
        taken: &[&str],
        last: Option<&str>,
    ) -> Result<String, NoAddress> {
        let taken = taken.iter().map(|address| ip(address)).collect();
        let part = Part::new(bridge.parse().unwrap());
        part.choose(wanted.map(ip), &taken, last.map(ip)).map(|address| part.with_length(address))
    }

    #[test]
    fn the_first_free_address_after_the_last_is_chosen() {
        assert_eq!(choose("10.7.1.1/24", None, &[], None).unwrap(), "10.7.1.2/24");
        assert_eq!(choose("10.7.1.1/24", None, &["10.7.1.2"], None).unwrap(), "10.7.1.3/24");
        assert_eq!(choose("10.7.1.1/24", None, &[], Some("10.7.1.2")).unwrap(), "10.7.1.3/24");
        assert_eq!(choose("10.7.1.1/24", None, &[], Some("10.7.1.254")).unwrap(), "10.7.1.2/24");
        assert_eq!(choose("fd00:7:0:1::1/64", None, &[], None).unwrap(), "fd00:7:0:1::2/64");
        assert_eq!(
            choose("10.7.1.1/24", None, &[], Some("10.9.1.7")).unwrap(),
            "10.7.1.2/24",
            "of another subnet"
        );
    }

    #[test]
    fn a_wanted_address_is_given_or_refused_with_the_range() {
        assert_eq!(choose("10.7.1.1/24", Some("10.7.1.77"), &[], None).unwrap(), "10.7.1.77/24");
        for elsewhere in ["10.7.2.2", "10.7.1.0", "10.7.1.1", "10.7.1.255", "fd00::1"] {
            let error = choose("10.7.1.1/24", Some(elsewhere), &[], None).unwrap_err().to_string();
            assert!(error.starts_with(elsewhere) && error.contains("10.7.1.2 to 10.7.1.254"), "{error}");
        }
        assert!(
            choose("10.7.1.1/24", Some("10.7.1.7"), &["10.7.1.7"], None)
                .unwrap_err()
                .to_string()
                .contains("has")
        );
    }

    proptest! {
        #[test]
        fn every_address_is_given_once(prefix in 26u8..=30, released in 0usize..60) {
            let part = Part::new(IpNetwork::new(ip("10.7.1.1"), prefix).unwrap());
            let (mut taken, mut last) = (BTreeSet::new(), None);
            while let Ok(address) = part.choose(None, &taken, last) {
                prop_assert!(taken.insert(address));
                last = Some(address);
            }
            prop_assert_eq!(taken.len(), (1 << (32 - prefix)) - 3);
            let released = *taken.iter().nth(released % taken.len()).unwrap();
            taken.remove(&released);
            prop_assert_eq!(part.choose(None, &taken, last), Ok(released));
        }
    }
}
