//! How to reach the store: endpoints, prefix and credentials. Refuses, by name, what cannot work.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use flan_tls_files::{Authorities, BadFile, Holder, Identity};

use crate::endpoint::Endpoint;
use crate::store::error::StoreError;

/// How to reach the store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// URLs of the members, tried in turn, starting with a random one.
    pub endpoints: Vec<Endpoint>,
    /// The prefix of all keys, such as `/coreos.com/network`.
    pub prefix: String,
    /// How to authenticate to the members, and they to us.
    pub credentials: Credentials,
}

/// TLS files and a password, each optional.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// CA file: certificates that must have signed those of the members; the system's by default.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate.
    pub cert_file: Option<PathBuf>,
    /// The private key of our own certificate.
    pub key_file: Option<PathBuf>,
    /// User name and password.
    pub user: Option<(String, Password)>,
}

/// A password, which is never displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Returns the password, for the store only.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns a text in which something else stands wherever the password stood. One of less than five bytes is left: it
    /// would be found in half of all words.
    pub fn hidden_in(&self, text: &str, instead: &str) -> String {
        if self.0.len() < 5 { text.to_owned() } else { text.replace(&self.0, instead) }
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl StoreConfig {
    /// Returns all endpoints, comma-separated, for messages.
    pub fn shown_endpoints(&self) -> String {
        self.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Refuses what no retry can fix. Returns what may keep the store from accepting our certificate, or us from
    /// accepting its certificate: these files are read again for each connection, so they may be renewed.
    ///
    /// # Errors
    /// [`StoreError::Setting`] or [`StoreError::CredentialFile`].
    pub(crate) fn check(&self, now: SystemTime) -> Result<Vec<String>, StoreError> {
        let setting = |text: String| Err(StoreError::Setting(text));
        if self.endpoints.is_empty() {
            return setting("no endpoint is given; expected URLs such as http://127.0.0.1:2379".to_owned());
        }
        let credentials = &self.credentials;
        let any_tls = credentials.ca_file.is_some() || credentials.cert_file.is_some();
        if let Some(plain) = self.endpoints.iter().find(|endpoint| any_tls && !endpoint.is_tls()) {
            return setting(format!("TLS files are given, but endpoint {plain} is not https://"));
        }
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') {
            return setting(format!("prefix {:?} must begin with / and not end with it", self.prefix));
        }
        credentials.check(now)
    }
}

impl Credentials {
    fn check(&self, now: SystemTime) -> Result<Vec<String>, StoreError> {
        let setting = |text: &str| Err(StoreError::Setting(text.to_owned()));
        if self.cert_file.is_some() != self.key_file.is_some() {
            return setting("a client certificate needs both its certificate file and its key file");
        }
        if self.user.as_ref().is_some_and(|(name, _)| name.is_empty()) {
            return setting("a password for the store is given, but no user name");
        }
        let authorities = self.authorities(now)?.map(|authorities| authorities.doubts);
        let identity = self.identity(now)?.map(|identity| identity.doubts);
        Ok([authorities, identity].into_iter().flatten().flatten().collect())
    }

    /// Reads the CA file as it is now.
    pub(crate) fn authorities(&self, now: SystemTime) -> Result<Option<Authorities>, BadFile> {
        self.ca_file.as_ref().map(|file| Authorities::load(file, now)).transpose()
    }

    /// Reads our own certificate and key as they are now.
    pub(crate) fn identity(&self, now: SystemTime) -> Result<Option<Identity>, BadFile> {
        let files = self.cert_file.as_ref().zip(self.key_file.as_ref());
        files.map(|(certificate, key)| Identity::load(Holder::Client, certificate, key, now)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str) -> StoreConfig {
        StoreConfig {
            endpoints: vec![endpoint.parse().unwrap()],
            prefix: "/coreos.com/network".to_owned(),
            credentials: Credentials::default(),
        }
    }

    fn refusal(config: &StoreConfig) -> String {
        config.check(SystemTime::now()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let mut half = config("https://127.0.0.1:2379");
        half.credentials.cert_file = Some("client.pem".into());
        assert_eq!(refusal(&half), "a client certificate needs both its certificate file and its key file");
        let mut plain = config("http://127.0.0.1:2379");
        plain.credentials.ca_file = Some("ca.pem".into());
        assert_eq!(
            refusal(&plain),
            "TLS files are given, but endpoint http://127.0.0.1:2379 is not https://"
        );
        let mut missing = config("https://127.0.0.1:2379");
        missing.credentials.ca_file = Some("no/such/ca.pem".into());
        assert_eq!(
            refusal(&missing),
            "the CA file no/such/ca.pem cannot be read: No such file or directory (os error 2)"
        );
        let mut no_pem = config("https://127.0.0.1:2379");
        no_pem.credentials.ca_file = Some("Cargo.toml".into());
        assert_eq!(refusal(&no_pem), "the CA file Cargo.toml holds no certificate in PEM form");
        let slash = StoreConfig { prefix: "network/".to_owned(), ..config("http://127.0.0.1:2379") };
        assert_eq!(refusal(&slash), "prefix \"network/\" must begin with / and not end with it");
    }

    #[test]
    fn no_output_shows_a_password() {
        let mut config = config("http://127.0.0.1:2379");
        config.credentials.user = Some(("name".to_owned(), "s3cret".to_owned().into()));
        let shown = format!("{config:?} {config:#?}");
        assert!(shown.contains("name") && !shown.contains("s3cret"), "{shown}");
    }
}
