//! Clients that a store with TLS refuses, and what its log says.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

const LIMIT: Duration = Duration::from_secs(10);

/// A store that requires client certificates, and its log.
struct Store {
    process: Child,
    url: String,
    lines: mpsc::Receiver<String>,
}

impl Store {
    fn start(dir: &Path, authority: &Authority) -> Self {
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (certificate, key) = authority.give_out(None);
        let mut command = Command::new(env!("CARGO_BIN_EXE_fland"));
        command.args(["store", "--listen-client-urls=https://127.0.0.1:0"]);
        command.args(["--cert-file", &file("cert.pem", &certificate), "--key-file", &file("key.pem", &key)]);
        command.args(["--trusted-ca-file", &file("ca.pem", &authority.0.pem())]);
        command.arg("--data-dir").arg(dir.join("store")).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let said = BufReader::new(process.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut store = Self { process, url: String::new(), lines };
        let line = store.line_with("serving the store");
        let url = &line[line.find("https://127.0.0.1:").unwrap()..];
        let end = url.find(|c: char| !c.is_ascii_alphanumeric() && !":/.".contains(c));
        store.url = url[..end.unwrap_or(url.len())].to_owned();
        store
    }

    fn line_with(&self, text: &str) -> String {
        let (start, mut seen) = (Instant::now(), Vec::new());
        while let Ok(line) = self.lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line with {text:?}: {seen:#?}");
    }

    async fn ask(&self, tls: TlsOptions) -> Result<(), etcd_client::Error> {
        let options = ConnectOptions::new().with_tls(tls);
        let asked = async {
            let mut client = Client::connect([&self.url], Some(options)).await?;
            client.get("key", None).await.map(drop)
        };
        tokio::time::timeout(LIMIT, asked).await.expect("an answer or a refusal")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Issues a certificate for loopback, for any or one purpose, with its key.
    fn give_out(&self, purpose: Option<ExtendedKeyUsagePurpose>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = purpose.into_iter().collect();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_is_told_of_in_the_log_with_its_address_and_the_reason_once() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let store = Store::start(dir.path(), &authority);
    let required = format!("one of a CA in {} is required", dir.path().join("ca.pem").display());
    let trusting =
        |authority: &Authority| TlsOptions::new().ca_certificate(Certificate::from_pem(authority.0.pem()));
    let with = |(certificate, key)| trusting(&authority).identity(Identity::from_pem(certificate, key));

    for _ in 0..3 {
        store.ask(trusting(&authority)).await.unwrap_err();
    }
    let line = store.line_with("refused the TLS handshake of a client");
    assert!(line.contains("WARN") && line.contains("client=127.0.0.1"), "{line}");
    assert!(line.contains(&format!("it shows no certificate; {required}")), "{line}");

    // The next such line is about the next client, because repetitions are omitted.
    let next = || store.line_with("refused the TLS handshake of a client");
    store.ask(with(stranger.give_out(None))).await.unwrap_err();
    let line = next();
    assert!(line.contains(&format!("its certificate is signed by another CA; {required}")), "{line}");
    store.ask(with(authority.give_out(Some(ExtendedKeyUsagePurpose::ServerAuth)))).await.unwrap_err();
    let line = next();
    assert!(line.contains("its certificate is not for clients"), "{line}");
    store.ask(trusting(&stranger)).await.unwrap_err();
    let line = next();
    assert!(line.contains("it refuses the store's certificate"), "{line}");
    let mut plain = TcpStream::connect(store.url.trim_start_matches("https://")).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\n\r\n").unwrap();
    let line = next();
    assert!(line.contains("what it says is not TLS"), "{line}");

    store.ask(with(authority.give_out(None))).await.unwrap();
}
