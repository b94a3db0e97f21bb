//! The messages for TLS problems: each test serves a store with certificates that do not fit, and dials it.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use flan_embedded_store::{Running, Settings, TlsFiles};
use flan_subnet_lease::{Cause, Credentials, Store, StoreConfig, StoreError, Unanswered};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio::io::AsyncWriteExt;

/// A directory with a CA, `NAME.pem`, and what it issues.
struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    pem: PathBuf,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pem = dir.path().join("ca.pem");
        fs::write(&pem, issuer.pem()).unwrap();
        Self { dir, issuer, pem }
    }

    /// Issues a certificate; returns its file and that of its key.
    fn issue(&self, name: &str, params: &CertificateParams) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = ["", "-key"].map(|part| self.dir.path().join(format!("{name}{part}.pem")));
        fs::write(&files[0], certificate.pem()).unwrap();
        fs::write(&files[1], key.serialize_pem()).unwrap();
        files
    }
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

fn loopback() -> CertificateParams {
    params(&["127.0.0.1", "localhost"])
}

struct Served {
    running: Running,
    _data: tempfile::TempDir,
}

impl Served {
    fn url(&self) -> String {
        self.running.client_urls()[0].clone()
    }
}

/// Starts a store with this certificate and key that requires client certificates signed by `clients`.
async fn served(identity: Option<[PathBuf; 2]>, clients: Option<&Authority>) -> Served {
    let data = tempfile::tempdir().unwrap();
    let scheme = if identity.is_some() { "https" } else { "http" };
    let tls = identity.map(|[certificate, key]| TlsFiles {
        certificate,
        key,
        client_authorities: clients.map(|clients| clients.pem.clone()),
    });
    let running = flan_embedded_store::start(Settings {
        data_dir: data.path().to_owned(),
        listen: vec![format!("{scheme}://127.0.0.1:0").parse().unwrap()],
        tls,
        insecure: false,
        retention: Duration::from_secs(3600),
    })
    .await
    .unwrap();
    Served { running, _data: data }
}

fn credentials(authority: &Authority, identity: Option<[PathBuf; 2]>) -> Credentials {
    let [cert_file, key_file] = match identity {
        Some(identity) => identity.map(Some),
        None => [None, None],
    };
    Credentials { ca_file: Some(authority.pem.clone()), cert_file, key_file, user: None }
}

fn client(url: &str, credentials: Credentials) -> Store {
    Store::new(StoreConfig {
        endpoints: vec![url.parse().unwrap()],
        prefix: "/coreos.com/network".to_owned(),
        credentials,
    })
    .unwrap()
}

/// What became of the first request to this URL.
async fn asked(url: &str, credentials: Credentials) -> Result<(), Unanswered> {
    match client(url, credentials).config().await {
        Ok(_) => Ok(()),
        Err(StoreError::Unreachable(unanswered)) => Err(unanswered.into_iter().next().unwrap()),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn certificates_that_fit_reach_the_store() {
    let ca = Authority::new("site");
    let store = served(Some(ca.issue("store", &loopback())), Some(&ca)).await;
    asked(&store.url(), credentials(&ca, Some(ca.issue("client", &loopback())))).await.unwrap();
}

#[tokio::test]
async fn certificates_replaced_under_a_running_client_count_from_its_next_connection() {
    let (ca, other) = (Authority::new("site"), Authority::new("elsewhere"));
    let store = served(Some(ca.issue("store", &loopback())), Some(&ca)).await;
    let client_files = other.issue("client", &loopback());
    let client = client(&store.url(), credentials(&other, Some(client_files.clone())));
    let refused = client.config().await.unwrap_err().to_string();
    assert!(refused.contains("is not signed by a CA in"), "{refused}");

    fs::copy(&ca.pem, &other.pem).unwrap();
    let refused = client.config().await.unwrap_err().to_string();
    assert!(refused.contains("it refuses our client certificate"), "{refused}");

    for (file, to) in ca.issue("client", &loopback()).iter().zip(&client_files) {
        fs::copy(file, to).unwrap();
    }
    assert_eq!(client.config().await.unwrap(), None);
}

#[tokio::test]
async fn an_unknown_ca_is_named_with_the_file_that_lacks_it() {
    let (ca, other) = (Authority::new("site"), Authority::new("elsewhere"));
    let store = served(Some(ca.issue("store", &loopback())), None).await;
    let answer = asked(&store.url(), credentials(&other, None)).await.unwrap_err();
    assert_eq!(answer.reason, format!("its certificate is not signed by a CA in {}", other.pem.display()));
    assert!(answer.remedy.unwrap().contains("--etcd-cafile"));
    assert_eq!(answer.cause, Cause::NoUnderstanding);
    // A recreated CA has the name of the old one.
    let again = Authority::new("site");
    let answer = asked(&store.url(), credentials(&again, None)).await.unwrap_err();
    assert!(answer.reason.contains("is not signed by the CA of that name in"), "{answer}");
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_told_with_dates() {
    let ca = Authority::new("site");
    let mut past = loopback();
    (past.not_before, past.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 3, 4));
    let mut future = loopback();
    (future.not_before, future.not_after) = (date_time_ymd(2190, 1, 1), date_time_ymd(2191, 1, 1));
    for (name, params, reason, remedy) in [
        ("past", past, "its certificate expired on 2021-03-04 00:00 UTC (it is 20", "renew"),
        (
            "future",
            future,
            "its certificate is not valid before 2190-01-01 00:00 UTC (it is 20",
            "check the clocks",
        ),
    ] {
        let store = served(Some(ca.issue(name, &params)), None).await;
        let answer = asked(&store.url(), credentials(&ca, None)).await.unwrap_err();
        assert!(answer.reason.starts_with(reason), "{answer}");
        assert!(answer.remedy.unwrap().starts_with(remedy));
    }
}

#[tokio::test]
async fn a_certificate_for_other_names_is_told_with_them_and_with_the_one_dialled() {
    let ca = Authority::new("site");
    let store =
        served(Some(ca.issue("store", &params(&["store.example", "10.0.0.2", "fd00::2"]))), None).await;
    let answer = asked(&store.url(), credentials(&ca, None)).await.unwrap_err();
    assert_eq!(
        answer.reason,
        "its certificate is for store.example, 10.0.0.2, fd00::2, but we dial 127.0.0.1"
    );
    assert!(answer.remedy.unwrap().starts_with("issue it with 127.0.0.1 in subjectAltName"));
}

#[tokio::test]
async fn a_store_that_demands_a_certificate_says_so() {
    let ca = Authority::new("site");
    let store = served(Some(ca.issue("store", &loopback())), Some(&ca)).await;
    let answer = asked(&store.url(), credentials(&ca, None)).await.unwrap_err();
    assert!(answer.to_string().contains("demand"), "{answer}");
    assert!(answer.remedy.unwrap().contains("--etcd-certfile and --etcd-keyfile"));
}

#[tokio::test]
async fn a_store_that_refuses_our_certificate_is_told_with_our_file() {
    let (ca, other) = (Authority::new("site"), Authority::new("elsewhere"));
    let store = served(Some(ca.issue("store", &loopback())), Some(&ca)).await;
    let mut past = loopback();
    (past.not_before, past.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 3, 4));
    let [foreign, expired] = [other.issue("foreign", &loopback()), ca.issue("expired", &past)];
    for (identity, why) in
        [(foreign, "it does not know the CA that signed it"), (expired, "expired on 2021-03-04 00:00 UTC")]
    {
        let file = identity[0].display().to_string();
        let answer = asked(&store.url(), credentials(&ca, Some(identity))).await.unwrap_err();
        assert!(
            answer.reason.starts_with(&format!("it refuses our client certificate {file}: ")),
            "{answer}"
        );
        assert!(answer.reason.contains(why), "{answer}");
    }
}

#[tokio::test]
async fn a_port_that_speaks_no_tls_is_told_so_and_the_other_way_round() {
    let ca = Authority::new("site");
    let plain = served(None, None).await;
    let url = plain.url().replace("http://", "https://");
    let answer = asked(&url, credentials(&ca, None)).await.unwrap_err();
    assert_eq!(
        answer.remedy.clone().unwrap(),
        format!("does it speak TLS? If not, give {}", plain.url()),
        "{answer}"
    );

    let tls = served(Some(ca.issue("store", &loopback())), None).await;
    let answer = asked(&tls.url().replace("https://", "http://"), Credentials::default()).await.unwrap_err();
    assert_eq!(
        answer.remedy.clone().unwrap(),
        format!("does it speak TLS? Then give {}", tls.url()),
        "{answer}"
    );
}

#[tokio::test]
async fn a_port_of_something_else_is_told_so() {
    let ca = Authority::new("site");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n").await;
        }
    });
    let answer = asked(&url, credentials(&ca, None)).await.unwrap_err();
    assert!(answer.remedy.clone().unwrap().starts_with("does it speak TLS?"), "{answer}");
    assert_eq!(answer.cause, Cause::NoUnderstanding);
}
