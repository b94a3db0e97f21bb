//! Where the file is, where to listen and for whom: refused by name where it cannot work.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What a store needs to know to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the file; made if it is not there.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: Vec<ListenUrl>,
    /// Certificates for the `https` URLs among them.
    pub tls: Option<TlsFiles>,
    /// Whether anybody who reaches us beyond loopback may read and write without TLS.
    pub insecure: bool,
    /// How long the history of the keys is kept.
    pub retention: Duration,
}

/// Files in PEM form, read when the store starts.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Our certificate, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of which clients must have a certificate; without, every client is served.
    pub client_authorities: Option<PathBuf>,
}

/// An address to listen on, written as a URL: `http://127.0.0.1:2379`, `https://[2001:db8::1]:2379`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenUrl {
    /// Address and port; port 0 is any free one.
    pub address: SocketAddr,
    /// Whether it begins with `https`.
    pub tls: bool,
}

/// A text that says nowhere to listen. It is not repeated here, as it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an IP address and a port, such as http://127.0.0.1:2379")]
pub struct InvalidListenUrl;

/// Why a store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting that cannot work.
    #[error("{0}")]
    Setting(String),
    /// The file cannot be used.
    #[error("cannot open the store {}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {url}: {source}")]
    Listen {
        /// Which.
        url: ListenUrl,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no thread to be had.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl Settings {
    /// Refuses what cannot work or is not safe.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let setting = |text: String| Err(StartError::Setting(text));
        if self.listen.is_empty() {
            return setting(
                "no URL to listen on is given; expected one such as http://127.0.0.1:2379".into(),
            );
        }
        for url in &self.listen {
            match &self.tls {
                None if url.tls => {
                    return setting(format!("{url} needs a certificate and a key, and none are given"));
                }
                Some(_) if !url.tls => {
                    return setting(format!("a certificate is given, but {url} is not https://"));
                }
                None if !url.is_loopback() && !self.insecure => {
                    return setting(format!(
                        "{url} is not on loopback: without TLS everybody who reaches it can take any subnet; use https:// with \
                         certificates, or allow it in words (--store-insecure)"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl ListenUrl {
    /// Whether only this host reaches it.
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
        // etcd takes a name nowhere but here.
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
