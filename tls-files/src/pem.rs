//! The contents of a file, by the labels of its PEM blocks.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates in a file, at least one. The error continues a sentence that begins with the file.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if !has(pem, "CERTIFICATE") {
        return Err(something_else(pem, "certificate", "openssl x509 -inform der"));
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("holds a damaged certificate".to_owned()),
    }
}

/// The first private key in a file. The error continues a sentence that begins with the file.
pub(crate) fn key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    if has(pem, "ENCRYPTED PRIVATE KEY") || contains(pem, "Proc-Type: 4,ENCRYPTED") {
        return Err(format!(
            "is protected by a passphrase, which nobody can type here; remove it: openssl pkey -in {0} -out {0}.plain",
            path.display()
        ));
    }
    if !labels(pem).any(|label| label.ends_with("PRIVATE KEY")) {
        return Err(something_else(pem, "private key", "openssl pkey -inform der"));
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| "holds a damaged private key".to_owned())
}

fn something_else(content: &[u8], wanted: &str, from_der: &str) -> String {
    if content.iter().all(u8::is_ascii_whitespace) {
        return "is empty".to_owned();
    }
    // In DER, both begin with a sequence whose length has two bytes.
    if content.starts_with(&[0x30, 0x82]) {
        return format!("is in DER form; expected PEM; convert it with {from_der}");
    }
    let held = labels(content).next().map(|label| match label {
        label if label.ends_with("PRIVATE KEY") => "a private key".to_owned(),
        "CERTIFICATE" => "a certificate".to_owned(),
        "CERTIFICATE REQUEST" => "a request for a certificate".to_owned(),
        label => label.to_owned(),
    });
    match held {
        Some(held) => format!("holds {held}, but no {wanted}"),
        None => format!("holds no {wanted} in PEM form"),
    }
}

fn has(pem: &[u8], label: &str) -> bool {
    labels(pem).any(|held| held == label)
}

/// The labels of the PEM blocks, such as `CERTIFICATE`.
fn labels(pem: &[u8]) -> impl Iterator<Item = &str> {
    pem.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = std::str::from_utf8(line.trim_ascii()).ok()?;
        line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")
    })
}

fn contains(content: &[u8], words: &str) -> bool {
    content.windows(words.len()).any(|window| window == words.as_bytes())
}
