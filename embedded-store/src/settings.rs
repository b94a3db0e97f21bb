//! The settings of a store. Settings that cannot work are refused by name.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The settings of a store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the file. Created if it does not exist.
    pub data_dir: PathBuf,
    /// URLs to listen on.
    pub listen: Vec<ListenUrl>,
    /// Certificates for the `https` URLs.
    pub tls: Option<TlsFiles>,
    /// Whether any client beyond loopback may read and write without TLS.
    pub insecure: bool,
    /// How long the history of the keys is kept.
    pub retention: Duration,
}

/// PEM files, read when the store starts.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The store's certificate, with the intermediate certificates.
    pub certificate: PathBuf,
    /// The key of the store's certificate.
    pub key: PathBuf,
    /// CAs. A client needs a certificate of one of them. `None` serves every client.
    pub client_authorities: Option<PathBuf>,
}

/// An address to listen on, written as a URL: `http://127.0.0.1:2379`, `https://[2001:db8::1]:2379`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenUrl {
    /// Address and port. Port 0 means any free port.
    pub address: SocketAddr,
    /// Whether the URL begins with `https`.
    pub tls: bool,
}

/// An invalid listen URL. Not repeated here, because it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an IP address and a port, such as http://127.0.0.1:2379")]
pub struct InvalidListenUrl;

/// Why a store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error("{0}")]
    Setting(String),
    /// The file cannot be used.
    #[error("cannot open the store {}: {reason}", path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The store cannot listen on an address.
    #[error("cannot listen on {url}: {source}")]
    Listen {
        /// The URL.
        url: ListenUrl,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl Settings {
    /// Refuses settings that cannot work or are not safe.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let setting = |text: String| Err(StartError::Setting(text));
        if self.listen.is_empty() {
            return setting("no listen URL is given; expected one such as http://127.0.0.1:2379".into());
        }
        for url in &self.listen {
            match &self.tls {
                None if url.tls => {
                    return setting(format!("{url} requires a certificate and a key"));
                }
                Some(_) if !url.tls => {
                    return setting(format!("a certificate is given, but {url} is not https://"));
                }
                None if !url.is_loopback() && !self.insecure => {
                    return setting(format!(
                        "{url} is not on loopback: without TLS everybody who reaches it can take any subnet; use https:// with \
                         certificates, or allow it with --store-insecure"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl ListenUrl {
    /// Returns whether only this host can connect.
    pub fn is_loopback(&self) -> bool {
        match self.address.ip() {
            IpAddr::V6(address) => address.to_canonical().is_loopback(),
            IpAddr::V4(address) => address.is_loopback(),
        }
    }
}

impl FromStr for ListenUrl {
    type Err = InvalidListenUrl;

    fn from_str(text: &str) -> Result<Self, InvalidListenUrl> {
        let (scheme, place) = text.trim_end_matches('/').split_once("://").ok_or(InvalidListenUrl)?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(InvalidListenUrl),
        };
        // etcd accepts this host name, and no other.
        let place = place.replacen("localhost:", "127.0.0.1:", 1);
        Ok(Self { address: place.parse().map_err(|_| InvalidListenUrl)?, tls })
    }
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(listen: &[&str]) -> Settings {
        Settings {
            data_dir: "/var/lib/flan".into(),
            listen: listen.iter().map(|url| url.parse().unwrap()).collect(),
            tls: None,
            insecure: false,
            retention: Duration::from_secs(3600),
        }
    }

    #[test]
    fn a_url_is_written_as_it_was_read() {
        for text in ["http://127.0.0.1:2379", "https://[2001:db8::1]:2379", "http://0.0.0.0:0"] {
            assert_eq!(text.parse::<ListenUrl>().unwrap().to_string(), text);
        }
        assert_eq!("http://localhost:1/".parse::<ListenUrl>().unwrap().to_string(), "http://127.0.0.1:1");
    }

    #[test]
    fn what_is_no_url_is_refused_by_name() {
        for text in ["", "127.0.0.1:2379", "ftp://127.0.0.1:1", "http://127.0.0.1", "http://store:2379"] {
            assert_eq!(text.parse::<ListenUrl>(), Err(InvalidListenUrl));
        }
    }

    #[test]
    fn without_tls_only_loopback_is_listened_on_unless_that_is_said() {
        assert!(settings(&["http://127.0.0.1:2379", "http://[::1]:2379"]).check().is_ok());
        let open = settings(&["http://127.0.0.1:2379", "http://10.0.0.1:2379"]);
        let refusal = open.check().unwrap_err().to_string();
        assert!(
            refusal.contains("http://10.0.0.1:2379") && refusal.contains("--store-insecure"),
            "{refusal}"
        );
        assert!(Settings { insecure: true, ..open }.check().is_ok());
        assert!(settings(&["https://10.0.0.1:2379"]).check().is_err(), "no certificate");
    }
}
