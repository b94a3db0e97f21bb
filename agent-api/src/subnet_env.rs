//! `subnet.env`: the leased subnet, for dockerd, the CNI plugin, and the agent after a restart.
//!
//! The format is identical to flannel's, see [`SubnetEnv::render`].

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use flan_subnet_lease::{Family, PerFamily, Subnets};
use ipnetwork::IpNetwork;

use crate::whole_file::write_whole;

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The whole overlay network of each family in use.
    pub networks: PerFamily<IpNetwork>,
    /// The first address of our subnet with its prefix length, for the bridge.
    pub bridges: PerFamily<IpNetwork>,
    /// Largest packet in bytes that containers may send.
    pub mtu: u32,
    /// Whether the agent masquerades, so that dockerd must not.
    pub ip_masq: bool,
}

/// Why a subnet file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SubnetEnvError {
    /// The file is not readable.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// A required line is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value is invalid.
    #[error("{name}={value} cannot be read; expected {expected}")]
    Invalid {
        /// The variable.
        name: String,
        /// Its value.
        value: String,
        /// What would work.
        expected: &'static str,
    },
}

impl SubnetEnv {
    /// Creates the content for these subnets.
    pub fn new(networks: PerFamily<IpNetwork>, subnets: &Subnets, mtu: u32, ip_masq: bool) -> Self {
        let mut bridges = PerFamily::default();
        for (family, subnet) in subnets.iter() {
            let first = match subnet.ip() {
                std::net::IpAddr::V4(base) => std::net::Ipv4Addr::from_bits(base.to_bits() + 1).into(),
                std::net::IpAddr::V6(base) => std::net::Ipv6Addr::from_bits(base.to_bits() + 1).into(),
            };
            if let Ok(bridge) = IpNetwork::new(first, subnet.prefix()) {
                bridges.set(family, bridge);
            }
        }
        Self { networks, bridges, mtu, ip_masq }
    }

    /// Returns the text of the file: lines in flannel's order, IPv4 lines only if IPv4 is in use.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (family, prefix) in PREFIXES {
            if let (Some(network), Some(bridge)) = (self.networks.get(family), self.bridges.get(family)) {
                let _ = write!(text, "{prefix}NETWORK={network}\n{prefix}SUBNET={bridge}\n");
            }
        }
        let _ = write!(text, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", self.mtu, self.ip_masq);
        text
    }

    /// Parses the text of a file. Ignores unknown lines.
    ///
    /// # Errors
    /// [`SubnetEnvError`] naming the variable.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let value = |name: &str| {
            let found = text
                .lines()
                .filter_map(|line| line.trim().split_once('='))
                .find(|(key, _)| key.trim() == name);
            found.map(|(_, value)| value.trim().trim_matches(['"', '\'']).to_owned())
        };
        let mut env = Self {
            networks: PerFamily::default(),
            bridges: PerFamily::default(),
            mtu: read(
                "FLANNEL_MTU",
                value("FLANNEL_MTU").ok_or(SubnetEnvError::Missing("FLANNEL_MTU"))?,
                "bytes",
            )?,
            ip_masq: read(
                "FLANNEL_IPMASQ",
                value("FLANNEL_IPMASQ").unwrap_or("false".to_owned()),
                "true or false",
            )?,
        };
        for (family, prefix) in PREFIXES {
            let (network, subnet) = (format!("{prefix}NETWORK"), format!("{prefix}SUBNET"));
            for (name, into) in [(network, &mut env.networks), (subnet, &mut env.bridges)] {
                let Some(value) = value(&name) else { continue };
                let read: IpNetwork =
                    read(&name, value.clone(), "an address with its length, such as 10.5.52.1/24")?;
                if Family::of(read.ip()) != family {
                    let expected = if family == Family::V4 { "an IPv4 address" } else { "an IPv6 address" };
                    return Err(SubnetEnvError::Invalid { name, value, expected });
                }
                into.set(family, read);
            }
        }
        if env.bridges.is_empty() {
            return Err(SubnetEnvError::Missing("FLANNEL_SUBNET"));
        }
        Ok(env)
    }

    /// Reads a file; `None` if it does not exist.
    ///
    /// # Errors
    /// [`SubnetEnvError`] if it exists and cannot be used.
    pub fn load(path: &Path) -> Result<Option<Self>, SubnetEnvError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the file with mode 0644 and renames it into place, so a reader sees the old or the new file, never a
    /// part. Creates missing directories. Leaves a file with the same content alone.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let text = self.render();
        if std::fs::read_to_string(path).is_ok_and(|standing| standing == text) {
            return Ok(());
        }
        write_whole(path, text.as_bytes(), 0o644)
    }

    /// Returns the subnets in the file.
    pub fn subnets(&self) -> Option<Subnets> {
        let mut subnets = PerFamily::default();
        for (family, bridge) in self.bridges.iter() {
            subnets.set(family, IpNetwork::new(bridge.network(), bridge.prefix()).ok()?);
        }
        Subnets::new(subnets).ok()
    }
}

const PREFIXES: [(Family, &str); 2] = [(Family::V4, "FLANNEL_"), (Family::V6, "FLANNEL_IPV6_")];

fn read<T: std::str::FromStr>(
    name: &str,
    value: String,
    expected: &'static str,
) -> Result<T, SubnetEnvError> {
    value.parse().map_err(|_| SubnetEnvError::Invalid { name: name.to_owned(), value, expected })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    const BOTH: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\n\
        FLANNEL_IPV6_SUBNET=fd00:5:0:34::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

    #[test]
    fn the_file_is_flannels_to_the_byte() {
        let networks =
            PerFamily { v4: Some("10.5.0.0/16".parse().unwrap()), v6: Some("fd00:5::/48".parse().unwrap()) };
        let subnets = "10.5.52.0/24,fd00:5:0:34::/64".parse().unwrap();
        let env = SubnetEnv::new(networks, &subnets, 1450, false);
        assert_eq!(env.render(), BOTH);
        assert_eq!(SubnetEnv::parse(BOTH).unwrap(), env);
        assert_eq!(env.subnets(), Some(subnets));
    }

    #[test]
    fn ipv4_alone_has_no_other_lines() {
        let networks = PerFamily { v4: Some("10.5.0.0/16".parse().unwrap()), v6: None };
        let env = SubnetEnv::new(networks, &"10.5.52.0/24".parse().unwrap(), 1450, true);
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(env.render(), text);
    }

    #[test]
    fn a_file_that_cannot_be_used_says_which_line() {
        let error = |text: &str| SubnetEnv::parse(text).unwrap_err().to_string();
        assert_eq!(error(""), "FLANNEL_MTU is missing");
        assert_eq!(error("FLANNEL_MTU=1450\n"), "FLANNEL_SUBNET is missing");
        assert_eq!(
            error("FLANNEL_MTU=1450\nFLANNEL_SUBNET=10.5.300.1/24\n"),
            "FLANNEL_SUBNET=10.5.300.1/24 cannot be read; expected an address with its length, such as 10.5.52.1/24"
        );
        assert_eq!(error("FLANNEL_MTU=big\n"), "FLANNEL_MTU=big cannot be read; expected bytes");
    }

    #[test]
    fn a_save_makes_the_directory_and_the_mode_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel/subnet.env");
        let env = SubnetEnv::parse(BOTH).unwrap();
        env.save(&path).unwrap();
        assert_eq!(SubnetEnv::load(&path).unwrap(), Some(env));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(SubnetEnv::load(&directory.path().join("none")).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = SubnetEnv::parse(&text);
        }

        #[test]
        fn any_values_are_read_without_panic(subnet in "[0-9a-f.:/]{0,20}", mtu in "[0-9]{0,12}") {
            let _ = SubnetEnv::parse(&format!("FLANNEL_SUBNET={subnet}\nFLANNEL_MTU={mtu}\n")).map(|env| env.subnets());
        }
    }
}
