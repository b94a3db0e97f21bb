//! TLS with clients: the server's certificate, the accepted clients, and a log line for each refused one. A refused
//! client learns little (since TLS 1.3 only that its connection ends), and many programs print nothing.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use flan_tls_files::{Authorities, BadFile, Holder, Identity, utc};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use super::causes::causes;
use super::connection::{Connection, FIRST_WORDS};
use crate::settings::{StartError, TlsFiles};

/// Accepts TLS connections. Clones share the settings.
#[derive(Clone)]
pub(crate) struct Acceptor {
    tls: TlsAcceptor,
    client_authorities: Option<PathBuf>,
}

impl Acceptor {
    /// Reads the files. Logs what clients may not accept.
    pub(super) fn new(files: &TlsFiles) -> Result<Self, StartError> {
        let bad = |bad: BadFile| StartError::Setting(bad.to_string());
        let now = SystemTime::now();
        let own = Identity::load(Holder::Store, &files.certificate, &files.key, now).map_err(bad)?;
        let load = |path: &PathBuf| Authorities::load(path, now).map_err(bad);
        let authorities = files.client_authorities.as_ref().map(load).transpose()?;
        let doubts = authorities.iter().flat_map(|authorities| &authorities.doubts);
        for doubt in own.doubts.iter().chain(doubts) {
            warn!("{doubt}");
        }
        let config = config(&own, authorities.as_ref()).map_err(|reason| {
            let reason = causes(&*reason);
            StartError::Setting(format!("the certificate and its key cannot be used: {reason}"))
        })?;
        let client_authorities = files.client_authorities.clone();
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), client_authorities })
    }

    /// Performs the handshake. `None` if it fails; logs the reason if there is one.
    pub(super) async fn accept(self, connection: Connection) -> Option<TlsStream<Connection>> {
        let client = connection.peer();
        let error = match tokio::time::timeout(FIRST_WORDS, self.tls.accept(connection)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => error,
            Err(_) => return None,
        };
        // A client that stopped or disconnected was not refused.
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        let reason = self.words(error);
        // Without the port, so that each try of a client gives the same warning.
        match client {
            Some(client) => warn!(%client, reason, "refused the TLS handshake of a client"),
            None => warn!(reason, "refused the TLS handshake of a client"),
        }
        None
    }

    /// Explains why a handshake failed. A client cannot make the text long or different each time.
    fn words(&self, error: &Error) -> String {
        match error {
            Error::NoCertificatesPresented => format!("it shows no certificate; {}", self.requirement()),
            Error::InvalidCertificate(error) => self.words_for_certificate(error),
            Error::AlertReceived(alert) => {
                format!("it refuses the store's certificate or its TLS ({alert:?})")
            }
            Error::InvalidMessage(_) => "what it says is not TLS; it may be dialling http:// here".to_owned(),
            other => name(other),
        }
    }

    fn words_for_certificate(&self, error: &CertificateError) -> String {
        use CertificateError as E;
        match error {
            E::UnknownIssuer | E::BadSignature => {
                format!("its certificate is signed by another CA; {}", self.requirement())
            }
            E::ExpiredContext { not_after, .. } => format!("its certificate expired on {}", date(*not_after)),
            E::NotValidYetContext { not_before, .. } => {
                format!("its certificate is not valid before {}", date(*not_before))
            }
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
                "its certificate is not for clients: issue one without extendedKeyUsage or with clientAuth"
                    .to_owned()
            }
            E::Other(other) => format!("its certificate cannot be used ({})", name(&other.0)),
            other => format!("its certificate cannot be used ({})", name(other)),
        }
    }

    fn requirement(&self) -> String {
        let file = self.client_authorities.as_deref().unwrap_or(Path::new("the CA file"));
        format!("one of a CA in {} is required", file.display())
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn config(own: &Identity, authorities: Option<&Authorities>) -> Result<ServerConfig, AnyError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(&authorities.pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&own.key)?;
    let mut config = builder.with_single_cert(certificates(&own.certificate)?, key)?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

/// Returns the name of an error without data from the client: `PeerIncompatible(NoCipherSuitesInCommon)`.
fn name(error: impl Debug) -> String {
    let is_of_name = |c: &char| c.is_ascii_alphanumeric() || "()".contains(*c);
    format!("{error:?}").chars().take_while(is_of_name).take(100).collect()
}

fn date(time: UnixTime) -> String {
    utc(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
