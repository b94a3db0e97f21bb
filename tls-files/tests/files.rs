//! Files that cannot be used are named with their fault.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flan_tls_files::{Authorities, Holder, Identity};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P384_SHA384, date_time_ymd,
};

/// Made by `openssl x509 -req` without `-extfile`. Its key does not exist.
const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBGjCBwQIUbmGl4VQgXLXjQiKkb4kDMa8y+M0wCgYIKoZIzj0EAwIwDzENMAsG
A1UEAwwEaG9zdDAgFw0yNjExMjcxMzUzMTJaGA8yMTI2MTEwMzEzNTMxMlowDzEN
MAsGA1UEAwwEaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABFnd2dKutTLc
xhQ3Cin25x/RshZeK44J/M+YSWYhYaw2gV+Gc8cXmj/obqdrtZtYsCZ6eUl/r+eF
4e9JL62ZsAkwCgYIKoZIzj0EAwIDSAAwRQIhANzYsg/Nebbdrp5bBT6uV/+6ugq8
CgUWJTBnFURDBSanAiBFmAYksBcyzVlMnq4tsLeC5KpmOeJ9xw+q+3ybLMGn9g==
-----END CERTIFICATE-----
";

/// A directory with a CA, `ca.pem`, and the certificates that it issued.
struct Site {
    dir: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Site {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let site = Self { dir: tempfile::tempdir().unwrap(), ca };
        site.write("ca.pem", &site.ca.pem());
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Issues `NAME.pem` with `NAME-key.pem`.
    fn issue(&self, name: &str, params: &CertificateParams) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        [
            self.write(&format!("{name}.pem"), &certificate.pem()),
            self.write(&format!("{name}-key.pem"), &key.serialize_pem()),
        ]
    }
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

fn client(certificate: &Path, key: &Path) -> Result<Identity, String> {
    Identity::load(Holder::Client, certificate, key, SystemTime::now()).map_err(|bad| bad.to_string())
}

fn store(certificate: &Path, key: &Path) -> Result<Identity, String> {
    Identity::load(Holder::Store, certificate, key, SystemTime::now()).map_err(|bad| bad.to_string())
}

fn authorities(path: &Path) -> Result<Authorities, String> {
    Authorities::load(path, SystemTime::now()).map_err(|bad| bad.to_string())
}

#[test]
fn files_that_fit_are_taken() {
    let site = Site::new();
    let [certificate, key] = site.issue("host", &params(&["localhost", "127.0.0.1", "fd00::1"]));
    let identity = store(&certificate, &key).unwrap();
    assert_eq!(identity.names, ["localhost", "127.0.0.1", "fd00::1"]);
    assert!(identity.doubts.is_empty(), "{:?}", identity.doubts);
    assert!(client(&certificate, &key).unwrap().doubts.is_empty());
    assert!(authorities(&site.path("ca.pem")).unwrap().doubts.is_empty());
}

#[test]
fn a_certificate_of_version_1_is_named_and_not_blamed_on_the_other_side() {
    let site = Site::new();
    let [_, key] = site.issue("host", &params(&["localhost"]));
    let old = site.write("old.pem", VERSION_1);
    let refusal = client(&old, &key).unwrap_err();
    let named = format!("the client certificate {} holds an X.509 version 1 certificate", old.display());
    assert!(refusal.starts_with(&named), "{refusal}");
    assert!(refusal.contains("docs/tls.md"), "{refusal}");
    assert!(store(&old, &key).unwrap_err().contains("X.509 version 1"));
    // TLS accepts it as a CA.
    assert!(authorities(&old).is_ok());
}

#[test]
fn a_file_in_the_place_of_another_is_named_with_what_it_holds() {
    let site = Site::new();
    let [certificate, key] = site.issue("host", &params(&["localhost"]));
    assert_eq!(
        client(&key, &key).unwrap_err(),
        format!("the client certificate {} holds a private key, but no certificate", key.display())
    );
    assert_eq!(
        client(&certificate, &certificate).unwrap_err(),
        format!("the client key {} holds a certificate, but no private key", certificate.display())
    );
    assert_eq!(
        authorities(&key).unwrap_err(),
        format!("the CA file {} holds a private key, but no certificate", key.display())
    );
}

#[test]
fn files_that_hold_nothing_of_use_are_told_apart() {
    let site = Site::new();
    let [certificate, key] = site.issue("host", &params(&["localhost"]));
    let empty = site.write("empty.pem", "\n");
    assert!(client(&empty, &key).unwrap_err().ends_with("empty.pem is empty"));
    assert!(store(&certificate, &empty).unwrap_err().ends_with("empty.pem is empty"));
    let words = site.write("words.pem", "no certificate at all\n");
    assert!(authorities(&words).unwrap_err().ends_with("words.pem holds no certificate in PEM form"));
    let der = site.path("host.der");
    fs::write(&der, [0x30, 0x82, 0x01, 0x00]).unwrap();
    assert!(
        client(&der, &key)
            .unwrap_err()
            .contains("is in DER form; expected PEM; convert it with openssl x509 -inform der")
    );
    let torn = site.write("torn.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    assert!(authorities(&torn).unwrap_err().contains("holds a damaged certificate"));
    assert!(client(&torn, &key).unwrap_err().contains("holds a damaged certificate"));
    let missing = site.path("missing.pem");
    let refusal = Identity::load(Holder::Client, &missing, &key, SystemTime::now()).unwrap_err();
    let text =
        format!("the client certificate {} cannot be read: No such file or directory", missing.display());
    assert!(refusal.to_string().starts_with(&text), "{refusal}");
    assert!(!refusal.is_forbidden());
}

#[test]
fn a_key_of_another_certificate_is_named_with_it() {
    let site = Site::new();
    let [one, key] = site.issue("one", &params(&["localhost"]));
    let [other, _] = site.issue("other", &params(&["localhost"]));
    assert_eq!(
        store(&other, &key).unwrap_err(),
        format!("the store's key {} does not belong to the certificate {}", key.display(), other.display())
    );
    let both = fs::read_to_string(&other).unwrap() + &fs::read_to_string(&one).unwrap();
    let refusal = client(&site.write("both.pem", &both), &key).unwrap_err();
    assert!(refusal.contains("both.pem does not begin with the certificate of its key"), "{refusal}");
}

#[test]
fn a_key_that_nobody_can_use_is_named_with_what_would_work() {
    let site = Site::new();
    let [certificate, _] = site.issue("host", &params(&["localhost"]));
    for locked in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIB\n-----END RSA PRIVATE KEY-----\n",
    ] {
        let refusal = client(&certificate, &site.write("locked.pem", locked)).unwrap_err();
        assert!(refusal.contains("is protected by a passphrase"), "{refusal}");
    }
    let damaged = site.write("bad.pem", "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n");
    let refusal = client(&certificate, &damaged).unwrap_err();
    assert!(refusal.contains("expected RSA of 2048 to 8192 bits"), "{refusal}");
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let signed = params(&["localhost"]).signed_by(&p384, &site.ca).unwrap();
    let [certificate, key] =
        [site.write("p384.pem", &signed.pem()), site.write("p384-key.pem", &p384.serialize_pem())];
    assert!(client(&certificate, &key).is_ok());
}

#[test]
fn expired_certificates_are_doubted_with_their_dates() {
    let site = Site::new();
    let mut past = params(&["localhost"]);
    (past.not_before, past.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 3, 4));
    let [certificate, key] = site.issue("past", &past);
    let day = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_784_475);
    let identity = Identity::load(Holder::Client, &certificate, &key, day).unwrap();
    assert_eq!(
        identity.doubts,
        [format!(
            "the client certificate {} expired on 2021-03-04 00:00 UTC (it is 2026-11-27 13:01 UTC here)",
            certificate.display()
        )]
    );
    let early = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let doubts = Identity::load(Holder::Store, &certificate, &key, early).unwrap().doubts;
    assert!(
        doubts[0].contains("is not valid before 2020-01-01 00:00 UTC (it is 2001-09-09 01:46 UTC here"),
        "{doubts:?}"
    );
    let doubts = Authorities::load(&certificate, day).unwrap().doubts;
    assert!(doubts[0].contains("expired on 2021-03-04"), "{doubts:?}");
}

#[test]
fn a_certificate_that_no_client_accepts_from_a_server_is_refused_for_a_store() {
    let site = Site::new();
    let mut authority = params(&["localhost"]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut for_clients = params(&["localhost"]);
    for_clients.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (name, params, fault) in [
        ("authority", authority, "is the certificate of a CA"),
        ("nameless", params(&[]), "names no host: it has no subjectAltName"),
        ("for-clients", for_clients, "is not for servers"),
    ] {
        let [certificate, key] = site.issue(name, &params);
        let refusal = store(&certificate, &key).unwrap_err();
        assert!(refusal.contains(fault), "{refusal}");
        assert!(client(&certificate, &key).is_ok(), "{name}");
    }
    let mut for_servers = params(&["localhost"]);
    for_servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let [certificate, key] = site.issue("for-servers", &for_servers);
    assert!(store(&certificate, &key).unwrap().doubts.is_empty());
    let doubts = client(&certificate, &key).unwrap().doubts;
    assert!(doubts[0].contains("is not for clients; issue it with"), "{doubts:?}");
}
