//! How to reach the store: endpoints, prefix and credentials, refused by name where they cannot work.

use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// How to reach the store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// URLs of the members, tried one after the other from a random one.
    pub endpoints: Vec<String>,
    /// What all keys begin with, such as `/coreos.com/network`.
    pub prefix: String,
    /// How to prove who we are and who they are.
    pub credentials: Credentials,
}

/// TLS files and a password, each optional.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Certificates of the authorities that sign the members' certificates; the system's by default.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate.
    pub cert_file: Option<PathBuf>,
    /// The key of our own certificate.
    pub key_file: Option<PathBuf>,
    /// User name and password.
    pub user: Option<(String, String)>,
}

impl StoreConfig {
    /// Refuses at once what no retry mends. The files are read again for each connection.
    ///
    /// # Errors
    /// [`StoreError::Setting`] or [`StoreError::CredentialFile`].
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let setting = |text: String| Err(StoreError::Setting(text));
        if self.endpoints.is_empty() {
            return setting(
                "no etcd endpoint is given; expected URLs such as http://127.0.0.1:2379".to_owned(),
            );
        }
        for endpoint in &self.endpoints {
            let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            if !rest.is_some_and(is_host_and_port) {
                return setting(format!(
                    "etcd endpoint {endpoint:?} is not a URL such as http://127.0.0.1:2379"
                ));
            }
        }
        let credentials = &self.credentials;
        let any_tls = credentials.ca_file.is_some() || credentials.cert_file.is_some();
        if let Some(plain) = self.endpoints.iter().find(|endpoint| any_tls && endpoint.starts_with("http://"))
        {
            return setting(format!("TLS files are given, but etcd endpoint {plain} is not https://"));
        }
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') {
            return setting(format!("etcd prefix {:?} must begin with / and not end with it", self.prefix));
        }
        credentials.check()
    }
}

impl Credentials {
    fn check(&self) -> Result<(), StoreError> {
        let setting = |text: String| Err(StoreError::Setting(text));
        if self.cert_file.is_some() != self.key_file.is_some() {
            return setting(
                "a client certificate needs both its certificate file and its key file".to_owned(),
            );
        }
        if self.user.as_ref().is_some_and(|(name, _)| name.is_empty()) {
            return setting("a password for etcd is given, but no user name".to_owned());
        }
        for (file, what) in [
            (&self.ca_file, "CERTIFICATE-----"),
            (&self.cert_file, "CERTIFICATE-----"),
            (&self.key_file, "PRIVATE KEY-----"),
        ] {
            let Some(path) = file else { continue };
            if !String::from_utf8_lossy(&read(path)?).contains(what) {
                let what = what.trim_end_matches('-').to_lowercase();
                return setting(format!("{} holds no {what} in PEM form", path.display()));
            }
        }
        Ok(())
    }
}

/// The content of a file of ours.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|source| StoreError::CredentialFile { path: path.to_owned(), source })
}

/// Whether this is the rest of a URL that names a host and perhaps a port, and nothing else.
fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bad = |c: char| c.is_whitespace() || matches!(c, '@' | '/' | '?' | '#');
    !host.is_empty()
        && !host.contains(bad)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str) -> StoreConfig {
        StoreConfig {
            endpoints: vec![endpoint.to_owned()],
            prefix: "/coreos.com/network".to_owned(),
            credentials: Credentials::default(),
        }
    }

    fn refusal(config: &StoreConfig) -> String {
        config.check().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        assert_eq!(
            refusal(&config("127.0.0.1:2379")),
            "etcd endpoint \"127.0.0.1:2379\" is not a URL such as http://127.0.0.1:2379"
        );
        let mut half = config("https://127.0.0.1:2379");
        half.credentials.cert_file = Some("client.pem".into());
        assert_eq!(refusal(&half), "a client certificate needs both its certificate file and its key file");
        let mut plain = config("http://127.0.0.1:2379");
        plain.credentials.ca_file = Some("ca.pem".into());
        assert_eq!(
            refusal(&plain),
            "TLS files are given, but etcd endpoint http://127.0.0.1:2379 is not https://"
        );
        let mut missing = config("https://127.0.0.1:2379");
        missing.credentials.ca_file = Some("no/such/ca.pem".into());
        assert_eq!(refusal(&missing), "cannot read no/such/ca.pem: No such file or directory (os error 2)");
        let mut no_pem = config("https://127.0.0.1:2379");
        no_pem.credentials.ca_file = Some("Cargo.toml".into());
        assert_eq!(refusal(&no_pem), "Cargo.toml holds no certificate in PEM form");
        for bad in
            ["http://127.0.0.1:99999", "http://", "http://host:", "http://a b", "http://host:2379/path"]
        {
            assert!(refusal(&config(bad)).contains("is not a URL"), "{bad}");
        }
        for good in ["http://etcd-1:2379", "https://[fd00::1]:2379", "http://[::1]", "http://10.0.0.1"] {
            assert_eq!(refusal(&config(good)), "", "{good}");
        }
        let slash = StoreConfig { prefix: "network/".to_owned(), ..config("http://127.0.0.1:2379") };
        assert_eq!(refusal(&slash), "etcd prefix \"network/\" must begin with / and not end with it");
    }
}
