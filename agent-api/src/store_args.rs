//! Flags of the store, shared by the agent and `flanctl`.

use std::path::PathBuf;

use clap::Args;
use flan_subnet_lease::{Credentials, Password, StoreConfig, StoreError};

use crate::urls::{self, Urls, UserSettings};

/// How to reach the store, an etcd or an embedded one. Names and meanings are flannel's.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// URLs of the etcd members, or of the host with the embedded store, separated by commas; https:// for TLS.
    /// http://127.0.0.1:2379 by default
    // Empty if none is given, which differs from a given default.
    #[arg(long, value_name = "URLS", env = "FLAND_ETCD_ENDPOINTS", global = true)]
    pub etcd_endpoints: Vec<Urls>,

    /// Prefix of all keys in the store
    #[arg(long, value_name = "PATH", env = "FLAND_ETCD_PREFIX", default_value = DEFAULT_PREFIX, global = true)]
    pub etcd_prefix: String,

    /// CA file: certificates of the CAs that sign the store's certificates. The system's CAs by default
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CAFILE", global = true)]
    pub etcd_cafile: Option<PathBuf>,

    /// Client certificate file (X.509 version 3), for a store that requires client certificates
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CERTFILE", global = true)]
    pub etcd_certfile: Option<PathBuf>,

    /// Key file of the client certificate
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_KEYFILE", global = true)]
    pub etcd_keyfile: Option<PathBuf>,

    /// User name for the store
    #[arg(long, value_name = "NAME", env = "FLAND_ETCD_USERNAME", global = true)]
    pub etcd_username: Option<String>,

    /// Password for the store. Prefer the environment variable: `ps` shows flags
    #[arg(long, value_name = "PASSWORD", env = "FLAND_ETCD_PASSWORD", hide_env_values = true, global = true)]
    pub etcd_password: Option<Password>,
}

/// Endpoint of the store if none is given.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
const DEFAULT_PREFIX: &str = "/coreos.com/network";
/// The settings to use instead of a user in a URL.
const USER_SETTINGS: UserSettings = ["--etcd-username", "FLAND_ETCD_PASSWORD"];

impl StoreArgs {
    /// Returns the settings for connecting to the store.
    ///
    /// # Errors
    /// [`StoreError::Setting`] for an invalid endpoint.
    pub fn config(&self) -> Result<StoreConfig, StoreError> {
        self.config_with(USER_SETTINGS)
    }

    /// The same, for a program with other settings for the user.
    ///
    /// # Errors
    /// [`StoreError::Setting`] for an invalid endpoint.
    pub fn config_with(&self, user_settings: UserSettings) -> Result<StoreConfig, StoreError> {
        let default = [Urls::from(DEFAULT_ENDPOINT.to_owned())];
        let endpoints = if self.etcd_endpoints.is_empty() { &default } else { &self.etcd_endpoints[..] };
        let user = match (&self.etcd_username, &self.etcd_password) {
            (None, None) => None,
            (name, password) => {
                let no_password = || String::new().into();
                Some((name.clone().unwrap_or_default(), password.clone().unwrap_or_else(no_password)))
            }
        };
        Ok(StoreConfig {
            endpoints: urls::endpoints(endpoints, user_settings)?,
            prefix: format!("/{}", self.etcd_prefix.trim_matches('/')),
            credentials: Credentials {
                ca_file: self.etcd_cafile.clone(),
                cert_file: self.etcd_certfile.clone(),
                key_file: self.etcd_keyfile.clone(),
                user,
            },
        })
    }

    /// Returns the given endpoints for messages; empty if none are given.
    pub fn given_endpoints(&self) -> String {
        self.etcd_endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Returns the flags by which another program reaches the same store, as typed: those that differ from the
    /// defaults, each after a space. Never the password.
    pub fn as_typed(&self) -> String {
        let file = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string());
        let endpoints = Some(self.given_endpoints()).filter(|endpoints| !endpoints.is_empty());
        let prefix = Some(self.etcd_prefix.clone()).filter(|prefix| prefix != DEFAULT_PREFIX);
        [
            ("--etcd-endpoints", endpoints),
            ("--etcd-prefix", prefix),
            ("--etcd-cafile", file(&self.etcd_cafile)),
            ("--etcd-certfile", file(&self.etcd_certfile)),
            ("--etcd-keyfile", file(&self.etcd_keyfile)),
            ("--etcd-username", self.etcd_username.clone()),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some(format!(" {flag} {}", value?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        store: StoreArgs,
    }

    fn read(arguments: &[&str]) -> StoreArgs {
        Sample::parse_from([&["fland"], arguments].concat()).store
    }

    #[test]
    fn what_reaches_the_same_store_is_typed_without_defaults_and_password() {
        assert_eq!(read(&[]).as_typed(), "");
        let tls = read(&["--etcd-endpoints=https://10.0.0.2:2379", "--etcd-cafile=/etc/flan/ca.pem"]);
        assert_eq!(tls.as_typed(), " --etcd-endpoints https://10.0.0.2:2379 --etcd-cafile /etc/flan/ca.pem");
        let user = read(&["--etcd-prefix=/a", "--etcd-username=u", "--etcd-password=s3cret"]);
        assert_eq!(user.as_typed(), " --etcd-prefix /a --etcd-username u");
    }

    #[test]
    fn no_output_of_the_flags_shows_a_password() {
        let store = read(&["--etcd-password=s3cret", "--etcd-endpoints=http://u:s3cret@10.0.0.2:2379"]);
        let shown = format!("{store:?} {}", store.as_typed());
        assert!(shown.contains("http://***@10.0.0.2:2379") && !shown.contains("s3cret"), "{shown}");
    }
}
