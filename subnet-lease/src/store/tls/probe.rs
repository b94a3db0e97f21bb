//! One TLS connection that waits for the store's first bytes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::store_config::Credentials;

/// The total limit. A store that refuses us says so at once, and any other sends its settings.
const LIMIT: Duration = Duration::from_secs(1);

/// Opens a TLS connection as [`Store`](crate::Store) does, for a protocol of ALPN.
///
/// # Errors
/// As [`handshake`].
pub(in crate::store) async fn connect(
    place: &str,
    credentials: &Credentials,
    protocol: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let (host, port) = host_and_port(place);
    let config = config(credentials, protocol)?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connection = TcpStream::connect((host, port)).await?;
    TlsConnector::from(Arc::new(config)).connect(name, connection).await
}

/// Connects as [`Store`](crate::Store) does, and reads until the store has sent something.
///
/// # Errors
/// What ended the handshake or the connection, with [`rustls::Error`] inside if it was TLS. No error without a CA file:
/// whoever signs client certificates has one.
pub(super) async fn handshake(place: &str, credentials: &Credentials) -> io::Result<()> {
    let talk = async {
        let mut connection = connect(place, credentials, "h2").await?;
        connection.read(&mut [0; 1]).await
    };
    tokio::time::timeout(LIMIT, talk).await?.map(drop)
}

fn config(credentials: &Credentials, protocol: &str) -> io::Result<ClientConfig> {
    let now = SystemTime::now();
    let authorities = credentials.authorities(now).map_err(io::Error::other)?;
    let authorities = authorities.ok_or_else(|| io::Error::other("no CA file"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&authorities.pem)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?.with_root_certificates(roots);
    let mut config = match credentials.identity(now).map_err(io::Error::other)? {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(io::Error::other)?;
            builder
                .with_client_auth_cert(certificates(&identity.certificate)?, key)
                .map_err(io::Error::other)?
        }
    };
    config.alpn_protocols.push(protocol.as_bytes().to_vec());
    Ok(config)
}

fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(io::Error::other)
}

/// Returns the host, without brackets, and the port of what follows `https://`.
pub(in crate::store) fn host_and_port(place: &str) -> (&str, u16) {
    let parts = place.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let (host, port) = parts.map_or((place, None), |(host, port)| (host, port.parse().ok()));
    (host.trim_matches(['[', ']']), port.unwrap_or(443))
}
