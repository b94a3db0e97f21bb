//! Which program keeps a lab's store.

use std::env;
use std::fmt;

use anyhow::{Result, bail};
use clap::ValueEnum;

/// The variable that names the kind of store of a lab that does not say itself which it wants: `etcd`, `etcd-forky` or
/// `embedded`.
pub const STORE_VARIABLE: &str = "STORE";

/// A program that speaks the etcd v3 API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// The real one, as the machine has it.
    Etcd,
    /// That of Debian forky, which is a newer one.
    #[value(name = "etcd-forky")]
    EtcdOfForky,
    /// `fland store`.
    Embedded,
}

impl StoreKind {
    /// What [`STORE_VARIABLE`] says; etcd if it says nothing.
    pub fn from_environment() -> Result<StoreKind> {
        StoreKind::named(&env::var(STORE_VARIABLE).unwrap_or_default())
    }

    fn named(name: &str) -> Result<StoreKind> {
        match name {
            "" | "etcd" => Ok(StoreKind::Etcd),
            "etcd-forky" => Ok(StoreKind::EtcdOfForky),
            "embedded" => Ok(StoreKind::Embedded),
            _ => bail!("{STORE_VARIABLE} is {name:?}; expected etcd, etcd-forky or embedded"),
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreKind::Etcd => "etcd",
            StoreKind::EtcdOfForky => "etcd of Debian forky",
            StoreKind::Embedded => "fland store",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_not_named_is_etcd() {
        assert_eq!(StoreKind::named("").unwrap(), StoreKind::Etcd);
        assert_eq!(StoreKind::named("etcd-forky").unwrap(), StoreKind::EtcdOfForky);
        assert_eq!(StoreKind::named("embedded").unwrap(), StoreKind::Embedded);
    }

    #[test]
    fn an_unknown_store_is_refused_by_name() {
        let error = StoreKind::named("consul").unwrap_err().to_string();
        assert_eq!(error, "STORE is \"consul\"; expected etcd, etcd-forky or embedded");
    }
}
