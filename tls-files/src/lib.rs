//! Reads certificates and keys on this host, in PEM form. Checks them, and names those that cannot work.
//!
//! If one of our files is bad, TLS reports a failed connection, often in words that blame the other side. So we check
//! our files before we dial or serve. This crate opens no connection.

mod certificate;
mod holder;
mod pem;
mod time;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};

use crate::certificate::Certificate;
pub use crate::holder::Holder;
pub use crate::time::utc;

/// A usable certificate and its key.
#[derive(Clone)]
pub struct Identity {
    /// The certificate with its intermediate certificates, in PEM form.
    pub certificate: Vec<u8>,
    /// The key, in PEM form.
    pub key: Vec<u8>,
    /// The host names and IP addresses of the certificate.
    pub names: Vec<String>,
    /// Reasons why the other side may refuse it, each a sentence that names the file.
    pub doubts: Vec<String>,
}

/// Usable CA certificates.
#[derive(Clone)]
pub struct Authorities {
    /// The certificates, in PEM form.
    pub pem: Vec<u8>,
    /// Reasons why they may not work, each a sentence that names the file.
    pub doubts: Vec<String>,
}

/// A file that cannot be used. Displayed as `the client key /etc/flan/key.pem is empty`.
#[derive(Debug)]
pub struct BadFile {
    /// What the file should be: `the client key`.
    what: &'static str,
    path: PathBuf,
    fault: Fault,
}

/// The fault of a file.
#[derive(Debug)]
enum Fault {
    Unreadable(io::Error),
    /// The rest of a sentence that begins with the file.
    Unusable(String),
}

impl Identity {
    /// Reads a certificate and its key, and checks that TLS can use them. A certificate that has expired at `now` is a
    /// doubt, not a fault: the other side has its own clock, and somebody may renew the file.
    ///
    /// # Errors
    /// [`BadFile`] for the first file that cannot be used.
    pub fn load(holder: Holder, certificate: &Path, key: &Path, now: SystemTime) -> Result<Self, BadFile> {
        let (certificate, key) = match holder {
            Holder::Client => {
                (File::new("the client certificate", certificate), File::new("the client key", key))
            }
            Holder::Store => {
                (File::new("the store's certificate", certificate), File::new("the store's key", key))
            }
        };
        let certificate_pem = certificate.read()?;
        let key_pem = key.read()?;
        let chain = pem::certificates(&certificate_pem).map_err(|fault| certificate.unusable(fault))?;
        let leaf = certificate.leaf(&chain, holder)?;
        let private = pem::key(&key_pem, key.path).map_err(|fault| key.unusable(fault))?;
        matching(certificate, &chain, key, &private)?;
        let doubts =
            leaf.doubts(holder, now).into_iter().map(|doubt| format!("{certificate} {doubt}")).collect();
        let names = leaf.names;
        Ok(Self { certificate: certificate_pem, key: key_pem, names, doubts })
    }
}

impl Authorities {
    /// Reads CA certificates, and checks that TLS can use at least one.
    ///
    /// # Errors
    /// [`BadFile`] if it cannot.
    pub fn load(path: &Path, now: SystemTime) -> Result<Self, BadFile> {
        let file = File::new("the CA file", path);
        let pem = file.read()?;
        let certificates = pem::certificates(&pem).map_err(|fault| file.unusable(fault))?;
        let (_, ignored) = RootCertStore::empty().add_parsable_certificates(certificates.iter().cloned());
        if ignored == certificates.len() {
            return Err(file.unusable("holds a damaged certificate".to_owned()));
        }
        // TLS accepts a CA of version 1. Details that cannot be read here are left to TLS.
        let read: Vec<_> = certificates.iter().filter_map(|der| Certificate::read(der).ok()).collect();
        let ends: Vec<_> = read.iter().filter_map(|certificate| certificate.untimely(now)).collect();
        let doubts = match ends.first() {
            Some(end) if ends.len() == certificates.len() => vec![format!("{file} {end}")],
            _ => Vec::new(),
        };
        Ok(Self { pem, doubts })
    }
}

impl BadFile {
    /// Whether this user lacks permission to read the file. Another user may have it.
    pub fn is_forbidden(&self) -> bool {
        matches!(&self.fault, Fault::Unreadable(reason) if reason.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.what, self.path.display())?;
        match &self.fault {
            Fault::Unreadable(reason) => write!(f, "cannot be read: {reason}"),
            Fault::Unusable(fault) => f.write_str(fault),
        }
    }
}

impl std::error::Error for BadFile {}

/// Shows neither file, because one holds a key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("names", &self.names).finish_non_exhaustive()
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").finish_non_exhaustive()
    }
}

/// A file, and what it should be.
#[derive(Clone, Copy)]
struct File<'a> {
    what: &'static str,
    path: &'a Path,
}

impl<'a> File<'a> {
    fn new(what: &'static str, path: &'a Path) -> Self {
        Self { what, path }
    }

    fn read(&self) -> Result<Vec<u8>, BadFile> {
        std::fs::read(self.path).map_err(|reason| self.bad(Fault::Unreadable(reason)))
    }

    fn bad(&self, fault: Fault) -> BadFile {
        BadFile { what: self.what, path: self.path.to_owned(), fault }
    }

    fn unusable(&self, fault: String) -> BadFile {
        self.bad(Fault::Unusable(fault))
    }

    /// The first certificate of a chain, which belongs to the holder.
    fn leaf(&self, chain: &[CertificateDer<'_>], holder: Holder) -> Result<Certificate, BadFile> {
        let chain: Vec<Certificate> = chain
            .iter()
            .map(Certificate::read)
            .collect::<Result<_, String>>()
            .map_err(|fault| self.unusable(fault))?;
        let fault = chain.iter().find_map(Certificate::outdated_form);
        let leaf = chain.into_iter().next().ok_or_else(|| self.unusable("is empty".to_owned()))?;
        match fault.or_else(|| leaf.misfit(holder)) {
            Some(fault) => Err(self.unusable(fault)),
            None => Ok(leaf),
        }
    }
}

impl fmt::Display for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.path.display())
    }
}

/// Checks that the key belongs to the first certificate.
fn matching(
    certificate: File<'_>,
    chain: &[CertificateDer<'static>],
    key: File<'_>,
    private: &PrivateKeyDer<'static>,
) -> Result<(), BadFile> {
    let signing = any_supported_type(private).map_err(|_| {
        let kinds = "RSA of 2048 to 8192 bits, ECDSA of P-256 or P-384, or Ed25519";
        key.unusable(format!("is of a kind that is not supported; expected {kinds}"))
    })?;
    let fits =
        |chain: &[CertificateDer<'static>]| CertifiedKey::new(chain.to_vec(), signing.clone()).keys_match();
    match fits(chain) {
        // Without the public half of the key, a comparison is impossible.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(Error::InconsistentKeys(_)) if (1..chain.len()).any(|at| fits(&chain[at..]).is_ok()) => {
            Err(certificate.unusable(
                "does not begin with the certificate of its key; put that certificate first, then the intermediate CAs"
                    .to_owned(),
            ))
        }
        Err(Error::InconsistentKeys(_)) => {
            Err(key.unusable(format!("does not belong to the certificate {}", certificate.path.display())))
        }
        Err(reason) => {
            Err(certificate.unusable(format!("holds a certificate that TLS cannot use: {reason}")))
        }
    }
}
