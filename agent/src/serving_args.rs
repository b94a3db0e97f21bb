//! Flags that `fland --embedded-store` and `fland store` share, and the settings that follow from these and their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use flan_agent_api::Urls;
use flan_embedded_store::{ListenUrl, Settings, TlsFiles};
use flan_subnet_lease::without_user;

use crate::flag_values::{duration, switch};

/// How a store serves.
#[derive(Debug, Clone, Args)]
#[command(mut_args(switch))]
pub struct ServingArgs {
    /// Allow the store to listen beyond loopback without TLS. Anyone who can reach it can then take any subnet
    #[arg(long, env = "FLAND_STORE_INSECURE", default_value = "false")]
    pub store_insecure: bool,

    /// How long the store keeps the history of the keys in memory, for example 1h or 30m. At least 1m
    #[arg(
        long,
        value_name = "DURATION",
        env = "FLAND_AUTO_COMPACTION_RETENTION",
        default_value = "1h",
        value_parser = retention
    )]
    pub auto_compaction_retention: Duration,
}

impl ServingArgs {
    /// Returns the settings of the store. `tls` are the files with the certificate, its key and the CAs for clients;
    /// the command line accepts the first two only together. `flags` are the names of the flags for `listen` and for
    /// the CAs.
    ///
    /// # Errors
    /// A URL that is invalid for listening, and what would work.
    pub(crate) fn settings(
        &self,
        data_dir: &Path,
        listen: &[Urls],
        tls: [&Option<PathBuf>; 3],
        flags: [&str; 2],
    ) -> Result<Settings, String> {
        let [certificate, key, client_authorities] = tls.map(Clone::clone);
        let both = certificate.zip(key);
        Ok(Settings {
            data_dir: data_dir.to_owned(),
            listen: addresses(listen, flags)?,
            tls: both.map(|(certificate, key)| TlsFiles { certificate, key, client_authorities }),
            insecure: self.store_insecure,
            retention: self.auto_compaction_retention,
        })
    }
}

/// A long list of leases is read in pages at the revision of the first page, and a watch follows it. With a shorter
/// history, a slow reader could find that revision compacted.
const LEAST: Duration = Duration::from_secs(60);

/// Parses a duration with a unit, from one minute to a year.
fn retention(text: &str) -> Result<Duration, String> {
    // etcd takes a bare number as hours. humantime would ask for a unit without mentioning that.
    if text.parse::<u64>().is_ok_and(|number| number > 0) {
        return Err(format!("etcd takes a number alone for hours; write the unit as well, such as {text}h"));
    }
    duration(text, LEAST)
}

/// Parses the listen URLs. The first flag names them, the second the CAs for clients.
fn addresses(lists: &[Urls], [flag, authorities]: [&str; 2]) -> Result<Vec<ListenUrl>, String> {
    let read = |list: &Urls, url: &str| {
        url.parse().map_err(|invalid| {
            // As with endpoints, this may be half of a URL with a user.
            let shown = if without_user(url) == url { list.to_string() } else { without_user(url) };
            match list.names_user() {
                false => format!("{flag} {url:?}: {invalid}"),
                true => format!(
                    "{flag} {shown}: {invalid}. The store has no users; let it demand client certificates ({authorities})"
                ),
            }
        })
    };
    lists.iter().flat_map(|list| list.each().map(move |url| read(list, url))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_needs_its_unit() {
        assert_eq!(retention("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(retention("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(
            retention("8").unwrap_err(),
            "etcd takes a number alone for hours; write the unit as well, such as 8h"
        );
    }

    #[test]
    fn a_history_that_is_too_short_for_a_list_is_refused() {
        assert_eq!(retention("1m"), Ok(Duration::from_secs(60)));
        for short in ["59s", "0", "0h"] {
            assert_eq!(retention(short).unwrap_err(), "at least 1m is needed", "{short}");
        }
        assert!(retention("soon").unwrap_err().contains("expected such as"));
    }

    #[test]
    fn a_store_does_not_listen_for_users() {
        let refusal = |text: &str| {
            let urls = [Urls::from("http://127.0.0.1:1".to_owned()), Urls::from(text.to_owned())];
            addresses(&urls, ["--listen", "--ca"]).unwrap_err()
        };
        assert_eq!(
            refusal("http://u:s3cret@10.0.0.2:2379"),
            "--listen http://***@10.0.0.2:2379: expected an IP address and a port, such as http://127.0.0.1:2379. The store \
             has no users; let it demand client certificates (--ca)"
        );
        assert_eq!(
            refusal("http://store:2379"),
            "--listen \"http://store:2379\": expected an IP address and a port, such as http://127.0.0.1:2379"
        );
    }
}
