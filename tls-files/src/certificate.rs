//! The contents of a certificate.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

use crate::holder::Holder;
use crate::time::{seconds, utc};

/// The parts of a certificate that decide whether TLS can use it.
pub(crate) struct Certificate {
    /// Counted from 1.
    version: u32,
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
    is_authority: bool,
    /// The host names and IP addresses of the certificate.
    pub(crate) names: Vec<String>,
    /// Allowed uses; `None` allows everything.
    purposes: Option<Purposes>,
}

struct Purposes {
    client: bool,
    server: bool,
}

impl Certificate {
    /// Reads a certificate in DER form. The error continues a sentence that begins with the file.
    pub(crate) fn read(der: impl AsRef<[u8]>) -> Result<Self, String> {
        let damaged = |reason: &dyn std::fmt::Display| format!("holds a damaged certificate: {reason}");
        let (_, certificate) = X509Certificate::from_der(der.as_ref()).map_err(|reason| damaged(&reason))?;
        let names = certificate.subject_alternative_name().map_err(|reason| damaged(&reason))?;
        let purposes = certificate.extended_key_usage().map_err(|reason| damaged(&reason))?;
        Ok(Self {
            version: certificate.version().0 + 1,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            is_authority: certificate.is_ca(),
            names: names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect(),
            purposes: purposes.map(|purposes| Purposes {
                client: purposes.value.any || purposes.value.client_auth,
                server: purposes.value.any || purposes.value.server_auth,
            }),
        })
    }

    /// The fault of a certificate in a form that TLS does not accept.
    pub(crate) fn outdated_form(&self) -> Option<String> {
        (self.version != X509Version::V3.0 + 1).then(|| {
            format!(
                "holds an X.509 version {} certificate, and TLS requires version 3; issue it again with extensions, as \
                 docs/tls.md shows (openssl x509 -req makes version 1 without -extfile)",
                self.version
            )
        })
    }

    /// Why the certificate can never work for its holder.
    pub(crate) fn misfit(&self, holder: Holder) -> Option<String> {
        if holder == Holder::Client {
            return None;
        }
        if self.is_authority {
            return Some(
                "is the certificate of a CA, which clients do not accept from a server; issue one with \
                 basicConstraints CA:FALSE, as docs/tls.md shows"
                    .to_owned(),
            );
        }
        if self.names.is_empty() {
            return Some(
                "names no host: it has no subjectAltName, and clients check nothing else; issue it with the dialled \
                 addresses, as docs/tls.md shows"
                    .to_owned(),
            );
        }
        self.purposes.as_ref().is_some_and(|purposes| !purposes.server).then(|| {
            "is not for servers; issue it without extendedKeyUsage or with serverAuth in it".to_owned()
        })
    }

    /// Why the other side may refuse the certificate.
    pub(crate) fn doubts(&self, holder: Holder, now: SystemTime) -> Vec<String> {
        let untimely = self.untimely(now);
        let not_for_clients = holder == Holder::Client
            && (self.is_authority || self.purposes.as_ref().is_some_and(|purposes| !purposes.client));
        let purpose = not_for_clients.then(|| {
            "is not for clients; issue it with basicConstraints CA:FALSE and extendedKeyUsage clientAuth"
                .to_owned()
        });
        untimely.into_iter().chain(purpose).collect()
    }

    /// The text for a certificate that has expired or is not valid yet.
    pub(crate) fn untimely(&self, now: SystemTime) -> Option<String> {
        let now = seconds(now);
        if now > self.not_after {
            Some(format!("expired on {} (it is {} here)", utc(self.not_after), utc(now)))
        } else if now < self.not_before {
            Some(format!(
                "is not valid before {} (it is {} here; is the clock right?)",
                utc(self.not_before),
                utc(now)
            ))
        } else {
            None
        }
    }
}

/// A name that clients can dial.
fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        },
        _ => None,
    }
}
