//! Explains TLS errors: whose certificate is affected, and what to do.

pub(super) mod probe;

use std::time::SystemTime;

use flan_tls_files::utc;
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error};

use self::probe::host_and_port;
use super::reason::{Words, chain};
use crate::store_config::Credentials;

/// The remedy if the store requires a client certificate.
pub(super) const GIVE_A_CERTIFICATE: &str = "give --etcd-certfile and --etcd-keyfile";

/// Explains a TLS error; `None` for any other.
pub(super) fn words(endpoint: &str, error: &etcd_client::Error, credentials: &Credentials) -> Option<Words> {
    chain(error).find_map(|error| {
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(of_rustls(endpoint, error, credentials));
        }
        // The HTTP/2 library erases the type of errors after the handshake.
        let text = error.to_string();
        if let Some((_, alert)) = text.split_once("received fatal alert: ") {
            return Some(of_alert(alert, credentials));
        }
        match text.as_str() {
            "tls handshake eof" => Some(no_tls(endpoint, "it closes the connection instead of speaking TLS")),
            "HTTP/2 was not negotiated." => Some(no_http2()),
            "no native certs found" => Some(told(
                "this host has no CA certificates of its own",
                "give --etcd-cafile, or install the package ca-certificates",
            )),
            _ => None,
        }
    })
}

/// Explains a refusal of our certificate. In TLS 1.3 it arrives after our part of the handshake, together with the end
/// of the connection, and the HTTP/2 library reports only one of the two; so this tries again. `None` if the store
/// refuses nothing, or does not use TLS.
pub(super) async fn refusal(endpoint: &str, credentials: &Credentials) -> Option<Words> {
    let place = endpoint.strip_prefix("https://")?;
    let error = probe::handshake(place, credentials).await.err()?;
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(of_rustls(endpoint, error, credentials))
}

fn of_rustls(endpoint: &str, error: &Error, credentials: &Credentials) -> Words {
    match error {
        Error::InvalidCertificate(error) => of_certificate(endpoint, error, credentials),
        Error::AlertReceived(alert) => of_alert(&format!("{alert:?}"), credentials),
        Error::InvalidMessage(_) => no_tls(endpoint, "its answer is not TLS"),
        Error::NoCertificatesPresented => told("it shows no certificate", "give the store a certificate"),
        Error::NoApplicationProtocol => no_http2(),
        Error::PeerIncompatible(why) => {
            told(format!("it offers no TLS that we support ({why:?})"), "TLS 1.2 or 1.3 is required")
        }
        other => Words { reason: format!("TLS fails: {other}"), remedy: None },
    }
}

/// Explains why we reject the store's certificate.
fn of_certificate(endpoint: &str, error: &CertificateError, credentials: &Credentials) -> Words {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => unknown_issuer(credentials),
        E::BadSignature => told(
            format!(
                "its certificate is not signed by the CA of that name in {}",
                our_authorities(credentials)
            ),
            "was the CA recreated? Give the file of the one that signed the certificate with --etcd-cafile",
        ),
        E::ExpiredContext { time, not_after } => told(
            format!("its certificate expired on {} (it is {} here)", date(*not_after), date(*time)),
            "renew the store's certificate, or set this host's clock",
        ),
        E::NotValidYetContext { time, not_before } => told(
            format!("its certificate is not valid before {} (it is {} here)", date(*not_before), date(*time)),
            "check the clocks of this host and of the one that made the certificate",
        ),
        E::Expired => {
            told("its certificate is expired", "renew the store's certificate, or set this host's clock")
        }
        E::NotValidYet => told("its certificate is not valid yet", "check the clock of this host"),
        E::NotValidForNameContext { expected, presented } => {
            wrong_name(&expected.to_str(), &presented.iter().map(|name| bare_name(name)).collect::<Vec<_>>())
        }
        E::NotValidForName => wrong_name(host(endpoint), &[]),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => told(
            "its certificate is not for servers",
            "issue it without extendedKeyUsage or with serverAuth in it",
        ),
        E::Revoked => told("its certificate is revoked", "issue another certificate for the store"),
        E::Other(other) => match other.to_string().as_str() {
            "CaUsedAsEndEntity" => told(
                "its certificate is that of a CA",
                "issue one with basicConstraints CA:FALSE for the store, as docs/tls.md shows",
            ),
            "UnsupportedCertVersion" => told(
                "its certificate is X.509 version 1, and TLS requires version 3",
                "issue it again with extensions, as docs/tls.md shows",
            ),
            other => told(format!("its certificate cannot be used: {other}"), ISSUE_AGAIN),
        },
        other => told(format!("its certificate cannot be used: {other}"), ISSUE_AGAIN),
    }
}

const ISSUE_AGAIN: &str = "issue another for the store, as docs/tls.md shows";

fn unknown_issuer(credentials: &Credentials) -> Words {
    let reason = format!("its certificate is not signed by a CA in {}", our_authorities(credentials));
    let remedy = match &credentials.ca_file {
        Some(_) => {
            "give the file of the CA that signed it with --etcd-cafile, and add the intermediate ones to the store's own file"
        }
        None => "give the file of the CA that signed it with --etcd-cafile",
    };
    told(reason, remedy)
}

fn our_authorities(credentials: &Credentials) -> String {
    match &credentials.ca_file {
        Some(file) => file.display().to_string(),
        None => "this host's own list".to_owned(),
    }
}

fn wrong_name(dialled: &str, names: &[String]) -> Words {
    let names = match names.is_empty() {
        true => "names no host".to_owned(),
        false => format!("is for {}", names.join(", ")),
    };
    told(
        format!("its certificate {names}, but we dial {dialled}"),
        format!("issue it with {dialled} in subjectAltName, or dial a name that it has"),
    )
}

/// Explains the store's refusal; `alert` is the name of a description in RFC 8446, section 6.2.
fn of_alert(alert: &str, credentials: &Credentials) -> Words {
    let Some(file) = &credentials.cert_file else {
        return match alert {
            // Before TLS 1.3 it had no alert of its own.
            "CertificateRequired" | "BadCertificate" | "HandshakeFailure" => {
                told("it demands a client certificate", GIVE_A_CERTIFICATE)
            }
            alert => of_other_alert(alert),
        };
    };
    let (why, remedy) = match alert {
        "UnknownCA" => {
            ("it does not know the CA that signed it", "have it signed by a CA that the store trusts")
        }
        "CertificateExpired" => {
            ("it is expired or not valid yet there", "renew it, or check the clocks of both hosts")
        }
        "CertificateRevoked" => ("it is revoked", "have another issued"),
        "UnsupportedCertificate" => (
            "it is not for clients",
            "issue it with basicConstraints CA:FALSE and extendedKeyUsage clientAuth",
        ),
        "DecryptError" => {
            ("a signature is wrong", "was its CA recreated? Have it signed by the one that the store trusts")
        }
        "BadCertificate" | "CertificateUnknown" | "AccessDenied" | "CertificateRequired" => (
            "it gives no reason",
            "have it signed, for clients, by a CA that the store trusts; the store's log may say more",
        ),
        alert => return of_other_alert(alert),
    };
    let own = credentials.identity(SystemTime::now()).ok().flatten();
    let doubt = own.and_then(|identity| identity.doubts.into_iter().next());
    let why = doubt.unwrap_or_else(|| why.to_owned());
    told(format!("it refuses our client certificate {}: {why}", file.display()), remedy)
}

/// Explains an alert that is not about our credentials.
fn of_other_alert(alert: &str) -> Words {
    match alert {
        "ProtocolVersion" | "InsufficientSecurity" | "HandshakeFailure" => {
            told(format!("it offers no TLS that we support ({alert})"), "TLS 1.2 or 1.3 is required")
        }
        "NoApplicationProtocol" => no_http2(),
        "UnrecognisedName" => told("it has no certificate for this name", "dial a name of its certificate"),
        alert => Words { reason: format!("it ends TLS with the alert {alert}"), remedy: None },
    }
}

fn no_tls(endpoint: &str, reason: &str) -> Words {
    let place = endpoint.strip_prefix("https://").unwrap_or(endpoint);
    told(reason, format!("does it speak TLS? If not, give http://{place}"))
}

fn no_http2() -> Words {
    told("it speaks TLS, but not HTTP/2", "is that the port of the store?")
}

fn told(reason: impl Into<String>, remedy: impl Into<String>) -> Words {
    Words { reason: reason.into(), remedy: Some(remedy.into()) }
}

fn date(time: UnixTime) -> String {
    utc(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// Removes what surrounds the name in `DnsName("localhost")` and `IpAddress(127.0.0.1)`.
fn bare_name(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"').to_owned()
}

fn host(endpoint: &str) -> &str {
    host_and_port(endpoint.split_once("://").map_or(endpoint, |(_, place)| place)).0
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use rustls::{AlertDescription, InvalidMessage, OtherError, PeerIncompatible};

    use super::*;

    const URL: &str = "https://[fd00::2]:2379";

    fn said(error: &Error, cert_file: Option<&str>) -> (String, String) {
        let credentials = Credentials { cert_file: cert_file.map(PathBuf::from), ..Credentials::default() };
        let Words { reason, remedy } = of_rustls(URL, error, &credentials);
        (reason, remedy.unwrap_or_default())
    }

    #[test]
    fn what_a_store_does_with_its_certificate_is_said_of_its_certificate() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Named(&'static str);
        let other = |name| CertificateError::Other(OtherError(Arc::new(Named(name))));
        for (error, reason, remedy) in [
            (other("CaUsedAsEndEntity"), "is that of a CA", "basicConstraints CA:FALSE"),
            (other("UnsupportedCertVersion"), "is X.509 version 1", "docs/tls.md"),
            (other("Strange"), "cannot be used: Strange", "docs/tls.md"),
            (
                CertificateError::UnknownIssuer,
                "is not signed by a CA in this host's own list",
                "--etcd-cafile",
            ),
            (
                CertificateError::NotValidForName,
                "names no host, but we dial fd00::2",
                "fd00::2 in subjectAltName",
            ),
            (CertificateError::InvalidPurpose, "is not for servers", "serverAuth"),
            (CertificateError::Revoked, "is revoked", "another certificate"),
        ] {
            let (said, help) = said(&error.into(), None);
            assert!(said.starts_with("its certificate ") && said.contains(reason), "{said}");
            assert!(help.contains(remedy), "{said}: {help}");
        }
    }

    #[test]
    fn an_alert_is_about_us_where_it_is_about_certificates() {
        let alert = |alert, cert_file| said(&Error::AlertReceived(alert), cert_file);
        for description in [AlertDescription::CertificateRequired, AlertDescription::BadCertificate] {
            let (reason, remedy) = alert(description, None);
            assert_eq!(
                (reason.as_str(), remedy.as_str()),
                ("it demands a client certificate", GIVE_A_CERTIFICATE)
            );
            let (reason, _) = alert(description, Some("/etc/flan/host.pem"));
            assert!(reason.starts_with("it refuses our client certificate /etc/flan/host.pem: "), "{reason}");
        }
        let (reason, _) = alert(AlertDescription::UnknownCA, Some("/etc/flan/host.pem"));
        assert!(reason.ends_with("it does not know the CA that signed it"), "{reason}");
        for cert_file in [None, Some("/etc/flan/host.pem")] {
            assert!(alert(AlertDescription::ProtocolVersion, cert_file).1.contains("TLS 1.2 or 1.3"));
            assert!(alert(AlertDescription::InternalError, cert_file).0.contains("InternalError"));
        }
    }

    #[test]
    fn other_errors_of_tls_are_told_by_what_helps() {
        let old = Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13);
        assert!(said(&old, None).1.contains("TLS 1.2 or 1.3"));
        let (_, remedy) = said(&Error::InvalidMessage(InvalidMessage::InvalidContentType), None);
        assert_eq!(remedy, "does it speak TLS? If not, give http://[fd00::2]:2379");
        assert!(said(&Error::NoApplicationProtocol, None).0.contains("not HTTP/2"));
        assert_eq!(said(&Error::DecryptError, None).0, "TLS fails: cannot decrypt peer's message");
    }

    #[test]
    fn the_host_of_a_url_is_told_from_its_port() {
        for (place, parts) in [
            ("[fd00::2]:2379", ("fd00::2", 2379)),
            ("[fd00::2]", ("fd00::2", 443)),
            ("store:2379", ("store", 2379)),
            ("10.0.0.2", ("10.0.0.2", 443)),
        ] {
            assert_eq!(host_and_port(place), parts);
        }
    }
}
