//! The subnets of one lease, and its etcd key.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

use crate::family::{Family, PerFamily, overlap};
use crate::shown::cut;

/// The subnets of one lease: one for each family in use, at least one, each at its base address.
///
/// [`Subnets::key`] and [`Subnets::from_key`] convert to and from the last part of the etcd key: `10.5.52.0-24`,
/// `10.12.13.0-24&fd00:12:13::-56` or, in a network without IPv4, `fd00:12:13::-56`. `Display` and `FromStr` use the
/// notation that people type: `10.5.52.0/24`.
///
/// Every lease has one, so it is small: address and prefix length of each family, without alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnets {
    v4: Option<(Ipv4Addr, u8)>,
    v6: Option<(Ipv6Addr, u8)>,
}

/// Why a text names no subnets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Not in the form of a key. Holds the text, cut if long.
    #[error("{0:?} names no subnet, such as 10.5.52.0/24 or, in a key, 10.5.52.0-24&fd00:5:0:34::-64")]
    Syntax(String),
    /// Not the canonical form: it names the same subnet as another key.
    #[error("{key:?} is not the canonical form of {subnets}, which is {:?}", subnets.key())]
    Form {
        /// The key, cut if long.
        key: String,
        /// What it names.
        subnets: Subnets,
    },
    /// The address is not the first of the subnet.
    #[error("{subnet} is not on a subnet boundary; {base} would be")]
    Boundary {
        /// The subnet as written.
        subnet: IpNetwork,
        /// The subnet that contains the address.
        base: IpNetwork,
    },
    /// A family occurs twice, or none at all.
    #[error("a lease holds at most one subnet of each family, and at least one")]
    Families,
}

impl Subnets {
    /// Checks that there is at least one subnet, each of its family and on its boundary.
    ///
    /// # Errors
    /// [`InvalidKey::Families`] or [`InvalidKey::Boundary`].
    pub fn new(subnets: PerFamily<IpNetwork>) -> Result<Self, InvalidKey> {
        if subnets.is_empty() || subnets.iter().any(|(family, subnet)| family != Family::of(subnet.ip())) {
            return Err(InvalidKey::Families);
        }
        if let Some(subnet) = subnets.values().find(|subnet| subnet.ip() != subnet.network()) {
            return Err(InvalidKey::Boundary { subnet: *subnet, base: base_of(subnet) });
        }
        let mut own = Self { v4: None, v6: None };
        for subnet in subnets.values() {
            match subnet.ip() {
                IpAddr::V4(ip) => own.v4 = Some((ip, subnet.prefix())),
                IpAddr::V6(ip) => own.v6 = Some((ip, subnet.prefix())),
            }
        }
        Ok(own)
    }

    /// Reads the last part of an etcd key. No two keys name the same subnets.
    ///
    /// # Errors
    /// Any [`InvalidKey`].
    pub fn from_key(key: &str) -> Result<Self, InvalidKey> {
        let subnets = Self::parse(key, '&', '-')?;
        if !subnets.joined("&", "-").reads(key) {
            return Err(InvalidKey::Form { key: cut(key).into_owned(), subnets });
        }
        Ok(subnets)
    }

    /// Returns the last part of the etcd key.
    pub fn key(&self) -> String {
        self.joined("&", "-").to_string()
    }

    /// Returns the subnet of one family.
    pub fn get(&self, family: Family) -> Option<IpNetwork> {
        let (ip, length): (IpAddr, u8) = match family {
            Family::V4 => self.v4.map(|(ip, length)| (ip.into(), length))?,
            Family::V6 => self.v6.map(|(ip, length)| (ip.into(), length))?,
        };
        IpNetwork::new(ip, length).ok()
    }

    /// Returns the subnets with their families, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, IpNetwork)> + '_ {
        Family::ALL.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// Returns whether any subnet overlaps one of `other`.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.iter().any(|(family, a)| other.get(family).is_some_and(|b| overlap(&a, &b)))
    }

    fn parse(text: &str, between: char, before_length: char) -> Result<Self, InvalidKey> {
        let syntax = || InvalidKey::Syntax(cut(text).into_owned());
        let mut subnets = PerFamily::default();
        for part in text.split(between) {
            let (address, length) = part.rsplit_once(before_length).ok_or_else(syntax)?;
            let address = address.parse::<IpAddr>().map_err(|_| syntax())?;
            let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits).ok_or_else(syntax)?;
            let subnet = IpNetwork::new(address, length).map_err(|_| syntax())?;
            let family = Family::of(address);
            if subnets.get(family).is_some() {
                return Err(InvalidKey::Families);
            }
            subnets.set(family, subnet);
        }
        Self::new(subnets)
    }

    fn joined<'a>(&'a self, between: &'a str, before_length: &'a str) -> Joined<'a> {
        Joined { subnets: self, between, before_length }
    }
}

struct Joined<'a> {
    subnets: &'a Subnets,
    between: &'a str,
    before_length: &'a str,
}

impl Joined<'_> {
    /// Compares with `text` without formatting: this happens for every lease that is read.
    fn reads(&self, text: &str) -> bool {
        let mut rest = Rest(text);
        write!(rest, "{self}").is_ok() && rest.0.is_empty()
    }
}

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (_, subnet)) in self.subnets.iter().enumerate() {
            let between = if at == 0 { "" } else { self.between };
            write!(f, "{between}{}{}{}", subnet.ip(), self.before_length, subnet.prefix())?;
        }
        Ok(())
    }
}

/// The rest of a text. Writing removes what is written, and fails on a mismatch.
struct Rest<'a>(&'a str);

impl fmt::Write for Rest<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
        Ok(())
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.joined(",", "/").to_string())
    }
}

impl FromStr for Subnets {
    type Err = InvalidKey;

    /// Reads `10.5.52.0/24` or `10.5.52.0/24,fd00:5:0:34::/64`, and also the form of the key.
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        if text.contains('/') { Self::parse(text, ',', '/') } else { Self::from_key(text) }
    }
}

fn base_of(subnet: &IpNetwork) -> IpNetwork {
    IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(*subnet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_of_one_family_and_of_both_are_flannels() {
        for (key, shown) in [
            ("10.5.52.0-24", "10.5.52.0/24"),
            ("10.12.13.0-24&fd00:12:13::-56", "10.12.13.0/24,fd00:12:13::/56"),
            ("fd00:12:13::-56", "fd00:12:13::/56"),
        ] {
            let subnets = Subnets::from_key(key).unwrap();
            assert_eq!(subnets.key(), key);
            assert_eq!(subnets.to_string(), shown);
            assert_eq!(shown.parse::<Subnets>().unwrap(), subnets);
        }
    }

    #[test]
    fn a_key_off_the_boundary_says_what_would_be_on_it() {
        let error = Subnets::from_key("10.5.52.7-24").unwrap_err();
        assert_eq!(error.to_string(), "10.5.52.7/24 is not on a subnet boundary; 10.5.52.0/24 would be");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for key in [
            "",
            "config",
            "10.5.52.0",
            "10.5.52.0-33",
            "10.5.52.0-+24",
            "10.5.52.0-24&",
            "10.5.52.0-24&10.5.53.0-24",
            "10.5.52.0-024",
            "fd00:12:13:0::-56",
        ] {
            assert!(Subnets::from_key(key).is_err(), "{key}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(key in "\\PC*") {
            let _ = Subnets::from_key(&key);
        }

        #[test]
        fn what_is_written_is_read_back(v4: Option<(u32, u8)>, v6: Option<(u128, u8)>) {
            let v4 = v4.map(|(bits, length)| base_of(&IpNetwork::new(Family::V4.address(bits.into()), length % 33).unwrap()));
            let v6 = v6.map(|(bits, length)| base_of(&IpNetwork::new(Family::V6.address(bits), length % 129).unwrap()));
            if let Ok(subnets) = Subnets::new(PerFamily { v4, v6 }) {
                prop_assert_eq!(Subnets::from_key(&subnets.key()).unwrap(), subnets);
                prop_assert_eq!(subnets.to_string().parse::<Subnets>().unwrap(), subnets);
            }
        }
    }
}
